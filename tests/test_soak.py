"""Physics for minutes on end: no hang, no crash, and the same bits at the end as at the start.

`METAJAX_SOAK_MINUTES=10 pytest -m slow tests/test_soak.py`; without it, one minute each.
"""

import os
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

MINUTES = float(os.environ.get("METAJAX_SOAK_MINUTES", "1"))


def program(backend, worlds, steps):
    """A compiled rollout of random controls, and a key for it."""
    from metajax.envs import make

    family = make("halfcheetah-vel", backend=backend)

    def play(key):
        task_key, reset_key, action_key = jax.random.split(key, 3)
        state = family.env.reset(reset_key, family.train.sample(task_key))
        actions = jax.random.uniform(action_key, (steps, 6), minval=-1.0)
        return jax.lax.scan(
            lambda state, action: (family.env.step(state, action), state.reward), state, actions
        )

    keys = jax.random.split(jax.random.key(worlds), worlds)
    return jax.jit(jax.vmap(play)).lower(keys).compile(), keys


def soak(backend, shapes, minutes):
    """Call all programs from two threads each until the time is over; every result is checked."""
    programs = [program(backend, *shape) for shape in shapes]
    expected = [np.asarray(call(keys)[1]) for call, keys in programs]
    end = time.monotonic() + 60 * minutes
    calls, wrong = [0] * (2 * len(programs)), []

    def work(thread):
        index = thread % len(programs)
        call, keys = programs[index]
        while time.monotonic() < end:
            ahead = [call(keys)[1] for _ in range(3)]  # dispatched before the first is looked at
            wrong.extend(index for x in ahead if not np.array_equal(x, expected[index]))
            calls[thread] += len(ahead)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (call, keys), rewards in zip(programs, expected, strict=True):  # and after the run
        assert np.array_equal(call(keys)[1], rewards)
    print(f"{sum(calls)} calls of {len(programs)} programs, {len(wrong)} wrong")
    assert not wrong


def leave(backend):
    """Leave Python while a long program is running."""
    call, keys = program(backend, 256, 200)
    call(keys)


def run(*arguments, seconds):
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES + 240)
@pytest.mark.parametrize("backend", ["mujoco", "mjx"])
def test_no_hang_and_no_wrong_bit(backend):
    done = run("soak", backend, str(MINUTES), seconds=60 * MINUTES + 200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong" in done.stdout


def test_leaving_while_the_engine_runs():
    done = run("leave", "mujoco", seconds=60)
    assert (done.returncode, done.stderr) == (0, "")


if __name__ == "__main__":
    if sys.argv[1] == "leave":
        leave(sys.argv[2])
    else:
        # With 1024 batched LAPACK kernels used to hang: `metajax.physics.linear_algebra`.
        shapes = {"mujoco": [(1, 300), (20, 100), (200, 100), (5000, 4)], "mjx": [(1024, 4)]}
        soak(sys.argv[2], shapes[sys.argv[2]], float(sys.argv[3]))
