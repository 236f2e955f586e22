"""Environments from three functions: how an episode starts, what a step does, what is seen."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from metajax._checks import checked
from metajax.errors import check_at_least
from metajax.types import ActionSpace, Env, EnvState, Task


class Moved(NamedTuple):
    """What one step leads to.

    Attributes:
        simulator: the new state of the simulator.
        reward: of this step.
        terminated: the task itself ended; False where it never does.
    """

    simulator: PyTree[Array]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""] | bool = False


@checked
def make_env(
    start: Callable[[Key[Array, ""], Task], PyTree[Array]],
    move: Callable[[PyTree[Array], Array, Task], Moved],
    observe: Callable[[PyTree[Array]], Float[Array, "observation"]],
    *,
    observation_size: int,
    action_space: ActionSpace,
    episode_length: int,
) -> Env:
    """Return the environment; time, truncation and the task are taken care of.

    Args:
        start: `(key, task) -> simulator`; what later steps draw needs a key kept in there.
        move: `(simulator, action, task) -> Moved`, with the action as the agent chose it.
        observe: `simulator -> observation`.
        observation_size: numbers in an observation.
        action_space: of the actions.
        episode_length: steps after which an episode is truncated, if it has not terminated.

    Raises:
        MetajaxError: an episode would have no step.
    """
    check_at_least(1, episode_length=episode_length)

    def reset(key: Key[Array, ""], task: Task) -> EnvState:
        simulator = start(key, task)
        observation = observe(simulator)
        return EnvState(
            observation=observation,
            reward=jnp.zeros((), observation.dtype),
            terminated=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
            time=jnp.zeros((), jnp.int32),
            task=task,
            simulator=simulator,
        )

    def step(state: EnvState, action: Array) -> EnvState:
        moved = move(state.simulator, action, state.task)
        terminated = jnp.asarray(moved.terminated, bool)
        time = state.time + 1
        observation = observe(moved.simulator)
        return EnvState(
            observation=observation,
            reward=jnp.asarray(moved.reward, observation.dtype),  # never weakly typed
            terminated=terminated,
            truncated=(time == episode_length) & ~terminated,
            time=time,
            task=state.task,
            simulator=moved.simulator,
        )

    return Env(reset, step, observation_size, action_space, episode_length)
