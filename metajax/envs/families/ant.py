"""Ants that must run at a hidden speed, in a hidden direction or to a hidden place."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax.envs.builders import gymnasium_noise, robot_env, scaled_actions, velocity
from metajax.envs.drawings import DARK, LIGHT, MIDDLE, SLANTED, TOP, Body, run_at, towards
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import (
    Split,
    between,
    finite_splits,
    three_splits,
    two_splits,
    uniform,
    uniform_over,
)
from metajax.errors import unknown
from metajax.physics import BACKENDS, load_model, make_physics
from metajax.types import TaskDistribution, TaskFamily

FRAME_SKIP = 5
BRAX_SUBSTEPS = 10  # of 5 ms, as in brax/envs/ant.py
CONTACT_COST = 5e-4  # of the squares of the contact forces, clipped to ±1

Observed = Literal["joints", "gymnasium", "rllab", "all"]


class Variant(NamedTuple):
    """The numbers in which the papers' ants differ.

    Attributes:
        episode_length: steps per episode.
        action_scale: the control is this times the action, clipped to [-1, 1].
        control_cost: weight of ‖control‖².
        bonus: for every step.
        lowest: the episode terminates below this height of the torso (m) and above 1; None if it
            never does.
        observed: "joints" is qpos[2:], qvel [27]; "gymnasium" adds the contact forces, clipped to
            ±1 [111]; "all" starts with qpos instead [113]; "rllab" adds to that the rotation
            matrix and the place of the torso [125].
    """

    episode_length: int
    action_scale: float
    control_cost: float
    bonus: float
    lowest: float | None
    observed: Observed


# Finn et al. 2017: rllab's ant_env_rand.py, ant_env_rand_direc.py and ant_env_rand_goal.py
_MAML = Variant(200, 1.0, 0.005, 0.05, 0.2, "rllab")

VEL_VARIANTS = {"maml": _MAML._replace(bonus=1.05)}
DIR_VARIANTS = {
    "maml": _MAML,
    # Rothfuss et al. 2019: ProMP, ant_rand_direc.py and ant_rand_direc_2d.py
    "promp": Variant(100, 0.1, 0.5, 1.0, 0.0, "gymnasium"),
    # Rakelly et al. 2019: oyster, rlkit/envs/ant_dir.py
    "pearl": Variant(200, 1.0, 0.5, 1.0, 0.2, "joints"),
    # Zintgraf et al. 2020: varibad, environments/mujoco/ant_dir.py
    "varibad": Variant(200, 1.0, 0.5, 1.0, 0.2, "joints"),
}
GOAL_VARIANTS = {
    "maml": _MAML._replace(bonus=4.05),
    "promp": Variant(200, 0.1, 0.1, 0.0, None, "all"),
    "pearl": Variant(200, 1.0, 0.1, 0.0, None, "all"),
    "varibad": Variant(200, 1.0, 0.1, 0.0, None, "all"),
}


@checked
def ant_vel(
    *, backend: str = "auto", variant: str = "maml", episode_length: int | None = None
) -> TaskFamily:
    """Return `ant-vel-v1`: run forward at a target velocity, and find out which.

    Reward of a step: 1 - |Δx/dt - v| + 0.05 - 0.005·‖control‖² - contact cost, with v the task
    {"velocity": v}, U[0, 3] m/s; held-out tasks lie in the held-out strips of the range.

    The body is Gymnasium's ant.xml, 5 substeps of 0.01 s per step. A reset adds U(-0.1, 0.1) to the
    positions and 0.1·N(0, 1) to the velocities, and makes the quaternion one again. The contact
    cost is 5e-4·Σ clip(force, -1, 1)² over all bodies. The forces are those where the last substep
    started, which is what MuJoCo gave the papers; since MuJoCo 2.0 their code reads zeros, and so
    does Gymnasium before version 5. Brax has no such forces: there cost and observation are 0.
    Velocities are those of the torso's origin (rllab: of the centre of mass). What is observed
    and when an episode terminates is said in the variant.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        variant: a key of `VEL_VARIANTS`.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: if the backend or the variant is unknown.
    """

    def sample(key: Key[Array, ""], *, split: Split):
        return {"velocity": uniform(key, 0.0, 3.0, split=split)}

    return _ant(
        "ant-vel-v1",
        lambda task, speed, place: -jnp.abs(speed[0] - task["velocity"]),
        lambda variant: three_splits(sample),
        VEL_VARIANTS,
        backend=backend,
        variant=variant,
        episode_length=episode_length,
    )


@checked
def ant_dir(
    *,
    backend: str = "auto",
    variant: str = "maml",
    directions: Literal["two", "all"] = "two",
    episode_length: int | None = None,
) -> TaskFamily:
    """Return `ant-dir-v1`: run in a direction, and find out which.

    Reward of a step: direction·Δxy/dt + bonus - control cost - contact cost. The task is
    {"direction": [xy]}, a unit vector; see `ant_vel` for the body.

    VariBAD's `ant_dir.py` takes ±1 for an angle in radians (57° to the left and right), and its
    2-D task keeps one coordinate of the vector and takes that for an angle; PEARL's configuration
    trains and tests on the same two random angles. Here directions are what they are called.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        variant: a key of `DIR_VARIANTS`.
        directions: "two" is forward and backward, both training and test tasks; "all" are all of
            the circle, held-out ones in the held-out strips of the angle.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: if the backend, the variant or the directions are unknown.
    """
    return _ant(
        "ant-dir-v1",
        lambda task, speed, place: jnp.sum(task["direction"] * speed),
        lambda variant: direction_splits(directions),
        DIR_VARIANTS,
        backend=backend,
        variant=variant,
        episode_length=episode_length,
    )


def unit_vector(angle: Float[Array, ""]) -> Float[Array, "2"]:
    """Return the direction [xy] at an angle (rad)."""
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def direction_splits(directions: Literal["two", "all"]) -> dict[str, Any]:
    """Return the distributions of a `TaskFamily` over two or all directions, by field."""
    if directions == "two":
        both = uniform_over({"direction": jnp.array([[1.0, 0.0], [-1.0, 0.0]])})
        return {"train": both, "test": both}

    def sample(key: Key[Array, ""], *, split: Split):
        return {"direction": unit_vector(uniform(key, 0.0, 2 * np.pi, split=split))}

    return two_splits(sample)


@checked
def ant_goal(
    *, backend: str = "auto", variant: str = "maml", episode_length: int | None = None
) -> TaskFamily:
    """Return `ant-goal-v1`: run to a place, and find out where.

    Reward of a step: -‖xy - goal‖₁ + bonus - control cost - contact cost, after the move. The task
    is {"goal": [xy]}. Variant "maml": U[-3, 3]² m, held-out ones with x in the held-out strips.
    The others: uniform in a disk of radius 3 m, held-out ones with their squared radius in the
    strips; "pearl" has 180 of them, the last 30 held out (the paper's were drawn without a seed,
    so its training and its evaluation script had other ones; these have one). Metric: "distance"
    to the goal, ‖xy - goal‖₂ (m). See `ant_vel` for the body.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        variant: a key of `GOAL_VARIANTS`.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: if the backend or the variant is unknown.
    """

    def square(key: Key[Array, ""], *, split: Split):
        x_key, y_key = jax.random.split(key)
        x = uniform(x_key, -3.0, 3.0, split=split, below=True)
        return {"goal": jnp.stack([x, jax.random.uniform(y_key, minval=-3.0, maxval=3.0)])}

    def disk(key: Key[Array, ""], *, split: Split):
        radius_key, angle_key = jax.random.split(key)
        return at(3 * jnp.sqrt(uniform(radius_key, 0.0, 1.0, split=split)), angle_key)

    def at(radius: Float[Array, ""], key: Key[Array, ""]):
        angle = jax.random.uniform(key, maxval=2 * jnp.pi)
        return {"goal": radius * unit_vector(angle)}

    def splits(variant: str) -> dict[str, Any]:
        if variant != "pearl":
            return three_splits(square if variant == "maml" else disk)
        random = np.random.RandomState(1337)
        angle, radius = 2 * np.pi * random.uniform(size=180), 3 * random.uniform(size=180) ** 0.5
        goals = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        listed = finite_splits({"goal": jnp.asarray(goals, float)}, np.arange(180) > 149)

        def other(key: Key[Array, ""]):
            radius_key, angle_key = jax.random.split(key)
            squared = between(radius_key, radius**2, 0.0, 9.0)
            return at(jnp.sqrt(squared), angle_key)

        return three_splits(disk) | listed | {"validation": TaskDistribution(other)}

    return _ant(
        "ant-goal-v1",
        lambda task, speed, place: -jnp.sum(jnp.abs(place - task["goal"])),
        splits,
        GOAL_VARIANTS,
        lambda task, place: {"distance": jnp.linalg.norm(place - task["goal"])},
        backend=backend,
        variant=variant,
        episode_length=episode_length,
    )


def _ant(
    name: str,
    progress,
    splits,
    variants,
    measure=lambda task, place: {},
    *,
    backend: str,
    variant: str,
    episode_length: int | None,
) -> TaskFamily:
    if variant not in variants:
        raise unknown("variant", variant, variants)
    chosen: Variant = variants[variant]
    physics = make_physics(
        "ant",
        backend=backend,
        frame_skip=FRAME_SKIP,
        brax_substeps=BRAX_SUBSTEPS,
        contact_forces=True,
    )
    torso = physics.model.body("torso").id

    def contact(state) -> Float[Array, "84"]:
        if physics.contact_force is None:
            return jnp.zeros(84, physics.qvel(state).dtype)
        return jnp.clip(physics.contact_force(state).ravel(), -1, 1)

    def observe(task, state) -> Float[Array, "observation"]:
        del task
        qpos, qvel = physics.qpos(state), physics.qvel(state)
        if chosen.observed == "joints":
            return jnp.concatenate([qpos[2:], qvel])
        if chosen.observed == "gymnasium":
            return jnp.concatenate([qpos[2:], qvel, contact(state)])
        everything = jnp.concatenate([qpos, qvel, contact(state)])
        if chosen.observed == "all":
            return everything
        rotation = physics.kinematics(state).body_rotation[torso]
        return jnp.concatenate([everything, rotation.ravel(), qpos[:3]])

    def reward(task, before, after, control) -> Float[Array, ""]:
        cost = chosen.control_cost * jnp.sum(control**2)
        cost += CONTACT_COST * jnp.sum(contact(after) ** 2)
        speed = velocity(physics, before, after, axes=2)
        return progress(task, speed, physics.qpos(after)[:2]) + chosen.bonus - cost

    def healthy(task, state):
        del task
        height = physics.qpos(state)[2]
        finite = jnp.all(jnp.isfinite(physics.qvel(state)))
        return finite & (height >= (chosen.lowest or 0.0)) & (height <= 1.0)

    env = robot_env(
        physics,
        noise=gymnasium_noise(0.1),
        observe=observe,
        reward=reward,
        healthy=None if chosen.lowest is None else healthy,
        measure=lambda task, state: measure(task, physics.qpos(state)[:2]),
        actions=scaled_actions(physics, chosen.action_scale),
        episode_length=chosen.episode_length if episode_length is None else episode_length,
    )
    return TaskFamily(env, name=name, backend=physics.backend, **splits(variant))


DRAWING = Body(
    model=lambda: load_model("ant"),
    seconds=0.01 * FRAME_SKIP,
    view=SLANTED,
    window=(4.8, 2.9),
    below=1.1,
    follow=2,
    colors={DARK: ("aux*", "*leg*"), LIGHT: ("*ankle*",), MIDDLE: ("torso*",)},
    task=run_at,
)

# Rakelly et al. 2019: oyster, configs/ant-dir.json and ant-goal.json
_DIRECTION_BY_PEARL = {
    "family": {"variant": "pearl"},
    "algorithm": {
        "updates": 4000,
        "meta_batch": 4,
        "context": 256,
        "replay_capacity": 1_000_000,
    },
    "evaluation": {"tasks": 8},
}
_GOAL_BY_PEARL = {
    "family": {"variant": "pearl"},
    "algorithm": {"updates": 4000, "meta_batch": 10, "context": 256, "kl_weight": 1.0},
    "training": {"training_tasks": 150},
}

SPECS = (
    FamilySpec(
        "ant-vel",
        ant_vel,
        "Finn et al. 2017",
        backends=BACKENDS,
        variants=tuple(VEL_VARIANTS),
        drawing=DRAWING,
    ),
    FamilySpec(
        "ant-dir",
        ant_dir,
        "Finn et al. 2017",
        backends=BACKENDS,
        variants=tuple(DIR_VARIANTS),
        drawing=DRAWING._replace(task=towards),
        presets={"pearl": _DIRECTION_BY_PEARL},
    ),
    FamilySpec(
        "ant-goal",
        ant_goal,
        "Finn et al. 2017",
        backends=BACKENDS,
        variants=tuple(GOAL_VARIANTS),
        drawing=DRAWING._replace(
            view=TOP, window=(7.6, 7.6), below=3.8, follow=0, task=lambda task: "run to the goal"
        ),
        presets={"pearl": _GOAL_BY_PEARL},
    ),
)
