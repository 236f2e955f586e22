"""Rigid-body physics behind one bundle of pure functions; the engine is a choice.

Three makers build the same body, read from the XML files inside the installed Gymnasium package:

- `mjx`: MuJoCo's JAX port; the default on an accelerator.
- `mujoco`: MuJoCo's C engine on all CPU threads, called from inside the compiled program. The
  default on a CPU, where it is tens of times faster than MJX and compiles in a second. The same
  physics as `mjx`, to rounding.
- `brax`: Brax's pipelines `spring`, `positional` and `generalized`. Another physics: results on
  them are not results on MuJoCo.

An engine takes about as long to trace as to compile. `jax.jit` around its steps is there for its
cache alone: traced once, whatever program, loop or `vmap` they are part of.
"""

import contextlib
import copy
import functools
import importlib.util
import io
import pathlib
import re
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Float

from metajax.errors import MetajaxError, unknown
from metajax.types import pytree_dataclass

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)

BACKENDS = ("mjx", "mujoco", "spring", "positional", "generalized")

PhysicsState = Any


class Physics(NamedTuple):
    """A simulated body: pure functions of one world, and facts about the model.

    - `init(qpos, qvel) -> state`: from generalized positions [nq] and velocities [nv];
    - `step(state, control) -> state`: one environment step under a constant `control` [nu];
    - `qpos(state)`, `qvel(state)`: read them back;
    - `geom_position(state, name)`: the centre of a geom [xyz] in metres, by forward kinematics of
      `qpos` (MuJoCo's own `geom_xpos` lags by a substep after a step).

    Attributes:
        init: see above.
        step: see above.
        qpos: see above.
        qvel: see above.
        geom_position: see above.
        default_qpos: the model's own initial positions [nq].
        control_low: lower limits [nu].
        control_high: upper limits [nu].
        dt: seconds per environment step.
        backend: the engine's name.
    """

    init: Callable[[Float[Array, "nq"], Float[Array, "nv"]], PhysicsState]
    step: Callable[[PhysicsState, Float[Array, "nu"]], PhysicsState]
    qpos: Callable[[PhysicsState], Float[Array, "nq"]]
    qvel: Callable[[PhysicsState], Float[Array, "nv"]]
    geom_position: Callable[[PhysicsState, str], Float[Array, "3"]]
    default_qpos: np.ndarray
    control_low: np.ndarray
    control_high: np.ndarray
    dt: float
    backend: str


def make_physics(
    name: str,
    *,
    backend: str,
    frame_skip: int,
    brax_substeps: int,
    without: str | None = None,
) -> Physics:
    """Return the physics of a Gymnasium model on an engine.

    Args:
        name: of the model's XML file, for example "half_cheetah".
        backend: "auto" or one of `BACKENDS`, see `resolve_backend`.
        frame_skip: substeps of the model's own length per environment step.
        brax_substeps: substeps into which `spring` and `positional`, which need shorter ones,
            divide the same time.
        without: a body to leave out.

    Raises:
        MetajaxError: if the backend is unknown or cannot run on this machine.
    """
    engine = resolve_backend(backend)
    model = gymnasium_model(name, without=without)
    if engine == "mjx":
        return mjx(model, frame_skip=frame_skip)
    if engine == "mujoco":
        return mujoco_c(model, frame_skip=frame_skip)
    return brax(
        gymnasium_model(name, without=without, for_brax=True),
        pipeline=engine,
        dt=float(model.opt.timestep * frame_skip),
        substeps=frame_skip if engine == "generalized" else brax_substeps,
    )


def resolve_backend(backend: str) -> str:
    """Return the engine that `backend` names; "auto" is `mjx` on an accelerator, else `mujoco`.

    Raises:
        MetajaxError: if there is no such engine, or it cannot run on this machine.
    """
    if backend == "auto":
        return "mujoco" if _on_cpu() else "mjx"
    if backend not in BACKENDS:
        raise unknown("backend", backend, ("auto", *BACKENDS))
    if backend == "mujoco" and not _on_cpu():
        raise MetajaxError(
            f"backend 'mujoco' is MuJoCo's C engine and runs on a CPU only, but JAX runs on "
            f"{jax.default_backend()}: take backend 'mjx', or start JAX with JAX_PLATFORMS=cpu."
        )
    return backend


