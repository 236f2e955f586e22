"""How an engine is imported and traced: on its own terms, and without touching anybody else's.

Only names inside the engine's own modules are replaced, only while it is traced, and only for the
thread that traces it: what else runs meanwhile, MJX in another thread included, sees no difference.
"""

import contextlib
import functools
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

from metajax.physics import linear_algebra, segments

_tracing: ContextVar[bool] = ContextVar("metajax_tracing", default=False)
_lock = threading.Lock()
_tracers = 0  # of all threads
_originals: dict[tuple[str, str], Any] = {}  # by module and name, while somebody traces


@contextlib.contextmanager
def engine_code() -> Iterator[None]:
    """Import or trace an engine on its own terms.

    - It may broadcast over ranks and mix types, which a user of this package may have forbidden.
    - Brax need not warn that it is no longer developed, nor MJX of what Brax asks of it.
    - It factorizes its small matrices as the platform likes it: see `linear_algebra`.
    - The points where capsules meet are the exact ones, as in C MuJoCo. MJX adds 1e-6 to a
      denominator, which moves the contacts of small bodies by micrometres, and does not turn back
      to the first segment after it has clipped the second.
    """
    global _tracers
    with _lock:
        _replace()
        _tracers += 1
    token = _tracing.set(True)
    try:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            yield
    finally:
        _tracing.reset(token)
        with _lock:
            _tracers -= 1
            if not _tracers:
                _restore()


def _replace() -> None:
    """Replace what is not replaced yet, in what is imported by now."""
    for module, name, stand_in in _STAND_INS:
        names = vars(sys.modules[module]) if module in sys.modules else {}
        if name in names and (module, name) not in _originals:
            _originals[module, name] = names[name]
            names[name] = stand_in(names[name])


def _restore() -> None:
    for (module, name), original in _originals.items():
        setattr(sys.modules[module], name, original)
    _originals.clear()


def _while_traced(ours: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes the stand-in of a function: `ours` for the thread that traces, else it."""

    def stand_in(original):
        @functools.wraps(original)
        def either(*arguments, **options):
            return (ours if _tracing.get() else original)(*arguments, **options)

        return either

    return stand_in


def _altered(original: types.ModuleType, **changed: Any) -> types.ModuleType:
    """Return a module that looks like another one but for some names."""
    module = types.ModuleType(original.__name__)
    vars(module).update(changed, __getattr__=functools.partial(getattr, original))
    return module


def _with_small_matrices(original: types.ModuleType) -> types.ModuleType:
    """Return the stand-in of an engine's name `jax`."""
    theirs = original.scipy.linalg
    names = ("cho_factor", "cho_solve", "solve")
    ours = {n: _while_traced(getattr(linear_algebra, n))(getattr(theirs, n)) for n in names}
    scipy = _altered(original.scipy, linalg=_altered(theirs, **ours))
    return _altered(original, scipy=scipy)


def _without_complaints(original: types.ModuleType) -> types.ModuleType:
    """Return the stand-in of an engine's name `warnings`."""

    def warn(message, category=None, stacklevel=1, **options):
        if not (_tracing.get() and re.match(_COMPLAINTS, str(message))):
            original.warn(message, category, stacklevel + 1, **options)

    return _altered(original, warn=warn)


_COMPLAINTS = "Brax System|Accessing .* directly from `Data`"
_STAND_INS = (
    *(
        (module, "jax", _with_small_matrices)
        for module in (
            "mujoco.mjx._src.forward",
            "mujoco.mjx._src.smooth",
            "mujoco.mjx._src.solver",
            "brax.generalized.integrator",
            "brax.generalized.mass",
        )
    ),
    *(
        ("mujoco.mjx._src.math", name, _while_traced(getattr(segments, name)))
        for name in ("closest_segment_point", "closest_segment_to_segment_points")
    ),
    *(
        (module, "warnings", _without_complaints)
        for module in ("mujoco.mjx._src.types", "brax.io.mjcf")
    ),
)
