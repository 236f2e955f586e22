"""The arrays of a checkpoint: the leaves of a state, and the files that Orbax keeps them in."""

import contextlib
import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from metajax.errors import MetajaxError
from metajax.runs.records import DamagedError, read_bounded, shown

STATE = "state"  # the directory of the arrays


class Leaf(NamedTuple):
    """One leaf of a state, or of the template of one.

    Attributes:
        path: how Python code would reach it from `state`.
        kind: its dtype and shape as text; the dtype of a typed key names the generator.
        data: what is stored for it: the leaf itself, or the data of a typed key.
    """

    path: str
    kind: str
    data: Any


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def leaves_of(state: PyTree) -> list[Leaf]:
    """Return the leaves of a state, or of the template of one.

    Raises:
        MetajaxError: one is no array of numbers or keys.
    """
    leaves = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        path = "state" + jax.tree_util.keystr(keys)
        data = leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if _is_key(leaf):
            abstract = isinstance(leaf, jax.ShapeDtypeStruct)
            key_data = jax.random.key_data
            data = jax.eval_shape(key_data, leaf) if abstract else key_data(leaf)
        elif not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool):
            raise MetajaxError(f"{path} is no array of numbers or keys, it cannot be a checkpoint.")
        kind = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        leaves.append(Leaf(path, kind, data))
    return leaves


def digest_of(data: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{data.dtype}{list(data.shape)}".encode())
    digest.update(data.tobytes())
    return digest.hexdigest()


def _key_implementation(key: Any) -> Any:
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)  # a shape is enough
    return found[0]


def placed(value: np.ndarray, like: Any) -> Any:
    """Return the stored `value` as what `like`, a leaf of the template, is."""
    if not hasattr(like, "dtype"):
        return type(like)(value.item())
    if isinstance(like, np.ndarray):
        return value
    if isinstance(like, np.generic):
        return value[()]
    # No aliasing: the trainer donates what it is given. What was not committed to a device stays
    # so, or the next jitted call would compile again.
    array = jax.device_put(value, may_alias=False)
    if _is_key(like):
        array = jax.random.wrap_key_data(array, impl=_key_implementation(like))
    committed = like.committed if isinstance(like, jax.Array) else like.sharding is not None
    return jax.device_put(array, like.sharding) if committed else array


def write_arrays(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write `arrays` to `directory / "state"` with Orbax.

    Each becomes a directory with one uncompressed file: so `read_array` can read it without a
    parser between it and whoever made the file, and a damaged byte belongs to one leaf.
    """
    # What Orbax logs as an error it raises too; and at every save it misses the one common file.
    quiet = lambda record: "orbax" not in record.pathname
    logger = logging.getLogger("absl")
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    with contextlib.ExitStack() as stack:
        logger.addFilter(quiet)
        stack.callback(logger.removeFilter, quiet)
        try:
            os.fspath(directory).encode()
        except UnicodeEncodeError:  # TensorStore takes UTF-8 paths alone
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            directory = Path(f"/dev/fd/{descriptor}")
        checkpointer = stack.enter_context(ocp.Checkpointer(handler))
        checkpointer.save(directory / STATE, args=ocp.args.PyTreeSave(arrays))
        (directory / STATE / "commit_success.txt").unlink(missing_ok=True)  # names this machine


def read_array(file: Path, like: Any) -> np.ndarray:
    """Return the array in a file of `write_arrays`, of the shape and dtype of `like`."""
    if not like.size:
        return np.empty(like.shape, like.dtype)  # Orbax stores no array without elements
    size = like.size * like.dtype.itemsize
    content = read_bounded(file, size)
    if len(content) < size:
        raise DamagedError(f"{shown(file)} has {len(content)} bytes instead of {size}.")
    return np.frombuffer(bytearray(content), like.dtype).reshape(like.shape)


def reason_of(error: Exception) -> str:
    """Return why something failed in a few words, out of what may be pages from TensorStore."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
