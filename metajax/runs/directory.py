"""A run directory: one run's configuration, lock, checkpoints and metrics.

    lock            held by the one process that trains here
    config.json     configuration and library versions, written once
    checkpoints/    see `metajax.runs.checkpoint`
    metrics.jsonl   one JSON object per line, in the order of the iterations
    metrics-before.jsonl    what a run whose checkpoints were gone had recorded when it started over

The process that holds the lock writes; anyone may read meanwhile.
"""

import dataclasses
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from metajax._version import __version__
from metajax.errors import MetajaxError
from metajax.runs.records import check_same, plain, read_record, shown, write_record

__all__ = ["MetricsLog", "RunDirectory", "check_same", "create_run", "open_run", "read_metrics"]

_KIND = "metajax run"
_FORMAT_VERSION = 1
_CONFIG_LIMIT = 1 << 20  # bytes
_LOCK = "lock"
_CONFIG = "config.json"
_LIBRARIES = (
    *("jax", "jaxlib", "numpy", "mujoco", "mujoco-mjx", "brax", "flax", "optax"),
    "orbax-checkpoint",
)


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """An open run directory; close it, or use it in a `with` statement, to release its lock.

    Attributes:
        path: absolute.
        config: what `create_run` was given, as JSON gives it back (tuples are lists).
        versions: of metajax, Python, the libraries and the platform the run was created with.
    """

    path: Path
    config: dict[str, Any]
    versions: dict[str, Any]
    _lock: int | None = None

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The file that `MetricsLog` writes."""
        return self.path / "metrics.jsonl"

    def close(self) -> None:
        """Release the lock, if this process holds it."""
        if self._lock is not None:
            os.close(self._lock)
            object.__setattr__(self, "_lock", None)

    def __enter__(self) -> "RunDirectory":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def _versions() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "metajax": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        "platform": platform.platform(),
        "backend": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
    }


def _take_lock(path: Path) -> int:
    """Lock the run directory `path` for this process; return the descriptor that holds the lock.

    The kernel drops the lock with the process, however it ends: no lock is ever stale, whatever
    the file says.
    """
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise MetajaxError(f"cannot lock {shown(path)}: {error.strerror}.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            holder = json.loads(os.pread(lock, 4096, 0))
            name = f"process {holder['pid']} on {holder['host']}"
        except (ValueError, TypeError, KeyError):  # the holder has not written its name yet
            name = "another process"
        os.close(lock)
        raise MetajaxError(
            f"{shown(path)} is in use by {name}: one run per directory, one process per run."
        ) from None
    except OSError as error:
        os.close(lock)
        raise MetajaxError(f"cannot lock {shown(path)}: {error.strerror}.") from None
    return lock


def _sign_lock(lock: int) -> None:
    """Say in the lock file who holds it."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)


def _check_new(path: Path) -> None:
    # A run that was killed before its configuration was whole leaves these two.
    names = set(os.listdir(path)) - {_LOCK, f"{_CONFIG}.tmp"}
    if _CONFIG in names:
        raise MetajaxError(f"{shown(path)} holds a run already; use resume, or another directory.")
    if names:
        raise MetajaxError(f"{shown(path)} is not empty and not a metajax run.")


def create_run(path: str | os.PathLike, config: Mapping[str, Any]) -> RunDirectory:
    """Make `path` the directory of a new run and lock it.

    Args:
        path: a directory that does not exist or is empty.
        config: the run's whole configuration: JSON values under string keys.

    Raises:
        MetajaxError: the directory holds a run or something else, is in use (names process and
            host), or cannot be written; or `config` is not JSON.
    """
    path = Path(path).absolute()
    try:
        content = json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise MetajaxError(f"the configuration cannot be written as JSON: {error}.") from None
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not {_LOCK, _CONFIG} <= set(os.listdir(path)):  # then no run can be using it:
            _check_new(path)  # leave nothing in a directory that is not ours
        lock = _take_lock(path)
        try:
            _check_new(path)
            _sign_lock(lock)
            versions = _versions()
            record = {"config": content, "versions": versions}
            write_record(path / _CONFIG, _KIND, _FORMAT_VERSION, record)
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise MetajaxError(
            f"cannot make {shown(path)} a run directory: {error.strerror}."
        ) from None
    return RunDirectory(path, content, versions, lock)


