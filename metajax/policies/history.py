"""What policies may know of an episode: a recurrent summary of its last steps.

The summary starts from nothing a fixed number of steps back, so it can be had again for any step
that is remembered with those before it, exactly as when the agent acted.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped

from metajax._checks import checked
from metajax.errors import check_at_least
from metajax.policies.layers import action_input
from metajax.policies.recurrent import gru_network
from metajax.types import ActionSpace, Discrete, Params, StepInput, pytree_dataclass


@pytree_dataclass
class Recent:
    """The last inputs of an episode, `[*batch, recent, ...]`, the newest last.

    Attributes:
        observation: at each step.
        previous_action: of the step before, 0 at the first step of an episode.
        previous_reward: likewise.
        known: there was such a step.
    """

    observation: Float[Array, "*batch recent observation"]
    previous_action: Shaped[Array, "..."]
    previous_reward: Float[Array, "*batch recent"]
    known: Bool[Array, "*batch recent"]


class HistoryEncoder(NamedTuple):
    """A network from the last inputs of an episode to a context.

    - `init(key) -> params`;
    - `initial_memory() -> recent`: before anything is known;
    - `remember(recent, step_input) -> recent`: with the newest input in place of the oldest; at the
      first step of an episode nothing before it is known;
    - `encode(params, recent) -> context[context]`, of as many inputs as are given;
    - `history`: steps before the newest one that are kept;
    - `width`: numbers in a context.
    """

    init: Callable[[Key[Array, ""]], Params]
    initial_memory: Callable[[], Recent]
    remember: Callable[[Recent, StepInput], Recent]
    encode: Callable[[Params, Recent], Float[Array, "context"]]
    history: int
    width: int


@checked
def history_encoder(
    observation_size: int, action_space: ActionSpace, *, width: int, history: int
) -> HistoryEncoder:
    """Return gated recurrent units over (observation, action before, reward before).

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's; of discrete actions one-hot vectors are seen.
        width: units, and numbers in a context.
        history: steps before the newest one that they see, within an episode.

    Raises:
        MetajaxError: an option is out of range.
    """
    check_at_least(1, observation_size=observation_size)
    check_at_least(0, history=history)
    discrete, size, kept = isinstance(action_space, Discrete), action_space.size, history + 1
    network = gru_network(width)(observation_size + size + 1)

    def initial_memory() -> Recent:
        action = jnp.zeros(kept, jnp.int32) if discrete else jnp.zeros((kept, size))
        observation = jnp.zeros((kept, observation_size))
        return Recent(observation, action, jnp.zeros(kept), jnp.zeros(kept, bool))

    def remember(recent: Recent, x: StepInput) -> Recent:
        first = x.previous_end
        action, reward = (
            jnp.where(first, jnp.zeros_like(of), of)
            for of in (x.previous_action, x.previous_reward)
        )
        known = recent.known & ~first[None]
        newest = Recent(x.observation, action, reward, jnp.ones((), bool))
        append = lambda old, new: jnp.concatenate([old[1:], new[None]])
        return jax.tree.map(append, dataclasses.replace(recent, known=known), newest)

    def encode(params, recent: Recent):
        action = action_input(action_space, recent.previous_action)
        x = jnp.concatenate([recent.observation, action, recent.previous_reward[:, None]], axis=-1)

        def advance(context, step):
            x, known = step
            return jnp.where(known, network.step(params, context, x)[1], context), None

        return jax.lax.scan(advance, network.initial_memory(), (x, recent.known))[0]

    return HistoryEncoder(network.init, initial_memory, remember, encode, history, width)