def gymnasium_model(
    name: str, *, without: str | None = None, for_brax: bool = False
) -> mujoco.MjModel:
    """Return a model of the installed Gymnasium package, edited in memory.

    Args:
        name: of the XML file, for example "half_cheetah".
        without: a body to leave out.
        for_brax: add the engine parameters of Brax's own version of the model, and merge bodies
            without joints into their parents, which Brax's pipelines ask for.
    """
    spec = _spec("gymnasium", f"envs/mujoco/assets/{name}.xml")
    if without is not None:
        spec.delete(spec.body(without))
    if for_brax:
        tuned = _spec("brax", f"envs/assets/{name}.xml")
        spec.compiler.fusestatic = True
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
        spec.option.iterations = tuned.option.iterations
        links = len({joint.parent.name for joint in spec.joints})
        for numeric in tuned.numerics:
            if numeric.name != "init_qpos":
                data = list(numeric.data)[:links]  # one per link, or one for all
                spec.add_numeric(name=numeric.name, data=data, size=len(data))
    with warnings.catch_warnings():
        # Deprecated, but it is what Gymnasium's cheetah says.
        warnings.filterwarnings("ignore", message=".*settotalmass")
        return spec.compile()


def _spec(package: str, path: str) -> mujoco.MjSpec:
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    return mujoco.MjSpec.from_file(str(pathlib.Path(found.origin).parent / path))


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


# ---------------------------------------------------------------------------------------------
# MuJoCo, in C and in JAX
# ---------------------------------------------------------------------------------------------


@pytree_dataclass
class MujocoState:
    """What MuJoCo and MJX need to continue exactly: everything else follows from it.

    Attributes:
        qpos: generalized positions (m, rad).
        qvel: generalized velocities (m/s, rad/s).
        warmstart: the last acceleration, where the constraint solver starts.
    """

    qpos: Float[Array, "*batch nq"]
    qvel: Float[Array, "*batch nv"]
    warmstart: Float[Array, "*batch nv"]


def _mujoco_bundle(model: mujoco.MjModel, step, *, frame_skip: int, backend: str) -> Physics:
    kinematics = _kinematics(model)
    return Physics(
        init=lambda qpos, qvel: MujocoState(qpos, qvel, jnp.zeros_like(qvel)),
        step=jax.jit(step),
        qpos=lambda state: state.qpos,
        qvel=lambda state: state.qvel,
        geom_position=lambda state, name: kinematics(state.qpos, name),
        dt=float(model.opt.timestep * frame_skip),
        backend=backend,
        **_facts(model),
    )


