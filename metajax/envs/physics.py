"""Rigid-body physics behind one bundle of pure functions; the engine is a choice.

Four makers build the same body, read from the XML files inside the installed Gymnasium package:

- `mjx`: MuJoCo's JAX port; the default on an accelerator.
- `mujoco`: MuJoCo's C engine on all CPU threads, called from inside the compiled program. The
  default on a CPU, where it is tens of times faster than MJX and compiles in a second. The same
  physics as `mjx`, to rounding.
- `warp`: MuJoCo Warp, for NVIDIA GPUs, behind MJX's interface. The same physics in single precision
  but for its contact frames (see `warp`), written for thousands of worlds; it has no gradient. On a
  CPU it runs where it is asked for by name: slowly, and its kernels take minutes to compile once.
- `brax`: Brax's pipelines `spring`, `positional` and `generalized`. Another physics: results on
  them are not results on MuJoCo.

An engine takes about as long to trace as to compile. `jax.jit` around its steps is there for its
cache alone: traced once, whatever program, loop or `vmap` they are part of.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib.util
import io
import math
import pathlib
import re
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental.buffer_callback import buffer_callback
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from metajax._checks import checked
from metajax.envs.engine_limits import check_limits
from metajax.errors import MetajaxError, unknown
from metajax.types import pytree_dataclass

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)

BACKENDS = ("mjx", "mujoco", "warp", "spring", "positional", "generalized")

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
# muscles are (`_SOFTNESS`) stays as it was, as in the code of the papers that multiply them, unless
# `make_physics` is asked to recompute it. Explicit contact pairs have a friction of their own.
Dynamics = Mapping[str, Float[Array, "..."]]

_SOFTNESS = (
    "body_invweight0",
    "dof_invweight0",
    "tendon_invweight0",
    "flexedge_invweight0",
    "actuator_acc0",
)


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
    """A simulated body: pure functions of one world, and facts about the model.

    - `init(qpos, qvel) -> state`: from generalized positions [nq] and velocities [nv];
    - `step(state, control, dynamics={}) -> state`: one environment step under a constant `control`
      [nu], with fields of the model multiplied by `dynamics`;
    - `qpos(state)`, `qvel(state)`: read them back;
    - `kinematics(state, dynamics={})`: what follows from them;
    - `contact_force(state)`: the external force on every body [nbody, 6], a torque and a force
      about the robot's centre of mass (N·m, N; MuJoCo's `cfrc_ext`), where the last substep began;
      0 after `init`. None if it was not asked for, or on Brax, which has no such forces.

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


