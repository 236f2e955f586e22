"""Experience kept for later: a ring of items inside the program."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree

from metajax.errors import MetajaxError
from metajax.types import pytree_dataclass


@pytree_dataclass
class Replay:
    """The newest items that were added.

    Attributes:
        items: what is kept, `[slot, ...]`; slots beyond `size` mean nothing.
        next: the slot that is written next.
        size: how many slots have been written.
    """

    items: PyTree[Array]
    next: Int[Array, ""]
    size: Int[Array, ""]


def empty_replay(batch: PyTree, capacity: int) -> Replay:
    """Return a replay with room for `capacity` items.

    Args:
        batch: items as `extend_replay` will get them, `[item, ...]`, or their shapes and dtypes.
        capacity: how many items are kept.

    Raises:
        MetajaxError: a batch is larger than that.
    """
    count = jax.tree.leaves(batch)[0].shape[0]
    if count > capacity:
        raise MetajaxError(
            f"the replay keeps {capacity} items; it must have room for the {count} of one "
            "meta-iteration."
        )
    items = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), batch)
    return Replay(items, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def extend_replay(replay: Replay, batch: PyTree, valid: Bool[Array, "item"]) -> Replay:
    """Return the replay with the `valid` ones of `batch[item, ...]` in place of the oldest."""
    capacity = jax.tree.leaves(replay.items)[0].shape[0]
    rank = jnp.cumsum(valid, dtype=jnp.int32) - 1
    slot = jnp.where(valid, (replay.next + rank) % capacity, capacity)
    items = jax.tree.map(lambda kept, new: kept.at[slot].set(new, mode="drop"), replay.items, batch)
    count = jnp.sum(valid, dtype=jnp.int32)
    following = (replay.next + count) % capacity
    return Replay(items, following, jnp.minimum(replay.size + count, capacity))


def sample_replay(replay: Replay, key: Key[Array, ""], count: int) -> PyTree:
    """Return `count` items `[item, ...]` drawn uniformly, with replacement; `key` is consumed."""
    slot = jax.random.randint(key, (count,), 0, replay.size)
    return jax.tree.map(lambda x: x[slot], replay.items)
