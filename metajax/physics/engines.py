"""The choice of an engine, and of the machine that it runs on."""

import importlib.util
from typing import Any

import jax

from metajax._checks import checked
from metajax.errors import MetajaxError, unknown
from metajax.physics import brax, mjx, mujoco_c, warp
from metajax.physics.bundle import Physics
from metajax.physics.models import load_model

BACKENDS = ("mjx", "mujoco", "warp", "spring", "positional", "generalized")


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
        recompute_constants: whether a task's multipliers also change what MuJoCo derives from the
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
        return {"mjx": mjx, "mujoco": mujoco_c, "warp": warp}[engine].make(model, **options)
    original = load_model(name, without=without)
    model = load_model(name, without=without, for_brax=True)
    return brax.make(
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


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _on_nvidia() -> bool:
    return jax.default_backend() in ("gpu", "cuda")
