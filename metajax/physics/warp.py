"""MuJoCo Warp, for NVIDIA GPUs, behind MJX's interface."""

import jax
import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Float

from metajax.physics.batching import all_at_once, without_gradient
from metajax.physics.bundle import Dynamics, Physics, check_dynamics
from metajax.physics.limits import check_limits
from metajax.physics.mjx_model import import_mjx, loading, mjx_arrays, with_dynamics
from metajax.physics.mujoco_state import MujocoState, mujoco_bundle
from metajax.physics.substeps import substep_of
from metajax.physics.tracing import engine_code

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)


def make(model: mujoco.MjModel, *, frame_skip: int, contact_forces: bool = False) -> Physics:
    """Return the physics of `model` on MuJoCo Warp.

    Single precision, not differentiable. All environments under a `vmap`, however nested, are one
    call. On a CPU it is slow, and compiles its kernels for minutes, once per machine.
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
    engine = import_mjx()
    with loading("warp"):
        # MJX's own data has a place for every contact there can be, and so has this one.
        most = mjx_arrays(model)()[1]._impl
        compiled = engine.put_model(model, impl="warp")
    substep = substep_of(
        model,
        lambda engine, compiled, data: engine.forward(compiled, data),
        lambda engine, compiled, data: engine.step(compiled, data),
    )

    def force_of(data, wanted):
        return jnp.where(wanted, data._impl.cfrc_ext, 0.0) if contact_forces else None

    def step_all(state: MujocoState, control: Float[Array, "environment nu"], dynamics: Dynamics):
        count = len(control)
        data = engine.make_data(
            model,
            impl="warp",
            naconmax=max(1, count * len(most.contact.dist)),
            njmax=max(1, len(most.efc_J)),
        )

        def step(state: MujocoState, control: Float[Array, "nu"], dynamics: Dynamics):
            model_of_task = with_dynamics(compiled, dynamics)
            here = data.replace(ctrl=control)

            def one(state: MujocoState, _):
                return substep(engine, model_of_task, here, state, force_of), None

            return jax.lax.scan(one, state, None, length=frame_skip)[0]

        with engine_code():
            return jax.vmap(step)(state, control, dynamics)

    step_single = without_gradient(all_at_once(step_all), "backend 'warp' is MuJoCo Warp")

    def step(state: MujocoState, control: Float[Array, "nu"], dynamics: Dynamics) -> MujocoState:
        check_dynamics(dynamics, model)
        single = jax.tree.map(lambda x: x.astype(jnp.float32), (state, control, dict(dynamics)))
        after = step_single(*single)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), after, state)

    return mujoco_bundle(
        model, step, frame_skip=frame_skip, backend="warp", contact_forces=contact_forces
    )
