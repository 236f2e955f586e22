"""Checkpoints: a training state on disk exactly as it was, or one clear sentence why not.

    checkpoints/120/manifest.json    path, shape, dtype and digest of every leaf of the state
    checkpoints/120/state/           the arrays, written by Orbax: leaf i is directory i
    checkpoints/tmp-*                being written or deleted
    checkpoints/superseded-*         given up when the run went on from an earlier step

A step appears under its number by one rename when all of it is written, so a process killed at
any moment leaves whole steps behind. Nothing read here is trusted: the size of the manifest is
bounded, its content is compared with what is expected before any array is read, and each array
with its digest. (Orbax alone would load a flipped bit without a word.) Orbax can read the arrays
too: `PyTreeCheckpointer().restore(".../120/state")`.
"""

import contextlib
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from metajax.errors import MetajaxError
from metajax.runs.arrays import (
    STATE,
    Leaf,
    digest_of,
    leaves_of,
    placed,
    read_array,
    reason_of,
    write_arrays,
)
from metajax.runs.records import DamagedError, check_same, read_record, shown, write_record

__all__ = ["Checkpointer", "restore", "saved_kinds", "saved_steps"]

_KIND = "metajax checkpoint"
_FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_TEMPORARY = "tmp-"
_SUPERSEDED = "superseded-"
_ASIDE = "aside-"  # what earlier versions called these
_OURS = (_TEMPORARY, _SUPERSEDED, _ASIDE)
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")
_MANIFEST_LIMIT = 1 << 24  # bytes; enough for some 50 000 leaves
_REST = 20  # times as long as a save took


# ---------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------


def _list(directory: Path) -> tuple[list[int], list[str]]:
    steps, unexpected = [], []
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if (
                _NUMBER.fullmatch(entry.name)
                and entry.is_dir(follow_symlinks=False)
                and os.path.lexists(os.path.join(entry.path, _MANIFEST))
            ):
                steps.append(int(entry.name))
            elif not entry.name.startswith(_OURS) and os.path.lexists(entry.path):
                unexpected.append(shown(entry.name))
    return sorted(steps), sorted(unexpected)


def _steps(directory: Path) -> tuple[list[int], list[str]]:
    """Return the steps saved in `directory`, oldest first, and the names of what is no step."""
    try:
        for _ in range(20):
            steps, unexpected = _list(directory)
            if steps:  # a list made while the only step gives way to the next may hold neither
                break
    except OSError as error:
        raise MetajaxError(f"cannot list {shown(directory)}: {error.strerror}.") from None
    return steps, unexpected


def saved_steps(directory: str | os.PathLike) -> list[int]:
    """Return the steps saved in `directory`, oldest first, without reading them.

    Raises:
        MetajaxError: the directory cannot be listed.
    """
    return _steps(Path(directory))[0]


def _check_arrangement(directory: Path, paths: Collection[str]) -> None:
    if any(path.startswith("state.train_state.optimizer_state") for path in paths):
        raise MetajaxError(
            f"checkpoint {shown(directory)} was saved by an earlier metajax, whose training states "
            "were arranged otherwise: its agent can be loaded, evaluated and drawn, but not be "
            "trained further."
        )


class _Manifest(NamedTuple):
    """Kinds and digests of the leaves of a step, by path and in their order."""

    kinds: dict[str, str]
    digests: dict[str, str]


def _read_manifest(directory: Path, step: int) -> _Manifest:
    """Return the manifest in the directory of one step.

    Raises:
        DamagedError: it is not what was saved.
        MetajaxError: it is of a newer format.
    """
    file = directory / _MANIFEST
    manifest = read_record(file, _KIND, _FORMAT_VERSION, _MANIFEST_LIMIT)
    try:
        leaves = manifest["leaves"]
        kinds = {leaf["path"]: leaf["kind"] for leaf in leaves}
        digests = {leaf["path"]: leaf["sha256"] for leaf in leaves}
        same = manifest["step"] == step
    except (TypeError, KeyError):
        same = False
    if not same:
        raise DamagedError(f"{shown(file)} is not the manifest of step {step}.")
    return _Manifest(kinds, digests)


def saved_kinds(directory: str | os.PathLike) -> dict[str, str]:
    """Return dtype and shape of each leaf of the newest good step in `directory`, by path.

    Raises:
        MetajaxError: there is none.
    """
    directory = Path(directory).absolute()
    for step in saved_steps(directory)[::-1]:
        with contextlib.suppress(DamagedError):
            return _read_manifest(directory / str(step), step).kinds
    raise MetajaxError(f"there is no checkpoint in {shown(directory)}.")


