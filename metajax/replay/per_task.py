"""A ring of items for every training task, side by side."""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, Key, PyTree

from metajax._memory import bytes_of, check_memory
from metajax.errors import MetajaxError
from metajax.replay.ring import finite_items, shared_out, unknown_where_empty
from metajax.types import pytree_dataclass


@pytree_dataclass
class TaskReplay:
    """The newest items of each task.

    Attributes:
        items: what is kept, `[slot, place, ...]`; places beyond `size` mean nothing.
        next: the place of each ring that is written next, `[slot]`.
        size: how many places of each have been written, `[slot]`.
    """

    items: PyTree[Array]
    next: Int[Array, "slot"]
    size: Int[Array, "slot"]


def empty_task_replay(batch: PyTree, slots: int, capacity: int) -> TaskReplay:
    """Return a replay with room for `capacity` items of each of `slots` tasks.

    Args:
        batch: items as `extend_task_replay` will get them, `[task, item, ...]`, or their shapes and
            dtypes.
        slots: number of training tasks.
        capacity: items that are kept of each.

    Raises:
        MetajaxError: tasks cannot be counted, or a batch has more items than a ring.
    """
    if slots < 1:
        raise MetajaxError(
            "the training tasks cannot be counted, so nothing can be kept of each; say how many "
            "there are, such as training_tasks=100."
        )
    _check_room(batch, slots, capacity)
    shape = slots, capacity
    items = jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape[2:]), x.dtype), batch)
    return TaskReplay(items, jnp.zeros(slots, jnp.int32), jnp.zeros(slots, jnp.int32))


def extend_task_replay(
    replay: TaskReplay, slot: Int[Array, "task"], batch: PyTree, valid: Bool[Array, "task item"]
) -> TaskReplay:
    """Return the replay with the `valid` ones of `batch[task, item, ...]` in their tasks' rings.

    Where there are more tasks than slots, a slot may come more than once: its items are added in
    the order of the tasks. Items that are not finite are left out.

    Args:
        replay: to extend.
        slot: of each task of the batch.
        batch: items.
        valid: which of them are there.

    Raises:
        MetajaxError: a batch has more items than a ring.
    """
    slots, capacity = jax.tree.leaves(replay.items)[0].shape[:2]
    _check_room(batch, slots, capacity)
    valid = valid & jax.vmap(finite_items)(batch)
    count = jnp.sum(valid, axis=1, dtype=jnp.int32)
    alike = slot[:, None] == slot[None]
    before = jnp.tril(jnp.ones_like(alike), -1)
    earlier = jnp.sum(jnp.where(alike & before, count[None], 0), axis=1, dtype=jnp.int32)
    start = (replay.next[slot] + earlier)[:, None]
    place = start + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    place = jnp.where(valid, place % capacity, capacity)
    of = jnp.broadcast_to(slot[:, None], place.shape)
    items = jax.tree.map(
        lambda kept, new: kept.at[of, place].set(new, mode="drop"), replay.items, batch
    )
    added = jnp.zeros(slots, jnp.int32).at[slot].add(count)
    return TaskReplay(
        items, (replay.next + added) % capacity, jnp.minimum(replay.size + added, capacity)
    )


def sample_task_replay(
    replay: TaskReplay, slot: Int[Array, "draw"], key: Key[Array, ""], count: int
) -> PyTree:
    """Return `count` items of each of some tasks, `[draw, item, ...]`, drawn with replacement.

    Of an empty ring every number is NaN and every flag is true, as in `sample_replay`.

    Args:
        replay: to draw from.
        slot: of each task.
        key: consumed.
        count: items of each.

    Raises:
        MetajaxError: a ring is empty and not traced, or the items do not fit into memory.
    """
    slots, capacity = jax.tree.leaves(replay.items)[0].shape[:2]
    one = bytes_of(replay.items) // (slots * capacity)
    check_memory(the_items_drawn_from_the_replay=one * count * len(slot))
    size = replay.size[slot]
    if not isinstance(size, Tracer) and not bool(jnp.all(size > 0)):
        raise MetajaxError("the replay of a task is empty; extend it before it is sampled.")
    keys = jax.random.split(key, len(slot))
    place = jax.vmap(lambda key, size: jax.random.randint(key, (count,), 0, size))(keys, size)
    drawn = jax.tree.map(lambda kept: kept[slot[:, None], place], replay.items)
    return shared_out(jax.vmap(unknown_where_empty)(drawn, size))


def can_sample(replay: TaskReplay, slot: Int[Array, "draw"]) -> Bool[Array, "draw"]:
    """Return of which tasks anything is kept."""
    return replay.size[slot] > 0


def forget(replay: TaskReplay, slot: Int[Array, "task"]) -> TaskReplay:
    """Return the replay without any item of some tasks."""
    nothing = jnp.zeros_like(slot)
    return TaskReplay(
        replay.items, replay.next.at[slot].set(nothing), replay.size.at[slot].set(nothing)
    )


def _check_room(batch: PyTree, slots: int, capacity: int) -> None:
    tasks, items = jax.tree.leaves(batch)[0].shape[:2]
    most = -(-tasks // slots) * items
    if most > capacity:
        raise MetajaxError(
            f"replay_capacity is {capacity} for each task; it must have room for the {most} that "
            "are added at once."
        )