@checked
def make_physics(
    name: str,
    *,
    backend: str,
    frame_skip: int,
    brax_substeps: int,
    without: str | None = None,
    contact_forces: bool = False,
    recompute_constants: bool = False,
) -> Physics:
    """Return the physics of a MuJoCo model on an engine.

    Args:
        name: of an XML file of Gymnasium's, for example "half_cheetah", or the path of one's own.
        backend: "auto" or one of `BACKENDS`, see `resolve_backend`.
        frame_skip: substeps of the model's own length per environment step.
        brax_substeps: substeps into which `spring` and `positional`, which need shorter ones,
            divide the same time.
        without: a body to leave out.
        contact_forces: whether `Physics.contact_force` is wanted, where the engine has it.
        recompute_constants: whether a world's multipliers also change what MuJoCo derives from the
            model when it compiles it, as `mj_setConst` does: see `Dynamics`. On `mujoco` alone.

    Raises:
        MetajaxError: the backend is unknown or cannot run on this machine, or the model cannot be
            read, or not by this engine.
    """
    engine = resolve_backend(backend)
    if recompute_constants and engine != "mujoco":
        raise MetajaxError(
            f"backend {engine!r} cannot recompute the constants of a multiplied model: take "
            "recompute_constants=False, or backend 'mujoco' on a CPU."
        )
    if engine in ("mjx", "mujoco", "warp"):
        # The others compute contact forces for a sensor alone; in MJX it would cost a pass more.
        sensor = contact_forces and engine != "mjx"
        model = load_model(name, without=without, contact_sensor=sensor)
        options: dict[str, Any] = {"frame_skip": frame_skip, "contact_forces": contact_forces}
        if engine == "mujoco":
            options["recompute_constants"] = recompute_constants
        return {"mjx": mjx, "mujoco": mujoco_c, "warp": warp}[engine](model, **options)
    original = load_model(name, without=without)
    model = load_model(name, without=without, for_brax=True)
    return brax(
        model,
        pipeline=engine,
        offset=original.qpos0 - model.qpos0,
        dt=float(original.opt.timestep * frame_skip),
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
    if backend == "warp":
        if not (_on_nvidia() or _on_cpu()):
            raise MetajaxError(
                "backend 'warp' is MuJoCo Warp and runs on an NVIDIA GPU, or slowly on a CPU, but "
                f"JAX runs on {jax.default_backend()}: take backend 'mjx'."
            )
        if importlib.util.find_spec("warp") is None:
            raise MetajaxError(
                "backend 'warp' needs the package warp-lang: in a clone, "
                'pip install -e ".[warp]".'
            )
    return backend


def load_model(
    name: str,
    *,
    without: str | None = None,
    for_brax: bool = False,
    contact_sensor: bool = False,
) -> mujoco.MjModel:
    """Return a model of the installed Gymnasium package, or of one's own, edited in memory.

    Where the file asks for the PGS solver, which MJX does not have, Newton's takes its place, on
    every engine: both solve the same problem, Newton's to the end.

    Args:
        name: of the XML file, for example "half_cheetah", or its path.
        without: a body to leave out.
        for_brax: add the engine parameters of Brax's own version of the model, and do as Brax's
            pipelines ask: merge bodies without joints into their parents, and let hinges and
            slides be 0 where the model stands.
        contact_sensor: add a sensor that makes C MuJoCo compute `cfrc_ext`.

    Raises:
        MetajaxError: there is no such model or body, or MuJoCo cannot read the model.
    """
    own = pathlib.Path(name).suffix != "" or len(pathlib.Path(name).parts) > 1
    spec = _own_spec(str(name)) if own else _gymnasium_spec(name)
    if without is not None:
        bodies = {body.name: body for body in spec.bodies[1:] if body.name}  # not the world
        if without not in bodies:
            raise unknown("body", without, bodies)
        spec.delete(bodies[without])
    if spec.option.solver == mujoco.mjtSolver.mjSOL_PGS:
        spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    if contact_sensor:
        spec.bodies[1].add_site(name="metajax")
        spec.add_sensor(
            name="metajax",
            type=mujoco.mjtSensor.mjSENS_FORCE,
            objtype=mujoco.mjtObj.mjOBJ_SITE,
            objname="metajax",
        )
    if for_brax:
        spec.compiler.fusestatic = True
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
        hinges = {j.parent.name: j.pos for j in spec.joints if j.type != _SLIDE}
        for joint in spec.joints:
            joint.ref = 0
            joint.pos = hinges.get(joint.parent.name, joint.pos)  # no matter for a slide
        if not own:
            _tune_for_brax(spec, _spec("brax", f"envs/assets/{name}.xml"))
    with warnings.catch_warnings():
        # Deprecated, but it is what Gymnasium's cheetah says.
        warnings.filterwarnings("ignore", message=".*settotalmass")
        try:
            model = spec.compile()
        except (ValueError, mujoco.FatalError) as error:
            raise MetajaxError(f"MuJoCo cannot compile {name}: {_one_line(error)}") from None
    if model.nv == 0:
        raise MetajaxError(f"nothing in {name} can move: it has no joints.")
    return model


def _own_spec(path: str) -> mujoco.MjSpec:
    if not path.endswith(".xml"):  # by which alone MuJoCo knows what it is
        raise MetajaxError(
            f"{path} must end in .xml, which tells MuJoCo what it is: rename it, or take the name "
            f"of a model of Gymnasium's: {', '.join(_gymnasium_models())}."
        )
    if not pathlib.Path(path).is_file():
        raise MetajaxError(f"MuJoCo cannot read {path}: there is no such file.")
    try:
        return mujoco.MjSpec.from_file(path)
    except (ValueError, mujoco.FatalError) as error:
        raise MetajaxError(f"MuJoCo cannot read {path}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _gymnasium_spec(name: str) -> mujoco.MjSpec:
    if name not in _gymnasium_models():
        known = unknown("model", name, _gymnasium_models())
        raise MetajaxError(f"{known} One of your own is the path of a file that ends in .xml.")
    return _spec("gymnasium", f"{_GYMNASIUM}/{name}.xml")


def _gymnasium_models() -> list[str]:
    return sorted(path.stem for path in _path("gymnasium", _GYMNASIUM).glob("*.xml"))


_GYMNASIUM = "envs/mujoco/assets"
_SLIDE = mujoco.mjtJoint.mjJNT_SLIDE


def _tune_for_brax(spec: mujoco.MjSpec, tuned: mujoco.MjSpec) -> None:
    spec.option.iterations = tuned.option.iterations
    links = len({joint.parent.name for joint in spec.joints})
    for numeric in tuned.numerics:
        if numeric.name != "init_qpos":
            data = list(numeric.data)[:links]  # one per link, or one for all
            spec.add_numeric(name=numeric.name, data=data, size=len(data))


def _spec(package: str, path: str) -> mujoco.MjSpec:
    return mujoco.MjSpec.from_file(str(_path(package, path)))


def _path(package: str, path: str) -> pathlib.Path:
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    return pathlib.Path(found.origin).parent / path


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _on_nvidia() -> bool:
    return jax.default_backend() in ("gpu", "cuda")


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
        contact_force: see `Physics`; None if it was not asked for.
        rest: the other parts of MuJoCo's integration state that the model has (`_STATE_PARTS`), by
            MuJoCo's names; empty for most models. Applied forces are none of them: always 0.
    """

    qpos: Float[Array, "*batch nq"]
    qvel: Float[Array, "*batch nv"]
    warmstart: Float[Array, "*batch nv"]
    contact_force: Float[Array, "*batch nbody 6"] | None = None
    rest: Mapping[str, Float[Array, "..."]] = dataclasses.field(default_factory=dict)


# Parts of the integration state that a model may have or not. Of MJX's and Warp's models some:
# see `check_limits`.
_STATE_PARTS = (
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
_EXACT_PARTS = ("time", "history")


def _state_parts(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Return the parts of `MujocoState.rest` where an episode starts, in double precision."""
    data = mujoco.MjData(model)
    parts = {name: np.array(getattr(data, name), float) for name in _STATE_PARTS}
    if model.nhistory or model.nplugin:  # which ask for it
        parts["time"] = np.array([data.time])
    return {name: value for name, value in parts.items() if value.size}


def _pieces(values: np.ndarray, dtype) -> np.ndarray:
    """Return double-precision `values` as a sum of numbers of another precision: a leading axis.

    Three single-precision numbers hold one of double precision exactly.
    """
    pieces = []
    for _ in range(_number_of_pieces(dtype)):
        pieces.append(values.astype(dtype))
        values = values - pieces[-1]
    return np.stack(pieces)


def _of_pieces(columns: np.ndarray, width: int) -> np.ndarray:
    """Return what `_pieces` divided, from rows in which the pieces follow each other."""
    return columns.reshape(len(columns), -1, width).sum(axis=1, dtype=np.float64)


def _number_of_pieces(dtype) -> int:
    return 1 if dtype == np.float64 else 3


def _mujoco_bundle(
    model: mujoco.MjModel, step, *, frame_skip: int, backend: str, contact_forces: bool
) -> Physics:
    kinematics = _kinematics(model, on_c_engine=backend == "mujoco")
    parts = _state_parts(model)

    def init(qpos: Float[Array, "nq"], qvel: Float[Array, "nv"]) -> MujocoState:
        force = jnp.zeros((model.nbody, 6), qvel.dtype) if contact_forces else None
        rest = {
            name: jnp.asarray(_pieces(x, qvel.dtype) if name in _EXACT_PARTS else x, qvel.dtype)
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


def _multipliers(axes: int, multiplier: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return multipliers of the leading axes of a field with `axes` axes, ready to multiply it."""
    return multiplier.reshape(multiplier.shape + (1,) * (axes - multiplier.ndim))


def _check_dynamics(dynamics: Dynamics, model: mujoco.MjModel) -> None:
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


_engine_lock = threading.Lock()  # one batch at a time: each already uses every core
_DIVERGED = [
    int(kind)
    for kind in (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
    )
]


def mujoco_c(
    model: mujoco.MjModel,
    *,
    frame_skip: int,
    contact_forces: bool = False,
    recompute_constants: bool = False,
) -> Physics:
    """Return the physics of `model` on MuJoCo's C engine, on all CPU threads.

    Under `vmap`, however nested, the engine is called once per step with all worlds, and gives
    each the same bits as a loop of `mj_step` (`mujoco.batch`). It computes in double precision;
    the carried state has JAX's precision. A world that diverges becomes NaN, as in MJX, instead of
    starting again. CPU only and not differentiable. One device already has every core: more are
    no faster.

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
    parts = _state_parts(model)
    widths = {"qpos": model.nq, "qvel": model.nv, "qacc_warmstart": model.nv}
    widths |= {name: value.size for name, value in parts.items()}

    def ends_of(dtype) -> np.ndarray:  # of the columns of the state's parts and of the control
        pieces = [_number_of_pieces(dtype) if name in _EXACT_PARTS else 1 for name in widths]
        return np.cumsum([*np.multiply(pieces, list(widths.values())), model.nu])

    @functools.lru_cache(maxsize=8)
    def worlds(count: int, names: tuple[str, ...]):
        batch = mujoco.batch.Batch(model, count)
        given = [batch.bind(name) for name in (*widths, "ctrl")]
        force = batch.bind("cfrc_ext") if contact_forces else None
        return batch, np.array(batch.state[:1]), given, _multiply(batch, names, derived), force

    def host_step(names, context, out, rows) -> None:
        # Only NumPy in here: a JAX call could wait for the very thread that runs this.
        del context
        rows = np.asarray(rows)
        rows = rows.reshape(-1, rows.shape[-1])
        out = np.asarray(out)
        out = out.reshape(-1, out.shape[-1])
        ends = ends_of(rows.dtype)
        sane = (np.abs(rows) < mujoco.mjMAXVAL).all(axis=1)
        if not sane.all():
            rows = np.where(sane[:, None], rows, np.arange(rows.shape[1]) >= ends[-1])
        with _engine_lock:
            batch, initial, given, multiply, force = worlds(len(rows), names)
            *columns, multipliers = np.split(rows, ends, axis=1)
            batch.state[...] = initial  # nothing of the call before
            for name, field, values in zip((*widths, "ctrl"), given, columns, strict=True):
                if name in _EXACT_PARTS:
                    values = _of_pieces(values, widths[name])
                field[...] = values.reshape(field.shape)
            batch.state[~sane] = initial
            sane &= multiply(multipliers)
            batch.warning[...] = 0
            batch.step(nstep=frame_skip)
            *columns, forces = np.split(out, ends[:-1], axis=1)
            for name, field, values in zip(widths, given[:-1], columns, strict=True):
                field = field.reshape(len(field), -1)
                if name in _EXACT_PARTS:
                    field = np.concatenate(_pieces(field, out.dtype), axis=1)
                values[...] = field
            if force is not None:
                forces[...] = force.reshape(forces.shape)
            sane &= (batch.warning[:, _DIVERGED, 1] == 0).all(axis=1)
        out[~sane] = np.nan

    @functools.cache
    def engine(names: tuple[str, ...]) -> Any:
        # Not `jax.pure_callback`: that hands over JAX arrays, made on the thread it runs on, which
        # costs a third of a step at 20 worlds and is what such callbacks are known to hang on.
        def step_row(row: Float[Array, "row"]) -> Float[Array, "state"]:
            size = int(ends_of(row.dtype)[-2]) + 6 * model.nbody * contact_forces
            shape = jax.ShapeDtypeStruct((size,), row.dtype)
            host = functools.partial(host_step, names)
            return buffer_callback(host, shape, vmap_method="broadcast_all")(row)

        return _without_gradient(step_row, "backend 'mujoco' is MuJoCo's C engine")

    def step(state: MujocoState, control: Float[Array, "nu"], dynamics: Dynamics) -> MujocoState:
        _check_dynamics(dynamics, model)
        names = tuple(sorted(dynamics))
        rest = [state.rest[name] for name in parts]
        row = [state.qpos, state.qvel, state.warmstart, *(x.ravel() for x in rest)]
        row.append(control.astype(state.qpos.dtype))
        row = jnp.concatenate([*row, *_columns(model, names, dynamics, state.qpos.dtype)])
        after = jnp.split(engine(names)(row), ends_of(row.dtype)[:-1])
        qpos, qvel, warmstart, *after, force = after
        rest = {n: new.reshape(x.shape) for n, x, new in zip(parts, rest, after, strict=True)}
        force = force.reshape(model.nbody, 6) if contact_forces else None
        return MujocoState(qpos, qvel, warmstart, force, rest)

    return _mujoco_bundle(
        model, step, frame_skip=frame_skip, backend="mujoco", contact_forces=contact_forces
    )


def _columns(model: mujoco.MjModel, names: tuple[str, ...], dynamics: Dynamics, dtype):
    """Return the multipliers of every number of the named fields, flat."""
    shapes = {name: field_shape(model, name) for name in names}
    return [
        jnp.broadcast_to(_multipliers(len(shape), dynamics[name]), shape).ravel().astype(dtype)
        for name, shape in shapes.items()
    ]


def _multiply(batch: mujoco.batch.Batch, names: tuple[str, ...], derived: str):
    """Return a function that gives every world of a batch its own multipliers `[world, column]`.

    It returns which of the worlds MuJoCo accepts as a model (one without mass it does not).

    Args:
        batch: the worlds.
        names: of `DYNAMICS`, in the order of their columns.
        derived: what follows of the constants that MuJoCo derives from the fields: "all"; "motion"
            for all but `_SOFTNESS`; or "none".
    """
    changed = [batch.expand(DYNAMICS[name]) for name in names]
    nominal = [np.array(field[:1]) for field in changed]
    follow = derived == "all" or (derived == "motion" and bool({"mass", "inertia"} & set(names)))
    kept = [batch.expand(name) for name in _SOFTNESS] if follow and derived == "motion" else []
    kept = [(field, np.array(field[:1])) for field in kept]
    accepted = np.ones(batch.nsim, bool)
    last = None

    def multiply(multipliers: np.ndarray) -> np.ndarray:
        nonlocal last, accepted
        if last is not None and np.array_equal(multipliers, last):
            return accepted
        first = 0
        for field, at_first in zip(changed, nominal, strict=True):
            columns = multipliers[:, first : first + at_first.size]
            np.multiply(at_first, columns.reshape(field.shape), out=field)
            first += at_first.size
        if follow:
            try:
                batch.set_const()
                accepted = np.ones(batch.nsim, bool)
            except mujoco.batch.SimulationError:
                accepted = np.array([not batch.error(world) for world in range(batch.nsim)])
            for field, at_first in kept:
                field[...] = at_first
        last = multipliers.copy()
        return accepted

    return multiply


def _without_gradient(function, engine: str) -> Any:
    """Return a function that says so when it is differentiated."""
    function = jax.custom_jvp(function)

    @function.defjvp
    def no_gradient(primals, tangents):
        raise MetajaxError(
            f"{engine}, which has no gradient: to differentiate through the physics take backend "
            "'mjx', 'spring', 'positional' or 'generalized'."
        )

    return function


SOLVER_ITERATIONS = 8
LINE_SEARCH = 8  # MJX computes all of them, needed or not


def mjx(model: mujoco.MjModel, *, frame_skip: int, contact_forces: bool = False) -> Physics:
    """Return the physics of `model` on MJX, MuJoCo's JAX port.

    Pure JAX, in JAX's precision. Differentiable in both modes: the constraint solver is a loop of
    unknown length, which knows forward mode only, so a derivative takes the Jacobian of the step by
    as many tangents as there are positions, velocities, accelerations and controls. Second
    derivatives take forward over reverse mode (`jax.hessian`): when a loop is differentiated in
    reverse mode twice, JAX forgets how the step is to be.

    The constraint solver is limited to `SOLVER_ITERATIONS` iterations of `LINE_SEARCH` evaluations,
    which give the half-cheetah the same digits as the shipped 100 and 50 at several times the
    speed; with 4 iterations, one step in 10 000 is off by 1 m/s.

    The integrators RK4 and implicitfast are MuJoCo's own, not MJX's; Euler's is the same in both.
    What MJX would leave out of a model is refused (`metajax.envs.engine_limits`).

    Args:
        model: a compiled MuJoCo model.
        frame_skip: substeps per environment step.
        contact_forces: whether they are wanted, at the cost of one more pass per step.

    Raises:
        MetajaxError: MJX does not have something that the model asks for.
    """
    check_limits(model, "mjx")
    engine = _import_mjx()
    model = copy.copy(model)
    model.opt.iterations = min(model.opt.iterations, SOLVER_ITERATIONS)
    model.opt.ls_iterations = min(model.opt.ls_iterations, LINE_SEARCH)
    arrays = _mjx_arrays(model)
    with _loading("mjx"):
        arrays()  # made now: MJX cannot while a program is traced for several devices
    fast = model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    substep = _substep(model, _forward, _implicit_fast(model) if fast else _euler)

    def step(state: MujocoState, control: Float[Array, "nu"], dynamics: Dynamics) -> MujocoState:
        _check_dynamics(dynamics, model)
        compiled, data = arrays()
        compiled, data = _with_dynamics(compiled, dynamics), data.replace(ctrl=control)

        def one(state: MujocoState, last):
            def force_of(data, wanted):
                if not contact_forces:
                    return None
                return jax.lax.cond(
                    last & wanted,
                    lambda: engine.rne_postconstraint(compiled, data)._impl.cfrc_ext,
                    lambda: jnp.zeros((model.nbody, 6), state.qvel.dtype),
                )

            # Only the state is carried: the rest of the data is recomputed from it anyway.
            return substep(engine, compiled, data, state, force_of), None

        with _foreign_code():
            return jax.lax.scan(one, state, jnp.arange(frame_skip) == frame_skip - 1)[0]

    in_chunks = _on_cpu() and model.opt.iterations > 1
    batch = functools.partial(_in_chunks, most=CHUNK) if in_chunks else lambda step: step
    step = _by_jacobians(step, batch)
    return _mujoco_bundle(
        model, step, frame_skip=frame_skip, backend="mjx", contact_forces=contact_forces
    )


def _with_dynamics(compiled, dynamics: Dynamics):
    """Return MJX's model with fields multiplied."""
    for name, multiplier in dynamics.items():
        field = functools.reduce(getattr, DYNAMICS[name].split("."), compiled)
        changed = field * _multipliers(field.ndim, multiplier)
        compiled = compiled.tree_replace({DYNAMICS[name]: changed})
    if "mass" in dynamics:
        below = _descendants(compiled.body_parentid)
        masses = jnp.sum(jnp.where(below > 0, compiled.body_mass[None], 0.0), axis=1)
        compiled = compiled.replace(body_subtreemass=masses)
    return compiled


def _descendants(parents: np.ndarray) -> np.ndarray:
    """Return which bodies `[body, descendant]` hang from which, themselves included."""
    below = np.eye(len(parents))
    for body in range(len(parents) - 1, 0, -1):
        below[parents[body]] += below[body]
    return below


@contextlib.contextmanager
def _loading(backend: str):
    try:
        yield
    except (NotImplementedError, RuntimeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise MetajaxError(
            f"backend {backend!r} cannot load the model: {reason}. Take backend 'mujoco' on a CPU, "
            "or leave it out of the model."
        ) from None


def _data_at(data, state: MujocoState):
    rest = {name: x.astype(getattr(data, name).dtype) for name, x in state.rest.items()}
    return data.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart, **rest)


def _forward(engine, compiled, data):
    """Return MJX's forward dynamics, with the contact frames of C MuJoCo.

    A friction pyramid is not round: it matters where its edges point. Both engines let them follow
    a capsule that lies on a plane, but MJX no longer where the capsule is steeper than 60°.
    """
    for stage in (
        engine.kinematics,
        engine.com_pos,
        engine.tendon,
        engine.crb,
        engine.tendon_armature,
        engine.factor_m,
        engine.collision,
        _align_with_capsules,
        engine.make_constraint,
        engine.transmission,
        engine.fwd_velocity,
        engine.fwd_actuation,
        engine.fwd_acceleration,
    ):
        data = stage(compiled, data)
    if data._impl.efc_J.size == 0:
        return data.replace(qacc=data.qacc_smooth)
    return engine.solve(compiled, data)


_PLANE, _CAPSULE = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_CAPSULE)


def _align_with_capsules(compiled, data):
    contact = data._impl.contact
    kinds = jnp.asarray(compiled.geom_type)
    plane, other = kinds[contact.geom[:, 0]], kinds[contact.geom[:, 1]]
    normal = contact.frame[:, 0]
    axis = data.geom_xmat[contact.geom[:, 1]][:, :, 2]
    along = axis - normal * jnp.sum(normal * axis, axis=1, keepdims=True)
    length = jnp.linalg.norm(along, axis=1, keepdims=True)
    along = along / jnp.where(length > 0, length, 1)
    aligned = jnp.stack([normal, along, jnp.cross(normal, along)], axis=1)
    lying = (plane == _PLANE) & (other == _CAPSULE) & (length[:, 0] > 0)
    frame = jnp.where(lying[:, None, None], aligned, contact.frame)
    return data.tree_replace({"_impl.contact.frame": frame})


def _euler(engine, compiled, data):
    return engine.euler(compiled, _forward(engine, compiled, data))


def _implicit_fast(model: mujoco.MjModel):
    """Return MuJoCo's integrator `implicitfast`, `(engine, compiled model, data) -> data`.

    MJX's is that of MuJoCo before version 4: it derives forces that are clamped, couples joints of
    different branches, and does not know the gyroscopic forces of bodies that are free and alone.

    Args:
        model: a compiled MuJoCo model.
    """
    off = mujoco.mjtDisableBit
    actuated, sprung, damped = (
        not model.opt.disableflags & int(flag)
        for flag in (off.mjDSBL_ACTUATION, off.mjDSBL_SPRING, off.mjDSBL_DAMPER)
    )
    alone = _free_and_alone(model)
    row, column = np.repeat(np.arange(model.nv), model.M_rownnz), np.array(model.M_colind)
    coupled = np.zeros((model.nv, model.nv), bool)  # where the mass matrix has an entry
    coupled[row, column] = coupled[column, row] = True

    def rate(data, compiled) -> Float[Array, "nv nv"]:
        """The derivative of the forces with respect to the velocities."""
        total = jnp.zeros((model.nv, model.nv), data.qvel.dtype)
        if actuated and model.nu:
            moment, speeds = data._impl.actuator_moment, _force_by_speed(model, compiled, data)
            total += moment.T @ (speeds[:, None] * moment)
        if damped:
            pulls = data._impl.ten_J
            total -= pulls.T @ (compiled.tendon_damping[:, None] * pulls)
        total = jnp.where(coupled, total, 0.0)
        return total - jnp.diag(compiled.dof_damping) if damped else total

    def advance(engine, compiled, data):
        data = _forward(engine, compiled, data)
        acceleration = data.qacc
        if actuated or sprung or damped:
            mass = engine.full_m(compiled, data) - compiled.opt.timestep * rate(data, compiled)
            force = data.qfrc_smooth + data.qfrc_constraint
            factor = jax.scipy.linalg.cho_factor(mass)
            acceleration = jax.scipy.linalg.cho_solve(factor, force)
            if len(alone):
                turning = compiled.opt.timestep * _gyroscopic(engine, compiled, data, alone)
                blocks = mass[alone[:, :, None], alone[:, None, :]] + turning
                of_alone = jax.vmap(_solve_by_elimination)(blocks, force[alone])
                acceleration = acceleration.at[alone].set(of_alone)
        # MJX's Euler step moves by an acceleration, and starts the next solution from it.
        flags = compiled.opt.disableflags | engine.DisableBit.EULERDAMP
        explicit = compiled.tree_replace({"opt.disableflags": flags})
        after = engine.euler(explicit, data.replace(qacc=acceleration))
        return after.replace(qacc=data.qacc, qacc_warmstart=data.qacc)

    return advance


def _free_and_alone(model: mujoco.MjModel) -> np.ndarray:
    """Return the degrees of freedom `[body, 6]` of free bodies that carry no joint."""
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    first = np.array(model.jnt_dofadr)[free]
    alone = np.array(model.tree_dofnum)[model.dof_treeid[first]] == 6
    return first[alone][:, None] + np.arange(6)


def _force_by_speed(model: mujoco.MjModel, compiled, data) -> Float[Array, "nu"]:
    """Return the derivatives of the actuators' forces by their speeds, 0 where one is clamped."""
    affine_bias = model.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE
    affine_gain = model.actuator_gaintype == mujoco.mjtGain.mjGAIN_AFFINE
    driving = data.ctrl
    if not model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL):
        low, high = jnp.asarray(compiled.actuator_ctrlrange).T
        limited = np.array(model.actuator_ctrllimited, bool)
        driving = jnp.where(limited, jnp.clip(driving, low, high), driving)
    if model.na:
        last = np.maximum(model.actuator_actadr + model.actuator_actnum - 1, 0)
        driving = jnp.where(model.actuator_actadr >= 0, data.act[last], driving)
    slope = jnp.where(affine_bias, compiled.actuator_biasprm[:, 2], 0.0)
    slope += jnp.where(affine_gain, compiled.actuator_gainprm[:, 2] * driving, 0.0)
    low, high = jnp.asarray(compiled.actuator_forcerange).T
    clamped = (data.actuator_force <= low) | (data.actuator_force >= high)
    return jnp.where(np.array(model.actuator_forcelimited, bool) & clamped, 0.0, slope)


def _gyroscopic(engine, compiled, data, alone: np.ndarray) -> Float[Array, "body 6 6"]:
    """Return the derivatives of the bias forces of bodies alone by their velocities."""

    def bias(qvel):
        moving = engine.com_vel(compiled, data.replace(qvel=qvel))
        return engine.rne(compiled, moving).qfrc_bias

    def by_axis(axis):
        tangent = jnp.zeros_like(data.qvel).at[jnp.asarray(alone)[:, 3 + axis]].set(1.0)
        return jax.jvp(bias, (data.qvel,), (tangent,))[1][alone]

    columns = jax.vmap(by_axis, out_axes=-1)(jnp.arange(3))
    return jnp.concatenate([jnp.zeros_like(columns), columns], axis=-1)


def _solve_by_elimination(matrix: Float[Array, "n n"], right: Float[Array, "n"]):
    """Solve one small system whose symmetric part is positive definite: it needs no pivots."""
    rows = jnp.concatenate([matrix, right[:, None]], axis=1)
    for pivot in range(len(right)):
        row = rows[pivot] / rows[pivot, pivot]
        rows = (rows - rows[:, pivot : pivot + 1] * row).at[pivot].set(row)
    return rows[:, -1]


def _substep(model: mujoco.MjModel, forward, advance):
    """Return a substep `(engine, compiled model, data, state, force_of) -> state`.

    Args:
        model: a compiled MuJoCo model.
        forward: `(engine, compiled model, data) -> data` with accelerations.
        advance: the same, a substep later, for integrators other than Runge-Kutta's.
    """
    if model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
        return _runge_kutta(model, forward)

    def substep(engine, compiled, data, state: MujocoState, force_of) -> MujocoState:
        after = advance(engine, compiled, _data_at(data, state))
        rest = {name: getattr(after, name).astype(x.dtype) for name, x in state.rest.items()}
        force = force_of(after, True)
        return MujocoState(after.qpos, after.qvel, after.qacc_warmstart, force, rest)

    return substep


def _runge_kutta(model: mujoco.MjModel, forward):
    """Return a substep of MuJoCo's fourth-order Runge-Kutta method.

    That of MJX and of MuJoCo Warp is another method where the model has quaternions: it adds up the
    velocities of the stages, whereas MuJoCo (since version 4) adds them up in the Lie algebra of
    the rotations, after Munthe-Kaas (1998). This one also compiles the dynamics once instead of
    four times.

    Args:
        model: a compiled MuJoCo model.
        forward: `(engine, compiled model, data) -> data` with accelerations.
    """
    h = float(model.opt.timestep)
    turns = quaternion_addresses(model)
    line_q = np.setdiff1d(np.arange(model.nq), [q + i for q, _ in turns for i in range(4)])
    line_v = np.setdiff1d(np.arange(model.nv), [v + i for _, v in turns for i in range(3)])

    def move(qpos, by):
        moved = qpos.at[line_q].add(by[line_v])
        for q, v in turns:
            quaternion = _turn(qpos[q : q + 4], by[v : v + 3])
            moved = moved.at[q : q + 4].set(quaternion)
        return moved

    def rate_of(by, velocity):
        rate = velocity
        for _, v in turns:
            turned = _rate_of_turn(by[v : v + 3], velocity[v : v + 3])
            rate = rate.at[v : v + 3].set(turned)
        return rate

    def substep(engine, compiled, data, state: MujocoState, force_of) -> MujocoState:
        def stage(carry, tableau):
            last, sums, warmstart, force, _ = carry
            before, weight, first = tableau
            rate, acceleration, activation = last
            by = h * before * rate
            velocity = state.qvel + h * before * acceleration
            rest = dict(state.rest)
            if "act" in rest:
                rest["act"] += h * before * activation
            here = MujocoState(move(state.qpos, by), velocity, warmstart, rest=rest)
            after = forward(engine, compiled, _data_at(data, here))
            if force is not None:
                force += force_of(after, first)
            last = rate_of(by, velocity), after.qacc, after.act_dot
            sums = tuple(x + weight * y for x, y in zip(sums, last, strict=True))
            return (last, sums, after.qacc, force, after.actuator_length), None

        nothing = jnp.zeros_like(state.qvel)
        force = None if state.contact_force is None else jnp.zeros_like(state.contact_force)
        tableau = (
            jnp.array([0, 1 / 2, 1 / 2, 1], nothing.dtype),
            jnp.array([1 / 6, 1 / 3, 1 / 3, 1 / 6], nothing.dtype),
            jnp.arange(4) == 0,
        )
        rates = (nothing, nothing, jnp.zeros_like(data.act_dot))
        carry = (rates, rates, state.warmstart, force, jnp.zeros_like(data.actuator_length))
        carry, _ = jax.lax.scan(stage, carry, tableau)
        _, (rate, acceleration, activation), warmstart, force, length = carry
        qpos, qvel, rest = move(state.qpos, h * rate), state.qvel + h * acceleration, state.rest
        if "act" in rest:  # by MJX, which knows of exact filters, limits and angles
            known = sys.modules["mujoco.mjx._src.forward"]
            here = _data_at(data, state).replace(actuator_length=length)
            rest = {**rest, "act": known._next_activation(compiled, here, activation)}
        return MujocoState(qpos, qvel, warmstart, force, rest)

    return substep


def quaternion_addresses(model: mujoco.MjModel) -> list[tuple[int, int]]:
    """Return where the unit quaternions of free and ball joints are in positions and velocities."""
    offset = {int(mujoco.mjtJoint.mjJNT_FREE): 3, int(mujoco.mjtJoint.mjJNT_BALL): 0}
    joints = zip(model.jnt_type, model.jnt_qposadr, model.jnt_dofadr, strict=True)
    return [
        (int(q) + offset[int(kind)], int(v) + offset[int(kind)])
        for kind, q, v in joints
        if int(kind) in offset
    ]


def _turn(quaternion: Float[Array, "4"], by: Float[Array, "3"]) -> Float[Array, "4"]:
    """Return the unit quaternion turned by a rotation vector (rad) in its own frame."""
    angle = _length(by)
    scalar, vector = jnp.cos(angle / 2), jnp.sinc(angle / (2 * jnp.pi)) / 2 * by
    s, v = quaternion[0], quaternion[1:]
    turned = jnp.append(s * scalar - v @ vector, s * vector + scalar * v + jnp.cross(v, vector))
    return turned / _length(turned)


def _rate_of_turn(by: Float[Array, "3"], velocity: Float[Array, "3"]) -> Float[Array, "3"]:
    """Return the rate of the rotation vector `by` at an angular velocity, in the moving frame.

    The inverse of the right-trivialized differential of the exponential map.
    """
    angle = _length(by)
    small = angle < 0.1
    safe = jnp.where(small, 1.0, angle)
    exact = 1 / safe**2 - (1 + jnp.cos(safe)) / (2 * safe * jnp.sin(safe))
    factor = jnp.where(small, 1 / 12 + angle**2 / 720 + angle**4 / 30240, exact)
    across = jnp.cross(by, velocity)
    return velocity + across / 2 + factor * jnp.cross(by, across)


def _length(vector: Float[Array, "n"]) -> Float[Array, ""]:
    """Return the Euclidean norm, with gradient 0 at 0."""
    squared = jnp.sum(vector**2)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


CHUNK = 16  # beyond one vector register of single precision, XLA's code for MJX is half as fast


def _by_jacobians(function, batch=lambda function: function):
    """Return `function` with derivatives in both modes, where it has them in forward mode only.

    Its Jacobian is made in forward mode, and has derivatives in the same way.

    Args:
        function: of pytrees of floating-point arrays.
        batch: how `function` itself is to be computed: see `_in_chunks`.
    """
    computed = jax.custom_jvp(batch(function))

    @computed.defjvp
    def jvp(primals, tangents):
        flat, unravel = ravel_pytree(primals)

        def of_flat(flat):
            after = function(*unravel(flat))
            return ravel_pytree(after)[0], after

        jacobian, after = _by_jacobians(jax.jacfwd(of_flat, has_aux=True))(flat)
        return after, ravel_pytree(after)[1](jacobian @ ravel_pytree(tangents)[0])

    return computed


def _in_chunks(step, most: int):
    """Return `step` so that `vmap`, however nested, computes at most so many worlds at once.

    One chunk after the other; so there is forward-mode differentiation, but no reverse mode.
    """
    step_chunk = jax.jit(jax.vmap(step))

    def step_worlds(*arguments):
        worlds = len(jax.tree.leaves(arguments)[0])
        chunks = -(-worlds // most)
        size = -(-worlds // chunks)

        def cut(x):
            fill = [(0, chunks * size - worlds)] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(x, fill, mode="edge").reshape(chunks, size, *x.shape[1:])

        after = jax.lax.map(lambda chunk: step_chunk(*chunk), jax.tree.map(cut, arguments))
        return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2)[:worlds], after)

    return _all_worlds_at_once(step_worlds)


def _all_worlds_at_once(step_worlds):
    """Return the step of one world that `vmap`, however nested, computes by `step_worlds`.

    Args:
        step_worlds: takes and returns arrays with a leading axis of worlds.
    """
    step_worlds = custom_vmap(step_worlds)

    @step_worlds.def_vmap
    def step_batches(size, batched, *arguments):
        def flat(x, is_batched):
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return jax.lax.collapse(x, 0, 2)

        after = step_worlds(*jax.tree.map(flat, arguments, tuple(batched)))
        after = jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]), after)
        return after, jax.tree.map(lambda _: True, after)

    def step_one(*arguments):
        after = step_worlds(*jax.tree.map(lambda x: x[None], arguments))
        return jax.tree.map(lambda x: x[0], after)

    return step_one


