"""A two-joint arm that must find a goal it is never shown."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax.envs.builders import robot_env
from metajax.envs.drawings import DARK, LIGHT, MIDDLE, TOP, Body
from metajax.envs.specs import FamilySpec, gradient_presets
from metajax.envs.splits import Split, two_splits, uniform
from metajax.physics import BACKENDS, Physics, load_model, make_physics
from metajax.types import Continuous, TaskFamily

FRAME_SKIP = 2
BRAX_SUBSTEPS = 4  # of 5 ms, as in brax/envs/reacher.py
GOAL_RADIUS = 0.2
POSITION_NOISE = 0.1
VELOCITY_NOISE = 0.005


@checked
def reacher_goal(*, backend: str = "auto", episode_length: int = 50) -> TaskFamily:
    """Return `reacher-goal-v1`: Gymnasium's Reacher-v5 with the goal hidden.

    Reward of a step: -‖fingertip - goal‖ - ‖control‖², in metres, both after the move, with the
    weights of Reacher-v5. Two substeps of 0.01 s per step; episodes never terminate. A reset adds
    U(-0.1, 0.1) rad to the joint angles and U(-0.005, 0.005) rad/s to their velocities. The
    observation [8] is the cosine and sine of both angles, their velocities, and the fingertip's
    position xy. The fingertip is where the angles put it after the step (Gymnasium's lags by a
    substep).

    The task is {"goal": [xy]}, uniform in a disk of radius 0.2 m around the shoulder. Held-out
    goals have their squared radius in the held-out strips of the range (`metajax.envs.splits`):
    thin rings, distributed evenly over the disk. Metric: the "distance" of fingertip and goal (m).

    The goal body of the model is removed: it is no part of the mechanics here, and two joints
    fewer to simulate.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        episode_length: steps per episode.

    Raises:
        MetajaxError: if the backend is unknown.
    """
    physics = make_physics(
        "reacher",
        without="target",
        backend=backend,
        frame_skip=FRAME_SKIP,
        brax_substeps=BRAX_SUBSTEPS,
    )

    actions = Continuous(2)
    tip = physics.model.geom("fingertip").id

    def fingertip(simulator) -> Float[Array, "2"]:
        return physics.kinematics(simulator).geom_position[tip, :2]

    def observe(task, simulator) -> Float[Array, "8"]:
        del task
        angles = physics.qpos(simulator)
        return jnp.concatenate(
            [jnp.cos(angles), jnp.sin(angles), physics.qvel(simulator), fingertip(simulator)]
        )

    def noise(key: Key[Array, ""], task, physics: Physics):
        del task
        position_key, velocity_key = jax.random.split(key)
        qpos = POSITION_NOISE * jax.random.uniform(position_key, (2,), minval=-1.0)
        return qpos, VELOCITY_NOISE * jax.random.uniform(velocity_key, (2,), minval=-1.0)

    def reward(task, before, after, control) -> Float[Array, ""]:
        del before
        return -jnp.linalg.norm(fingertip(after) - task["goal"]) - jnp.sum(control**2)

    def sample(key: Key[Array, ""], *, split: Split):
        radius_key, angle_key = jax.random.split(key)
        radius = jnp.sqrt(uniform(radius_key, 0.0, GOAL_RADIUS**2, split=split))
        angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
        return {"goal": radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])}

    def measure(task, simulator):
        return {"distance": jnp.linalg.norm(fingertip(simulator) - task["goal"])}

    env = robot_env(
        physics,
        noise=noise,
        observe=observe,
        reward=reward,
        measure=measure,
        actions=actions,
        episode_length=episode_length,
    )
    return TaskFamily(env, name="reacher-goal-v1", backend=physics.backend, **two_splits(sample))


_GOAL = {
    "policy": {"initial_std": 0.5},
    "algorithm": {"outer": {"name": "ppo"}, "episodes": 10},
    "training": {"iterations": 200, "tasks": 20},
    "evaluation": {"every": 50, "tasks": 20, "episodes": 20},
    "outer": {
        # A trust region is as long at any standard deviation: the literature's values serve.
        "trpo": {
            "policy": {"initial_std": 1.0},
            "algorithm": {"inner": {"rule": {"learning_rate": 0.1}, "learning_rate_decay": 0.5}},
        }
    },
}

SPECS = (
    FamilySpec(
        "reacher-goal",
        reacher_goal,
        "Gymnasium's Reacher with a hidden goal",
        backends=BACKENDS,
        drawing=Body(
            model=lambda: load_model("reacher", without="target"),
            seconds=0.01 * FRAME_SKIP,
            view=TOP,
            window=(0.52, 0.52),
            below=0.26,
            follow=0,
            colors={DARK: ("link0",), MIDDLE: ("link1",), LIGHT: ("fingertip",)},
            task=lambda task: "reach the goal",
        ),
        presets=gradient_presets(_GOAL),
    ),
)
