"""Brax's pipelines `spring`, `positional` and `generalized`: another physics than MuJoCo's."""

import copy
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float

from metajax.errors import MetajaxError
from metajax.physics.bundle import Dynamics, Physics, check_dynamics, on_leading_axes
from metajax.physics.kinematics import kinematics_of
from metajax.physics.limits import check_limits
from metajax.physics.mjx_model import import_mjx, loading
from metajax.physics.quiet import without_warning
from metajax.physics.tracing import engine_code
from metajax.types import pytree_dataclass

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)


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


def make(
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
    import_mjx()  # Brax imports it too
    with without_warning("JAXopt is no longer"):
        from brax import com
        from brax import kinematics as brax_kinematics
        from brax.io import mjcf

        engine = importlib.import_module(f"brax.{pipeline}.pipeline")
    with loading(pipeline), engine_code():
        mjcf.validate_model(model)
        system = mjcf.load_model(copy.copy(model))  # which writes into its argument
    kinematics = kinematics_of(model)
    nominal: Any = system.tree_replace({"opt.timestep": jnp.asarray(dt / substeps)})

    def own(qpos: Float[Array, "nq"]) -> Float[Array, "nq"]:
        return qpos - jnp.asarray(offset, qpos.dtype)

    def compact(full) -> BraxState:
        links = full.mass_mx_inv if pipeline == "generalized" else (full.x_i, full.xd_i)
        return BraxState(full.q + jnp.asarray(offset, full.q.dtype), full.qd, links)

    def with_dynamics(dynamics: Dynamics):
        check_dynamics(dynamics, model)
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
            changed[_BRAX_FIELDS[name]] = field * on_leading_axes(field.ndim, multiplier)
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
        with engine_code():
            return compact(engine.init(nominal, own(qpos), qvel))

    def step(state: BraxState, control: Float[Array, "nu"], dynamics: Dynamics) -> BraxState:
        system = with_dynamics(dynamics)

        def substep(full, _):
            return engine.step(system, full, control), None

        with engine_code():
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
