"""Environments from a few functions: how an episode starts, what a step does, what is observed.

`make_env` is for any simulator, `robot_env` for robots that walk, run or swim. All functions see
the task.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from metajax._checks import checked
from metajax.errors import MetajaxError, check_at_least, check_positive
from metajax.physics import Dynamics, Physics, PhysicsState, quaternion_addresses
from metajax.types import ActionSpace, Continuous, Env, EnvState, Task


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
    observe: Callable[[PyTree[Array], Task], Float[Array, "observation"]],
    *,
    observation_size: int,
    action_space: ActionSpace,
    episode_length: int,
    measure: Callable[[PyTree[Array], Task], dict[str, Array]] = lambda simulator, task: {},
) -> Env:
    """Return the environment; time, truncation and the task are taken care of.

    Args:
        start: `(key, task) -> simulator`; what later steps draw needs a key kept in there.
        move: `(simulator, action, task) -> Moved`, with the action as the agent chose it.
        observe: `(simulator, task) -> observation`.
        observation_size: numbers in an observation.
        action_space: of the actions.
        episode_length: steps after which an episode is truncated, if it has not terminated.
        measure: `(simulator, task) -> metrics`, numbers by name that no agent sees.

    Raises:
        MetajaxError: an episode would have no step.
    """
    check_at_least(1, episode_length=episode_length)

    def measured(simulator: PyTree[Array], task: Task, like: Array) -> dict[str, Array]:
        return {n: jnp.asarray(x, like.dtype) for n, x in measure(simulator, task).items()}

    def reset(key: Key[Array, ""], task: Task) -> EnvState:
        simulator = start(key, task)
        observation = observe(simulator, task)
        return EnvState(
            observation=observation,
            reward=jnp.zeros((), observation.dtype),
            terminated=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
            time=jnp.zeros((), jnp.int32),
            task=task,
            simulator=simulator,
            metrics=measured(simulator, task, observation),
        )

    def step(state: EnvState, action: Array) -> EnvState:
        moved = move(state.simulator, action, state.task)
        terminated = jnp.asarray(moved.terminated, bool)
        time = state.time + 1
        observation = observe(moved.simulator, state.task)
        return EnvState(
            observation=observation,
            reward=jnp.asarray(moved.reward, observation.dtype),  # never weakly typed
            terminated=terminated,
            truncated=(time == episode_length) & ~terminated,
            time=time,
            task=state.task,
            simulator=moved.simulator,
            metrics=measured(moved.simulator, state.task, observation),
        )

    return Env(reset, step, observation_size, action_space, episode_length)


Noise = Callable[[Key[Array, ""], Task, Physics], tuple[Float[Array, "nq"], Float[Array, "nv"]]]


def uniform_noise(size: float) -> Noise:
    """Return noise of U(-size, size) on positions and velocities (m, rad; per second)."""

    def draw(key: Key[Array, ""], task: Task, physics: Physics):
        del task
        keys = jax.random.split(key)
        sizes = (physics.model.nq, physics.model.nv)
        qpos, qvel = (
            jax.random.uniform(k, (n,), minval=-size, maxval=size)
            for k, n in zip(keys, sizes, strict=True)
        )
        return qpos, qvel

    return draw


def gymnasium_noise(size: float) -> Noise:
    """Return noise of U(-size, size) on positions and size·N(0, 1) on velocities."""

    def draw(key: Key[Array, ""], task: Task, physics: Physics):
        del task
        position_key, velocity_key = jax.random.split(key)
        shape = (physics.model.nq,)
        qpos = jax.random.uniform(position_key, shape, minval=-size, maxval=size)
        return qpos, size * jax.random.normal(velocity_key, (physics.model.nv,))

    return draw


def robot_env(
    physics: Physics,
    *,
    noise: Noise,
    observe: Callable[[Task, PhysicsState], Float[Array, "observation"]],
    reward: Callable[[Task, PhysicsState, PhysicsState, Float[Array, "nu"]], Float[Array, ""]],
    actions: Continuous,
    episode_length: int,
    healthy: Callable[[Task, PhysicsState], Bool[Array, ""]] | None = None,
    dynamics: Callable[[Task], Dynamics] = lambda task: {},
    measure: Callable[[Task, PhysicsState], dict[str, Array]] = lambda task, state: {},
    example: Task = None,
) -> Env:
    """Return the environment of a robot that starts about where its model stands.

    Args:
        physics: the robot.
        noise: `(key, task, physics) -> (qpos, qvel)`, added to the model's initial positions and
            to velocities of 0.
        observe: `(task, state) -> observation`.
        reward: `(task, state before, state after, control) -> reward`.
        actions: `to_control` makes the control of an action.
        episode_length: steps per episode.
        healthy: `(task, state) -> healthy`; the episode terminates where it is False. None if it
            never does.
        dynamics: of the task.
        measure: `(task, state) -> metrics`, numbers by name that no agent sees.
        example: a task, if `noise` or `observe` looks at it: its shapes say how long an
            observation is.

    Raises:
        MetajaxError: the functions look at the task, and there is no example of one.
    """

    quaternions = [slice(at, at + 4) for at, _ in quaternion_addresses(physics.model)]

    def start(key: Key[Array, ""], task: Task) -> PhysicsState:
        qpos, qvel = noise(key, task, physics)
        qpos = jnp.asarray(physics.default_qpos, qpos.dtype) + qpos
        for four in quaternions:
            qpos = qpos.at[four].divide(jnp.linalg.norm(qpos[four]))
        return physics.init(qpos, qvel)

    def move(before: PhysicsState, action: Float[Array, "nu"], task: Task) -> Moved:
        control = actions.to_control(action)
        after = physics.step(before, control, dynamics(task))
        terminated = False if healthy is None else ~healthy(task, after)
        return Moved(after, reward(task, before, after, control), terminated)

    def first(key: Key[Array, ""], task: Task) -> Float[Array, "observation"]:
        return observe(task, start(key, task))

    try:
        seen = jax.eval_shape(first, jax.random.key(0), example)
    except (TypeError, KeyError, AttributeError) as error:
        if example is not None:
            raise
        raise MetajaxError(
            f"the observation of an episode's start cannot be made without a task ({error}): give "
            "robot_env an example of one, example=distribution.sample(key)."
        ) from error
    return make_env(
        start,
        move,
        lambda state, task: observe(task, state),
        observation_size=seen.shape[0],
        action_space=actions,
        episode_length=episode_length,
        measure=lambda state, task: measure(task, state),
    )


def scaled_actions(physics: Physics, scale: float) -> Continuous:
    """Return actions that reach all of the range of every actuator, and no further.

    The control is the action times `scale` times the largest limit of any actuator (its unit, in
    N·m for a motor), clipped to the actuator's own range. With ranges ±1 it is `scale` times the
    action, clipped to ±1; with ranges [-2, 0.5] and [0, 3] and `scale` 1 the bounds of the actions
    are [-2/3, 1/6] and [0, 1], and the control is three times the clipped action.

    Args:
        physics: the robot.
        scale: the part of the largest limit that an action of 1 asks for.

    Raises:
        MetajaxError: an actuator has no range, there is none, or `scale` is not above 0.
    """
    check_positive(scale=scale)
    limits = physics.control_range
    unlimited = np.flatnonzero(~np.isfinite(limits).all(axis=1))
    if len(limits) == 0:
        raise MetajaxError("the model has no actuator, so there is nothing for actions to control.")
    if len(unlimited):
        owner = np.searchsorted(physics.model.actuator_ctrladr, unlimited[0], side="right") - 1
        name = physics.model.actuator(int(owner)).name or f"number {owner}"
        raise MetajaxError(
            f"actuator {name!r} has no range of controls, which bounds the actions: give it "
            'ctrllimited="true" and a ctrlrange in the XML file, or give robot_env bounds of your '
            "own, actions=metajax.Continuous(size, low, high), in the place of scaled_actions."
        )
    largest = float(np.abs(limits).max())
    low, high = (tuple((bound / largest / scale).tolist()) for bound in limits.T)
    return Continuous(len(limits), low, high, scale * largest)


def velocity(physics: Physics, before: PhysicsState, after: PhysicsState, axes: int = 1):
    """Return the mean velocity (m/s) of the first `axes` coordinates over a step."""
    moved = physics.qpos(after)[:axes] - physics.qpos(before)[:axes]
    return (moved if axes > 1 else moved[0]) / physics.dt
