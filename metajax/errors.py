"""The errors a user can cause, each one clear sentence."""

import difflib
import math
from collections.abc import Iterable
from numbers import Number

from jax import Array
from jax.core import Tracer

_PLAIN = (str, type(None), list, tuple, dict, set)


class MetajaxError(ValueError):
    """Something the user asked for cannot be done; the message says what and what is allowed.

    The command line prints the message alone and exits with status 2.
    """


def unknown(
    kind: str, name: object, known: Iterable[str], *, see: str | None = None
) -> MetajaxError:
    """Return the error for a name that does not exist, with the nearest known one.

    Args:
        kind: what the name names, for example "family".
        name: the name as the user gave it.
        known: every name that would have been accepted.
        see: the command that lists them, where they are too many for one sentence.
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    rest = f"Known: {', '.join(known)}." if see is None else f"See {see}."
    return MetajaxError(f"unknown {kind} {brief(name)}{hint} {rest}")


def with_article(name: str) -> str:
    """Return a name after "a" or "an"."""
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def brief(value: object) -> str:
    """Return any value in a few words, on one line."""
    made = getattr(value, "made", None)  # a part knows the call that made it
    if not isinstance(value, Number) and type(value) not in _PLAIN and made is None:
        return f"of the type {type(value).__name__}"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a number of thousands of digits
        return "a number beyond all bounds"
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_off(value: float | Array | None) -> bool:
    """Return whether an option is None, or a number that is 0; not one that JAX traces."""
    return value is None or (not isinstance(value, Tracer) and bool(value == 0))


def check_at_least(minimum: float, **values: float | Array) -> None:
    """Check that the named values are finite and not below `minimum`; not those that JAX traces.

    Raises:
        MetajaxError: one is, or is not a number.
    """
    for name, value in values.items():
        if not isinstance(value, Tracer) and not minimum <= value < math.inf:
            raise MetajaxError(f"{name} is {brief(value)}; it must be at least {minimum}.")


def check_at_most(maximum: float, **values: float | Array) -> None:
    """Check that the named values are not above `maximum`; not those that JAX traces.

    Raises:
        MetajaxError: one is, or is not a number.
    """
    for name, value in values.items():
        if not isinstance(value, Tracer) and not value <= maximum:
            raise MetajaxError(f"{name} is {brief(value)}; it must be at most {maximum}.")


def check_positive(**values: float | Array) -> None:
    """Check that the named values are finite and above 0; not those that JAX traces.

    Raises:
        MetajaxError: one is not.
    """
    for name, value in values.items():
        if not isinstance(value, Tracer) and not 0 < value < math.inf:
            raise MetajaxError(f"{name} is {brief(value)}; it must be above 0.")


def check_fraction(**values: float | Array) -> None:
    """Check that the named values lie in [0, 1]; not those that JAX traces.

    Raises:
        MetajaxError: one does not.
    """
    for name, value in values.items():
        if not isinstance(value, Tracer) and not 0 <= value <= 1:
            raise MetajaxError(f"{name} is {brief(value)}; it must lie in [0, 1].")
