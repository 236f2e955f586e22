"""MuJoCo's JAX port."""

import copy

import jax
import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Float

from metajax.physics.batching import by_jacobians, in_chunks_on_cpu
from metajax.physics.bundle import Dynamics, Physics, check_dynamics
from metajax.physics.implicit_fast import implicit_fast
from metajax.physics.limits import check_limits
from metajax.physics.mjx_model import import_mjx, loading, mjx_arrays, with_dynamics
from metajax.physics.mujoco_state import MujocoState, mujoco_bundle
from metajax.physics.substeps import substep_of
from metajax.physics.tracing import engine_code

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)

SOLVER_ITERATIONS = 8
LINE_SEARCH = 8  # MJX computes all of them, needed or not


def make(model: mujoco.MjModel, *, frame_skip: int, contact_forces: bool = False) -> Physics:
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
    What MJX would leave out of a model is refused (`metajax.physics.limits`).

    Args:
        model: a compiled MuJoCo model.
        frame_skip: substeps per environment step.
        contact_forces: whether they are wanted, at the cost of one more pass per step.

    Raises:
        MetajaxError: MJX does not have something that the model asks for.
    """
    check_limits(model, "mjx")
    engine = import_mjx()
    model = copy.copy(model)
    model.opt.iterations = min(model.opt.iterations, SOLVER_ITERATIONS)
    model.opt.ls_iterations = min(model.opt.ls_iterations, LINE_SEARCH)
    arrays = mjx_arrays(model)
    with loading("mjx"):
        arrays()  # made now: MJX cannot while a program is traced for several devices
    fast = model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    substep = substep_of(model, _forward, implicit_fast(model, _forward) if fast else _euler)

    def step(state: MujocoState, control: Float[Array, "nu"], dynamics: Dynamics) -> MujocoState:
        check_dynamics(dynamics, model)
        compiled, data = arrays()
        compiled, data = with_dynamics(compiled, dynamics), data.replace(ctrl=control)

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

        with engine_code():
            return jax.lax.scan(one, state, jnp.arange(frame_skip) == frame_skip - 1)[0]

    batch = in_chunks_on_cpu if model.opt.iterations > 1 else lambda step: step
    step = by_jacobians(step, batch)
    return mujoco_bundle(
        model, step, frame_skip=frame_skip, backend="mjx", contact_forces=contact_forces
    )


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
