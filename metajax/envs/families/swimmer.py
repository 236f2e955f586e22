"""Swimmers at a hidden speed."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax.envs.builders import robot_env, scaled_actions, uniform_noise, velocity
from metajax.envs.drawings import DARK, LIGHT, MIDDLE, TOP, Body
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import Split, three_splits, uniform
from metajax.errors import MetajaxError
from metajax.physics import load_model, make_physics, resolve_backend
from metajax.types import TaskFamily

FRAME_SKIP = 4
ACTION_SCALE = 0.1  # ProMP's normalized_env.py, scale 10
WITH_WATER = ("mjx", "mujoco", "warp")


@checked
def swimmer_vel(*, backend: str = "auto", episode_length: int = 100) -> TaskFamily:
    """Return `swimmer-vel-v1`: swim forward at a target velocity, and find out which.

    Rothfuss et al. (2019): ProMP's `swimmer_rand_vel.py`, which has the sign of the first term
    wrong. Reward of a step: -|Δx/dt - v| - 0.0001·‖control‖², with v the task {"velocity": v},
    U[0.1, 0.2] m/s; held-out tasks lie in the held-out strips of the range. The control is a tenth
    of the action.

    Gymnasium's swimmer.xml, 4 substeps of 0.01 s per step; a reset adds U(-0.1, 0.1) to positions
    and velocities. The observation [8] is qpos[2:] and qvel; nothing terminates.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU. Brax's
            have no water (that of `generalized` does not run on today's JAX).
        episode_length: steps per episode.

    Raises:
        MetajaxError: if the backend is unknown, or has no water.
    """
    if resolve_backend(backend) not in WITH_WATER:
        known = ", ".join(map(repr, WITH_WATER))
        raise MetajaxError(f"backend {backend!r} has no water to swim in: take one of {known}.")
    physics = make_physics("swimmer", backend=backend, frame_skip=FRAME_SKIP, brax_substeps=1)

    def reward(task, before, after, control) -> Float[Array, ""]:
        speed = velocity(physics, before, after)
        return -jnp.abs(speed - task["velocity"]) - 1e-4 * jnp.sum(control**2)

    def sample(key: Key[Array, ""], *, split: Split):
        return {"velocity": uniform(key, 0.1, 0.2, split=split)}

    env = robot_env(
        physics,
        noise=uniform_noise(0.1),
        observe=lambda task, state: jnp.concatenate([physics.qpos(state)[2:], physics.qvel(state)]),
        reward=reward,
        actions=scaled_actions(physics, ACTION_SCALE),
        episode_length=episode_length,
    )
    return TaskFamily(env, name="swimmer-vel-v1", backend=physics.backend, **three_splits(sample))


SPECS = (
    FamilySpec(
        "swimmer-vel",
        swimmer_vel,
        "Rothfuss et al. 2019",
        backends=WITH_WATER,
        drawing=Body(
            model=lambda: load_model("swimmer"),
            seconds=0.01 * FRAME_SKIP,
            view=TOP,
            window=(6.0, 3.0),
            below=1.5,
            follow=2,
            colors={DARK: ("back",), MIDDLE: ("mid",), LIGHT: ("torso",)},
            task=lambda task: f"swim at {float(task['velocity']):.2f} m/s",
        ),
    ),
)