def warp(model: mujoco.MjModel, *, frame_skip: int, contact_forces: bool = False) -> Physics:
    """Return the physics of `model` on MuJoCo Warp.

    Single precision, not differentiable. All worlds under a `vmap`, however nested, are one call.
    On a CPU it is slow, and compiles its kernels for minutes, once per machine.
    Contact frames are MJX's own, whose friction pyramids point along the axes of the world under
    capsules steeper than 60°: humanoid and hopper follow C MuJoCo to single precision, ant and
    half-cheetah only until such a foot touches the ground.

    Args:
        model: a compiled MuJoCo model.
        frame_skip: substeps per environment step.
        contact_forces: whether they are wanted; the model then needs `contact_sensor`.

    Raises:
        MetajaxError: MJX or Warp does not have something that the model asks for.
    """
    check_limits(model, "warp")
    engine = _import_mjx()
    with _loading("warp"):
        # MJX's own data has a place for every contact there can be, and so has this one.
        most = _mjx_arrays(model)()[1]._impl
        compiled = engine.put_model(model, impl="warp")
    substep = _substep(
        model,
        lambda engine, compiled, data: engine.forward(compiled, data),
        lambda engine, compiled, data: engine.step(compiled, data),
    )

    def force_of(data, wanted):
        return jnp.where(wanted, data._impl.cfrc_ext, 0.0) if contact_forces else None

    def step_worlds(state: MujocoState, control: Float[Array, "world nu"], dynamics: Dynamics):
        worlds = len(control)
        data = engine.make_data(
            model,
            impl="warp",
            naconmax=max(1, worlds * len(most.contact.dist)),
            njmax=max(1, len(most.efc_J)),
        )

        def step(state: MujocoState, control: Float[Array, "nu"], dynamics: Dynamics):
            of_world = _with_dynamics(compiled, dynamics)
            here = data.replace(ctrl=control)

            def one(state: MujocoState, _):
                return substep(engine, of_world, here, state, force_of), None

            return jax.lax.scan(one, state, None, length=frame_skip)[0]

        with _foreign_code():
            return jax.vmap(step)(state, control, dynamics)

    step_single = _without_gradient(
        _all_worlds_at_once(step_worlds), "backend 'warp' is MuJoCo Warp"
    )

    def step(state: MujocoState, control: Float[Array, "nu"], dynamics: Dynamics) -> MujocoState:
        _check_dynamics(dynamics, model)
        single = jax.tree.map(lambda x: x.astype(jnp.float32), (state, control, dict(dynamics)))
        after = step_single(*single)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), after, state)

    return _mujoco_bundle(
        model, step, frame_skip=frame_skip, backend="warp", contact_forces=contact_forces
    )


