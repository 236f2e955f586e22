"""Environments on MuJoCo's C engine, each with its own multiples of the model."""

import threading

import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np

from metajax.physics.bundle import DYNAMICS, Dynamics, field_shape, on_leading_axes

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)

SOFTNESS = (
    "body_invweight0",
    "dof_invweight0",
    "tendon_invweight0",
    "flexedge_invweight0",
    "actuator_acc0",
)

engine_lock = threading.Lock()  # one batch at a time: each already uses every core


def flat_multipliers(model: mujoco.MjModel, names: tuple[str, ...], dynamics: Dynamics, dtype):
    """Return the multipliers of every number of the named fields, flat."""
    shapes = {name: field_shape(model, name) for name in names}
    return [
        jnp.broadcast_to(on_leading_axes(len(shape), dynamics[name]), shape).ravel().astype(dtype)
        for name, shape in shapes.items()
    ]


def multiplication(batch: mujoco.batch.Batch, names: tuple[str, ...], derived: str):
    """Return a function that gives every environment of a batch its own multipliers
    `[environment, column]`.

    It returns which of them MuJoCo accepts as a model (one without mass it does not).

    Args:
        batch: the environments.
        names: of `DYNAMICS`, in the order of their columns.
        derived: what follows of the constants that MuJoCo derives from the fields: "all"; "motion"
            for all but `SOFTNESS`; or "none".
    """
    changed = [batch.expand(DYNAMICS[name]) for name in names]
    nominal = [np.array(field[:1]) for field in changed]
    follow = derived == "all" or (derived == "motion" and bool({"mass", "inertia"} & set(names)))
    kept = [batch.expand(name) for name in SOFTNESS] if follow and derived == "motion" else []
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
                accepted = np.array([not batch.error(index) for index in range(batch.nsim)])
            for field, at_first in kept:
                field[...] = at_first
        last = multipliers.copy()
        return accepted

    return multiply