def open_run(path: str | os.PathLike, *, lock: bool) -> RunDirectory:
    """Open the directory of a run.

    Args:
        path: what `create_run` was given.
        lock: True to go on with the run; False to read only, which is safe while it trains.

    Raises:
        MetajaxError: `path` is not a run's directory, its configuration is damaged or of a newer
            format, or (with `lock`) it is in use (names process and host).
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise MetajaxError(f"there is no run directory {shown(path)}.")
    if not os.path.lexists(path / _CONFIG):
        raise MetajaxError(f"{shown(path)} is not a metajax run: it has no {_CONFIG}.")
    record = read_record(path / _CONFIG, _KIND, _FORMAT_VERSION, _CONFIG_LIMIT)
    if not all(isinstance(record.get(key), dict) for key in ("config", "versions")):
        raise MetajaxError(f"{shown(path / _CONFIG)} is malformed.")
    held = None
    if lock:
        held = _take_lock(path)
        _sign_lock(held)
    return RunDirectory(path, record["config"], record["versions"], held)


def _lines(path: Path) -> Iterator[tuple[bool, bytes, dict[str, Any] | None]]:
    """Yield for each line: is it whole, its bytes, and its record (None if it holds none)."""
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                valid = isinstance(record, dict) and isinstance(record.get("iteration"), int)
            except (ValueError, RecursionError):
                record, valid = None, False
            yield line.endswith(b"\n"), line, record if valid else None


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the records of a metrics log, also while it is being written.

    Raises:
        MetajaxError: it cannot be read.
    """
    try:
        return [record for whole, _, record in _lines(Path(path)) if whole and record is not None]
    except OSError as error:
        raise MetajaxError(f"cannot read {shown(path)}: {error.strerror}.") from None


class MetricsLog:
    """Appends metrics to a file, one JSON object per line, none kept back in memory.

    Write an iteration's metrics before its checkpoint is saved: then a log that is opened again
    at the restored iteration has no line twice and none missing.
    """

    def __init__(self, path: str | os.PathLike, *, iteration: int):
        """Open the log at an iteration: later lines, and a line cut short by a crash, are dropped.

        Args:
            path: the file; made if there is none.
            iteration: the last one to keep, that of the restored checkpoint; -1 to start anew.

        Raises:
            MetajaxError: the file cannot be read or written.
        """
        self._path = Path(path).absolute()
        temporary = self._path.with_name(self._path.name + ".tmp")
        dropped = 0
        try:
            if self._path.exists():
                with open(temporary, "wb") as kept:
                    for whole, line, record in _lines(self._path):
                        if record is not None and whole and record["iteration"] <= iteration:
                            kept.write(line)
                        dropped += record is None and whole
                os.replace(temporary, self._path)
            self._file = open(self._path, "ab")  # noqa: SIM115
        except OSError as error:
            raise self._error(error) from None
        if dropped:
            warnings.warn(f"{shown(path)}: dropped {dropped} unreadable lines.", stacklevel=2)

    def _error(self, error: OSError) -> MetajaxError:
        return MetajaxError(f"cannot write {shown(self._path)}: {error.strerror}.")

    def write(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Append one line.

        Args:
            iteration: that the metrics belong to.
            metrics: numbers or arrays (written as lists), strings; what is not finite becomes null.

        Raises:
            MetajaxError: the line cannot be written.
        """
        record = {"iteration": iteration} | {key: plain(v) for key, v in metrics.items()}
        try:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Close the file.

        Raises:
            MetajaxError: what was written did not reach the file.
        """
        try:
            self._file.close()
        except OSError as error:
            raise self._error(error) from None

    def __enter__(self) -> "MetricsLog":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
