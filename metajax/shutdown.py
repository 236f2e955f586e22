"""Stopping on SIGTERM and Ctrl-C without losing work."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator


class Shutdown:
    """Whether this process was asked to stop.

    Attributes:
        requested: the number of the first signal received (SIGTERM or SIGINT), or None.
    """

    requested: int | None = None
    _farewell: Callable[[str], None] | None = None

    @contextlib.contextmanager
    def at_once(self, farewell: Callable[[str], None]) -> Iterator[None]:
        """Where there is nothing to save: the first signal ends the process, too.

        In an interactive session, where more than this call would be lost, it remains a request.

        Args:
            farewell: called before the end, from another thread, with the signal's name.
        """
        self._farewell = None if hasattr(sys, "ps1") else farewell
        try:
            yield
        finally:
            self._farewell = None


def _watch(descriptor: int, shutdown: Shutdown, announce: Callable[[str], None]) -> None:
    """Act on the signals whose numbers arrive on `descriptor`, until it is closed."""
    while received := os.read(descriptor, 1):
        number = received[0]
        if number not in (signal.SIGTERM, signal.SIGINT):
            continue
        if (farewell := shutdown._farewell) is not None:
            with contextlib.suppress(Exception):
                farewell(signal.Signals(number).name)
        if shutdown.requested is not None or farewell is not None:
            os._exit(128 + number)
        shutdown.requested = number
        with contextlib.suppress(Exception):  # this thread must live to see the second signal
            announce(f"{signal.Signals(number).name}: stopping soon; again to stop at once")


@contextlib.contextmanager
def graceful_shutdown(announce: Callable[[str], None] = lambda _: None) -> Iterator[Shutdown]:
    """Turn SIGTERM and SIGINT into a request, to be polled between two units of work.

    The first signal sets `Shutdown.requested`. The second ends the process at once with status
    143 (SIGTERM) or 130 (SIGINT), as does the first one inside `Shutdown.at_once`, even in the
    middle of a compilation: a thread waits for the signals, since Python runs its own handlers
    only between two bytecodes of the main thread.
    On leaving, the former handlers are back. Outside the main thread, where Python allows no
    handlers, nothing is ever requested.

    Args:
        announce: called, from another thread, with one sentence at the first signal.
    """
    shutdown = Shutdown()
    if threading.current_thread() is not threading.main_thread():
        yield shutdown
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=_watch, args=(reader, shutdown, announce), daemon=True)
    watcher.start()
    # The handlers themselves have nothing to do: the numbers go to the pipe in any case.
    numbers = (signal.SIGTERM, signal.SIGINT)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    former = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield shutdown
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        watcher.join()
        os.close(reader)
