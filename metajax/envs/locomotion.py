"""What all robots that walk, run or swim have in common."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from metajax.envs.episodes import Moved, make_env
from metajax.errors import MetajaxError, check_positive
from metajax.physics import Dynamics, Physics, PhysicsState, quaternion_addresses
from metajax.types import Continuous, Env, Task

Noise = Callable[[Key[Array, ""], Physics], tuple[Float[Array, "nq"], Float[Array, "nv"]]]


def uniform_noise(size: float) -> Noise:
    """Return noise of U(-size, size) on positions and velocities (m, rad; per second)."""

    def draw(key: Key[Array, ""], physics: Physics):
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

    def draw(key: Key[Array, ""], physics: Physics):
        position_key, velocity_key = jax.random.split(key)
        shape = (physics.model.nq,)
        qpos = jax.random.uniform(position_key, shape, minval=-size, maxval=size)
        return qpos, size * jax.random.normal(velocity_key, (physics.model.nv,))

    return draw


def robot_env(
    physics: Physics,
    *,
    noise: Noise,
    observe: Callable[[PhysicsState], Float[Array, "observation"]],
    reward: Callable[[Task, PhysicsState, PhysicsState, Float[Array, "nu"]], Float[Array, ""]],
    actions: Continuous,
    episode_length: int,
    healthy: Callable[[PhysicsState], Bool[Array, ""]] | None = None,
    dynamics: Callable[[Task], Dynamics] = lambda task: {},
) -> Env:
    """Return the environment of a robot that starts about where its model stands.

    Args:
        physics: the robot.
        noise: on the model's initial positions and on velocities of 0.
        observe: `state -> observation`.
        reward: `(task, state before, state after, control) -> reward`.
        actions: `to_control` makes the control of an action.
        episode_length: steps per episode.
        healthy: the episode terminates where it is False; None if it never does.
        dynamics: of the task's world.
    """

    quaternions = [slice(at, at + 4) for at, _ in quaternion_addresses(physics.model)]

    def start(key: Key[Array, ""], task: Task) -> PhysicsState:
        del task
        qpos, qvel = noise(key, physics)
        qpos = jnp.asarray(physics.default_qpos, qpos.dtype) + qpos
        for four in quaternions:
            qpos = qpos.at[four].divide(jnp.linalg.norm(qpos[four]))
        return physics.init(qpos, qvel)

    def move(before: PhysicsState, action: Float[Array, "nu"], task: Task) -> Moved:
        control = actions.to_control(action)
        after = physics.step(before, control, dynamics(task))
        terminated = False if healthy is None else ~healthy(after)
        return Moved(after, reward(task, before, after, control), terminated)

    size = jax.eval_shape(lambda: observe(start(jax.random.key(0), None))).shape[0]
    return make_env(
        start,
        move,
        observe,
        observation_size=size,
        action_space=actions,
        episode_length=episode_length,
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
