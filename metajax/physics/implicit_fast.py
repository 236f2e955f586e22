"""MuJoCo's integrator `implicitfast`, for MJX."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float

from metajax.physics.linear_algebra import cho_factor, cho_solve

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)


def implicit_fast(model: mujoco.MjModel, forward):
    """Return MuJoCo's integrator `implicitfast`, `(engine, compiled model, data) -> data`.

    MJX's is that of MuJoCo before version 4: it derives forces that are clamped, couples joints of
    different branches, and does not know the gyroscopic forces of bodies that are free and alone.

    Args:
        model: a compiled MuJoCo model.
        forward: `(engine, compiled model, data) -> data` with accelerations.
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
        data = forward(engine, compiled, data)
        acceleration = data.qacc
        if actuated or sprung or damped:
            mass = engine.full_m(compiled, data) - compiled.opt.timestep * rate(data, compiled)
            force = data.qfrc_smooth + data.qfrc_constraint
            factor = cho_factor(mass)
            acceleration = cho_solve(factor, force)
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
