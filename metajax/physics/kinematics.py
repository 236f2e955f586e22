"""Places and motions of the bodies, the same for every engine."""

import functools
import math

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Float

from metajax.physics.batching import without_gradient
from metajax.physics.bundle import Dynamics, Kinematics, check_dynamics
from metajax.physics.c_batch import engine_lock, flat_multipliers, multiplication
from metajax.physics.mjx_model import import_mjx, mjx_arrays, with_dynamics
from metajax.physics.tracing import engine_code

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)


def kinematics_of(model: mujoco.MjModel, *, on_c_engine: bool = False):
    """Return `(qpos, qvel, dynamics) -> Kinematics`, the same for every engine.

    Args:
        model: a compiled MuJoCo model.
        on_c_engine: whether the C engine computes what MJX cannot load.
    """
    arrays = mjx_arrays(model)

    @functools.cache
    def loads() -> bool:
        try:
            arrays()
        except Exception:  # whatever it does not like: the C engine runs every model
            return False
        return True

    def in_jax(qpos: Float[Array, "nq"], qvel: Float[Array, "nv"], dynamics: Dynamics):
        engine = import_mjx()
        compiled, data = arrays()
        compiled = with_dynamics(compiled, dynamics)
        with engine_code():
            data = engine.kinematics(compiled, data.replace(qpos=qpos, qvel=qvel))
            data = engine.com_vel(compiled, engine.com_pos(compiled, data))
        return Kinematics(
            data.geom_xpos,
            data.xpos,
            data.xmat.reshape(-1, 3, 3),
            data.subtree_com[0],
            data._impl.cinert,
            data.cvel,
        )

    in_c = _in_c(model)

    def kinematics(qpos, qvel, dynamics: Dynamics) -> Kinematics:
        check_dynamics(dynamics, model)
        compute = in_c if on_c_engine and not loads() else in_jax
        return compute(qpos, qvel, dynamics)

    return kinematics


def _in_c(model: mujoco.MjModel):
    """Return `(qpos, qvel, dynamics) -> Kinematics` on MuJoCo's C engine."""
    shapes = {
        "geom_xpos": (model.ngeom, 3),
        "xpos": (model.nbody, 3),
        "xmat": (model.nbody, 3, 3),
        "subtree_com": (model.nbody, 3),
        "cinert": (model.nbody, 10),
        "cvel": (model.nbody, 6),
    }
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    state = model.nq + model.nv

    @functools.lru_cache(maxsize=8)
    def batch_of(count: int, names: tuple[str, ...]):
        batch = mujoco.batch.Batch(model, count)
        given = batch.bind("qpos"), batch.bind("qvel")
        return batch, given, multiplication(batch, names, "motion"), [batch.bind(n) for n in shapes]

    def host(names, context, out, rows) -> None:
        del context
        rows = np.asarray(rows)
        rows = rows.reshape(-1, rows.shape[-1])
        out = np.asarray(out).reshape(-1, ends[-1])
        sane = (np.abs(rows) < mujoco.mjMAXVAL).all(axis=1)
        rows = np.where(sane[:, None], rows, np.arange(rows.shape[1]) >= state)
        with engine_lock:
            batch, (qpos, qvel), multiply, fields = batch_of(len(rows), names)
            qpos[...], qvel[...] = rows[:, : model.nq], rows[:, model.nq : state]
            sane &= multiply(rows[:, state:])
            batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_VEL))
            for field, values in zip(fields, np.split(out, ends[:-1], axis=1), strict=True):
                values[...] = field.reshape(values.shape)
        out[~sane] = np.nan

    def of_row(row: Float[Array, "row"], names: tuple[str, ...]) -> Float[Array, "kinematics"]:
        shape = jax.ShapeDtypeStruct((int(ends[-1]),), row.dtype)
        call = buffer_callback(functools.partial(host, names), shape, vmap_method="broadcast_all")
        return call(row)

    def kinematics(qpos: Float[Array, "nq"], qvel: Float[Array, "nv"], dynamics: Dynamics):
        names = tuple(sorted(dynamics))
        row = jnp.concatenate([qpos, qvel, *flat_multipliers(model, names, dynamics, qpos.dtype)])
        compute = without_gradient(
            functools.partial(of_row, names=names), "backend 'mujoco' is MuJoCo's C engine"
        )
        parts = jnp.split(compute(row), ends[:-1])
        places = [part.reshape(x) for part, x in zip(parts, shapes.values(), strict=True)]
        return Kinematics(*places)._replace(center_of_mass=places[3][0])

    return kinematics
