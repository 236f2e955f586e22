"""Checkpoints against everything that can happen to them."""

import ast
import contextlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import metajax
from metajax.errors import MetajaxError
from metajax.runs import checkpoint
from metajax.runs.checkpoint import Checkpointer, restore, saved_steps
from metajax.runs.records import write_record
from metajax.types import TrainState


class State(NamedTuple):
    """Like `TrainState`, but its leaves may be anything."""

    meta_params: Any
    optimizer_state: Any
    auxiliary: Any


def make_state(step):
    """A small state of which every leaf depends on `step`."""
    params = {
        "w": jnp.full((4, 3), step, jnp.float32),
        "b": jnp.arange(3, dtype=jnp.float32) + step,
    }
    return State(
        meta_params=params,
        optimizer_state=optax.adam(1e-3).init(params),
        auxiliary={"key": jax.random.key(step), "count": jnp.int32(step)},
    )


def contents(tree):
    """Structure, and the type and bytes of every leaf."""
    leaves, structure = jax.tree.flatten(tree)

    def content(leaf):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
        array = np.asarray(leaf)
        kind = jax.Array if isinstance(leaf, jax.Array) else type(leaf)
        return kind, array.dtype, array.shape, array.tobytes()

    return structure, [content(leaf) for leaf in leaves]


def save_steps(directory, *steps, keep=3):
    with Checkpointer(directory, keep=keep) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Two good checkpoints, 10 and 20: copy, never write."""
    directory = tmp_path_factory.mktemp("good")
    save_steps(directory, 10, 20)
    return directory


@pytest.fixture
def copied(two_steps, tmp_path):
    return pathlib.Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def python(source, *arguments):
    """The command that runs `source`."""
    return [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]


# ---------------------------------------------------------------------------------------------
# What is saved comes back
# ---------------------------------------------------------------------------------------------


def test_every_kind_of_leaf_comes_back_bitwise(tmp_path):
    params = {"a/b": jnp.ones((2, 3)), "..": jnp.zeros((0, 4)), "": jnp.float32(-0.0)}
    odd_bits = np.array([0x7FC00001, 0xFF800000, 0x00000001], np.uint32).view(np.float32)
    state = State(
        meta_params=params,
        optimizer_state=optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
        auxiliary=[
            (jax.random.key(3), jax.random.split(jax.random.key(0, impl="rbg"), 3)),
            {"python": 7, "flag": True, "rate": 0.1, "none": None},
            np.asfortranarray(np.arange(6).reshape(2, 3)),
            np.int64(2**40),
            odd_bits,
            jnp.arange(3, dtype=jnp.bfloat16),
            np.array([1, -2], ml_dtypes.int4),
            jnp.array([True, False]),
            TrainState(params, optax.EmptyState()),
        ],
    )
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state)
        step, restored = checkpointer.restore(jax.tree.map(lambda leaf: leaf, state))
    assert step == 0
    assert contents(restored) == contents(state)


def test_orbax_can_read_it(two_steps):
    arrays = ocp.PyTreeCheckpointer().restore(two_steps / "20" / "state")
    manifest = json.loads((two_steps / "20" / "manifest.json").read_text())
    named = {leaf["path"]: arrays[str(i)] for i, leaf in enumerate(manifest["leaves"])}
    np.testing.assert_array_equal(named["state.meta_params['w']"], make_state(20).meta_params["w"])


def test_shapes_alone_are_template_enough(two_steps):
    template = jax.eval_shape(lambda: make_state(0))
    assert contents(restore(two_steps, template)[1]) == contents(make_state(20))


def test_restored_state_causes_no_second_compilation(two_steps):
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf, state), donate_argnums=0)
    state = step(step(make_state(0)))
    compiled = step._cache_size()
    step(restore(two_steps, state)[1])
    assert step._cache_size() == compiled


def test_last_steps_are_kept_in_numerical_order(tmp_path):
    save_steps(tmp_path, 8, 9, 10, 100)
    assert saved_steps(tmp_path) == [9, 10, 100]
    assert sorted(os.listdir(tmp_path)) == ["10", "100", "9"]
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest_step() == 100
        checkpointer.save(101, make_state(101))
    assert os.listdir(tmp_path) == ["101"]


def test_chosen_step(two_steps):
    step, state = restore(two_steps, make_state(0), step=10)
    assert step == 10
    assert contents(state) == contents(make_state(10))
    with pytest.raises(MetajaxError, match=r"no checkpoint of step 15 in .*; it has 10, 20\."):
        restore(two_steps, make_state(0), step=15)


def test_nothing_saved_yet(tmp_path):
    with Checkpointer(tmp_path / "new") as checkpointer:
        assert checkpointer.latest_step() is None
        with pytest.raises(MetajaxError, match="there is no checkpoint in"):
            checkpointer.restore(make_state(0))


def test_save_is_asynchronous_and_donation_cannot_reach_it(tmp_path, monkeypatch):
    written = threading.Event()
    write = checkpoint.write_arrays

    def late(directory, arrays):
        written.wait(60)
        write(directory, arrays)

    monkeypatch.setattr(checkpoint, "write_arrays", late)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    donated, host = step(jnp.zeros(1000)), np.zeros(3)
    address = donated.unsafe_buffer_pointer()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"donated": donated, "host": host})
        host += 1
        after = step(donated)
        assert donated.is_deleted()
        assert after.unsafe_buffer_pointer() == address  # saving costs no copy of the next step
        assert checkpointer.latest_step() is None
        written.set()
        checkpointer.wait()
        _, state = checkpointer.restore({"donated": after, "host": host})
    np.testing.assert_array_equal(state["donated"], np.ones(1000))
    np.testing.assert_array_equal(state["host"], np.zeros(3))


def test_other_device_count(tmp_path):
    source = """
        import sys
        import jax, jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec
        from metajax.runs.checkpoint import Checkpointer
        jax.config.update("jax_num_cpu_devices", 8)
        zeros = {"split": jnp.zeros((8, 3)), "keys": jax.random.split(jax.random.key(9), 8)}
        with Checkpointer(sys.argv[1]) as checkpointer:
            for step, devices in enumerate((1, 2, 8, 4)):
                mesh = jax.make_mesh((devices,), ("task",), devices=jax.devices()[:devices])
                split = NamedSharding(mesh, PartitionSpec("task"))
                template = jax.device_put(zeros, split)
                restored = checkpointer.restore(template)[1]
                assert all(leaf.sharding == split for leaf in restored.values())
                assert len(restored["split"].addressable_shards) == devices
                assert (restored["split"].ravel() == jnp.arange(24)).all()
                assert (restored["keys"] == jax.random.split(jax.random.key(0), 8)).all()
                checkpointer.save(step + 1, restored)
    """
    state = {
        "split": jnp.arange(24.0).reshape(8, 3),
        "keys": jax.random.split(jax.random.key(0), 8),
    }
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state)
    subprocess.run(python(source, tmp_path), check=True, timeout=120)
    step, restored = restore(tmp_path, state)
    assert step == 4
    assert contents(restored) == contents(state)


# ---------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------


def restored_or_passed_over(directory):
    """Restore 20, or 10 with a warning that names 20; anything else fails. Return the warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step, state = restore(directory, make_state(0))
    assert contents(state) == contents(make_state(step))
    if step == 20:
        assert not caught
        return None
    assert step == 10
    (warning,) = caught
    assert "step 20 is damaged: " in str(warning.message)
    assert str(warning.message).endswith("; restored step 10 instead.")
    return str(warning.message)