def _import_mjx():
    """Import MJX without what it prints where `warp` is installed and where it is not."""
    if importlib.util.find_spec("warp") is not None:
        language = importlib.import_module("warp")
        with contextlib.suppress(AttributeError):  # some other package of this name
            language.config.log_level = language.LOG_ERROR
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


def _kinematics(model: mujoco.MjModel, *, on_c_engine: bool = False):
    """Return `(qpos, qvel, dynamics) -> Kinematics`, the same for every engine.

    Args:
        model: a compiled MuJoCo model.
        on_c_engine: whether the C engine computes what MJX cannot load.
    """
    arrays = _mjx_arrays(model)

    @functools.cache
    def loads() -> bool:
        try:
            arrays()
        except Exception:  # whatever it does not like: the C engine runs every model
            return False
        return True

    def in_jax(qpos: Float[Array, "nq"], qvel: Float[Array, "nv"], dynamics: Dynamics):
        engine = _import_mjx()
        compiled, data = arrays()
        compiled = _with_dynamics(compiled, dynamics)
        with _foreign_code():
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

    in_c = _kinematics_in_c(model)

    def kinematics(qpos, qvel, dynamics: Dynamics) -> Kinematics:
        _check_dynamics(dynamics, model)
        compute = in_c if on_c_engine and not loads() else in_jax
        return compute(qpos, qvel, dynamics)

    return kinematics


