"""Rigid-body physics behind one bundle of pure functions; the engine is a choice.

Three makers build the same model, read from the XML files inside the installed Gymnasium package:

- `mjx`: MuJoCo's JAX port. Differentiable; the default on an accelerator.
- `mujoco`: MuJoCo's C engine on all CPU threads, called from inside the compiled program. The
  default on a CPU, where it is tens of times faster than MJX and compiles in a second.
- `brax`: Brax's pipelines `spring`, `positional` and `generalized`. Differentiable, but another
  physics: results on them are not results on MuJoCo.
"""

import contextlib
import functools
import io
import pathlib
import re
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Float

from metajax.errors import MetajaxError, unknown
from metajax.types import pytree_dataclass

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)

BACKENDS = ("mjx", "mujoco")

PhysicsState = Any


class Physics(NamedTuple):
    """A simulated body: pure functions of one world, and facts about the model.

    - `init(qpos, qvel) -> state`: generalized positions [nq] and velocities [nv];
    - `step(state, control) -> state`: one environment step, `frame_skip` substeps under the same
      `control` [nu];
    - `qpos(state)`, `qvel(state)`: read them back;
    - `body_position(state, name)`: where the frame of a body is [xyz] in metres, by forward
      kinematics of `qpos` (MuJoCo's own `xpos` lags by a substep).

    Attributes:
        init: see above.
        step: see above.
        qpos: see above.
        qvel: see above.
        body_position: see above.
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
    body_position: Callable[[PhysicsState, str], Float[Array, "3"]]
    default_qpos: np.ndarray
    control_low: np.ndarray
    control_high: np.ndarray
    dt: float
    backend: str


def make_physics(model: mujoco.MjModel, *, backend: str, frame_skip: int) -> Physics:
    """Return the physics of `model` on an engine.

    Args:
        model: a compiled MuJoCo model, for example from `gymnasium_model`.
        backend: "auto" or one of `BACKENDS`, see `resolve_backend`.
        frame_skip: substeps of `model.opt.timestep` seconds per environment step.

    Raises:
        MetajaxError: if the backend is unknown or cannot run on this machine.
    """
    return {"mujoco": mujoco_physics}[resolve_backend(backend)](model, frame_skip=frame_skip)


def resolve_backend(backend: str) -> str:
    """Return the engine that `backend` names; "auto" is `mjx` on an accelerator, else `mujoco`.

    Raises:
        MetajaxError: if there is no such engine, or it cannot run on this machine.
    """
    on_cpu = jax.default_backend() == "cpu"
    if backend == "auto":
        return "mujoco" if on_cpu else "mjx"
    if backend not in BACKENDS:
        raise unknown("backend", backend, ("auto", *BACKENDS))
    if backend == "mujoco" and not on_cpu:
        raise MetajaxError(
            f"backend 'mujoco' is MuJoCo's C engine and runs on a CPU only, but JAX runs on "
            f"{jax.default_backend()}: take backend 'mjx', or start JAX with JAX_PLATFORMS=cpu."
        )
    return backend


def gymnasium_model(name: str, *, without: str | None = None) -> mujoco.MjModel:
    """Return a model of the installed Gymnasium package, edited in memory.

    Args:
        name: of the XML file, for example "half_cheetah".
        without: a body to leave out.
    """
    path = pathlib.Path(str(gymnasium.__file__)).parent / "envs/mujoco/assets" / f"{name}.xml"
    spec = mujoco.MjSpec.from_file(str(path))
    if without is not None:
        spec.delete(spec.body(without))
    with warnings.catch_warnings():
        # Deprecated, but it is what Gymnasium's cheetah says.
        warnings.filterwarnings("ignore", message=".*settotalmass")
        return spec.compile()


def _import_mjx():
    """Import MJX without the two lines that it prints where `warp` is not installed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        from mujoco import mjx
    for line in printed.getvalue().splitlines():
        if not re.match("Failed to import (mujoco_)?warp", line):
            print(line)
    return mjx


def _forward_kinematics(model: mujoco.MjModel):
    def body_position(qpos: Float[Array, "nq"], name: str) -> Float[Array, "3"]:
        mjx = _import_mjx()
        data = mjx.make_data(model).replace(qpos=qpos)
        return mjx.kinematics(mjx.put_model(model), data).xpos[model.body(name).id]

    return body_position


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
    body_position = _forward_kinematics(model)
    limited = np.asarray(model.actuator_ctrllimited, bool)
    return Physics(
        init=lambda qpos, qvel: MujocoState(qpos, qvel, jnp.zeros_like(qvel)),
        step=step,
        qpos=lambda state: state.qpos,
        qvel=lambda state: state.qvel,
        body_position=lambda state, name: body_position(state.qpos, name),
        default_qpos=model.qpos0.copy(),
        control_low=np.where(limited, model.actuator_ctrlrange[:, 0], -np.inf),
        control_high=np.where(limited, model.actuator_ctrlrange[:, 1], np.inf),
        dt=float(model.opt.timestep * frame_skip),
        backend=backend,
    )


_engine_lock = threading.Lock()  # one batch at a time: each already uses every core


def mujoco_physics(model: mujoco.MjModel, *, frame_skip: int) -> Physics:
    """Return the physics of `model` on MuJoCo's C engine, batched over all CPU threads.

    Under `vmap`, however nested, the engine is called once per step with all worlds. It computes
    in double precision; the carried state has JAX's precision. A world whose state or control is
    not finite becomes NaN, as in MJX. CPU only and not differentiable.

    Args:
        model: a compiled MuJoCo model.
        frame_skip: substeps per environment step.
    """
    sizes = np.cumsum([model.nq, model.nv, model.nv, model.nu])
    state_size = int(sizes[2])

    @functools.lru_cache(maxsize=8)
    def worlds(count: int) -> mujoco.batch.Batch:
        return mujoco.batch.Batch(model, count)

    def host_step(context, out, rows) -> None:
        del context
        # NumPy only: a JAX call in here could wait for the thread that runs this.
        rows = np.asarray(rows).reshape(-1, sizes[-1])
        out = np.asarray(out).reshape(-1, state_size)
        finite = np.isfinite(rows).all(axis=1)
        if not len(rows):
            return
        with _engine_lock:
            batch = worlds(len(rows))
            fields = [batch.bind(n) for n in ("qpos", "qvel", "qacc_warmstart", "ctrl")]
            for field, values in zip(fields, np.split(rows, sizes[:-1], axis=1), strict=True):
                field[...] = values if finite.all() else np.where(finite[:, None], values, 0)
            batch.step(nstep=frame_skip)
            np.concatenate(fields[:3], axis=1, out=out, casting="same_kind")
        out[~finite] = np.nan

    def step(state: MujocoState, control: Float[Array, "nu"]) -> MujocoState:
        row = jnp.concatenate([state.qpos, state.qvel, state.warmstart, control])
        shape = jax.ShapeDtypeStruct((state_size,), row.dtype)
        row = buffer_callback(host_step, shape, vmap_method="broadcast_all")(row)
        return MujocoState(*jnp.split(row, sizes[:2]))

    return _mujoco_bundle(model, step, frame_skip=frame_skip, backend="mujoco")
