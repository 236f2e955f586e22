"""Walkers at a hidden speed or in a hidden direction."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax.envs.builders import robot_env, scaled_actions, uniform_noise, velocity
from metajax.envs.drawings import DARK, LIGHT, MIDDLE, SIDE, Body, forward_or_backward, run_at
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import Split, three_splits, uniform, uniform_over
from metajax.physics import BACKENDS, load_model, make_physics
from metajax.types import TaskFamily

FRAME_SKIP = 8
BRAX_SUBSTEPS = 16
ACTION_SCALE = 0.1  # ProMP's normalized_env.py, scale 10


@checked
def walker2d_vel(*, backend: str = "auto", episode_length: int = 100) -> TaskFamily:
    """Return `walker2d-vel-v1`: walk forward at a target velocity, and find out which.

    Rothfuss et al. (2019): ProMP's `walker2d_rand_vel.py`. Reward of a step: 15 - |Δx/dt - v| -
    0.001·‖control‖², with v the task {"velocity": v}, U[0, 10] m/s; held-out tasks lie in the
    held-out strips of the range. The control is a tenth of the action.

    Gymnasium's walker2d.xml, 8 substeps of 0.002 s per step; a reset adds U(-0.005, 0.005) to
    positions and velocities. The observation [17] is qpos[1:] and qvel, the latter clipped to ±10.
    The episode terminates when the torso is not between 0.8 and 2 m high, or leans by 1 rad or
    more.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        episode_length: steps per episode.

    Raises:
        MetajaxError: if the backend is unknown.
    """

    def sample(key: Key[Array, ""], *, split: Split):
        return {"velocity": uniform(key, 0.0, 10.0, split=split)}

    def progress(task, speed):
        return 15 - jnp.abs(speed - task["velocity"])

    return _walker("walker2d-vel-v1", progress, three_splits(sample), backend, episode_length)


@checked
def walker2d_dir(*, backend: str = "auto", episode_length: int = 100) -> TaskFamily:
    """Return `walker2d-dir-v1`: walk forward or backward, and find out which.

    Rothfuss et al. (2019): ProMP's `walker2d_rand_direc.py`. Reward of a step: d·Δx/dt + 1 -
    0.001·‖control‖², with d = ±1 the task {"direction": d}: two tasks, for training and testing.
    The rest is as in `walker2d-vel-v1`.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        episode_length: steps per episode.

    Raises:
        MetajaxError: if the backend is unknown.
    """
    both = uniform_over({"direction": jnp.array([1.0, -1.0])})

    def progress(task, speed):
        return task["direction"] * speed + 1

    splits = {"train": both, "test": both}
    return _walker("walker2d-dir-v1", progress, splits, backend, episode_length)


def _walker(name: str, progress, splits, backend: str, episode_length: int) -> TaskFamily:
    physics = make_physics(
        "walker2d", backend=backend, frame_skip=FRAME_SKIP, brax_substeps=BRAX_SUBSTEPS
    )

    def observe(task, state) -> Float[Array, "17"]:
        del task
        qvel = jnp.clip(physics.qvel(state), -10, 10)
        return jnp.concatenate([physics.qpos(state)[1:], qvel])

    def reward(task, before, after, control) -> Float[Array, ""]:
        speed = velocity(physics, before, after)
        return progress(task, speed) - 1e-3 * jnp.sum(control**2)

    def healthy(task, state):
        del task
        _, height, lean = physics.qpos(state)[:3]
        return (height > 0.8) & (height < 2.0) & (jnp.abs(lean) < 1.0)

    env = robot_env(
        physics,
        noise=uniform_noise(0.005),
        observe=observe,
        reward=reward,
        healthy=healthy,
        actions=scaled_actions(physics, ACTION_SCALE),
        episode_length=episode_length,
    )
    return TaskFamily(env, name=name, backend=physics.backend, **splits)


DRAWING = Body(
    model=lambda: load_model("walker2d"),
    seconds=0.002 * FRAME_SKIP,
    view=SIDE,
    window=(4.0, 2.0),
    below=0.25,
    follow=1,
    colors={
        DARK: ("*_left_geom",),
        LIGHT: ("thigh_geom", "leg_geom", "foot_geom"),
        MIDDLE: ("torso*",),
    },
    task=run_at,
)

SPECS = (
    FamilySpec(
        "walker2d-vel",
        walker2d_vel,
        "Rothfuss et al. 2019",
        backends=BACKENDS,
        drawing=DRAWING,
    ),
    FamilySpec(
        "walker2d-dir",
        walker2d_dir,
        "Rothfuss et al. 2019",
        backends=BACKENDS,
        drawing=DRAWING._replace(task=forward_or_backward),
    ),
)
