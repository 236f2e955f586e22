"""Half-cheetahs that must run in a hidden direction or at a hidden speed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax.envs.builders import gymnasium_noise, robot_env, scaled_actions, velocity
from metajax.envs.drawings import DARK, LIGHT, MIDDLE, SIDE, Body, forward_or_backward, run_at
from metajax.envs.specs import FamilySpec, gradient_presets
from metajax.envs.splits import (
    Split,
    between,
    finite_splits,
    three_splits,
    uniform,
    uniform_over,
)
from metajax.errors import unknown
from metajax.physics import BACKENDS, load_model, make_physics
from metajax.types import TaskDistribution, TaskFamily

FRAME_SKIP = 5
BRAX_SUBSTEPS = 16  # of 3.125 ms, as in brax/envs/half_cheetah.py


class Variant(NamedTuple):
    """The numbers in which the papers' half-cheetah tasks differ.

    Attributes:
        max_velocity: target velocities are U[0, max_velocity] m/s.
        episode_length: steps per episode.
        action_scale: the control is this times the action, clipped to [-1, 1].
        seed: of the 130 target velocities there are, the last 30 held out; None for all of the
            range.
        control_cost: weight of the squared controls.
        beyond: velocities to extrapolate to are U[max_velocity, beyond]; None for the quarter of
            the range that follows it.
    """

    max_velocity: float
    episode_length: int
    action_scale: float
    seed: int | None = None
    control_cost: float = 0.05
    beyond: float | None = None


VARIANTS = {
    # Finn et al. 2017: cbfinn/maml_rl, half_cheetah_env_rand.py and half_cheetah_env_rand_direc.py
    "maml": Variant(2.0, 200, 1.0),
    # Rothfuss et al. 2019: ProMP, half_cheetah_rand_vel.py; normalized_env.py, scale 10
    "promp": Variant(3.0, 100, 0.1),
    # Rakelly et al. 2019: oyster, rlkit/envs/half_cheetah_vel.py
    "pearl": Variant(3.0, 200, 1.0, seed=1337),
    # Zintgraf et al. 2020: varibad, environments/mujoco/half_cheetah_vel.py
    "varibad": Variant(3.0, 200, 1.0),
}

VEL_VARIANTS = VARIANTS | {
    # Fakoor et al. 2020: tasks out of the distribution, of their two the nearer ones
    "mql": Variant(2.5, 200, 1.0, beyond=3.0),
}
DIR_VARIANTS = VARIANTS | {
    # HalfCheetah-v5 of Gymnasium: one task, to compare with what learns one task
    "gymnasium": Variant(0.0, 1000, 1.0, control_cost=0.1),
}


@checked
def halfcheetah_dir(
    *, backend: str = "auto", variant: str = "maml", episode_length: int | None = None
) -> TaskFamily:
    """Return `halfcheetah-dir-v1`: run forward or backward, and find out which.

    Reward of a step: d·Δx/dt - 0.05·||control||², with d = ±1 the task {"direction": d}. There
    are only these two tasks, so the held-out tasks are the training tasks. Variant "gymnasium" is
    HalfCheetah-v5: forward alone, 1000 steps, a control cost of 0.1.

    See `halfcheetah_vel` for the body and the observation.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        variant: paper or package whose numbers are taken, a key of `DIR_VARIANTS`.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: if the backend or the variant is unknown.
    """

    directions = [1.0] if variant == "gymnasium" else [1.0, -1.0]
    tasks = uniform_over({"direction": jnp.array(directions)})
    return _halfcheetah(
        "halfcheetah-dir-v1",
        lambda task, velocity: task["direction"] * velocity,
        lambda chosen: {"train": tasks, "test": tasks},
        DIR_VARIANTS,
        backend=backend,
        variant=variant,
        episode_length=episode_length,
    )


@checked
def halfcheetah_vel(
    *, backend: str = "auto", variant: str = "maml", episode_length: int | None = None
) -> TaskFamily:
    """Return `halfcheetah-vel-v1`: run at a target velocity, and find out which.

    Reward of a step: -|Δx/dt - v| - 0.05·||control||², with v the task {"velocity": v} in m/s.
    Held-out tasks have velocities in the held-out strips of the range (`metajax.envs.splits`);
    variant "pearl" has the paper's own 100 and 30 velocities. Beyond is the quarter that follows;
    in variant "mql", whose range ends at 2.5 m/s, U[2.5, 3], on which the paper tests.

    The body is Gymnasium's half_cheetah.xml, 5 substeps of 0.01 s per step. A reset adds
    U(-0.1, 0.1) to the positions and 0.1·N(0, 1) to the velocities; episodes never terminate. The
    observation [17] is that of HalfCheetah-v5, qpos[1:] and qvel; the centre of mass that some
    papers append is left out. The control is the action times the variant's action scale,
    clipped to [-1, 1]; its cost counts the control that was applied.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        variant: paper whose ranges, horizon and action scale are taken, a key of `VEL_VARIANTS`.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: if the backend or the variant is unknown.
    """

    def splits(chosen: Variant) -> dict[str, Any]:
        def sample(key: Key[Array, ""], *, split: Split):
            return {"velocity": uniform(key, 0.0, chosen.max_velocity, split=split)}

        if chosen.beyond is not None:
            low, high = chosen.max_velocity, chosen.beyond
            above = lambda key: {"velocity": jax.random.uniform(key, minval=low, maxval=high)}
            return three_splits(sample) | {"extrapolate": TaskDistribution(above)}
        if chosen.seed is None:
            return three_splits(sample)
        velocities = np.random.RandomState(chosen.seed).uniform(0, chosen.max_velocity, 130)
        listed = finite_splits({"velocity": jnp.asarray(velocities, float)}, np.arange(130) > 99)
        other = lambda key: {"velocity": between(key, velocities, 0.0, chosen.max_velocity)}
        return three_splits(sample) | listed | {"validation": TaskDistribution(other)}

    return _halfcheetah(
        "halfcheetah-vel-v1",
        lambda task, velocity: -jnp.abs(velocity - task["velocity"]),
        splits,
        VEL_VARIANTS,
        backend=backend,
        variant=variant,
        episode_length=episode_length,
    )


def _halfcheetah(
    name: str,
    progress: Callable,
    splits: Callable[[Variant], dict[str, Any]],
    variants: dict[str, Variant],
    *,
    backend: str,
    variant: str,
    episode_length: int | None,
) -> TaskFamily:
    if variant not in variants:
        raise unknown("variant", variant, variants)
    chosen = variants[variant]
    physics = make_physics(
        "half_cheetah", backend=backend, frame_skip=FRAME_SKIP, brax_substeps=BRAX_SUBSTEPS
    )

    def observe(task, state) -> Float[Array, "17"]:
        del task
        return jnp.concatenate([physics.qpos(state)[1:], physics.qvel(state)])

    def reward(task, before, after, control) -> Float[Array, ""]:
        cost = chosen.control_cost * jnp.sum(control**2)
        return progress(task, velocity(physics, before, after)) - cost

    env = robot_env(
        physics,
        noise=gymnasium_noise(0.1),
        observe=observe,
        reward=reward,
        actions=scaled_actions(physics, chosen.action_scale),
        episode_length=chosen.episode_length if episode_length is None else episode_length,
    )
    return TaskFamily(env, name=name, backend=physics.backend, **splits(chosen))


DRAWING = Body(
    model=lambda: load_model("half_cheetah"),
    seconds=0.01 * FRAME_SKIP,
    view=SIDE,
    window=(4.0, 1.7),
    below=0.25,
    follow=1,
    colors={
        DARK: ("bthigh", "bshin", "bfoot"),
        LIGHT: ("fthigh", "fshin", "ffoot"),
        MIDDLE: ("torso", "head"),
    },
    task=run_at,
)

_DIRECTION = {
    # An initial standard deviation of 1 drowns the task in control cost, by TRPO too: MAML gets -14
    # after one step in place of 82, and with velocities -78 in place of -69.
    "policy": {"initial_std": 0.5},
    "family": {"episode_length": 100},
    "algorithm": {
        "inner": {"rule": {"learning_rate": 0.2}},
        "outer": {"name": "ppo", "learning_rate": 1.5e-3},
    },
    # There are only two tasks: a small batch gives more meta-iterations for the same steps.
    "training": {"iterations": 250, "tasks": 6},
    "evaluation": {"every": 50, "tasks": 20, "episodes": 20},
}
_VELOCITY = {
    "policy": {"initial_std": 0.5},
    "family": {"episode_length": 100},
    "algorithm": {
        "episodes": 10,
        "inner": {"rule": {"learning_rate": 0.2}},
        "outer": {"name": "ppo", "learning_rate": 1.5e-3},
    },
    "training": {"iterations": 200, "tasks": 20},
    "evaluation": {"every": 50, "tasks": 20, "episodes": 20},
}
_VELOCITY_BY_MEMORY = {
    "policy": {"initial_std": 0.5},
    "algorithm": {
        # Control costs: the standard deviation has to shrink, but not at once.
        "objective": {
            "chunk": 100,
            "entropy_weight": 0.005,
            "critic": {"minibatches": 20, "learning_rate": 5e-4},
        },
        "outer": {"minibatches": 20, "learning_rate": 5e-4},
    },
    "training": {"iterations": 1000, "tasks": 40},
    "evaluation": {"every": 100, "tasks": 60},
}
# Sizes and schedule of Ni et al. 2022, whose five million steps these are.
_VELOCITY_REMEMBERED = {
    "policy": {"width": 128, "hidden": (128, 128)},
    "training": {"iterations": 500, "tasks": 25},
    "evaluation": {"every": 50, "tasks": 60, "deterministic": True},
}

# Rakelly et al. 2019: oyster, configs/cheetah-vel.json and cheetah-dir.json
_VELOCITY_BY_PEARL = {"family": {"variant": "pearl"}}
_DIRECTION_BY_PEARL = {
    "family": {"variant": "pearl"},
    "algorithm": {
        "prior_episodes": 5,
        "extra_episodes": 5,
        "meta_batch": 4,
        "context": 256,
        "replay_capacity": 1_000_000,
    },
    "evaluation": {"tasks": 8},
}
# The networks of the paper's tasks: two layers of 300, a context of 30. Nothing else was tuned.
_VELOCITY_BY_CONTEXT = {
    "policy": {"hidden": (300, 300)},
    "family": {"variant": "pearl"},
    "algorithm": {"learner": {"hidden": (300, 300)}},
    "training": {"iterations": 500, "tasks": 5},
    "evaluation": {"every": 50, "tasks": 30},
}

SPECS = (
    FamilySpec(
        "halfcheetah-dir",
        halfcheetah_dir,
        "Finn et al. 2017",
        backends=BACKENDS,
        variants=tuple(DIR_VARIANTS),
        drawing=DRAWING._replace(task=forward_or_backward),
        presets=gradient_presets(_DIRECTION) | {"pearl": _DIRECTION_BY_PEARL},
    ),
    FamilySpec(
        "halfcheetah-vel",
        halfcheetah_vel,
        "Finn et al. 2017",
        backends=BACKENDS,
        variants=tuple(VEL_VARIANTS),
        drawing=DRAWING,
        presets=gradient_presets(_VELOCITY)
        | {
            "rl2": _VELOCITY_BY_MEMORY,
            "off-policy-rl2": _VELOCITY_REMEMBERED,
            "pearl": _VELOCITY_BY_PEARL,
            "mql": _VELOCITY_BY_CONTEXT,
        },
        references=("oracle_velocity", "observations_only"),
    ),
)
