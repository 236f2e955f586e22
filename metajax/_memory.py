"""What a program will need of memory at least, and whether the machine has it."""

import math
import os
from typing import Any

import jax
import numpy as np

from metajax.errors import MetajaxError
from metajax.types import Env

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def bytes_of(tree: Any) -> int:
    """Return what the arrays of a tree take, or those of which it holds the shapes."""
    return sum(math.prod(x.shape) * _item(x.dtype) for x in jax.tree.leaves(tree))


def _item(dtype: Any) -> int:
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return 8
    return np.dtype(dtype).itemsize


def experience_bytes(env: Env, steps: int) -> int:
    """Return what `steps` environment steps take at least.

    Each has an observation, an action, the one before and what it was drawn from, and a reward.
    """
    return 4 * steps * (env.observation_size + 3 * env.action_space.size + 2)


def check_memory(*, devices: int = 1, **needs: int) -> None:
    """Check that something fits into memory.

    Args:
        devices: that are in use; those of a CPU share its memory.
        needs: bytes on each of them, by what they are for; words are joined by underscores.

    Raises:
        MetajaxError: they have less.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        place, available, together = "each device has", stats["bytes_limit"], 1
    else:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        place, available, together = "this machine has", pages * size, devices
    if together * sum(needs.values()) > available:
        parts = [
            f"{_readable(together * count)} for {what.replace('_', ' ')}"
            for what, count in sorted(needs.items(), key=lambda item: -item[1])
        ]
        raise MetajaxError(
            f"this would need {', '.join(parts)}; {place} {_readable(available)} of memory: choose "
            "smaller sizes."
        )


def _readable(count: int) -> str:
    unit = min(int(math.log10(max(count, 1))) // 3, len(_UNITS) - 1)
    return f"{count / 1000**unit:.3g} {_UNITS[unit]}"