def _load(directory: Path, step: int, template: PyTree, part: bool) -> PyTree:
    """Return the state in the directory of one step, or the part of it that is asked for.

    Raises:
        DamagedError: it is not what was saved; names file and leaf.
        MetajaxError: it is not a state like `template`, or of a newer format.
    """
    kinds, digests = _read_manifest(directory, step)
    leaves = leaves_of(template)
    expected = {leaf.path: leaf.kind for leaf in leaves}
    if not part:
        _check_arrangement(directory, kinds)
    wanted = {path: kind for path, kind in kinds.items() if not part or path in expected}
    check_same(expected, wanted, what=f"checkpoint {shown(directory)} is of another state")

    values, problems = [], []
    indices = {path: str(index) for index, path in enumerate(kinds)}
    for leaf in leaves:
        file = directory / STATE / indices[leaf.path] / ".".join("0" * max(1, leaf.data.ndim))
        try:
            value = read_array(file, leaf.data)
            if digest_of(value) != digests[leaf.path]:
                raise DamagedError(f"{shown(file)} is not what was saved.")
            values.append(value)
        except DamagedError as error:
            problems.append(f"{leaf.path}: {str(error).rstrip('.')}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DamagedError(f"{'; '.join(problems[:3])}{more}.")
    like, structure = jax.tree.flatten(template)
    return structure.unflatten(map(placed, values, like))


def restore(
    directory: str | os.PathLike,
    template: PyTree,
    *,
    step: int | Sequence[int] | None = None,
    part: bool = False,
) -> tuple[int, PyTree]:
    """Return the newest state that is exactly what was saved; safe while a run is saving.

    Damaged steps are passed over with a warning that names step, file and leaf.

    Args:
        directory: of the checkpoints.
        template: a state of the same structure, shapes and dtypes, whose leaves are arrays or
            `jax.ShapeDtypeStruct`; what is returned has its types and shardings.
        step: this one and no other; of several, the first good one.
        part: what was saved may hold more than the template, none of which is read.

    Returns:
        The step and its state.

    Raises:
        MetajaxError: there is no good step; or the newest one differs from the template, which
            names the leaves as `path: expected X, found Y`; or its format is newer.
    """
    directory = Path(directory).absolute()
    wanted = None if step is None else [step] if isinstance(step, int) else list(step)
    damaged = {}
    while True:
        steps, unexpected = _steps(directory)  # anew each time: a step may be gone meanwhile
        candidates = steps if wanted is None else [one for one in wanted[::-1] if one in steps]
        left = [one for one in candidates if one not in damaged]
        if not left:
            break
        newest = left[-1]
        try:
            state = _load(directory / str(newest), newest, template, part)
        except DamagedError as error:
            if os.path.lexists(directory / str(newest)):
                damaged[newest] = f"step {newest} is damaged: {error}"
            continue
        if unexpected:
            names = ", ".join(unexpected[:5]) + (" ..." if len(unexpected) > 5 else "")
            warnings.warn(f"{shown(directory)}: ignored what is no step: {names}.", stacklevel=2)
        for problem in damaged.values():
            message = f"{problem.rstrip('.')}; restored step {newest} instead."
            warnings.warn(f"{shown(directory)}: {message}", stacklevel=2)
        return newest, state
    if damaged:
        raise MetajaxError(f"{shown(directory)}: no checkpoint left: {' '.join(damaged.values())}")
    found = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
    missing = f" of step {' or '.join(map(str, wanted))}" if wanted else ""
    raise MetajaxError(f"there is no checkpoint{missing} in {shown(directory)}; {found}.")


# ---------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.05)  # after a failed save, Orbax's threads may still be writing there


class Checkpointer:
    """Saves the state of one run in the background, and restores it.

    One per directory: the caller holds the lock of the run (see `metajax.runs.directory`). Use it
    in a `with` statement or call `close`: a save that failed is raised by the next `save`, `wait`,
    `restore` or `close`, whichever comes first.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
        """Open the directory, and clear away what a killed process left half written.

        Args:
            directory: of the checkpoints; made if there is none.
            keep: how many steps stay on disk, at least 1.

        Raises:
            MetajaxError: `keep` is below 1, or the directory cannot be made.
        """
        if keep < 1:
            raise MetajaxError(f"keep must be at least 1 checkpoint, got {keep}.")
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._pending: Future[None] | None = None
        self._start, self._seconds = -math.inf, 0.0  # of the last save
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._clear()
        except OSError as error:
            raise MetajaxError(
                f"cannot write to {shown(self._directory)}: {error.strerror}."
            ) from None
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def latest_step(self) -> int | None:
        """Return the newest step saved, or None."""
        return max(saved_steps(self._directory), default=None)

    def is_rested(self) -> bool:
        """Return whether saving took at most a twentieth of the time since the last save began."""
        if self._pending is not None and not self._pending.done():
            return False
        return time.perf_counter() - self._start >= _REST * self._seconds

    def save(self, step: int, state: PyTree, *, protect: Collection[int] = ()) -> None:
        """Save `state` in the background; on return its buffers may be donated or overwritten.

        Args:
            step: the number to save it under; a state saved under it before is replaced.
            state: a pytree of arrays and typed keys, wherever they lie.
            protect: steps that stay on disk as well as those that are kept.

        Raises:
            MetajaxError: the save before this one failed (names directory, step and reason), a
                leaf is no array, or `step` is negative.
        """
        if step < 0:
            raise MetajaxError(f"the step of a checkpoint must be at least 0, got {step}.")
        leaves = leaves_of(state)
        self.wait()
        self._start = time.perf_counter()
        # No view of an array may outlive this line: it would keep the buffer from being donated.
        copies = [leaf._replace(data=np.array(leaf.data, copy=True)) for leaf in leaves]
        self._pending = self._background.submit(self._write, int(step), copies, protect)

    def wait(self) -> None:
        """Wait until the last state is saved.

        Raises:
            MetajaxError: it could not be saved; names directory, step and reason.
        """
        if self._pending is not None:
            pending = self._pending
            try:
                pending.result()
            finally:
                if pending.done():  # not so if the wait was interrupted
                    self._pending = None

    def restore(self, template: PyTree, *, step: int | None = None) -> tuple[int, PyTree]:
        """Restore as `metajax.runs.checkpoint.restore` does, to go on from there.

        Newer steps are renamed `superseded-<step>`: nothing may take them for this run's future.
        """
        self.wait()
        step, state = restore(self._directory, template, step=step)
        for name in os.listdir(self._directory):
            if _NUMBER.fullmatch(name) and int(name) > step:
                superseded = self._directory / f"{_SUPERSEDED}{name}"
                _delete(superseded)
                os.rename(self._directory / name, superseded)
        return step, state

    def close(self) -> None:
        """Wait for the last save and stop.

        Raises:
            MetajaxError: the last state could not be saved.
        """
        try:
            self.wait()
        finally:
            self._background.shutdown()

    def __enter__(self) -> "Checkpointer":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _clear(self) -> None:
        for path in self._directory.glob(f"{_TEMPORARY}*"):
            _delete(path)

    def _retire(self, step: int, purpose: str) -> None:
        """Take a step out of sight at once, to be deleted at leisure."""
        os.rename(self._directory / str(step), self._directory / f"{_TEMPORARY}{purpose}-{step}")

    def _write(self, step: int, leaves: list[Leaf], protect: Collection[int]) -> None:
        final = self._directory / str(step)
        temporary = self._directory / f"{_TEMPORARY}{step}"
        try:
            self._clear()
            temporary.mkdir()
            # Tried with zeros first: TensorStore answers a full disk with pages of errors.
            with open(temporary / "room", "wb") as room:
                for leaf in leaves:
                    room.write(bytes(leaf.data.nbytes + 8192))
            os.unlink(temporary / "room")
            stored = {str(i): leaf.data for i, leaf in enumerate(leaves) if leaf.data.size}
            write_arrays(temporary, stored)
            records = [
                {"path": leaf.path, "kind": leaf.kind, "sha256": digest_of(leaf.data)}
                for leaf in leaves
            ]
            manifest = {"step": step, "leaves": records}
            write_record(temporary / _MANIFEST, _KIND, _FORMAT_VERSION, manifest)
            if os.path.lexists(final):
                self._retire(step, "replaced")
            os.rename(temporary, final)
        except Exception as error:
            with contextlib.suppress(OSError):
                self._clear()
            raise MetajaxError(
                f"cannot save step {step} to {shown(self._directory)}: {reason_of(error)}."
            ) from error
        with contextlib.suppress(OSError, MetajaxError):  # one step too many is no reason to stop
            others = [one for one in saved_steps(self._directory) if one != step]
            for old in others[: max(0, len(others) - self._keep + 1)]:
                if old not in protect:
                    self._retire(old, "old")
            self._clear()
        self._seconds = time.perf_counter() - self._start