def _facts(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    limited = np.array(model.actuator_ctrllimited, bool)[:, None]
    low_high = np.where(limited, model.actuator_ctrlrange, [-np.inf, np.inf])
    return {
        "default_qpos": np.array(model.qpos0),
        "control_low": low_high[:, 0],
        "control_high": low_high[:, 1],
    }


_engine_lock = threading.Lock()  # one batch at a time: each already uses every core
_DIVERGED = [
    int(kind)
    for kind in (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
    )
]


def mujoco_c(model: mujoco.MjModel, *, frame_skip: int) -> Physics:
    """Return the physics of `model` on MuJoCo's C engine, on all CPU threads.

    Under `vmap`, however nested, the engine is called once per step with all worlds, and gives
    each the same bits as a loop of `mj_step` (`mujoco.batch`). It computes in double precision;
    the carried state has JAX's precision. A world that diverges becomes NaN, as in MJX, instead of
    starting again. CPU only and not differentiable. One device already has every core: more are
    no faster.

    Args:
        model: a compiled MuJoCo model.
        frame_skip: substeps per environment step.
    """
    ends = np.cumsum([model.nq, model.nv, model.nv, model.nu])

    @functools.lru_cache(maxsize=8)
    def worlds(count: int):
        batch = mujoco.batch.Batch(model, count)
        return batch, [batch.bind(n) for n in ("qpos", "qvel", "qacc_warmstart", "ctrl")]

    def host_step(context, out, rows) -> None:
        # Only NumPy in here: a JAX call could wait for the very thread that runs this.
        del context
        rows = np.asarray(rows).reshape(-1, ends[3])
        out = np.asarray(out).reshape(-1, ends[2])
        sane = (np.abs(rows) < mujoco.mjMAXVAL).all(axis=1)
        if not sane.all():
            rows = np.where(sane[:, None], rows, 0)
        with _engine_lock:
            batch, fields = worlds(len(rows))
            for field, values in zip(fields, np.split(rows, ends[:3], axis=1), strict=True):
                field[...] = values
            batch.warning[...] = 0
            batch.step(nstep=frame_skip)
            for field, values in zip(fields, np.split(out, ends[:2], axis=1), strict=False):
                values[...] = field
            sane &= (batch.warning[:, _DIVERGED, 1] == 0).all(axis=1)
        out[~sane] = np.nan

    # Not `jax.pure_callback`: that hands over JAX arrays, made on the thread it runs on, which
    # costs a third of a step at 20 worlds and is what such callbacks are known to hang on.
    @jax.custom_jvp
    def engine(row: Float[Array, "row"]) -> Float[Array, "state"]:
        shape = jax.ShapeDtypeStruct((int(ends[2]),), row.dtype)
        return buffer_callback(host_step, shape, vmap_method="broadcast_all")(row)

    @engine.defjvp
    def no_gradient(primals, tangents):
        raise MetajaxError(
            "backend 'mujoco' is MuJoCo's C engine, which has no gradient: to differentiate "
            "through the physics take backend 'spring', 'positional' or 'generalized', or 'mjx' "
            "in forward mode."
        )

    def step(state: MujocoState, control: Float[Array, "nu"]) -> MujocoState:
        row = jnp.concatenate([state.qpos, state.qvel, state.warmstart, control])
        return MujocoState(*jnp.split(engine(row), ends[:2]))

    return _mujoco_bundle(model, step, frame_skip=frame_skip, backend="mujoco")


SOLVER_ITERATIONS = 8
LINE_SEARCH = 8  # MJX computes all of them, needed or not


def mjx(model: mujoco.MjModel, *, frame_skip: int) -> Physics:
    """Return the physics of `model` on MJX, MuJoCo's JAX port.

    Pure JAX, in JAX's precision. Differentiable in forward mode; in reverse mode only with
    `model.opt.iterations` 1, since the constraint solver is a loop of unknown length.

    The constraint solver is limited to `SOLVER_ITERATIONS` iterations of `LINE_SEARCH` evaluations,
    which give the half-cheetah the same digits as the shipped 100 and 50 at several times the
    speed; with 4 iterations, one step in 10 000 is off by 1 m/s.

    Args:
        model: a compiled MuJoCo model.
        frame_skip: substeps per environment step.
    """
    engine = _import_mjx()
    model = copy.copy(model)
    model.opt.iterations = min(model.opt.iterations, SOLVER_ITERATIONS)
    model.opt.ls_iterations = min(model.opt.ls_iterations, LINE_SEARCH)
    arrays = _mjx_arrays(model)
    arrays()  # made now: MJX cannot while a program is traced for several devices

    def step(state: MujocoState, control: Float[Array, "nu"]) -> MujocoState:
        compiled, data = arrays()

        def substep(state: MujocoState, _):
            # Only the state is carried: the rest of the data is recomputed from it anyway.
            with _foreign_code():
                after = engine.step(
                    compiled,
                    data.replace(
                        qpos=state.qpos,
                        qvel=state.qvel,
                        qacc_warmstart=state.warmstart,
                        ctrl=control,
                    ),
                )
            return MujocoState(after.qpos, after.qvel, after.qacc_warmstart), None

        return jax.lax.scan(substep, state, None, length=frame_skip)[0]

    if _on_cpu() and model.opt.iterations > 1:
        step = _in_chunks(step, CHUNK)
    return _mujoco_bundle(model, step, frame_skip=frame_skip, backend="mjx")


CHUNK = 16  # beyond one vector register of single precision, XLA's code for MJX is half as fast


def _in_chunks(step, most: int):
    """Return `step` so that `vmap`, however nested, computes at most so many worlds at once.

    One chunk after the other; so there is forward-mode differentiation, but no reverse mode.
    """

    step_chunk = jax.jit(jax.vmap(step))

    @custom_vmap
    def step_worlds(state, control):
        worlds = control.shape[0]
        chunks = -(-worlds // most)
        size = -(-worlds // chunks)

        def cut(x):
            fill = [(0, chunks * size - worlds)] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(x, fill, mode="edge").reshape(chunks, size, *x.shape[1:])

        cut_arguments = jax.tree.map(cut, (state, control))
        after = jax.lax.map(lambda chunk: step_chunk(*chunk), cut_arguments)
        return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2)[:worlds], after)

    @step_worlds.def_vmap
    def step_batches(size, batched, *arguments):
        def flat(x, is_batched):
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return jax.lax.collapse(x, 0, 2)

        after = step_worlds(*jax.tree.map(flat, arguments, tuple(batched)))
        after = jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]), after)
        return after, jax.tree.map(lambda _: True, after)

    def step_one(state, control):
        after = step_worlds(*jax.tree.map(lambda x: x[None], (state, control)))
        return jax.tree.map(lambda x: x[0], after)

    return step_one


