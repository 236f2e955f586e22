"""Half-cheetahs that must run in a hidden direction or at a hidden speed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax.envs.physics import make_physics
from metajax.envs.splits import Split, finite, two_splits, uniform
from metajax.errors import unknown
from metajax.types import Continuous, Env, EnvState, TaskDistribution, TaskFamily

FRAME_SKIP = 5
BRAX_SUBSTEPS = 16  # of 3.125 ms, as in brax/envs/half_cheetah.py
RESET_NOISE = 0.1
CONTROL_COST = 0.05


class Variant(NamedTuple):
    """The numbers in which the papers' half-cheetah tasks differ.

    Attributes:
        max_velocity: target velocities are U[0, max_velocity] m/s.
        episode_length: steps per episode.
        action_scale: the control is this times the action, clipped to [-1, 1].
    """

    max_velocity: float
    episode_length: int
    action_scale: float


VARIANTS = {
    # Finn et al. 2017: cbfinn/maml_rl, half_cheetah_env_rand.py and half_cheetah_env_rand_direc.py
    "maml": Variant(2.0, 200, 1.0),
    # Rothfuss et al. 2019: ProMP, half_cheetah_rand_vel.py; normalized_env.py, scale 10
    "promp": Variant(3.0, 100, 0.1),
    # Rakelly et al. 2019: oyster, rlkit/envs/half_cheetah_vel.py
    "pearl": Variant(3.0, 200, 1.0),
    # Zintgraf et al. 2020: varibad, environments/mujoco/half_cheetah_vel.py
    "varibad": Variant(3.0, 200, 1.0),
}


def halfcheetah_dir(
    *, backend: str = "auto", variant: str = "maml", episode_length: int | None = None
) -> TaskFamily:
    """Return `halfcheetah-dir-v1`: run forward or backward, and find out which.

    Reward of a step: d·Δx/dt - 0.05·||control||², with d = ±1 the task {"direction": d}. There
    are only these two tasks, so the held-out tasks are the training tasks.

    See `halfcheetah_vel` for the body and the observation.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        variant: whose horizon and action scale, a key of `VARIANTS`.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: if the backend or the variant is unknown.
    """

    both = finite({"direction": jnp.array([1.0, -1.0])})
    return _halfcheetah(
        "halfcheetah-dir-v1",
        lambda task, velocity: task["direction"] * velocity,
        lambda chosen: (both, both),
        backend=backend,
        variant=variant,
        episode_length=episode_length,
    )


def halfcheetah_vel(
    *, backend: str = "auto", variant: str = "maml", episode_length: int | None = None
) -> TaskFamily:
    """Return `halfcheetah-vel-v1`: run at a target velocity, and find out which.

    Reward of a step: -|Δx/dt - v| - 0.05·||control||², with v the task {"velocity": v} in m/s.
    Held-out tasks have velocities in the held-out strips of the range (`metajax.envs.splits`).

    The body is Gymnasium's half_cheetah.xml, 5 substeps of 0.01 s per step. A reset adds
    U(-0.1, 0.1) to the positions and 0.1·N(0, 1) to the velocities; episodes never terminate. The
    observation [17] is that of HalfCheetah-v5, qpos[1:] and qvel; the centre of mass that some
    papers append is left out. The control is the action times the variant's action scale,
    clipped to [-1, 1]; its cost counts the control that was applied.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        variant: whose ranges, horizon and action scale, a key of `VARIANTS`.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: if the backend or the variant is unknown.
    """

    def splits(chosen: Variant):
        def sample(key: Key[Array, ""], *, split: Split):
            return {"velocity": uniform(key, 0.0, chosen.max_velocity, split=split)}

        return two_splits(sample)

    return _halfcheetah(
        "halfcheetah-vel-v1",
        lambda task, velocity: -jnp.abs(velocity - task["velocity"]),
        splits,
        backend=backend,
        variant=variant,
        episode_length=episode_length,
    )


def _halfcheetah(
    name: str,
    progress: Callable,
    splits: Callable[[Variant], tuple[TaskDistribution, TaskDistribution]],
    *,
    backend: str,
    variant: str,
    episode_length: int | None,
) -> TaskFamily:
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    chosen = VARIANTS[variant]
    horizon = chosen.episode_length if episode_length is None else episode_length
    physics = make_physics(
        "half_cheetah", backend=backend, frame_skip=FRAME_SKIP, brax_substeps=BRAX_SUBSTEPS
    )
    size = len(physics.default_qpos)
    limit = 1.0 / chosen.action_scale
    actions = Continuous(physics.model.nu, -limit, limit, chosen.action_scale)

    def observe(simulator) -> Float[Array, "17"]:
        return jnp.concatenate([physics.qpos(simulator)[1:], physics.qvel(simulator)])

    def reset(key: Key[Array, ""], task) -> EnvState:
        position_key, velocity_key = jax.random.split(key)
        noise = jax.random.uniform(position_key, (size,), minval=-RESET_NOISE, maxval=RESET_NOISE)
        qvel = RESET_NOISE * jax.random.normal(velocity_key, (size,))
        simulator = physics.init(jnp.asarray(physics.default_qpos, noise.dtype) + noise, qvel)
        return EnvState(
            observation=observe(simulator),
            reward=jnp.zeros((), qvel.dtype),
            terminated=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
            time=jnp.zeros((), jnp.int32),
            task=task,
            simulator=simulator,
        )

    def step(state: EnvState, action: Float[Array, "6"]) -> EnvState:
        control = actions.to_control(action)
        simulator = physics.step(state.simulator, control)
        moved = physics.qpos(simulator)[0] - physics.qpos(state.simulator)[0]
        cost = CONTROL_COST * jnp.sum(control**2)
        time = state.time + 1
        return EnvState(
            observation=observe(simulator),
            reward=progress(state.task, moved / physics.dt) - cost,
            terminated=jnp.zeros((), bool),
            truncated=time == horizon,
            time=time,
            task=state.task,
            simulator=simulator,
        )

    train, test = splits(chosen)
    return TaskFamily(
        env=Env(reset, step, 2 * size - 1, actions, horizon),
        train=train,
        test=test,
        name=name,
        backend=physics.backend,
    )
