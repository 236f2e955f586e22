"""A substep of MJX or MuJoCo Warp, by the integrator that the model asks for."""

import mujoco

from metajax.physics.mujoco_state import MujocoState, data_at
from metajax.physics.runge_kutta import runge_kutta

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)


def substep_of(model: mujoco.MjModel, forward, advance):
    """Return a substep `(engine, compiled model, data, state, force_of) -> state`.

    Args:
        model: a compiled MuJoCo model.
        forward: `(engine, compiled model, data) -> data` with accelerations.
        advance: the same, a substep later, for integrators other than Runge-Kutta's.
    """
    if model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
        return runge_kutta(model, forward)

    def substep(engine, compiled, data, state: MujocoState, force_of) -> MujocoState:
        after = advance(engine, compiled, data_at(data, state))
        rest = {name: getattr(after, name).astype(x.dtype) for name, x in state.rest.items()}
        force = force_of(after, True)
        return MujocoState(after.qpos, after.qvel, after.qacc_warmstart, force, rest)

    return substep
