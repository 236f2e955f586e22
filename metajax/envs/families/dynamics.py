"""Robots whose masses, inertias, friction and damping are the task."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax.envs.builders import (
    gymnasium_noise,
    robot_env,
    scaled_actions,
    uniform_noise,
    velocity,
)
from metajax.envs.drawings import DARK, LIGHT, MIDDLE, Body, torso_weight
from metajax.envs.families import ant, walker
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import Split, finite_splits, three_splits, uniform, uniform_over
from metajax.errors import unknown
from metajax.physics import Physics, field_shape, load_model, make_physics
from metajax.types import TaskFamily

# rand_param_envs/base.py: multipliers base^U(-3, 3), for every number of a field by itself
BASES = {"mass": 1.5, "inertia": 1.5, "friction": 1.5, "damping": 1.3}
LIMIT = 3.0
OF_OTHER_MASSES = ("mjx", "mujoco", "warp", "generalized")  # engines
FRAME_SKIP = 4  # of walkers and hoppers
VARIANTS = {"pearl": 50, "varibad": None}  # the number of tasks, a fifth of them held out
EPISODE_LENGTH = 200
# Walker2d and Hopper of Gymnasium, versions 2 to 4: one task, to compare with what learns one task
GYMNASIUM, GYMNASIUMS_EPISODE_LENGTH = "gymnasium", 1000


@checked
def walker2d_params(
    *,
    backend: str = "auto",
    variant: str = "varibad",
    consistent: bool = False,
    episode_length: int | None = None,
) -> TaskFamily:
    """Return `walker2d-params-v1`: walk forward with a body of unknown dynamics.

    Reward of a step: Δx/dt + 1 - 0.001·‖control‖². The episode terminates when the torso is not
    between 0.8 and 2 m high, or leans by more than 1 rad. Gymnasium's walker2d.xml, 4 substeps of
    0.002 s per step (the papers' class asks for 5 and its base ignores that); a reset adds
    U(-0.005, 0.005) to positions and velocities. The observation [17] is qpos[1:] and qvel, the
    latter clipped to ±10.

    The task is {"mass": [nbody], "inertia": [nbody, 3], "friction": [ngeom, 3], "damping": [nv]},
    multipliers 1.5^U(-3, 3), for damping 1.3^U(-3, 3), all drawn independently, as in Rakelly et
    al. (2019) and Zintgraf et al. (2020): a heavy body may have a small inertia. Held-out tasks
    have the exponent of the torso's mass in the held-out strips of the range; variant "pearl" has
    50 tasks, the last 10 held out (its own were drawn without a seed). To extrapolate to are
    exponents from ±3 to ±4.5. Variant "gymnasium" is Walker2d-v4: one task, whose multipliers are
    1, and 1000 steps (version 5 has another model).

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU. `spring`
            and `positional` cannot change dynamics.
        variant: "varibad", "pearl" or "gymnasium".
        consistent: the inertia of a body is multiplied by what its mass is multiplied by, as if
            its density changed.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: if the backend or the variant is unknown, or the backend cannot do it.
    """

    def healthy(qpos, qvel):
        del qvel
        return (qpos[1] > 0.8) & (qpos[1] < 2.0) & (jnp.abs(qpos[2]) < 1.0)

    return _planar("walker2d", healthy, backend, variant, consistent, episode_length)


@checked
def hopper_params(
    *,
    backend: str = "auto",
    variant: str = "varibad",
    consistent: bool = False,
    episode_length: int | None = None,
) -> TaskFamily:
    """Return `hopper-params-v1`: hop forward with a body of unknown dynamics.

    As `walker2d-params-v1` with Gymnasium's hopper.xml and observation [11]. The episode
    terminates when the torso is not higher than 0.7 m, leans by 0.2 rad or more, or anything else
    in qpos or qvel reaches 100. Variant "gymnasium" is Hopper-v4.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU. `spring`
            and `positional` cannot change dynamics.
        variant: "varibad", "pearl" or "gymnasium".
        consistent: inertias follow masses.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: if the backend or the variant is unknown, or the backend cannot do it.
    """

    def healthy(qpos, qvel):
        sane = jnp.all(jnp.abs(jnp.concatenate([qpos[2:], qvel])) < 100)
        return sane & (qpos[1] > 0.7) & (jnp.abs(qpos[2]) < 0.2)

    return _planar("hopper", healthy, backend, variant, consistent, episode_length)


@checked
def ant_params(
    *,
    backend: str = "auto",
    variant: str = "varibad",
    consistent: bool = False,
    episode_length: int = 200,
) -> TaskFamily:
    """Return `ant-params-v1`: run forward with a body of unknown dynamics.

    In no paper: tasks as in `walker2d-params-v1`, on the ant of `ant-dir-v1` (PEARL's: reward Δx/dt
    + 1 - 0.5·‖control‖², without contact costs; observation [27] is qpos[2:] and qvel; the episode
    terminates when the torso is not between 0.2 and 1 m high).

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU. `spring`
            and `positional` cannot change dynamics.
        variant: a key of `VARIANTS`.
        consistent: inertias follow masses.
        episode_length: steps per episode.

    Raises:
        MetajaxError: if the backend or the variant is unknown, or the backend cannot do it.
    """
    physics = make_physics("ant", backend=backend, frame_skip=5, brax_substeps=10)

    def healthy(task, state):
        del task
        height = physics.qpos(state)[2]
        return (height >= 0.2) & (height <= 1.0)

    env = robot_env(
        physics,
        noise=gymnasium_noise(0.1),
        observe=lambda task, state: jnp.concatenate([physics.qpos(state)[2:], physics.qvel(state)]),
        reward=_forward(physics, 0.5),
        healthy=healthy,
        actions=scaled_actions(physics, 1.0),
        episode_length=episode_length,
        dynamics=_dynamics,
    )
    splits = dynamics_splits(physics, variant, consistent=consistent)
    return TaskFamily(env, name="ant-params-v1", backend=physics.backend, **splits)


def _planar(name: str, healthy, backend, variant, consistent, episode_length) -> TaskFamily:
    if variant not in (*VARIANTS, GYMNASIUM):
        raise unknown("variant", variant, (*VARIANTS, GYMNASIUM))
    steps = GYMNASIUMS_EPISODE_LENGTH if variant == GYMNASIUM else EPISODE_LENGTH
    physics = make_physics(name, backend=backend, frame_skip=FRAME_SKIP, brax_substeps=8)

    def observe(task, state) -> Float[Array, "observation"]:
        del task
        qvel = jnp.clip(physics.qvel(state), -10, 10)
        return jnp.concatenate([physics.qpos(state)[1:], qvel])

    env = robot_env(
        physics,
        noise=uniform_noise(0.005),
        observe=observe,
        reward=_forward(physics, 1e-3),
        healthy=lambda task, state: healthy(physics.qpos(state), physics.qvel(state)),
        actions=scaled_actions(physics, 1.0),
        episode_length=steps if episode_length is None else episode_length,
        dynamics=_dynamics,
    )
    if variant == GYMNASIUM:
        itself = {field: jnp.ones((1, *field_shape(physics.model, field))) for field in BASES}
        splits: dict[str, Any] = dict.fromkeys(("train", "test"), uniform_over(itself))
    else:
        splits = dynamics_splits(physics, variant, consistent=consistent)
    return TaskFamily(env, name=f"{name}-params-v1", backend=physics.backend, **splits)


def _forward(physics: Physics, control_cost: float):
    def reward(task, before, after, control) -> Float[Array, ""]:
        return velocity(physics, before, after) + 1 - control_cost * jnp.sum(control**2)

    return reward


def _dynamics(task):
    return {name: task[name] for name in BASES}


def dynamics_splits(physics: Physics, variant: str, *, consistent: bool) -> dict[str, Any]:
    """Return distributions of a `TaskFamily` over multipliers of a robot's dynamics, by field.

    Args:
        physics: the robot.
        variant: a key of `VARIANTS`.
        consistent: inertias follow masses.

    Raises:
        MetajaxError: the variant is unknown, or the engine cannot change dynamics.
    """
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    shapes = {name: field_shape(physics.model, name) for name in BASES}
    real = jnp.result_type(float)
    ones = {name: jax.ShapeDtypeStruct(shape, real) for name, shape in shapes.items()}
    state = jax.eval_shape(
        physics.init, *(jnp.zeros(n) for n in (physics.model.nq, physics.model.nv))
    )
    jax.eval_shape(physics.step, state, jnp.zeros(physics.model.nu), ones)

    def sample(key: Key[Array, ""], *, split: Split):
        first_key, *keys = jax.random.split(key, 1 + len(BASES))
        task = {}
        for (name, base), key in zip(BASES.items(), keys, strict=True):
            exponent = _exponents(key, shapes[name], split)
            if name == "mass":
                first = uniform(first_key, -LIMIT, LIMIT, split=split, below=True)
                exponent = exponent.at[1].set(first)
            task[name] = base**exponent
        if consistent:
            task["inertia"] = jnp.broadcast_to(task["mass"][:, None], shapes["inertia"])
        return task

    splits = three_splits(sample)
    if VARIANTS[variant] is None:
        return splits
    count = VARIANTS[variant]
    tasks = jax.vmap(splits["train"].sample)(jax.random.split(jax.random.key(1337), count))
    # These are training tasks of the whole range, so its validation tasks are none of them.
    return splits | finite_splits(tasks, np.arange(count) >= 0.8 * count)


def _exponents(key: Key[Array, ""], shape: tuple[int, ...], split: Split) -> Float[Array, "..."]:
    if split != "extrapolate":
        return jax.random.uniform(key, shape, minval=-LIMIT, maxval=LIMIT)
    keys = jax.random.split(key, shape)
    draw = lambda key: uniform(key, -LIMIT, LIMIT, split=split, below=True)
    for _ in shape:
        draw = jax.vmap(draw)
    return draw(keys)


_WALKER = walker.DRAWING._replace(seconds=0.002 * FRAME_SKIP, task=torso_weight)
_HOPPER = _WALKER._replace(
    model=lambda: load_model("hopper"),
    colors={DARK: ("thigh*",), LIGHT: ("leg*", "foot*"), MIDDLE: ("torso*",)},
)


# Rakelly et al. 2019: oyster, configs/walker-params.json and hopper-params.json
_BY_PEARL = {
    "family": {"variant": "pearl"},
    "algorithm": {
        "encoder": {"next_observation": True},
        "updates": 4000,
        "meta_batch": 10,
        "replay_capacity": 100_000,
    },
    "evaluation": {"tasks": 20},
}


def _planar_spec(name: str, factory, drawing: Body) -> FamilySpec:
    return FamilySpec(
        name,
        factory,
        "Rakelly et al. 2019",
        backends=OF_OTHER_MASSES,
        variants=(*VARIANTS, GYMNASIUM),
        drawing=drawing,
        presets={"pearl": _BY_PEARL},
    )


SPECS = (
    _planar_spec("walker2d-params", walker2d_params, _WALKER),
    _planar_spec("hopper-params", hopper_params, _HOPPER),
    FamilySpec(
        "ant-params",
        ant_params,
        "the dynamics of walker2d-params on an ant",
        backends=OF_OTHER_MASSES,
        variants=tuple(VARIANTS),
        drawing=ant.DRAWING._replace(task=torso_weight),
    ),
)
