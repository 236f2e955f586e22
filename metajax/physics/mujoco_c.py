"""MuJoCo's C engine on all CPU threads, called from inside the compiled program."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Float

from metajax.physics.batching import without_gradient
from metajax.physics.bundle import Dynamics, Physics, check_dynamics
from metajax.physics.c_batch import engine_lock, flat_multipliers, multiplication
from metajax.physics.limits import check_limits
from metajax.physics.mujoco_state import (
    EXACT_PARTS,
    MujocoState,
    mujoco_bundle,
    number_of_pieces,
    of_pieces,
    pieces,
    state_parts,
)

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)

_DIVERGED = [
    int(kind)
    for kind in (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
    )
]


class _Rows(NamedTuple):
    """What an environment is to the engine: a row of numbers.

    The parts of its state, the control, then its multipliers; after the step, the parts of the
    state and the contact forces.

    Attributes:
        widths: numbers in every part of the state, by MuJoCo's names.
        controls: numbers in the control.
        forces: numbers in the contact forces, 0 if they are not wanted.
    """

    widths: Mapping[str, int]
    controls: int
    forces: int

    def ends(self, dtype) -> np.ndarray:
        """Return where the parts of the state and the control end, in columns of a type."""
        exact = number_of_pieces(dtype)
        columns = [n * (exact if name in EXACT_PARTS else 1) for name, n in self.widths.items()]
        return np.cumsum([*columns, self.controls])

    def size_after(self, dtype) -> int:
        """Return the length of a row after the step."""
        return int(self.ends(dtype)[-2]) + self.forces


def make(
    model: mujoco.MjModel,
    *,
    frame_skip: int,
    contact_forces: bool = False,
    recompute_constants: bool = False,
) -> Physics:
    """Return the physics of `model` on MuJoCo's C engine, on all CPU threads.

    Under `vmap`, however nested, the engine is called once per step with all of them, and gives
    each the same bits as a loop of `mj_step` (`mujoco.batch`). It computes in double precision;
    the carried state has JAX's precision. An environment that diverges becomes NaN, as in MJX,
    instead of starting again. CPU only and not differentiable. One device already has every core:
    more are no faster.

    Args:
        model: a compiled MuJoCo model.
        frame_skip: substeps per environment step.
        contact_forces: whether they are wanted; the model then needs `contact_sensor`.
        recompute_constants: see `make_physics`.

    Raises:
        MetajaxError: the model asks for what cannot be carried from step to step.
    """
    check_limits(model, "mujoco")
    # Where bodies are not simple, only a torque shows about which point MuJoCo computes.
    shown = contact_forces or model.dof_simplenum.any() or model.nefm0dof > 0
    derived = "all" if recompute_constants else "motion" if shown else "none"
    parts = state_parts(model)
    widths = {"qpos": model.nq, "qvel": model.nv, "qacc_warmstart": model.nv}
    widths |= {name: value.size for name, value in parts.items()}
    rows = _Rows(widths, model.nu, 6 * model.nbody if contact_forces else 0)
    host_step = _host_step(model, rows, frame_skip=frame_skip, derived=derived)

    @functools.cache
    def engine(names: tuple[str, ...]) -> Any:
        # Not `jax.pure_callback`: that hands over JAX arrays, made on the thread it runs on, which
        # costs a third of a step at 20 environments, and such callbacks are known to hang on it.
        def step_row(row: Float[Array, "row"]) -> Float[Array, "state"]:
            shape = jax.ShapeDtypeStruct((rows.size_after(row.dtype),), row.dtype)
            host = functools.partial(host_step, names)
            return buffer_callback(host, shape, vmap_method="broadcast_all")(row)

        return without_gradient(step_row, "backend 'mujoco' is MuJoCo's C engine")

    def step(state: MujocoState, control: Float[Array, "nu"], dynamics: Dynamics) -> MujocoState:
        check_dynamics(dynamics, model)
        names = tuple(sorted(dynamics))
        rest = [state.rest[name] for name in parts]
        row = [state.qpos, state.qvel, state.warmstart, *(x.ravel() for x in rest)]
        row.append(control.astype(state.qpos.dtype))
        row = jnp.concatenate([*row, *flat_multipliers(model, names, dynamics, state.qpos.dtype)])
        after = jnp.split(engine(names)(row), rows.ends(row.dtype)[:-1])
        qpos, qvel, warmstart, *after, force = after
        rest = {n: new.reshape(x.shape) for n, x, new in zip(parts, rest, after, strict=True)}
        force = force.reshape(model.nbody, 6) if contact_forces else None
        return MujocoState(qpos, qvel, warmstart, force, rest)

    return mujoco_bundle(
        model, step, frame_skip=frame_skip, backend="mujoco", contact_forces=contact_forces
    )


def _host_step(model: mujoco.MjModel, rows: _Rows, *, frame_skip: int, derived: str):
    """Return what the program calls: `(names of multipliers, context, rows after, rows before)`.

    Args:
        model: a compiled MuJoCo model.
        rows: how they are divided.
        frame_skip: substeps per environment step.
        derived: see `multiplication`.
    """
    names_given = (*rows.widths, "ctrl")

    @functools.lru_cache(maxsize=8)
    def batch_of(count: int, names: tuple[str, ...]):
        batch = mujoco.batch.Batch(model, count)
        given = [batch.bind(name) for name in names_given]
        force = batch.bind("cfrc_ext") if rows.forces else None
        return batch, np.array(batch.state[:1]), given, multiplication(batch, names, derived), force

    def write(batch, initial, given, columns) -> None:
        batch.state[...] = initial  # nothing of the call before
        for name, field, values in zip(names_given, given, columns, strict=True):
            if name in EXACT_PARTS:
                values = of_pieces(values, rows.widths[name])
            field[...] = values.reshape(field.shape)

    def read(given, force, out) -> None:
        *columns, forces = np.split(out, rows.ends(out.dtype)[:-1], axis=1)
        for name, field, values in zip(rows.widths, given[:-1], columns, strict=True):
            field = field.reshape(len(field), -1)
            if name in EXACT_PARTS:
                field = np.concatenate(pieces(field, out.dtype), axis=1)
            values[...] = field
        if force is not None:
            forces[...] = force.reshape(forces.shape)

    def host_step(names, context, out, before) -> None:
        # Only NumPy in here: a JAX call could wait for the very thread that runs this.
        del context
        before = np.asarray(before)
        before = before.reshape(-1, before.shape[-1])
        out = np.asarray(out)
        out = out.reshape(-1, out.shape[-1])
        ends = rows.ends(before.dtype)
        sane = (np.abs(before) < mujoco.mjMAXVAL).all(axis=1)
        if not sane.all():
            before = np.where(sane[:, None], before, np.arange(before.shape[1]) >= ends[-1])
        with engine_lock:
            batch, initial, given, multiply, force = batch_of(len(before), names)
            *columns, multipliers = np.split(before, ends, axis=1)
            write(batch, initial, given, columns)
            batch.state[~sane] = initial
            sane &= multiply(multipliers)
            batch.warning[...] = 0
            batch.step(nstep=frame_skip)
            read(given, force, out)
            sane &= (batch.warning[:, _DIVERGED, 1] == 0).all(axis=1)
        out[~sane] = np.nan

    return host_step
