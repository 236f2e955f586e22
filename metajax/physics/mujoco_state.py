"""The state that C MuJoCo, MJX and MuJoCo Warp share, and the bundle around their steps."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float

from metajax.physics.bundle import Physics
from metajax.physics.kinematics import kinematics_of
from metajax.types import pytree_dataclass

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)


@pytree_dataclass
class MujocoState:
    """What MuJoCo and MJX need to continue exactly: everything else follows from it.

    Attributes:
        qpos: generalized positions (m, rad).
        qvel: generalized velocities (m/s, rad/s).
        warmstart: the last acceleration, where the constraint solver starts.
        contact_force: see `Physics`; None if it was not asked for.
        rest: the other parts of MuJoCo's integration state that the model has (`STATE_PARTS`), by
            MuJoCo's names; empty for most models. Applied forces are none of them: always 0.
    """

    qpos: Float[Array, "*batch nq"]
    qvel: Float[Array, "*batch nv"]
    warmstart: Float[Array, "*batch nv"]
    contact_force: Float[Array, "*batch nbody 6"] | None = None
    rest: Mapping[str, Float[Array, "..."]] = dataclasses.field(default_factory=dict)


# Parts of the integration state that a model may have or not. Of MJX's and Warp's models some:
# see `check_limits`.
STATE_PARTS = (
    "act",
    "history",
    "plastic",
    "plugin_state",
    "eq_active",
    "mocap_pos",
    "mocap_quat",
    "userdata",
)

# A delay looks for the sample of a time: rounded, it finds another one.
EXACT_PARTS = ("time", "history")


def state_parts(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Return the parts of `MujocoState.rest` where an episode starts, in double precision."""
    data = mujoco.MjData(model)
    parts = {name: np.array(getattr(data, name), float) for name in STATE_PARTS}
    if model.nhistory or model.nplugin:  # which ask for it
        parts["time"] = np.array([data.time])
    return {name: value for name, value in parts.items() if value.size}


def pieces(values: np.ndarray, dtype) -> np.ndarray:
    """Return double-precision `values` as a sum of numbers of another precision: a leading axis.

    Three single-precision numbers hold one of double precision exactly.
    """
    found = []
    for _ in range(number_of_pieces(dtype)):
        found.append(values.astype(dtype))
        values = values - found[-1]
    return np.stack(found)


def of_pieces(columns: np.ndarray, width: int) -> np.ndarray:
    """Return what `pieces` divided, from rows in which the pieces follow each other."""
    return columns.reshape(len(columns), -1, width).sum(axis=1, dtype=np.float64)


def number_of_pieces(dtype) -> int:
    """Return into how many `pieces` divides."""
    return 1 if dtype == np.float64 else 3


def data_at(data, state: MujocoState):
    """Return MJX's data at a state."""
    rest = {name: x.astype(getattr(data, name).dtype) for name, x in state.rest.items()}
    return data.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart, **rest)


def mujoco_bundle(
    model: mujoco.MjModel, step, *, frame_skip: int, backend: str, contact_forces: bool
) -> Physics:
    """Return the bundle around a step.

    Args:
        model: a compiled MuJoCo model.
        step: `(state, control, dynamics) -> state`, of one environment.
        frame_skip: substeps per environment step.
        backend: the engine's name.
        contact_forces: whether they are part of the state.
    """
    kinematics = kinematics_of(model, on_c_engine=backend == "mujoco")
    parts = state_parts(model)

    def init(qpos: Float[Array, "nq"], qvel: Float[Array, "nv"]) -> MujocoState:
        force = jnp.zeros((model.nbody, 6), qvel.dtype) if contact_forces else None
        rest = {
            name: jnp.asarray(pieces(x, qvel.dtype) if name in EXACT_PARTS else x, qvel.dtype)
            for name, x in parts.items()
        }
        return MujocoState(qpos, qvel, jnp.zeros_like(qvel), force, rest)

    step_once = jax.jit(step)
    return Physics(
        init=init,
        step=lambda state, control, dynamics=None: step_once(state, control, dynamics or {}),
        qpos=lambda state: state.qpos,
        qvel=lambda state: state.qvel,
        kinematics=lambda state, dynamics=None: kinematics(state.qpos, state.qvel, dynamics or {}),
        contact_force=(lambda state: state.contact_force) if contact_forces else None,
        model=model,
        default_qpos=np.array(model.qpos0),
        dt=float(model.opt.timestep * frame_skip),
        backend=backend,
    )