def _kinematics_in_c(model: mujoco.MjModel):
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
    def worlds(count: int, names: tuple[str, ...]):
        batch = mujoco.batch.Batch(model, count)
        given = batch.bind("qpos"), batch.bind("qvel")
        return batch, given, _multiply(batch, names, "motion"), [batch.bind(n) for n in shapes]

    def host(names, context, out, rows) -> None:
        del context
        rows = np.asarray(rows)
        rows = rows.reshape(-1, rows.shape[-1])
        out = np.asarray(out).reshape(-1, ends[-1])
        sane = (np.abs(rows) < mujoco.mjMAXVAL).all(axis=1)
        rows = np.where(sane[:, None], rows, np.arange(rows.shape[1]) >= state)
        with _engine_lock:
            batch, (qpos, qvel), multiply, fields = worlds(len(rows), names)
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
        row = jnp.concatenate([qpos, qvel, *_columns(model, names, dynamics, qpos.dtype)])
        compute = _without_gradient(
            functools.partial(of_row, names=names), "backend 'mujoco' is MuJoCo's C engine"
        )
        parts = jnp.split(compute(row), ends[:-1])
        places = [part.reshape(x) for part, x in zip(parts, shapes.values(), strict=True)]
        return Kinematics(*places)._replace(center_of_mass=places[3][0])

    return kinematics


