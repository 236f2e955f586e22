"""Without XLA's own alarms about slow compilations, on stderr."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# Another process reads stderr: this one may be ended by a signal, or by an error in C++, and what
# it wrote last must not be lost with it. The pattern is one message of the file named in it.
_FILTER = rb"""
import os, re, signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends with the other one
    signal.signal(number, signal.SIG_IGN)
alarm = re.compile(
    rb"^[IWEF]\d{4} [^\n]*slow_operation_alarm\.cc:\d+\][^\n]*\n"
    rb"(?:(?:(?![IWEF]\d{4} )[^\n]*\n)*?[^\n]*attach the results\.\n(?:\*+\n)?)?",
    re.MULTILINE,
)
while chunk := os.read(0, 1 << 16):
    os.write(2, alarm.sub(b"", chunk))
"""


@contextlib.contextmanager
def without_alarms() -> Iterator[None]:
    """Keep XLA's messages that an operation of its compiler is slow from this process's stderr.

    They cannot be switched off alone, and a log level is read before anything here is. Who sets
    `TF_CPP_MIN_LOG_LEVEL=0` wants to see everything, and does.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        yield
        return
    command = [sys.executable, "-I", "-S", "-c", _FILTER.decode()]
    try:
        stderr = os.dup(2)
        passing = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    except OSError:  # no stderr, or no more processes: rather an alarm too many
        yield
        return
    sys.stderr.flush()
    with passing:
        assert passing.stdin is not None
        os.dup2(passing.stdin.fileno(), 2)
        passing.stdin.close()
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