def test_no_flipped_bit_goes_unnoticed(copied):
    rng = np.random.default_rng(0)
    files = files_of(copied / "20")
    caught = 0
    for trial in range(1000):
        file = files[trial] if trial < len(files) else files[rng.integers(len(files))]
        good = file.read_bytes()
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        file.write_bytes(bad)
        message = restored_or_passed_over(copied)
        file.write_bytes(good)
        caught += message is not None
        if file.parent.parent.name == "state" and file.name != ".zarray":  # the values themselves
            assert f"{file} is not what was saved" in message
            assert (
                "state.meta_params" in message or "state.optimizer" in message or "aux" in message
            )
    assert caught > 400


def test_leaf_of_a_flipped_bit_is_named(copied):
    manifest = json.loads((copied / "20" / "manifest.json").read_text())
    paths = [leaf["path"] for leaf in manifest["leaves"]]
    index = paths.index("state.optimizer_state[0].mu['w']")
    file = copied / "20" / "state" / str(index) / "0.0"
    bad = bytearray(file.read_bytes())
    bad[5] ^= 16
    file.write_bytes(bad)
    message = restored_or_passed_over(copied)
    assert f"state.optimizer_state[0].mu['w']: {file} is not what was saved" in message


@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut", "grown", "directory", "fifo"])
def test_missing_and_misshapen_files(copied, damage, capfd):
    files = [file for file in files_of(copied / "20") if file.name[0] == "0"]
    assert len(files) == 9
    for file in [*files, copied / "20" / "manifest.json"]:
        good = file.read_bytes()
        file.unlink()
        if damage == "directory":
            file.mkdir()
        elif damage == "fifo":
            os.mkfifo(file)
        elif damage != "deleted":
            sizes = {"emptied": 0, "cut": len(good) // 2, "grown": len(good)}
            file.write_bytes(good[: sizes[damage]] + (b"x" if damage == "grown" else b""))
        if (damage, file.name) == ("deleted", "manifest.json"):
            with pytest.warns(UserWarning, match=r"ignored what is no step: 20\."):
                assert restore(copied, make_state(0))[0] == 10
        else:
            assert str(file) in restored_or_passed_over(copied)
        file.rmdir() if damage == "directory" else file.unlink(missing_ok=True)
        file.write_bytes(good)
    assert capfd.readouterr().err == ""  # one sentence, not pages of TensorStore


def test_no_good_step_left(copied):
    for step in ("10", "20"):
        (copied / step / "manifest.json").write_text("{}")
    with pytest.raises(MetajaxError) as caught:
        restore(copied, make_state(0))
    assert "step 20 is damaged" in str(caught.value)
    assert "step 10 is damaged" in str(caught.value)
    with pytest.raises(MetajaxError, match="step 10 is damaged") as caught:
        restore(copied, make_state(0), step=10)
    assert "step 20" not in str(caught.value)


def test_a_run_goes_on_past_a_damaged_step(copied):
    (copied / "20" / "state" / "0" / "0").unlink()
    with Checkpointer(copied) as checkpointer:
        with pytest.warns(UserWarning, match="step 20 is damaged"):
            step, _ = checkpointer.restore(make_state(0))
        assert (step, checkpointer.latest_step()) == (10, 10)
        checkpointer.save(20, make_state(21))
        step, state = checkpointer.restore(make_state(0))
    assert step == 20
    assert contents(state) == contents(make_state(21))
    assert sorted(os.listdir(copied)) == ["10", "20", "superseded-20"]


def test_the_unexpected_is_ignored_with_a_warning(copied, tmp_path):
    (copied / "7").mkdir()
    (copied / "99").mkdir()
    (copied / "012").mkdir()
    (copied / "notes.txt").write_text("mine")
    (copied / "tmp-30").mkdir()
    (copied / "40").symlink_to(copied / "20")
    assert saved_steps(copied) == [10, 20]
    expected = r"ignored what is no step: 012, 40, 7, 99, notes\.txt\."
    with pytest.warns(UserWarning, match=expected):
        assert restore(copied, make_state(0))[0] == 20
    assert (copied / "tmp-30").exists()  # a reader leaves everything where it is
    with Checkpointer(copied) as checkpointer:
        assert not (copied / "tmp-30").exists()
        with pytest.warns(UserWarning, match=expected):
            checkpointer.restore(make_state(0))
        checkpointer.save(99, make_state(99))
        with pytest.warns(UserWarning, match=r"no step: 012, 7, notes\.txt\."):
            assert checkpointer.restore(make_state(0))[0] == 99
    assert (copied / "notes.txt").read_text() == "mine"
    assert (copied / "superseded-40").is_symlink()


def test_step_under_another_number(copied):
    os.rename(copied / "20", copied / "30")
    with pytest.warns(UserWarning, match="is not the manifest of step 30"):
        assert restore(copied, make_state(0))[0] == 10


# ---------------------------------------------------------------------------------------------
# Another state than the one expected
# ---------------------------------------------------------------------------------------------


def test_differences_are_named_by_leaf(two_steps):
    good = make_state(0)
    cases = [
        (
            {"w": jnp.ones((4, 5), "f4")},
            r"meta_params\['w'\]: expected float32\[4,5\], found float32\[4,3\]",
        ),
        ({"w": np.ones((4, 3))}, r"meta_params\['w'\]: expected float64\[4,3\], found float32"),
        ({"w": jnp.ones((4, 3), "i4")}, r"\['w'\]: expected int32\[4,3\], found float32\[4,3\]"),
        ({"v": jnp.ones(2, "f4")}, r"meta_params\['v'\]: expected float32\[2\], found nothing"),
    ]
    for change, expected in cases:
        template = State(good.meta_params | change, good.optimizer_state, good.auxiliary)
        with pytest.raises(MetajaxError, match=expected):
            restore(two_steps, template)
    fewer = State({"w": good.meta_params["w"]}, good.optimizer_state, good.auxiliary)
    with pytest.raises(MetajaxError, match=r"\['b'\]: expected nothing, found float32\[3\]"):
        restore(two_steps, fewer)
    other_key = good.auxiliary | {"key": jax.random.key(0, impl="rbg")}
    with pytest.raises(MetajaxError, match=r"expected key<rbg>\[\], found key<fry>\[\]"):
        restore(two_steps, State(good.meta_params, good.optimizer_state, other_key))
    with pytest.raises(MetajaxError, match=r"; and \d+ more\."):
        restore(two_steps, {"something": jnp.ones(3)})


def test_what_is_no_array_is_refused(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for bad in ("text", object(), np.array(["a"])):
            with pytest.raises(MetajaxError, match=r"state\['name'\] is no array"):
                checkpointer.save(1, {"name": bad})
        with pytest.raises(MetajaxError, match="at least 0, got -1"):
            checkpointer.save(-1, make_state(0))
    with pytest.raises(MetajaxError, match="keep must be at least 1"):
        Checkpointer(tmp_path, keep=0)


# ---------------------------------------------------------------------------------------------
# A save that fails
# ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def largest_file(size):
    """Let no file of this process grow beyond `size` bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_failed_save_is_reported_at_the_next_call(copied, capfd):
    checkpointer = Checkpointer(copied)
    reports = [
        checkpointer.wait,
        lambda: checkpointer.save(50, make_state(50)),
        lambda: checkpointer.restore(make_state(0)),
        checkpointer.close,
    ]
    for report in reports:
        with largest_file(50_000):
            checkpointer.save(40, [jnp.ones(10_000)] * 3)
            expected = rf"cannot save step 40 to {copied}: File too large\."
            with pytest.raises(MetajaxError, match=expected):
                report()
        assert sorted(os.listdir(copied)) == ["10", "20"]
    assert contents(restore(copied, make_state(0))[1]) == contents(make_state(20))
    assert capfd.readouterr().err == ""


def test_saving_goes_on_after_a_failure(copied):
    with Checkpointer(copied) as checkpointer:
        with largest_file(50_000):
            checkpointer.save(30, jnp.ones(30_000))
            with pytest.raises(MetajaxError, match="cannot save step 30"):
                checkpointer.wait()
        checkpointer.save(40, make_state(40))
    assert saved_steps(copied) == [10, 20, 40]


def test_failed_final_save_fails_the_with_statement(copied):
    with (
        largest_file(50_000),
        pytest.raises(MetajaxError, match="cannot save step 30"),
        Checkpointer(copied) as checkpointer,
    ):
        checkpointer.save(30, jnp.ones(30_000))


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded"),
        (
            ValueError("RESOURCE_EXHAUSTED: Error\nwriting file [os_error_code='28']"),
            "No space left on device",
        ),
        (RuntimeError("something\nlong"), "RuntimeError: something"),
    ],
)
def test_failure_inside_orbax(copied, monkeypatch, raised, reason):
    def fail(directory, arrays):
        (directory / "state.orbax-checkpoint-tmp").mkdir()
        raise raised

    monkeypatch.setattr(checkpoint, "write_arrays", fail)
    expected = rf"cannot save step 30 to {copied}: {reason}\."
    with pytest.raises(MetajaxError, match=expected), Checkpointer(copied) as checkpointer:
        checkpointer.save(30, make_state(30))
    assert sorted(os.listdir(copied)) == ["10", "20"]


def test_directory_that_cannot_be_written(tmp_path):
    directory = tmp_path / "checkpoints"
    checkpointer = Checkpointer(directory)
    directory.rmdir()
    directory.write_text("in the way")
    checkpointer.save(1, make_state(1))
    with pytest.raises(
        MetajaxError, match=rf"cannot save step 1 to {directory}: Not a directory\."
    ):
        checkpointer.close()
    with pytest.raises(MetajaxError, match=r"cannot write to .*: File exists"):
        Checkpointer(directory)


# ---------------------------------------------------------------------------------------------
# Killed
# ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a save where it is, without any cleaning up."""


def test_killed_at_every_stage_of_a_save(tmp_path, monkeypatch):
    moment, fatal = 0, None

    def tick():
        nonlocal moment
        moment += 1
        if moment == fatal:
            raise Killed

    def interruptible(function):
        def run(*arguments, **options):
            if not threading.current_thread().name.startswith("checkpoint"):
                return function(*arguments, **options)
            tick()
            result = function(*arguments, **options)
            tick()
            return result

        return run

    def delete_file_by_file(directory, **_):
        for file in files_of(directory):
            tick()
            file.unlink()
        remove(directory)

    remove = shutil.rmtree
    patches = [(os, "rename"), (os, "replace"), (os, "mkdir"), (checkpoint, "write_arrays")]

    def train(directory):
        """Return the last step that was surely saved when the kill came, and whether it came."""
        surely = None
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            for module, name in patches:
                patch.setattr(module, name, interruptible(getattr(module, name)))
            patch.setattr(checkpoint, "write_record", interruptible(checkpoint.write_record))
            patch.setattr(shutil, "rmtree", delete_file_by_file)
            checkpointer = Checkpointer(directory, keep=1)
            for step in (1, 2, 3):
                checkpointer.save(step, {"x": jnp.full(2, step)})
                checkpointer.wait()
                surely = step
        return surely

    assert train(tmp_path / "never") == 3
    stages = moment
    assert stages > 40
    for fatal in range(1, stages + 1):
        moment, directory = 0, tmp_path / str(fatal)
        surely = train(directory)
        steps = saved_steps(directory)
        if surely is not None:
            step, state = restore(directory, {"x": jnp.zeros(2, int)})
            assert step == max(steps) >= surely
            np.testing.assert_array_equal(state["x"], np.full(2, step))
        with Checkpointer(directory, keep=1) as checkpointer:
            checkpointer.save(9, {"x": jnp.full(2, 9)})
        assert os.listdir(directory) == ["9"]


def test_killed_for_good_while_saving(tmp_path):
    source = """
        import sys, numpy as np
        from metajax.runs.checkpoint import Checkpointer
        state = {"x": np.full(50_000, 1, np.uint32)}
        with Checkpointer(sys.argv[1], keep=2) as checkpointer:
            step = 0
            if checkpointer.latest_step() is not None:
                step, state = checkpointer.restore(state)
            while True:
                step += 1
                state["x"] = state["x"] * np.uint32(1664525) + np.uint32(step)
                checkpointer.save(step, state)
                print(step - 1, flush=True)  # that one is on disk
    """
    rng = np.random.default_rng(0)
    expected = {0: np.uint32(1)}
    surely = 0
    for _ in range(2):
        command = python(source, tmp_path)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(rng.integers(3, 20)):
                surely = int(process.stdout.readline())
            process.kill()
            surely = max([surely, *map(int, process.stdout.read().split())])
        step, state = restore(tmp_path, {"x": np.zeros(50_000, np.uint32)})
        assert surely <= step <= surely + 1
        for done in range(max(expected), step):
            with np.errstate(over="ignore"):
                expected[done + 1] = expected[done] * np.uint32(1664525) + np.uint32(done + 1)
        np.testing.assert_array_equal(state["x"], expected[step])


def test_readers_see_whole_steps_while_a_run_saves(tmp_path):
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            step, state = restore(tmp_path, make_state(0))
            seen.append((step, contents(state) == contents(make_state(step))))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Checkpointer(tmp_path, keep=1) as checkpointer:
            checkpointer.save(0, make_state(0))
            checkpointer.wait()
            reader = threading.Thread(target=read)
            reader.start()
            for step in range(1, 30):
                checkpointer.save(step, make_state(step))
            checkpointer.wait()
            stop.set()
            reader.join()
    assert not caught
    assert all(same for _, same in seen)
    assert len({step for step, _ in seen}) > 5


def test_a_step_saved_again_is_replaced(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1))
        checkpointer.save(1, make_state(5))
        assert contents(checkpointer.restore(make_state(0))[1]) == contents(make_state(5))
    assert os.listdir(tmp_path) == ["1"]


# ---------------------------------------------------------------------------------------------
# Checkpoints from somewhere else
# ---------------------------------------------------------------------------------------------


def rewrite_manifest(directory, **changes):
    """Change a manifest as its author could: its own digest is right."""
    record = json.loads((directory / "manifest.json").read_text()) | changes
    kind, version = record.pop("format"), record.pop("format_version")
    del record["sha256"]
    write_record(directory / "manifest.json", kind, version, record)


def test_old_formats_are_still_read():
    expected = {
        "w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
        "key": jax.random.key(7),
        "count": jnp.int32(12),
        "half": jnp.array([1, -2, 0.5], jnp.bfloat16),
        "none": jnp.zeros((0, 2), jnp.float32),
    }
    step, state = restore(pathlib.Path(__file__).parent / "checkpoints_format_1", expected)
    assert step == 12
    assert contents(state) == contents(expected)


def test_newer_format_is_refused_by_name(copied):
    rewrite_manifest(copied / "20", format_version=2)
    expected = r"20/manifest\.json has format version 2, written by a newer metajax"
    with pytest.raises(MetajaxError, match=expected):
        restore(copied, make_state(0))


@pytest.mark.parametrize(
    "changes",
    [
        {"leaves": None},
        {"leaves": [1, 2]},
        {"leaves": [{"path": "state", "kind": "float32[3]"}]},
        {"step": "20"},
        {"format": "something else"},
    ],
)
def test_malformed_manifests(copied, changes):
    rewrite_manifest(copied / "20", **changes)
    assert restored_or_passed_over(copied) is not None


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "1" * 10_000, '{"a": ' * 50_000, "\x00", "null", '"metajax checkpoint"'],
    ids=["deep list", "long number", "deep object", "binary", "null", "string"],
)
def test_hostile_json(copied, text):
    (copied / "20" / "manifest.json").write_text(text)
    assert "manifest.json" in restored_or_passed_over(copied)