# ---------------------------------------------------------------------------------------------
# Brax
# ---------------------------------------------------------------------------------------------


@pytree_dataclass
class BraxState:
    """What a Brax pipeline needs to continue exactly.

    Attributes:
        qpos: generalized positions (m, rad), as MuJoCo counts them.
        qvel: generalized velocities (m/s, rad/s).
        links: `spring` and `positional`, which work on free bodies: the place and motion of every
            link. `generalized`: the inverse of the mass matrix, which it refines step by step.
    """

    qpos: Float[Array, "*batch nq"]
    qvel: Float[Array, "*batch nv"]
    links: Any


_BRAX_FIELDS = {
    "mass": "link.inertia.mass",
    "inertia": "link.inertia.i",  # diagonal, so that [link, 3] multiplies its rows
    "friction": "geom_friction",
    "damping": "dof.damping",
    "gravity": "gravity",
    "gear": "actuator.gear",
}


def brax(
    model: mujoco.MjModel,
    *,
    pipeline: str,
    offset: Float[np.ndarray, "nq"],
    dt: float,
    substeps: int,
) -> Physics:
    """Return the physics of `model` on a Brax pipeline: not MuJoCo's, see the module.

    Pure JAX and differentiable in both modes.

    Args:
        model: from `load_model(..., for_brax=True)`.
        pipeline: "spring", "positional" or "generalized".
        offset: what `Physics` adds to this model's positions.
        dt: seconds per environment step.
        substeps: into how many that is divided.

    Raises:
        MetajaxError: Brax does not have something that the model asks for.
    """
    check_limits(model, pipeline)
    _import_mjx()  # Brax imports it too
    with _loading(pipeline), _foreign_code():
        from brax import com
        from brax import kinematics as brax_kinematics
        from brax.io import mjcf

        engine = importlib.import_module(f"brax.{pipeline}.pipeline")
        mjcf.validate_model(model)
        system = mjcf.load_model(copy.copy(model))  # which writes into its argument
    kinematics = _kinematics(model)
    nominal: Any = system.tree_replace({"opt.timestep": jnp.asarray(dt / substeps)})

    def own(qpos: Float[Array, "nq"]) -> Float[Array, "nq"]:
        return qpos - jnp.asarray(offset, qpos.dtype)

    def compact(full) -> BraxState:
        links = full.mass_mx_inv if pipeline == "generalized" else (full.x_i, full.xd_i)
        return BraxState(full.q + jnp.asarray(offset, full.q.dtype), full.qd, links)

    def with_dynamics(dynamics: Dynamics):
        _check_dynamics(dynamics, model)
        if dynamics and pipeline != "generalized":
            raise MetajaxError(
                f"backend {pipeline!r} cannot change {', '.join(dynamics)}: it gives bodies masses "
                "of its own. Take backend 'mjx', 'mujoco' or 'generalized'."
            )
        changed = {}
        for name, multiplier in dynamics.items():
            if name in ("mass", "inertia"):
                multiplier = multiplier[1:]  # the world is no link
            if name == "gear":
                multiplier = multiplier.reshape(len(multiplier), -1)[:, 0]  # of joints only
            field = functools.reduce(getattr, _BRAX_FIELDS[name].split("."), nominal)
            changed[_BRAX_FIELDS[name]] = field * _multipliers(field.ndim, multiplier)
        return nominal.tree_replace(changed)

    def restore(system, state: BraxState, dynamics: Dynamics):
        # What is replaced right after `init` is never computed.
        full = engine.init(system, own(state.qpos), state.qvel)
        if pipeline == "generalized":
            # At first the state's inverse is that of the model as it is.
            heavier = bool({"mass", "inertia"} & set(dynamics))
            return full if heavier else full.replace(mass_mx_inv=state.links)
        x_i, xd_i = state.links
        x, xd = com.to_world(system, x_i, xd_i)
        j, jd, a_p, a_c = brax_kinematics.world_to_joint(system, x, xd)
        return full.replace(x=x, xd=xd, x_i=x_i, xd_i=xd_i, j=j, jd=jd, a_p=a_p, a_c=a_c)

    def init(qpos: Float[Array, "nq"], qvel: Float[Array, "nv"]) -> BraxState:
        with _foreign_code():
            return compact(engine.init(nominal, own(qpos), qvel))

    def step(state: BraxState, control: Float[Array, "nu"], dynamics: Dynamics) -> BraxState:
        system = with_dynamics(dynamics)

        def substep(full, _):
            return engine.step(system, full, control), None

        with _foreign_code():
            full = restore(system, state, dynamics)
            return compact(jax.lax.scan(substep, full, None, length=substeps)[0])

    step_once = jax.jit(step)

    return Physics(
        init=jax.jit(init),
        step=lambda state, control, dynamics=None: step_once(state, control, dynamics or {}),
        qpos=lambda state: state.qpos,
        qvel=lambda state: state.qvel,
        kinematics=lambda state, dynamics=None: kinematics(
            own(state.qpos), state.qvel, dynamics or {}
        ),
        contact_force=None,
        model=model,
        default_qpos=np.array(model.qpos0) + offset,
        dt=dt,
        backend=pipeline,
    )


