"""The errors a user can cause, each one clear sentence."""

import difflib
from collections.abc import Iterable


class MetajaxError(ValueError):
    """Something the user asked for cannot be done; the message says what and what is allowed.

    The command line prints the message alone and exits with status 2.
    """


def unknown(kind: str, name: object, known: Iterable[str]) -> MetajaxError:
    """Return the error for a name that does not exist, with the nearest known one.

    Args:
        kind: what the name names, for example "family".
        name: the name as the user gave it.
        known: every name that would have been accepted.
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return MetajaxError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}.")
