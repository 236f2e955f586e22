"""Keeps back what other libraries print or warn of, whatever other threads do meanwhile.

`warnings.catch_warnings` and `contextlib.redirect_stdout` put back what they found. Where two
threads take turns, the second one finds what the first had set, and puts that back for good. Here
each takes away only what it has added.
"""

import contextlib
import io
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_warning(pattern: str) -> Iterator[None]:
    """Ignore warnings, raised from C or by a module while it is imported, that match a pattern.

    Args:
        pattern: a regular expression that the message starts with.
    """
    entry: Any = ("ignore", re.compile(pattern, re.IGNORECASE), Warning, None, 0)
    filters: Any = warnings.filters
    filters.insert(0, entry)
    try:
        yield
    finally:
        now: Any = warnings.filters
        for places in (filters, now):  # a copy, where another thread has made one
            if entry in places:
                places.remove(entry)


@contextlib.contextmanager
def without_lines(pattern: str) -> Iterator[None]:
    """Keep lines that this thread prints, and that match a pattern, from the standard output.

    Args:
        pattern: a regular expression that the line starts with.
    """
    held = _Held(sys.stdout)
    sys.stdout = held
    try:
        yield
    finally:
        if sys.stdout is held:  # otherwise another thread puts it back, and it passes all on
            sys.stdout = held.stream
        for line in held.release():
            if not re.match(pattern, line):
                print(line)


class _Held:
    """A stream that holds back what one thread writes, and passes on what the others do."""

    def __init__(self, stream: Any):
        self.stream = stream
        self._thread: int | None = threading.get_ident()
        self._lines = io.StringIO()

    def __getattr__(self, name: str) -> Any:
        mine = self._thread == threading.get_ident()
        return getattr(self._lines if mine else self.stream, name)

    def release(self) -> list[str]:
        """Return the lines held back, and hold back no more."""
        self._thread = None
        return self._lines.getvalue().splitlines()
