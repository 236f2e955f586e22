"""What a simulated body is: pure functions of one environment, and what a task may change of it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mujoco
import numpy as np
from jaxtyping import Array, Float

from metajax.errors import MetajaxError, unknown

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)

PhysicsState = Any

# What a task may change: a name, and the field of MuJoCo's model that it multiplies.
DYNAMICS = {
    "mass": "body_mass",  # [nbody] kg
    "inertia": "body_inertia",  # [nbody, 3] kg·m²
    "friction": "geom_friction",  # [ngeom, 3] sliding, spinning, rolling
    "damping": "dof_damping",  # [nv] N·m·s/rad
    "gravity": "opt.gravity",  # [3] m/s²
    "gear": "actuator_gear",  # [nu, 6]
}

# Names of `DYNAMICS` and multipliers: of a field's shape, or of its leading axes. Motion, centres
# of mass and the torques about them are those of the multiplied model. What MuJoCo derives from
# the fields when it compiles a model to say how soft contacts, limits and equalities and how strong
# muscles are (`c_batch.SOFTNESS`) stays as it was, as in the code of the papers that multiply them,
# unless `make_physics` is asked to recompute it. Explicit contact pairs have their own friction.
Dynamics = Mapping[str, Float[Array, "..."]]


class Kinematics(NamedTuple):
    """What follows from positions and velocities alone, the same for every engine.

    (MuJoCo's own lag by a substep after a step.)

    Attributes:
        geom_position: centres of the geoms (m).
        body_position: origins of the bodies (m).
        body_rotation: their axes, as columns.
        center_of_mass: of the robot (m).
        inertia: of the bodies about it: MuJoCo's `cinert`.
        velocity: of the bodies (rad/s, m/s): MuJoCo's `cvel`.
    """

    geom_position: Float[Array, "ngeom 3"]
    body_position: Float[Array, "nbody 3"]
    body_rotation: Float[Array, "nbody 3 3"]
    center_of_mass: Float[Array, "3"]
    inertia: Float[Array, "nbody 10"]
    velocity: Float[Array, "nbody 6"]


class Physics(NamedTuple):
    """A simulated body: pure functions of one environment, and facts about the model.

    - `init(qpos, qvel) -> state`: from generalized positions [nq] and velocities [nv];
    - `step(state, control, dynamics={}) -> state`: one environment step under a constant `control`
      [nu], with fields of the model multiplied by `dynamics`;
    - `qpos(state)`, `qvel(state)`: read them back;
    - `kinematics(state, dynamics={})`: what follows from them;
    - `contact_force(state)`: the external force on every body [nbody, 6], a torque and a force
      about the robot's centre of mass (N·m, N; MuJoCo's `cfrc_ext`), at the start of the last
      substep; 0 after `init`. None if it was not asked for, or on Brax, which has no such forces.

    Attributes:
        init: see above.
        step: see above.
        qpos: see above.
        qvel: see above.
        kinematics: see above.
        contact_force: see above.
        model: the compiled MuJoCo model; on Brax, bodies without joints are merged.
        default_qpos: the model's own initial positions [nq].
        dt: seconds per environment step.
        backend: the engine's name.
    """

    init: Callable[[Float[Array, "nq"], Float[Array, "nv"]], PhysicsState]
    step: Callable[..., PhysicsState]
    qpos: Callable[[PhysicsState], Float[Array, "nq"]]
    qvel: Callable[[PhysicsState], Float[Array, "nv"]]
    kinematics: Callable[..., Kinematics]
    contact_force: Callable[[PhysicsState], Float[Array, "nbody 6"]] | None
    model: mujoco.MjModel
    default_qpos: np.ndarray
    dt: float
    backend: str

    @property
    def control_range(self) -> np.ndarray:
        """Lower and upper limits of the control `[nu, 2]`, infinite where there are none."""
        limited = np.array(self.model.actuator_ctrllimited, bool)[:, None]
        return np.where(limited, self.model.actuator_ctrlrange, [-np.inf, np.inf])


def on_leading_axes(axes: int, multiplier: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return multipliers of the leading axes of a field with `axes` axes, ready to multiply it."""
    return multiplier.reshape(multiplier.shape + (1,) * (axes - multiplier.ndim))


def check_dynamics(dynamics: Dynamics, model: mujoco.MjModel) -> None:
    """Check names and shapes of multipliers.

    Args:
        dynamics: of one environment.
        model: whose fields they multiply.

    Raises:
        MetajaxError: a name is unknown, a shape is wrong, or the gear of a muscle is multiplied.
    """
    for name, multiplier in dynamics.items():
        if name not in DYNAMICS:
            raise unknown("dynamics", name, DYNAMICS)
        shape = field_shape(model, name)
        if multiplier.shape != shape[: multiplier.ndim]:
            raise MetajaxError(
                f"multipliers of {name} have shape {multiplier.shape}; they must be {shape}, or "
                "its first axes."
            )
    if "gear" in dynamics and (model.actuator_gaintype == mujoco.mjtGain.mjGAIN_MUSCLE).any():
        raise MetajaxError(
            "the gear of a muscle cannot be multiplied: MuJoCo measures the range of its lengths "
            "when it compiles the model."
        )


def field_shape(model: mujoco.MjModel, name: str) -> tuple[int, ...]:
    """Return the shape of the field that a name of `DYNAMICS` multiplies."""
    return np.shape(functools.reduce(getattr, DYNAMICS[name].split("."), model))
