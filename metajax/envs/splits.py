"""Train and held-out tasks from one range, disjoint by construction."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax.types import TaskDistribution

Split = Literal["train", "test"]

BLOCKS = 9
STRIPS = 11  # per block; the middle one is held out, which leaves every mean where it was


def uniform(
    key: Key[Array, ""], low: float, high: float, *, split: Split
) -> Float[Array, ""]:
    """Draw from U[low, high] restricted to the training or to the held-out strips of the range.

    The range is cut into 9 blocks of 11 strips. The middle strip of every block is held out: 1/11
    of the range, spread evenly over it, with the same mean as the training strips.

    Args:
        key: consumed.
        low: lower end of the range.
        high: upper end of the range.
        split: "train" or "test".
    """
    block_key, strip_key, within_key = jax.random.split(key, 3)
    block = jax.random.randint(block_key, (), 0, BLOCKS)
    middle = STRIPS // 2
    if split == "test":
        strip = jnp.asarray(middle)
    else:
        strip = jax.random.randint(strip_key, (), 0, STRIPS - 1)
        strip = strip + (strip >= middle)
    within = jax.random.uniform(within_key)
    fraction = (block * STRIPS + strip + within) / (BLOCKS * STRIPS)
    return low + (high - low) * fraction


def is_held_out(value: Float[Array, ""], low: float, high: float) -> Array:
    """Return whether `value` lies in a held-out strip of [low, high]."""
    strip = jnp.floor((value - low) / (high - low) * BLOCKS * STRIPS).astype(int)
    return strip % STRIPS == STRIPS // 2


def two_splits(sample) -> tuple[TaskDistribution, TaskDistribution]:
    """Return (train, test) distributions from `sample(key, split=...)`."""
    return (
        TaskDistribution(lambda key: sample(key, split="train")),
        TaskDistribution(lambda key: sample(key, split="test")),
    )
