"""Signals: the first asks, the second ends."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from metajax.shutdown import graceful_shutdown


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_only_asks(number):
    numbers = (signal.SIGTERM, signal.SIGINT)
    former = [signal.getsignal(each) for each in numbers]
    said = []
    with graceful_shutdown(said.append) as shutdown:
        assert shutdown.requested is None
        os.kill(os.getpid(), number)
        wait_for(lambda: said)
        assert shutdown.requested == number
    assert said == [f"{number.name}: stopping soon; again to stop at once"]
    assert [signal.getsignal(each) for each in numbers] == former
    assert signal.set_wakeup_fd(-1) == -1


def test_other_signals_ask_for_nothing():
    received = []
    former = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    try:
        with graceful_shutdown() as shutdown:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGUSR1)
                wait_for(lambda: received)
            assert shutdown.requested is None
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_an_error_inside_leaves_no_handler_behind():
    former = signal.getsignal(signal.SIGTERM)
    before = threading.active_count()
    with pytest.raises(KeyError), graceful_shutdown():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == former
    assert threading.active_count() == before


def test_outside_the_main_thread_nothing_changes():
    former, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with graceful_shutdown() as shutdown:
            seen.append((shutdown.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(None, former)]


# The main thread is deep in C, as in a compilation, where no Python handler would run.
BUSY = """
import hashlib
from metajax.shutdown import graceful_shutdown
def fail(text):
    print(text, flush=True)
    raise OSError("the terminal is gone")
with graceful_shutdown(fail):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


AT_ONCE = """
import hashlib, sys
from metajax.shutdown import graceful_shutdown
{session}
def farewell(name):
    print("farewell", name, flush=True)
with graceful_shutdown(lambda text: print(text, flush=True)) as shutdown:
    with shutdown.at_once(farewell):
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
print("after", shutdown.requested)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_first_signal_ends_at_once_where_there_is_nothing_to_save(number, status):
    command = [sys.executable, "-c", AT_ONCE.format(session="", rounds=2**31 - 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.stdout.read() == f"farewell {number.name}\n"
            assert process.wait(10) == status
        finally:
            process.kill()


def test_first_signal_only_asks_in_an_interactive_session():
    command = [sys.executable, "-c", AT_ONCE.format(session="sys.ps1 = '>>> '", rounds=2**20)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
            assert out == "SIGINT: stopping soon; again to stop at once\nafter 2\n"
            assert process.returncode == 0
        finally:
            process.kill()


def test_after_the_part_with_nothing_to_save_a_signal_only_asks():
    said = []
    with graceful_shutdown(said.append) as shutdown:
        with shutdown.at_once(said.append):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: said)
    assert said == ["SIGTERM: stopping soon; again to stop at once"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_second_signal_ends_at_once_even_in_c_code(number, status):
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert "stopping soon" in process.stdout.readline()
            process.send_signal(number)
            assert process.wait(10) == status
        finally:
            process.kill()
