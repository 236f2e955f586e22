"""Run directories: who may use them, what they hold, what survives a crash."""

import json
import os
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.errors import MetajaxError
from metajax.runs.directory import MetricsLog, check_same, create_run, open_run, read_metrics

CONFIG = {"algorithm": "maml", "options": {"inner_steps": 1, "rates": (0.1, 0.2)}, "seed": None}


def test_configuration_and_versions_come_back(tmp_path):
    with create_run(tmp_path / "a" / "run", CONFIG) as run:
        assert run.checkpoints == tmp_path / "a" / "run" / "checkpoints"
    assert run.config == {**CONFIG, "options": {"inner_steps": 1, "rates": [0.1, 0.2]}}
    with open_run(tmp_path / "a" / "run", lock=True) as again:
        assert again.config == run.config
        assert again.versions == run.versions
    libraries = {"jaxlib", "mujoco", "mujoco-mjx", "brax", "flax", "optax", "orbax-checkpoint"}
    assert libraries | {"metajax", "python", "platform", "backend", "device"} <= {*run.versions}
    assert (run.versions["jax"], run.versions["numpy"]) == (jax.__version__, np.__version__)
    text = (tmp_path / "a" / "run" / "config.json").read_text()
    assert str(tmp_path) not in text


def test_only_an_empty_directory_becomes_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    create_run(tmp_path / "empty", CONFIG).close()
    with pytest.raises(MetajaxError, match="empty holds a run already; use resume"):
        create_run(tmp_path / "empty", CONFIG)

    for name in ("notes.txt", "lock"):
        foreign = tmp_path / f"foreign {name}"
        foreign.mkdir()
        (foreign / name).write_text("mine")
        (foreign / "more").write_text("mine")
        with pytest.raises(MetajaxError, match=f"{name} is not empty and not a metajax run"):
            create_run(foreign, CONFIG)
        assert sorted(os.listdir(foreign)) == sorted([name, "more"])
        assert (foreign / name).read_text() == "mine"

    (tmp_path / "file").write_text("")
    with pytest.raises(MetajaxError, match=r"cannot make .*file a run directory: File exists"):
        create_run(tmp_path / "file", CONFIG)
    with pytest.raises(MetajaxError, match=r"cannot make .*run directory: Not a directory"):
        create_run(tmp_path / "file" / "run", CONFIG)
    with pytest.raises(MetajaxError, match="the configuration cannot be written as JSON"):
        create_run(tmp_path / "new", {"policy": object()})
    assert not (tmp_path / "new").exists()


def test_a_run_killed_before_its_configuration_was_whole_can_be_created_again(tmp_path):
    (tmp_path / "lock").write_text("")
    (tmp_path / "config.json.tmp").write_text('{"for')
    create_run(tmp_path, CONFIG).close()
    assert open_run(tmp_path, lock=False).config["algorithm"] == "maml"
    assert not (tmp_path / "config.json.tmp").exists()


def test_one_process_per_run(tmp_path):
    with create_run(tmp_path, CONFIG):
        expected = rf"is in use by process {os.getpid()} on {os.uname().nodename}: one run per"
        with pytest.raises(MetajaxError, match=expected):
            create_run(tmp_path, CONFIG)
        with pytest.raises(MetajaxError, match=expected):
            open_run(tmp_path, lock=True)
        open_run(tmp_path, lock=False)
    open_run(tmp_path, lock=True).close()


