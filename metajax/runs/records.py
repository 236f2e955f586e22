"""Small JSON records on disk (a run's configuration, a checkpoint's manifest).

A record names what it is and the version of the format that it follows, and carries a digest of
itself, so that a damaged record is never taken for a valid one. Reading is bounded and follows no
symbolic link: a record may come from anywhere.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metajax.errors import MetajaxError


class DamagedError(MetajaxError):
    """What stands on disk is not what was written there."""


def shown(path: str | os.PathLike) -> str:
    """Return `path` as text that can always be printed, whatever bytes it holds."""
    return os.fsencode(path).decode(errors="replace")


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    value = value if isinstance(value, list | tuple) else np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_record(path: Path, kind: str, version: int, content: Mapping[str, Any]) -> None:
    """Write a record so that `path` holds all of it or is untouched.

    Args:
        path: the file; a file `<path>.tmp` is used on the way.
        kind: what the record is, for example "metajax run".
        version: of the format of this kind.
        content: JSON values under string keys.

    Raises:
        OSError: it cannot be written.
        ValueError: a number in it is not finite, which JSON cannot hold.
    """
    record = {"format": kind, "format_version": version, **content}
    text = json.dumps({**record, "sha256": _digest(record)}, indent=1, allow_nan=False) + "\n"
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the bytes of the regular file `path`.

    Raises:
        DamagedError: it is missing, not a regular file, or larger than `limit` bytes.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise DamagedError(f"{shown(path)} is not a regular file.")
            content = file.read(limit + 1)
    except OSError as error:
        raise DamagedError(f"cannot read {shown(path)}: {error.strerror}.") from None
    if len(content) > limit:
        raise DamagedError(f"{shown(path)} is larger than the {limit} bytes allowed.")
    return content


def read_record(path: Path, kind: str, version: int, limit: int) -> dict[str, Any]:
    """Return the content of a record written by `write_record`.

    Raises:
        DamagedError: it is missing, larger than `limit` bytes, malformed, another kind of record,
            or not what was written.
        MetajaxError: its format is newer than `version`.
    """
    content = read_bounded(path, limit)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        raise DamagedError(f"{shown(path)} is not valid JSON.") from None
    if not isinstance(record, dict) or record.get("format") != kind:
        raise DamagedError(f"{shown(path)} is not the record of a {kind}.")
    digest = record.pop("sha256", None)
    if digest != _digest(record):
        raise DamagedError(f"{shown(path)} is not what was written there (its digest differs).")
    found = record.get("format_version")
    if not isinstance(found, int) or found > version:
        raise MetajaxError(
            f"{shown(path)} has format version {found}, written by a newer metajax; "
            f"this one reads up to version {version}."
        )
    return record


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_same(expected: Mapping[str, Any], found: Mapping[str, Any], *, what: str) -> None:
    """Check that two nested records hold the same values under the same keys.

    Args:
        expected: what is needed.
        found: what there is.
        what: the beginning of the error message: what differs from what.

    Raises:
        MetajaxError: they differ; names the first keys as `key: expected X, found Y`.
    """
    expected, found = _flat(expected), _flat(found)
    nothing = object()
    differences = [
        f"{key}: expected {expected.get(key, 'nothing')}, found {found.get(key, 'nothing')}"
        for key in [*expected, *(key for key in found if key not in expected)]
        if expected.get(key, nothing) != found.get(key, nothing)
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise MetajaxError(f"{what}: {'; '.join(differences[:5])}{more}.")
