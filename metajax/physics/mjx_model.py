"""MJX's own form of a model."""

import contextlib
import copy
import functools
import importlib.util
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from metajax.errors import MetajaxError
from metajax.physics.bundle import DYNAMICS, Dynamics, on_leading_axes
from metajax.physics.quiet import without_lines
from metajax.physics.tracing import engine_code

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)


def import_mjx():
    """Import MJX without what it prints where `warp` is installed and where it is not."""
    if "mujoco.mjx" not in sys.modules and importlib.util.find_spec("warp") is not None:
        language = importlib.import_module("warp")
        with contextlib.suppress(AttributeError):  # some other package of this name
            language.config.log_level = language.LOG_ERROR
    with without_lines("Failed to import (mujoco_)?warp"):
        from mujoco import mjx
    return mjx


def mjx_arrays(model: mujoco.MjModel):
    """Return a function that gives MJX's model and data in JAX's current precision.

    What MJX would choose by the machine that it runs on is chosen here, so that a program for
    another one can be compiled on this one: matrices are dense unless the model asks for sparse
    ones or has 60 degrees of freedom, on a TPU too.
    """
    model = copy.copy(model)
    if model.opt.jacobian == mujoco.mjtJacobian.mjJAC_AUTO:
        kind = mujoco.mjtJacobian
        model.opt.jacobian = kind.mjJAC_SPARSE if model.nv >= 60 else kind.mjJAC_DENSE

    @functools.cache
    def arrays(x64: bool):
        del x64
        engine = import_mjx()
        # As NumPy arrays they are bound to no device, so the program may be sharded over any.
        with jax.ensure_compile_time_eval(), engine_code():
            return jax.tree.map(
                np.asarray,
                (engine.put_model(model, impl="jax"), engine.make_data(model, impl="jax")),
            )

    return lambda: jax.tree.map(jnp.asarray, arrays(bool(jax.config.jax_enable_x64)))


def with_dynamics(compiled, dynamics: Dynamics):
    """Return MJX's model with fields multiplied."""
    for name, multiplier in dynamics.items():
        field = functools.reduce(getattr, DYNAMICS[name].split("."), compiled)
        changed = field * on_leading_axes(field.ndim, multiplier)
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
def loading(backend: str) -> Iterator[None]:
    """Say in one sentence what an engine cannot load, with the way out."""
    try:
        yield
    except (NotImplementedError, RuntimeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise MetajaxError(
            f"backend {backend!r} cannot load the model: {reason}. Take backend 'mujoco' on a CPU, "
            "or leave it out of the model."
        ) from None
