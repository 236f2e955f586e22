"""Humanoids that must run in a hidden direction."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metajax._checks import checked
from metajax.envs.builders import robot_env, scaled_actions, uniform_noise
from metajax.envs.drawings import DARK, LIGHT, MIDDLE, SLANTED, Body, towards
from metajax.envs.families.ant import direction_splits, unit_vector
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import between, finite_splits
from metajax.errors import unknown
from metajax.physics import BACKENDS, Physics, PhysicsState, load_model, make_physics
from metajax.types import TaskDistribution, TaskFamily, pytree_dataclass

FRAME_SKIP = 5
BRAX_SUBSTEPS = 10  # of 1.5 ms, as in brax/envs/humanoid.py
SUBSTEP = 0.003  # s, by which the papers divide the distance covered in five of them


class Variant(NamedTuple):
    """The numbers in which the papers' humanoids differ.

    Attributes:
        episode_length: steps per episode.
        action_scale: the control is 0.4 times this times the action, clipped to ±0.4.
        tasks: number of directions, the last 30 held out; None for all of the circle.
    """

    episode_length: int
    action_scale: float
    tasks: int | None = None


VARIANTS = {
    # Rothfuss et al. 2019: ProMP, humanoid_rand_direc.py and humanoid_rand_direc_2d.py
    "promp": Variant(100, 0.1),
    # Rakelly et al. 2019: oyster, rlkit/envs/humanoid_dir.py
    "pearl": Variant(200, 1.0, tasks=130),
    # Zintgraf et al. 2020: varibad, environments/mujoco/humanoid_dir.py
    "varibad": Variant(200, 1.0),
}


@pytree_dataclass
class ControlledState:
    """The state of a robot, and the control that led to it."""

    body: PhysicsState
    control: Float[Array, "*batch nu"]

    @property
    def qpos(self) -> Float[Array, "*batch nq"]:
        """Generalized positions (m, rad)."""
        return self.body.qpos


@checked
def humanoid_dir(
    *,
    backend: str = "auto",
    variant: str = "varibad",
    directions: Literal["two", "all"] = "all",
    episode_length: int | None = None,
) -> TaskFamily:
    """Return `humanoid-dir-v1`: run in a direction, and find out which.

    Reward of a step: 0.25·direction·Δcom/0.003 - 0.1·‖control‖² - min(5e-7·‖contact force‖², 10) +
    5, with com the centre of mass xy. (The distance is that of five substeps of 0.003 s, so the
    weight of a velocity is 1.25; the papers have it so.) The episode terminates when the torso is
    not between 1 and 2 m high. The task is {"direction": [xy]}, a unit vector; variant "pearl" has
    130, the last 30 held out (the paper's own were drawn without a seed).

    Gymnasium's humanoid.xml with Newton's solver in place of PGS, 5 substeps of 0.003 s per step; a
    reset adds U(-0.01, 0.01) to positions and velocities, and makes the quaternion one again. The
    observation [376] is qpos[2:], qvel, the bodies' inertias and velocities about the centre of
    mass, the actuators' torques and the contact forces (see `ant-vel-v1`). On Brax the feet and
    hands are merged into shins and arms, the observation is as much shorter, and contact forces
    are 0.

    Args:
        backend: the physics engine; "auto" is mjx on an accelerator and mujoco on a CPU.
        variant: a key of `VARIANTS`.
        directions: "two" is forward and backward, both training and test tasks; "all" are all of
            the circle, held-out ones in the held-out strips of the angle.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: if the backend, the variant or the directions are unknown.
    """
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    chosen = VARIANTS[variant]
    physics = _remember_control(
        make_physics(
            "humanoid",
            backend=backend,
            frame_skip=FRAME_SKIP,
            brax_substeps=BRAX_SUBSTEPS,
            contact_forces=True,
        )
    )
    model = physics.model
    joints = model.jnt_dofadr[model.actuator_trnid[:, 0]]
    gear = np.array(model.actuator_gear[:, 0])

    def contact(state) -> Float[Array, "nbody*6"]:
        if physics.contact_force is None:
            return jnp.zeros(6 * model.nbody, physics.qvel(state).dtype)
        return physics.contact_force(state).ravel()

    def observe(task, state) -> Float[Array, "376"]:
        del task
        moving = physics.kinematics(state)
        torques = jnp.zeros(model.nv).at[joints].add(jnp.asarray(gear) * state.control)
        return jnp.concatenate(
            [
                physics.qpos(state)[2:],
                physics.qvel(state),
                moving.inertia.ravel(),
                moving.velocity.ravel(),
                torques,
                contact(state),
            ]
        )

    def reward(task, before, after, control) -> Float[Array, ""]:
        here, there = (physics.kinematics(s).center_of_mass[:2] for s in (before, after))
        progress = jnp.sum(task["direction"] * (there - here)) / SUBSTEP
        impact = jnp.minimum(5e-7 * jnp.sum(contact(after) ** 2), 10)
        return 0.25 * progress - 0.1 * jnp.sum(control**2) - impact + 5

    def healthy(task, state):
        del task
        height = physics.qpos(state)[2]
        return (height >= 1.0) & (height <= 2.0)

    splits = direction_splits(directions)
    if chosen.tasks is not None and directions == "all":
        angle = np.random.RandomState(1337).uniform(0, 2 * np.pi, chosen.tasks)
        found = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), float)
        splits = finite_splits({"direction": found}, np.arange(chosen.tasks) >= chosen.tasks - 30)
        splits["validation"] = TaskDistribution(
            lambda key: {"direction": unit_vector(between(key, angle, 0.0, 2 * np.pi))}
        )
    env = robot_env(
        physics,
        noise=uniform_noise(0.01),
        observe=observe,
        reward=reward,
        healthy=healthy,
        actions=scaled_actions(physics, chosen.action_scale),
        episode_length=chosen.episode_length if episode_length is None else episode_length,
    )
    return TaskFamily(env, name="humanoid-dir-v1", backend=physics.backend, **splits)


def _remember_control(physics: Physics) -> Physics:
    """Return the same physics with `ControlledState`."""

    def init(qpos, qvel) -> ControlledState:
        return ControlledState(physics.init(qpos, qvel), jnp.zeros(physics.model.nu, qvel.dtype))

    def step(state: ControlledState, control, dynamics=None) -> ControlledState:
        return ControlledState(physics.step(state.body, control, dynamics), control)

    force = physics.contact_force
    return physics._replace(
        init=init,
        step=step,
        qpos=lambda state: physics.qpos(state.body),
        qvel=lambda state: physics.qvel(state.body),
        kinematics=lambda state, dynamics=None: physics.kinematics(state.body, dynamics),
        contact_force=None if force is None else lambda state: force(state.body),
    )


# Rakelly et al. 2019: oyster, configs/humanoid-dir.json
_DIRECTION_BY_PEARL = {
    "family": {"variant": "pearl"},
    "algorithm": {"updates": 4000, "context": 256},
}

SPECS = (
    FamilySpec(
        "humanoid-dir",
        humanoid_dir,
        "Rothfuss et al. 2019",
        backends=BACKENDS,
        variants=tuple(VARIANTS),
        drawing=Body(
            model=lambda: load_model("humanoid"),
            seconds=SUBSTEP * FRAME_SKIP,
            view=SLANTED,
            window=(3.4, 2.1),
            below=0.5,
            follow=2,
            colors={
                DARK: ("left_*",),
                MIDDLE: ("torso*", "head", "*waist", "butt"),
                LIGHT: ("right_*",),
            },
            task=towards,
        ),
        presets={"pearl": _DIRECTION_BY_PEARL},
    ),
)
