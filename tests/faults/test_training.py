"""Kills at random moments and polite requests to stop lose nothing and change nothing."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metajax.runs.directory import read_metrics
from metajax.runs.selection import ranked, scores

WORKER = Path(__file__).parent / "worker.py"
ITERATIONS = 60


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A private compilation cache, so that a hundred processes compile once."""
    cache = tmp_path_factory.mktemp("compilation-cache")
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(directory, environment, *options, iterations=ITERATIONS):
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(directory), str(iterations), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(directory, environment, *options):
    process = start(directory, environment, *options)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def digests(directory, step=ITERATIONS):
    """Return the digest of every leaf of a checkpoint."""
    manifest = json.loads((directory / "checkpoints" / str(step) / "manifest.json").read_text())
    leaves = manifest["leaves"]
    assert len(leaves) > 20
    return {leaf["path"]: leaf["sha256"] for leaf in leaves}


def best(directory):
    """Return the digests of the best checkpoint, and the scores it was chosen by."""
    found = scores(read_metrics(directory / "metrics.jsonl"))
    return {"scores": found} | {
        f"best {k}": d for k, d in digests(directory, ranked(found)[0]).items()
    }


def logged_iterations(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [r["iteration"] for r in records if "return_before" in r]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, environment):
    directory = tmp_path_factory.mktemp("straight") / "run"
    finish(directory, environment)
    assert logged_iterations(directory) == list(range(1, ITERATIONS + 1))
    assert len(scores(read_metrics(directory / "metrics.jsonl"))) == ITERATIONS / 10
    return digests(directory) | best(directory)


@pytest.fixture(scope="module")
def duration(tmp_path_factory, environment, straight):
    """Seconds that a whole run takes here once it is compiled."""
    directory = tmp_path_factory.mktemp("timed") / "run"
    began = time.monotonic()
    finish(directory, environment)
    return time.monotonic() - began


def kill_until_finished(directory, environment, kills, duration, seed, *options):
    """Kill the run up to `kills` times, each after a random time, then let it finish.

    None in the first third, which goes into imports. Return how often it was killed, and how long
    a whole run takes, which may be less once the machine has less to do.
    """
    moments = random.Random(seed)
    done = 0
    while done < kills:
        began = time.monotonic()
        process = start(directory, environment, *options)
        try:
            process.communicate(timeout=moments.uniform(duration / 3, duration))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            done += 1
            continue
        assert process.returncode == 0
        if not done:
            duration = min(duration, time.monotonic() - began)
        break
    finish(directory, environment, *options)
    return done, duration


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_and_resumed_is_the_same_run(tmp_path, environment, straight, duration):
    """A run that ends before it was killed often enough has a successor."""
    total = 50
    kills = 0
    for attempt in itertools.count():
        directory = tmp_path / f"run-{attempt}"
        done, duration = kill_until_finished(
            directory, environment, total - kills, duration, seed=attempt
        )
        kills += done
        assert digests(directory) | best(directory) == straight
        assert logged_iterations(directory) == list(range(1, ITERATIONS + 1))
        if kills == total:
            break


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_with_a_replay_and_resumed_is_the_same_run(tmp_path, environment):
    began = time.monotonic()
    finish(tmp_path / "straight", environment, "pearl")
    finish(tmp_path / "again", environment, "pearl")
    duration = (time.monotonic() - began) / 2
    straight = digests(tmp_path / "straight")
    assert any("replay" in path for path in straight)
    kills = 0
    for attempt in itertools.count():
        directory = tmp_path / f"run-{attempt}"
        done, duration = kill_until_finished(
            directory, environment, 20 - kills, duration, attempt, "pearl"
        )
        kills += done
        assert digests(directory) == straight
        assert logged_iterations(directory) == list(range(1, ITERATIONS + 1))
        if kills == 20:
            break


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "stage"),
    [*itertools.product((signal.SIGTERM, signal.SIGINT), ("training", "iteration 4", "saving"))],
)
def test_a_request_to_stop_is_honoured(tmp_path, environment, straight, stage, number):
    """At the stages "training" (restoring, compiling), simulating and saving."""
    directory = tmp_path / "run"
    process = start(directory, environment, "save")
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == stage:
            break
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    finish(directory, environment)
    assert digests(directory) | best(directory) == straight
    assert logged_iterations(directory) == list(range(1, ITERATIONS + 1))


def test_two_processes_cannot_share_a_directory(tmp_path, environment):
    directory = tmp_path / "run"
    first = start(directory, environment, "save", iterations=10_000)
    assert first.stdout is not None
    for line in first.stdout:
        if line.strip() == "iteration 2":
            break
    second = start(directory, environment, iterations=10_000)
    _, errors = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert f"process {first.pid}" in errors