# ---------------------------------------------------------------------------------------------
# Other people's code
# ---------------------------------------------------------------------------------------------

_foreign_lock = threading.RLock()


@contextlib.contextmanager
def _foreign_code():
    """Import or trace an engine on its own terms.

    - It may broadcast over ranks and mix types, which a user of this package may have forbidden.
    - Brax need not warn that it, and what it is built on, are no longer developed.
    - On a CPU it factorizes its small matrices in plain JAX. The batched LAPACK kernels of jaxlib
      0.10 split their batch over XLA's thread pool and wait for it on a thread of that pool: as
      many of them at once as there are cores wait for ever. (jaxlib 0.11.2 does not split.) For
      matrices this small plain JAX is as fast.
    - The points where capsules meet are the exact ones, as in C MuJoCo. MJX adds 1e-6 to a
      denominator, which moves the contacts of small bodies by micrometres, and does not turn back
      to the first segment after it has clipped the second.
    """
    replaced = []
    if _on_cpu():
        new = {"cho_factor": _cho_factor, "cho_solve": _cho_solve, "solve": _solve}
        replaced += [(jax.scipy.linalg, name, function) for name, function in new.items()]
    if (geometry := sys.modules.get("mujoco.mjx._src.math")) is not None:
        new = {
            "closest_segment_point": _closest_segment_point,
            "closest_segment_to_segment_points": _closest_segment_to_segment_points,
        }
        replaced += [(geometry, name, function) for name, function in new.items()]
    with (
        _foreign_lock,
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        warnings.catch_warnings(),
    ):
        for message in ("Brax System", "JAXopt is no longer", "Accessing .* directly from `Data`"):
            warnings.filterwarnings("ignore", message)
        originals = [getattr(module, name) for module, name, _ in replaced]
        for module, name, function in replaced:
            setattr(module, name, function)
        try:
            yield
        finally:
            for (module, name, _), original in zip(replaced, originals, strict=True):
                setattr(module, name, original)


