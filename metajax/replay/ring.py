"""A ring of items inside the program, the newest in place of the oldest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, Key, PyTree

from metajax._memory import bytes_of, check_memory
from metajax.envs.rollouts import number_of_shards
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
    _check_room(jax.tree.leaves(batch)[0].shape[0], capacity)
    items = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), batch)
    return Replay(items, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def extend_replay(replay: Replay, batch: PyTree, valid: Bool[Array, "item"]) -> Replay:
    """Return the replay with the `valid` ones of `batch[item, ...]` in place of the oldest.

    Items that are not finite are left out: they would stay, and spoil every update to come.

    Raises:
        MetajaxError: there are more items than the replay keeps.
    """
    capacity = jax.tree.leaves(replay.items)[0].shape[0]
    _check_room(len(valid), capacity)
    valid = valid & finite_items(batch)
    rank = jnp.cumsum(valid, dtype=jnp.int32) - 1
    slot = jnp.where(valid, (replay.next + rank) % capacity, capacity)
    items = jax.tree.map(lambda kept, new: kept.at[slot].set(new, mode="drop"), replay.items, batch)
    count = jnp.sum(valid, dtype=jnp.int32)
    following = (replay.next + count) % capacity
    return Replay(items, following, jnp.minimum(replay.size + count, capacity))


def sample_replay(replay: Replay, key: Key[Array, ""], count: int) -> PyTree:
    """Return `count` items `[item, ...]` drawn uniformly, with replacement; `key` is consumed.

    Of an empty replay every number drawn is NaN and every flag is true: inside a program, which
    cannot raise, what is learned from it is not finite either, and is discarded.

    Raises:
        MetajaxError: the replay is empty and not traced, or the items do not fit into memory.
    """
    capacity = jax.tree.leaves(replay.items)[0].shape[0]
    check_memory(the_items_drawn_from_the_replay=count * bytes_of(replay.items) // capacity)
    if not isinstance(replay.size, Tracer) and not np.asarray(replay.size).all():
        raise MetajaxError("the replay is empty; extend it before it is sampled.")
    slot = jax.random.randint(key, (count,), 0, replay.size)
    drawn = jax.tree.map(lambda x: x[slot], replay.items)
    return shared_out(unknown_where_empty(drawn, replay.size))


def shared_out(drawn: PyTree) -> PyTree:
    """Return what was drawn `[item, ...]`, shared out over the devices of the mesh, if it is even.

    So each device computes losses of its part of a batch; what they move is reduced over all.
    """
    if number_of_shards(drawn) == 1:
        return drawn
    return jax.lax.with_sharding_constraint(drawn, jax.sharding.PartitionSpec("task"))


def unknown_where_empty(drawn: PyTree, size: Int[Array, ""]) -> PyTree:
    """Return what was drawn from a ring; of an empty one NaN and true."""

    def known(x):
        nothing = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else x.dtype == bool
        return jnp.where(size > 0, x, jnp.asarray(nothing, x.dtype))

    return jax.tree.map(known, drawn)


def finite_items(batch: PyTree) -> Bool[Array, "item"]:
    """Return which items hold nothing that is not finite."""
    floats = [x for x in jax.tree.leaves(batch) if jnp.issubdtype(x.dtype, jnp.inexact)]
    each = [jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim))) for x in floats]
    return functools.reduce(jnp.logical_and, each, jnp.asarray(True))


def _check_room(count: int, capacity: int) -> None:
    if count > capacity:
        raise MetajaxError(
            f"replay_capacity is {capacity}; it must have room for the {count} of one "
            "meta-iteration."
        )
