"""What is done to a policy's actions while experience is collected for it, as parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

from metajax._kinks import within
from metajax.envs.rollouts import Act
from metajax.errors import check_fraction, check_positive
from metajax.parts import part
from metajax.policies.squashed import box_of, like
from metajax.steps import share_of
from metajax.types import Discrete, Env, Memory, Part, Policy, Scalar


class Exploration(NamedTuple):
    """How actions are changed.

    - `init(key) -> strength`: at the start of a trial, of this trial alone;
    - `explore(strength, action, time, taken, key) -> action`: at a share `time` of the trial, after
      `taken` environment steps of the training, as `TrainState.environment_steps` counts them.
    """

    init: Callable[[Key[Array, ""]], Any]
    explore: Callable[[Any, Array, Float[Array, ""], UInt32[Array, "2"], Key[Array, ""]], Array]


def exploring(
    exploration: Exploration,
    act: Act,
    memory: Memory,
    length: int,
    taken: UInt32[Array, "2"],
    key: Key[Array, ""],
) -> tuple[Act, Memory]:
    """Return how an agent acts that explores, and its memory at the start of a trial.

    Args:
        exploration: of its actions.
        act: how it acts otherwise.
        memory: at the start of a trial.
        length: environment steps of a trial.
        taken: environment steps before it.
        key: consumed.
    """

    def explore(carried, step_input, key):
        memory, strength, step = carried
        act_key, explore_key = jax.random.split(key)
        memory, action, output = act(memory, step_input, act_key)
        time = step.astype(jnp.result_type(float)) / length
        action = exploration.explore(strength, action, time, taken, explore_key)
        return (memory, strength, step + 1), action, output

    strength = exploration.init(key)
    return explore, (memory, strength, jnp.zeros((), jnp.int32))


@part
def bilevel(
    *,
    first_start: Scalar = 1.0,
    first_end: Scalar = 0.8,
    last_start: Scalar = 0.05,
    last_end: Scalar = 0.01,
    steps: Scalar = 1_000_000.0,
) -> Part[Exploration]:
    """Return exploration that falls within a trial and over the training (AMAGO's).

    With t the share of the trial and T that of `steps` so far, ε is linear in both:

        ε = u·((1 - t)·start(T) + t·end(T)), start(T) = (1 - T)·first_start + T·last_start

    and likewise end(T), with u uniform in [0, 1], one for each trial: some trials are hardly
    disturbed from the first one on. Of discrete actions ε is the probability of a uniformly drawn
    one; of continuous actions the standard deviation of normal noise, in halves of the distance
    between their bounds, to which they are clipped.

    Args:
        first_start: ε at the start of a trial, at the start of the training.
        first_end: ε at the end of a trial, at the start of the training.
        last_start: ε at the start of a trial, after `steps`.
        last_end: ε at the end of a trial, after `steps`.
        steps: environment steps, of all tasks together, over which ε falls.

    Raises:
        MetajaxError: an option is out of range; later, that continuous actions have no bounds.
    """
    check_fraction(first_start=first_start, first_end=first_end)
    check_fraction(last_start=last_start, last_end=last_end)
    check_positive(steps=steps)

    def epsilon_of(strength, time, taken):
        progress = share_of(taken, steps)
        between = lambda a, b, share: (1 - share) * a + share * b
        start = between(first_start, last_start, progress)
        end = between(first_end, last_end, progress)
        return strength * between(start, end, time)

    def build(env: Env, policy: Policy) -> Exploration:
        del policy
        space = env.action_space
        if isinstance(space, Discrete):

            def draw_some(strength, action, time, taken, key):
                which_key, action_key = jax.random.split(key)
                random = jax.random.uniform(which_key) < epsilon_of(strength, time, taken)
                other = jax.random.randint(action_key, (), 0, space.size, action.dtype)
                return jnp.where(random, other, action)

            return Exploration(jax.random.uniform, draw_some)
        center, half = box_of("bilevel exploration", space)

        def add_noise(strength, action, time, taken, key):
            middle, reach = like(action, center), like(action, half)
            noise = jax.random.normal(key, action.shape, action.dtype)
            noise *= epsilon_of(strength, time, taken).astype(action.dtype)
            return within(action + reach * noise, middle - reach, middle + reach)

        return Exploration(jax.random.uniform, add_noise)

    return Part(build)


EXPLORATIONS: dict[str, Callable[..., Part[Exploration]]] = {"bilevel": bilevel}