def _closest_segment_point(
    a: Float[Array, "3"], b: Float[Array, "3"], point: Float[Array, "3"]
) -> Float[Array, "3"]:
    """Return the point of the segment from a to b that is closest to a point."""
    along = b - a
    squared = jnp.sum(along**2)
    at = jnp.sum((point - a) * along) / jnp.where(squared > 0, squared, 1)
    return a + jnp.clip(at, 0, 1) * along


def _closest_segment_to_segment_points(
    a0: Float[Array, "3"], a1: Float[Array, "3"], b0: Float[Array, "3"], b1: Float[Array, "3"]
) -> tuple[Float[Array, "3"], Float[Array, "3"]]:
    """Return the points of two segments that are closest to each other.

    The closest point of the lines, clipped, and then each point in turn the closest to the other
    one: Ericson (2005, section 5.1.9). Of parallel segments any such pair.
    """
    along_a, along_b, between = a1 - a0, b1 - b0, a0 - b0
    aa, bb, ab = (jnp.sum(x * y) for x, y in ((along_a,) * 2, (along_b,) * 2, (along_a, along_b)))
    determinant = aa * bb - ab**2
    crossing = ab * jnp.sum(along_b * between) - bb * jnp.sum(along_a * between)
    at = crossing / jnp.where(determinant > 0, determinant, 1)
    b = _closest_segment_point(b0, b1, a0 + jnp.clip(at, 0, 1) * along_a)
    return _closest_segment_point(a0, a1, b), b


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