def _import_mjx():
    """Import MJX without the two lines that it prints where `warp` is not installed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        from mujoco import mjx
    for line in printed.getvalue().splitlines():
        if not re.match("Failed to import (mujoco_)?warp", line):
            print(line)
    return mjx


def _mjx_arrays(model: mujoco.MjModel):
    """Return a function that gives MJX's model and data in JAX's current precision."""

    @functools.cache
    def arrays(x64: bool):
        del x64
        engine = _import_mjx()
        # As NumPy arrays they are bound to no device, so the program may be sharded over any.
        with jax.ensure_compile_time_eval(), _foreign_code():
            return jax.tree.map(np.asarray, (engine.put_model(model), engine.make_data(model)))

    return lambda: jax.tree.map(jnp.asarray, arrays(bool(jax.config.jax_enable_x64)))


def _kinematics(model: mujoco.MjModel):
    """Return `(qpos, geom name) -> position`, the same for every engine."""
    arrays = _mjx_arrays(model)

    def position(qpos: Float[Array, "nq"], name: str) -> Float[Array, "3"]:
        compiled, data = arrays()
        with _foreign_code():
            after = _import_mjx().kinematics(compiled, data.replace(qpos=qpos))
        return after.geom_xpos[model.geom(name).id]

    return position


# ---------------------------------------------------------------------------------------------
# Brax
# ---------------------------------------------------------------------------------------------


@pytree_dataclass
class BraxState:
    """What a Brax pipeline needs to continue exactly.

    Attributes:
        qpos: generalized positions (m, rad).
        qvel: generalized velocities (m/s, rad/s).
        links: `spring` and `positional`, which work on free bodies: the place and motion of every
            link. `generalized`: the inverse of the mass matrix, which it refines step by step.
    """

    qpos: Float[Array, "*batch nq"]
    qvel: Float[Array, "*batch nv"]
    links: Any


def brax(model: mujoco.MjModel, *, pipeline: str, dt: float, substeps: int) -> Physics:
    """Return the physics of `model` on a Brax pipeline: not MuJoCo's, see the module.

    Pure JAX and differentiable in both modes.

    Args:
        model: from `gymnasium_model(..., for_brax=True)`.
        pipeline: "spring", "positional" or "generalized".
        dt: seconds per environment step.
        substeps: into how many that is divided.
    """
    _import_mjx()  # Brax imports it too
    with _foreign_code():
        from brax import com
        from brax import kinematics as brax_kinematics
        from brax.io import mjcf

        engine = importlib.import_module(f"brax.{pipeline}.pipeline")
        system = mjcf.load_model(copy.copy(model))  # which writes into its argument
    kinematics = _kinematics(model)
    system: Any = system.tree_replace({"opt.timestep": jnp.asarray(dt / substeps)})

    def compact(full) -> BraxState:
        links = full.mass_mx_inv if pipeline == "generalized" else (full.x_i, full.xd_i)
        return BraxState(full.q, full.qd, links)

    def restore(state: BraxState):
        # What is replaced right after `init` is never computed.
        full = engine.init(system, state.qpos, state.qvel)
        if pipeline == "generalized":
            return full.replace(mass_mx_inv=state.links)
        x_i, xd_i = state.links
        x, xd = com.to_world(system, x_i, xd_i)
        j, jd, a_p, a_c = brax_kinematics.world_to_joint(system, x, xd)
        return full.replace(x=x, xd=xd, x_i=x_i, xd_i=xd_i, j=j, jd=jd, a_p=a_p, a_c=a_c)

    def init(qpos: Float[Array, "nq"], qvel: Float[Array, "nv"]) -> BraxState:
        with _foreign_code():
            return compact(engine.init(system, qpos, qvel))

    def step(state: BraxState, control: Float[Array, "nu"]) -> BraxState:
        def substep(full, _):
            return engine.step(system, full, control), None

        with _foreign_code():
            return compact(jax.lax.scan(substep, restore(state), None, length=substeps)[0])

    return Physics(
        init=jax.jit(init),
        step=jax.jit(step),
        qpos=lambda state: state.qpos,
        qvel=lambda state: state.qvel,
        geom_position=lambda state, name: kinematics(state.qpos, name),
        dt=dt,
        backend=pipeline,
        **_facts(model),
    )


# ---------------------------------------------------------------------------------------------
# Other people's code
# ---------------------------------------------------------------------------------------------

_foreign_lock = threading.RLock()


@contextlib.contextmanager
def _foreign_code():
    """Import or trace an engine on its own terms.

    - It may broadcast over ranks, which a user of this package may have forbidden.
    - Brax need not warn that it, and what it is built on, are no longer developed.
    - On a CPU it factorizes its small matrices in plain JAX. The batched LAPACK kernels of jaxlib
      0.10 split their batch over XLA's thread pool and wait for it on a thread of that pool: as
      many of them at once as there are cores wait for ever. (jaxlib 0.11.2 does not split.) For
      matrices this small plain JAX is as fast.
    """
    linalg = jax.scipy.linalg
    with _foreign_lock, jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        for message in ("Brax System", "JAXopt is no longer", "Accessing .* directly from `Data`"):
            warnings.filterwarnings("ignore", message)
        originals = linalg.cho_factor, linalg.cho_solve, linalg.solve
        if _on_cpu():
            linalg.cho_factor, linalg.cho_solve, linalg.solve = _cho_factor, _cho_solve, _solve
        try:
            yield
        finally:
            linalg.cho_factor, linalg.cho_solve, linalg.solve = originals


def _cho_factor(matrix: Float[Array, "n n"], lower: bool = False):
    """Return what `jax.scipy.linalg.cho_factor` returns, for one small matrix."""
    columns = []
    rest = matrix
    for index in range(matrix.shape[-1]):
        column = rest[:, 0] / jnp.sqrt(rest[0, 0])
        columns.append(jnp.concatenate([jnp.zeros(index, matrix.dtype), column]))
        rest = rest[1:, 1:] - column[1:, None] * column[None, 1:]
    factor = jnp.stack(columns, axis=1)
    return (factor if lower else factor.T), lower


def _cho_solve(factor_and_lower, right: Float[Array, "n *k"]):
    """Return what `jax.scipy.linalg.cho_solve` returns, for one small matrix."""
    factor, lower = factor_and_lower
    factor = factor if lower else factor.T
    solved = list(right)
    for row in range(len(solved)):
        for column in range(row):
            solved[row] -= factor[row, column] * solved[column]
        solved[row] /= factor[row, row]
    for row in reversed(range(len(solved))):
        for column in range(row + 1, len(solved)):
            solved[row] -= factor[column, row] * solved[column]
        solved[row] /= factor[row, row]
    return jnp.stack(solved)


def _solve(matrix: Float[Array, "n n"], right: Float[Array, "n *k"], *, assume_a: str):
    """Return what `jax.scipy.linalg.solve` returns, for one small positive definite matrix."""
    assert assume_a == "pos"
    return _cho_solve(_cho_factor(matrix), right)
