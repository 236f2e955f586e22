"""Stderr without XLA's alarms, and with everything else."""

import os
import subprocess
import sys

from metajax import _alarms

FOLDING = b"""\
E1128 09:38:23.846588   12055 slow_operation_alarm.cc:73] Constant folding an instruction is \
taking > 1s:

  %reduce_window_sum.7 = f32[4000,4000]{1,0} reduce-window(%constant.2, %constant.3)

This isn't necessarily a bug; constant-folding is inherently a trade-off between compilation time.

If you'd like to file a bug, run with envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the \
results.
"""
COMPILING = b"""\
E1128 09:38:23.846588   12055 slow_operation_alarm.cc:73]\x20
********************************
[Compiling module jit_run] Very slow compile? If you want to file a bug, run with envvar \
XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
********************************
"""
OTHER = b"E1128 09:38:24.000000   12055 allocator.cc:12] out of memory\nmore of it\n"


def written(capfd, *messages):
    with _alarms.without_alarms():
        for message in messages:
            os.write(2, message)
    return capfd.readouterr().err.encode()


def test_alarms_are_kept_back_and_nothing_else(capfd):
    assert (
        written(capfd, b"one\n", FOLDING, OTHER, COMPILING + b"two\n")
        == b"one\n" + OTHER + b"two\n"
    )
    os.write(2, FOLDING)  # outside
    assert capfd.readouterr().err.encode() == FOLDING


def test_who_wants_to_see_everything_does(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    assert written(capfd, FOLDING) == FOLDING


def test_last_words_of_a_process_that_aborts_are_not_lost():
    code = (
        "import importlib.util, os\n"
        f"spec = importlib.util.spec_from_file_location('alarms', {_alarms.__file__!r})\n"
        "alarms = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(alarms)\n"
        "with alarms.without_alarms():\n"
        "    os.write(2, b'F1128 09:38:23.846588 1 check.cc:1] Check failed\\n')\n"
        "    os.abort()\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert process.returncode == -6
    assert b"check.cc:1] Check failed\n" in process.stderr
