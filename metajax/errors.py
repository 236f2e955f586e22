"""The errors a user can cause, each one clear sentence."""

import difflib
from collections.abc import Iterable


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
    return MetajaxError(f"unknown {kind} {name!r}{hint} {rest}")


def check_at_least(minimum: float, **values: float) -> None:
    """Check that the named values are not below `minimum`.

    Raises:
        MetajaxError: one is, or is not a number.
    """
    for name, value in values.items():
        if not value >= minimum:
            raise MetajaxError(f"{name} is {value}; it must be at least {minimum}.")


def check_positive(**values: float) -> None:
    """Check that the named values are above 0.

    Raises:
        MetajaxError: one is not.
    """
    for name, value in values.items():
        if not value > 0:
            raise MetajaxError(f"{name} is {value}; it must be above 0.")


def check_fraction(**values: float) -> None:
    """Check that the named values lie in [0, 1].

    Raises:
        MetajaxError: one does not.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise MetajaxError(f"{name} is {value}; it must lie in [0, 1].")