def test_huge_files_are_not_read(copied):
    for name in ("manifest.json", "state/0/0"):
        os.truncate(copied / "20" / name, 1 << 40)  # a hole: it takes no room on the disk
        assert str(copied / "20" / name) in restored_or_passed_over(copied)
        shutil.rmtree(copied / "20")
        save_steps(copied, 20)


def test_links_are_not_followed(copied, tmp_path):
    manifest = copied / "20" / "manifest.json"
    os.rename(manifest, tmp_path / "elsewhere.json")
    manifest.symlink_to(tmp_path / "elsewhere.json")
    assert "manifest.json" in restored_or_passed_over(copied)
    manifest.unlink()
    os.rename(tmp_path / "elsewhere.json", manifest)
    data = copied / "20" / "state" / "0" / "0"
    os.rename(data, tmp_path / "data")
    data.symlink_to(tmp_path / "data")
    assert str(data) in restored_or_passed_over(copied)


def test_deleting_follows_no_links(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep me")
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    (directory / "tmp-1").symlink_to(precious)
    (directory / "1").symlink_to(precious)
    save_steps(directory, 1, 2, keep=1)
    assert os.listdir(directory) == ["2"]
    assert (precious / "file").read_text() == "keep me"


def test_nothing_in_the_package_can_run_code_from_a_file():
    package = pathlib.Path(metajax.__file__).parent
    modules = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "torch"}
    files = sorted(package.rglob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not modules & {name.partition(".")[0] for name in names}, file
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", None) not in ("eval", "exec", "compile"), file
                assert "allow_pickle" not in [keyword.arg for keyword in node.keywords], file
            if isinstance(node, ast.Attribute):
                assert (getattr(node.value, "id", None), node.attr) != ("yaml", "load"), file


# ---------------------------------------------------------------------------------------------
# Odd surroundings
# ---------------------------------------------------------------------------------------------


def test_path_that_is_not_utf8(tmp_path):
    directory = tmp_path / os.fsdecode(b"non\xff utf8 \xc3\xa9")
    save_steps(directory, 1, 2)
    assert contents(restore(directory, make_state(0))[1]) == contents(make_state(2))
    (directory / "2" / "state" / "0" / "0").unlink()
    with pytest.warns(UserWarning, match="non\ufffd utf8 é") as caught:
        restore(directory, make_state(0))
    str(caught[0].message).encode()  # it can be printed


def test_strict_umask(tmp_path):
    former = os.umask(0o077)
    try:
        save_steps(tmp_path, 1)
        assert restore(tmp_path, make_state(0))[0] == 1
    finally:
        os.umask(former)
    assert all(not file.stat().st_mode & 0o077 for file in files_of(tmp_path))


def test_relative_linked_and_moved_directories(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path)
    with Checkpointer("link/checkpoints") as checkpointer:
        monkeypatch.chdir("/")
        checkpointer.save(1, make_state(1))
    for file in files_of(tmp_path / "disk"):
        assert os.fsencode(tmp_path) not in file.read_bytes(), file  # no absolute path inside
    os.rename(tmp_path / "disk", tmp_path / "moved")
    restored = restore(tmp_path / "moved" / "checkpoints", make_state(0))[1]
    assert contents(restored) == contents(make_state(1))