def test_lock_of_a_killed_process_is_free(tmp_path):
    source = """
import sys, time
from metajax.runs.directory import create_run
run = create_run(sys.argv[1], {})
print(flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", source, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(MetajaxError, match=f"is in use by process {process.pid} on "):
            open_run(tmp_path, lock=True)
        process.kill()
    assert str(process.pid) in (tmp_path / "lock").read_text()
    with open_run(tmp_path, lock=True):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_two_runs_created_at_once(tmp_path):
    for trial in range(20):
        together = threading.Barrier(2)

        def create(path, together=together):
            together.wait()
            return create_run(path, CONFIG)

        with ThreadPoolExecutor(2) as threads:
            results = [threads.submit(create, tmp_path / str(trial)) for _ in range(2)]
        (error,) = filter(None, (result.exception() for result in results))
        # The second one, if it comes late, finds a run that is finished being made.
        assert "is in use by" in str(error) or "holds a run already" in str(error)
        (run,) = (result.result() for result in results if result.exception() is None)
        run.close()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(MetajaxError, match=r"there is no run directory .*nowhere"):
        open_run(tmp_path / "nowhere", lock=True)
    with pytest.raises(MetajaxError, match=r"is not a metajax run: it has no config\.json"):
        open_run(tmp_path, lock=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("\x80\x81", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("1" * 10_000, "is not valid JSON"),
        ("[]", "is not the record of a metajax run"),
        ('{"format": "other"}', "is not the record of a metajax run"),
        ('{"format": "metajax run"}', "is not what was written there"),
        (" " * (1 << 20) + "{}", "is larger than the 1048576 bytes allowed"),
    ],
    ids=range(9),
)
def test_bad_configurations(tmp_path, text, expected):
    create_run(tmp_path, CONFIG).close()
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(MetajaxError, match=rf"config\.json {expected}"):
        open_run(tmp_path, lock=False)


def test_flipped_bits_in_the_configuration(tmp_path):
    create_run(tmp_path, CONFIG).close()
    file = tmp_path / "config.json"
    good, config, caught = file.read_bytes(), open_run(tmp_path, lock=False).config, 0
    for bit in range(0, 8 * len(good), 7):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        try:
            assert open_run(tmp_path, lock=False).config == config  # white space
        except MetajaxError:
            caught += 1
    assert caught > len(good) / 2


def test_configurations_that_are_no_plain_file(tmp_path):
    create_run(tmp_path, CONFIG).close()
    config = tmp_path / "config.json"
    os.rename(config, tmp_path / "elsewhere")
    config.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MetajaxError, match=r"cannot read .*config\.json: Too many levels"):
        open_run(tmp_path, lock=False)
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(MetajaxError, match=r"config\.json is not a regular file"):
        open_run(tmp_path, lock=False)


def test_newer_format_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("metajax.runs.directory._FORMAT_VERSION", 2)
    create_run(tmp_path, CONFIG).close()
    open_run(tmp_path, lock=False)
    monkeypatch.undo()
    expected = r"config\.json has format version 2, written by a newer metajax; .* version 1\."
    with pytest.raises(MetajaxError, match=expected):
        open_run(tmp_path, lock=False)


def test_path_that_is_not_utf8_and_strict_umask(tmp_path):
    path = tmp_path / os.fsdecode(b"non\xff utf8")
    former = os.umask(0o077)
    try:
        create_run(path, CONFIG).close()
    finally:
        os.umask(former)
    with open_run(path, lock=True), pytest.raises(MetajaxError, match="non\ufffd utf8 is in use"):
        open_run(path, lock=True)
    with MetricsLog(path / "metrics.jsonl", iteration=0) as log:
        log.write(1, {})


def test_differences_are_named_by_key():
    check_same(CONFIG, dict(CONFIG), what="the run is another")
    found = {"algorithm": "rl2", "options": {"inner_steps": 1}, "seed": None, "new": 3}
    with pytest.raises(MetajaxError) as caught:
        check_same(CONFIG, found, what="the run is another")
    assert str(caught.value) == (
        "the run is another: algorithm: expected maml, found rl2; "
        "options.rates: expected (0.1, 0.2), found nothing; new: expected nothing, found 3."
    )
    many = {str(key): 1 for key in range(12)}
    with pytest.raises(MetajaxError, match="4: expected 1, found 2; and 7 more"):
        check_same(many, dict.fromkeys(many, 2), what="another")


# ---------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------


def test_metrics_are_plain_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, iteration=-1) as log:
        log.write(
            1,
            {
                "float": jnp.float32(0.5),
                "half": jnp.bfloat16(1.5),
                "int": np.int32(3),
                "seeds": jnp.array([1.0, jnp.nan, -jnp.inf]),
                "nan": float("nan"),
                "text": "held-out",
            },
        )
        assert len(path.read_text().splitlines()) == 1  # before the log is closed

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "iteration": 1,
        "float": 0.5,
        "half": 1.5,
        "int": 3,
        "seeds": [1.0, None, None],
        "nan": None,
        "text": "held-out",
    }


def test_no_line_twice_and_none_missing_after_crashes(tmp_path):
    path, rng, saved = tmp_path / "metrics.jsonl", np.random.default_rng(0), 0
    for _ in range(30):
        with MetricsLog(path, iteration=saved) as log:
            start = saved
            for iteration in range(start + 1, start + rng.integers(2, 9)):
                log.write(iteration, {"loss": iteration / 3})
                if rng.random() < 0.4:
                    saved = iteration
        if rng.random() < 0.7:  # killed in the middle of a line
            with open(path, "ab") as file:
                file.write(b'{"iteration": %d, "lo' % (iteration + 1))
    records = read_metrics(path)
    MetricsLog(path, iteration=saved).close()
    kept = read_metrics(path)
    assert kept == [{"iteration": i, "loss": i / 3} for i in range(1, saved + 1)]
    assert records[: len(kept)] == kept
    assert path.read_bytes().endswith(b"\n")
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_last_line_without_its_end_is_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}')
    assert read_metrics(path) == [{"iteration": 1}]
    with MetricsLog(path, iteration=2) as log:
        log.write(3, {})
    assert read_metrics(path) == [{"iteration": 1}, {"iteration": 3}]


def test_unreadable_lines_are_dropped_with_a_warning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"iteration": 1}', "{]", '{"loss": 3}', "[1]", "[" * 100_000, '{"iteration": 2}']
    path.write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: dropped 4 unreadable lines"):
        MetricsLog(path, iteration=5).close()
    assert read_metrics(path) == [{"iteration": 1}, {"iteration": 2}]


def test_metrics_that_cannot_be_written_or_read(tmp_path):
    with pytest.raises(MetajaxError, match=r"cannot read .*nothing: No such file"):
        read_metrics(tmp_path / "nothing")
    with pytest.raises(MetajaxError, match=r"cannot write .*metrics: Is a directory"):
        (tmp_path / "metrics").mkdir()
        MetricsLog(tmp_path / "metrics", iteration=0)
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, iteration=0)
    log.write(1, {})
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, former[1]))
    try:
        with pytest.raises(MetajaxError, match=r"cannot write .*metrics\.jsonl: File too large"):
            for _ in range(100):
                log.write(2, {"some": [1] * 100})
        with pytest.raises(MetajaxError, match=r"cannot write .*metrics\.jsonl: File too large"):
            log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    MetricsLog(path, iteration=1).close()
    assert read_metrics(path) == [{"iteration": 1}]
