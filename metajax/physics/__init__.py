"""Rigid-body physics behind one bundle of pure functions; the engine is a choice.

Four engines move the same body, read from the XML files inside the installed Gymnasium package:

- `mjx`: MuJoCo's JAX port; the default on an accelerator.
- `mujoco`: MuJoCo's C engine on all CPU threads, called from inside the compiled program. The
  default on a CPU, where it is tens of times faster than MJX and compiles in a second. The same
  physics as `mjx`, to rounding.
- `warp`: MuJoCo Warp, for NVIDIA GPUs, behind MJX's interface. The same physics in single precision
  but for its contact frames (see `metajax.physics.warp`), written for thousands of environments; it
  has no gradient. On a CPU it runs where it is asked for by name: slowly, and its kernels take
  minutes to compile once.
- `brax`: Brax's pipelines `spring`, `positional` and `generalized`. Another physics: results on
  them are not results on MuJoCo.

What a program does on a device follows from the platform that it is lowered for; the machine that
it is lowered on decides about defaults alone.
"""

from metajax.physics.bundle import (
    DYNAMICS,
    Dynamics,
    Kinematics,
    Physics,
    PhysicsState,
    field_shape,
)
from metajax.physics.engines import BACKENDS, make_physics, resolve_backend
from metajax.physics.models import load_model, quaternion_addresses

__all__ = [
    "BACKENDS",
    "DYNAMICS",
    "Dynamics",
    "Kinematics",
    "Physics",
    "PhysicsState",
    "field_shape",
    "load_model",
    "make_physics",
    "quaternion_addresses",
    "resolve_backend",
]


def __dir__() -> list[str]:
    return __all__
