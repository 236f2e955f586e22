"""What a MuJoCo model may ask for and an engine would leave out without a word.

MuJoCo's C engine has all of it. What MJX, MuJoCo Warp or Brax refuse themselves is not here.
"""

from collections.abc import Callable
from typing import NamedTuple

import mujoco
import numpy as np

from metajax.errors import MetajaxError

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)


class Limit(NamedTuple):
    """A feature of a model.

    Attributes:
        what: its name.
        asked: whether a compiled model asks for it.
        without: the engines that would leave it out; "brax" is all of Brax's pipelines.
    """

    what: str
    asked: Callable[[mujoco.MjModel], bool]
    without: tuple[str, ...]


_PORTS = ("mjx", "brax")
_ALL_PORTS = ("mjx", "warp", "brax")
_EVERY = ("mjx", "mujoco", "warp", "brax")


def _any(*fields: str) -> Callable[[mujoco.MjModel], bool]:
    return lambda model: any(np.any(getattr(model, field)) for field in fields)


def _integrator(name: str) -> Callable[[mujoco.MjModel], bool]:
    kind = getattr(mujoco.mjtIntegrator, f"mjINT_{name}")
    return lambda model: model.opt.integrator == kind


def _flag(name: str) -> Callable[[mujoco.MjModel], bool]:
    flag = int(getattr(mujoco.mjtEnableBit, f"mjENBL_{name}"))
    return lambda model: bool(model.opt.enableflags & flag)


def _off(model: mujoco.MjModel, *names: str) -> list[bool]:
    flags = [int(getattr(mujoco.mjtDisableBit, f"mjDSBL_{name}")) for name in names]
    return [bool(model.opt.disableflags & flag) for flag in flags]


def _muscles_in_implicitfast(model: mujoco.MjModel) -> bool:
    muscles = model.actuator_gaintype == mujoco.mjtGain.mjGAIN_MUSCLE
    return _integrator("IMPLICITFAST")(model) and bool(muscles.any())


def _disabled_actuators(model: mujoco.MjModel) -> bool:
    return any(
        0 <= group < 31 and model.opt.disableactuator & (1 << int(group))
        for group in model.actuator_group
    )


LIMITS = (
    Limit("sleeping bodies (flag sleep)", _flag("SLEEP"), _EVERY),
    Limit("flex contacts of the discrete integrator (flag ipc)", _flag("IPC"), _EVERY),
    Limit("integrator discrete", _integrator("DISCRETE"), ("mjx",)),
    Limit("muscles under integrator implicitfast", _muscles_in_implicitfast, ("mjx",)),
    Limit(
        "welds that turn as MuJoCo's do",
        lambda model: bool(np.any(model.eq_type == mujoco.mjtEq.mjEQ_WELD)),
        ("mjx", "warp"),
    ),
    Limit("noslip_iterations", lambda model: model.opt.noslip_iterations > 0, _PORTS),
    Limit("plugins", lambda model: model.nplugin > 0, _ALL_PORTS),
    Limit("springs that yield (springyield)", lambda model: model.nplastic > 0, _ALL_PORTS),
    Limit("delayed actuators or sensors", lambda model: model.nhistory > 0, _ALL_PORTS),
    Limit("disabled groups of actuators", _disabled_actuators, _ALL_PORTS),
    Limit(
        "damping or armature of an actuator",
        _any("actuator_damping", "actuator_dampingpoly", "actuator_armature"),
        _ALL_PORTS,
    ),
    Limit("activations ahead of the force (actearly)", _any("actuator_actearly"), _PORTS),
    Limit(
        "stiffness or damping of more than one coefficient",
        _any("jnt_stiffnesspoly", "dof_dampingpoly", "tendon_stiffnesspoly", "tendon_dampingpoly"),
        _PORTS,
    ),
    Limit("surfaces that move (surfacevel)", _any("flg_surfacevel"), _PORTS),
    Limit("adhesive geoms", _any("flg_adhesion"), _PORTS),
    Limit("fluid forces on ellipsoids (fluidshape)", _any("geom_fluid"), _PORTS),
    Limit(
        "springs without dampers or dampers without springs (flags spring, damper)",
        lambda model: len(set(_off(model, "SPRING", "DAMPER"))) == 2,
        _PORTS,
    ),
    Limit("fluids", lambda model: max(model.opt.density, model.opt.viscosity) > 0, ("brax",)),
    Limit("mocap bodies", lambda model: model.nmocap > 0, ("brax",)),
    Limit(
        "tendons that pull",
        _any(
            "tendon_limited",
            "tendon_stiffness",
            "tendon_damping",
            "tendon_frictionloss",
            "tendon_armature",
        ),
        ("brax",),
    ),
    Limit("equality constraints", lambda model: model.neq > 0, ("brax",)),
    Limit("actuators with a state", lambda model: model.na > 0, ("brax",)),
    Limit("friction of joints (frictionloss)", _any("dof_frictionloss"), ("brax",)),
    Limit("compensation of gravity (gravcomp)", _any("body_gravcomp"), ("brax",)),
    Limit(
        "springs that rest elsewhere than the model starts (springref)",
        lambda model: bool(np.any((model.qpos_spring != model.qpos0)[_sprung(model)])),
        ("brax",),
    ),
    Limit(
        "disabled constraints, contacts, limits, springs, dampers, gravity or actuators (flags)",
        lambda model: any(
            _off(
                model, "CONSTRAINT", "CONTACT", "LIMIT", "SPRING", "DAMPER", "GRAVITY", "ACTUATION"
            )
        ),
        ("brax",),
    ),
)


def _sprung(model: mujoco.MjModel) -> np.ndarray:
    """Return the positions of hinges and slides with a spring."""
    kinds = model.jnt_type
    single = (kinds == mujoco.mjtJoint.mjJNT_HINGE) | (kinds == mujoco.mjtJoint.mjJNT_SLIDE)
    return np.array(model.jnt_qposadr)[single & (np.array(model.jnt_stiffness) > 0)]


def check_limits(model: mujoco.MjModel, engine: str) -> None:
    """Check that an engine computes all that a model asks for.

    Args:
        model: a compiled MuJoCo model.
        engine: one of `metajax.physics.BACKENDS`.

    Raises:
        MetajaxError: it does not.
    """
    kind = engine if engine in _EVERY else "brax"
    for limit in LIMITS:
        if kind in limit.without and limit.asked(model):
            rest = [other for other in ("mujoco", "mjx", "warp") if other not in limit.without]
            advice = f"take backend {' or '.join(map(repr, rest))}, or " if rest else ""
            raise MetajaxError(
                f"backend {engine!r} has no {limit.what}, which the model asks for: {advice}"
                "leave it out of the model."
            )
