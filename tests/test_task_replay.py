"""A ring for each training task, against lists."""

import re
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax._memory import bytes_of
from metajax.errors import MetajaxError
from metajax.replay import (
    TaskReplay,
    can_sample,
    empty_task_replay,
    extend_task_replay,
    forget,
    sample_task_replay,
)
from metajax.training.sharding import on_mesh, task_mesh

SLOTS, CAPACITY, ITEMS = 5, 11, 4
GATHERED = re.compile(r"= \w+\[([\d,]+)\]\S* all-gather")
KEY = jax.random.key(0)


def batch_of(random, tasks):
    """Return items that differ, one in ten of them not finite, and which are there."""
    x = random.normal(size=(tasks, ITEMS, 2)).astype(np.float32)
    x[random.random((tasks, ITEMS)) < 0.1, 1] = np.inf
    batch = {"x": x, "n": random.integers(0, 99, (tasks, ITEMS)).astype(np.int32)}
    return batch, random.random((tasks, ITEMS)) < 0.7


@pytest.mark.parametrize("tasks", [1, 3, 10])
def test_rings_hold_the_newest_items_of_their_tasks(tasks):
    """Of ten tasks in five slots each comes twice, and its items are added in turn."""
    random = np.random.default_rng(0)
    replay = empty_task_replay(batch_of(random, tasks)[0], SLOTS, CAPACITY)
    lists = [deque(maxlen=CAPACITY) for _ in range(SLOTS)]
    extend = jax.jit(extend_task_replay)
    for _ in range(12):
        batch, valid = batch_of(random, tasks)
        slot = random.permutation(np.resize(random.permutation(SLOTS), tasks))
        replay = extend(replay, jnp.asarray(slot), batch, valid)
        for task, of in enumerate(slot):
            for item in range(ITEMS):
                if valid[task, item] and np.isfinite(batch["x"][task, item]).all():
                    lists[of].append((*batch["x"][task, item], batch["n"][task, item]))
        for of, expected in enumerate(lists):
            size = int(replay.size[of])
            first = int(replay.next[of]) if size == CAPACITY else 0
            order = (first + np.arange(size)) % CAPACITY
            x, n = (np.asarray(replay.items[name][of])[order] for name in ("x", "n"))
            found = [(*pair, number) for pair, number in zip(x, n, strict=True)]
            assert found == list(expected)
    assert min(map(len, lists)) > 0


def counting(sizes):
    """Return rings of so many items, 100·slot + place."""
    items = 100 * np.arange(len(sizes))[:, None] + np.arange(max(sizes))
    replay = empty_task_replay(items[..., None].astype(np.float32), len(sizes), max(sizes))
    valid = np.arange(max(sizes)) < np.asarray(sizes)[:, None]
    return extend_task_replay(
        replay, jnp.arange(len(sizes)), jnp.asarray(items[..., None], jnp.float32), valid
    )


def test_items_are_drawn_uniformly_from_the_ring_of_their_task():
    replay = counting([3, 7, 1])
    slot = jnp.array([1, 0, 2, 1])
    drawn = np.asarray(sample_task_replay(replay, slot, KEY, 7000))[..., 0]
    for row, of in zip(drawn, slot, strict=True):
        size = int(replay.size[of])
        counts = np.bincount((row - 100 * int(of)).astype(int), minlength=size)
        assert len(counts) == size
        assert size == 1 or scipy.stats.chisquare(counts).pvalue > 1e-3
    assert not np.array_equal(drawn[0], drawn[3])  # the same task, other items


def test_what_is_forgotten_is_drawn_no_more():
    replay = forget(counting([3, 7, 1]), jnp.array([1]))
    np.testing.assert_array_equal(can_sample(replay, jnp.arange(3)), [True, False, True])
    drawn = jax.jit(sample_task_replay, static_argnums=3)(replay, jnp.arange(3), KEY, 5)
    np.testing.assert_array_equal(np.isnan(drawn).all(axis=(1, 2)), [False, True, False])
    with pytest.raises(MetajaxError, match="replay of a task is empty"):
        sample_task_replay(replay, jnp.arange(3), KEY, 5)
    again = jnp.full((1, 1, 1), 5.0)
    replay = extend_task_replay(replay, jnp.array([1]), again, jnp.ones((1, 1), bool))
    assert set(np.ravel(sample_task_replay(replay, jnp.array([1]), KEY, 50))) == {5.0}


def test_rings_take_the_memory_of_their_items():
    step = {"x": jax.ShapeDtypeStruct((5, 200, 42), jnp.float32)}
    shapes = jax.eval_shape(lambda: empty_task_replay(step, 100, 40_000))
    assert bytes_of(shapes) == pytest.approx(100 * 40_000 * 42 * 4, rel=0.01)


def test_rings_refuse_what_has_no_room():
    step = jnp.zeros((6, 4, 1))
    with pytest.raises(MetajaxError, match=r"cannot be counted.*such as training_tasks=100"):
        empty_task_replay(step, 0, 10)
    with pytest.raises(MetajaxError, match=r"replay_capacity is 7 for each task.*room for the 8"):
        empty_task_replay(step, 3, 7)
    replay = empty_task_replay(step, 3, 8)
    with pytest.raises(MetajaxError, match=r"replay_capacity is 8 for each task.*room for the 16"):
        extend_task_replay(replay, jnp.arange(12) % 3, jnp.zeros((12, 4, 1)), jnp.ones((12, 4)))
    with pytest.raises(MetajaxError, match="items drawn from the replay"):
        sample_task_replay(replay, jnp.arange(3), KEY, 10**12)


def test_rings_shared_out_over_devices_hold_and_give_the_same_items():
    slots, capacity, devices, drawn = 8, 4000, 4, 16
    batch, valid = batch_of(np.random.default_rng(0), slots)
    replay = empty_task_replay(batch, slots, capacity)
    slot = jax.random.permutation(KEY, slots)
    wanted = jax.random.randint(KEY, (drawn,), 0, slots)

    def program(replay, batch, valid):
        replay = extend_task_replay(replay, slot, batch, valid)
        return replay, sample_task_replay(replay, wanted, KEY, 3)

    mesh = task_mesh(devices)
    by_slot = jax.sharding.NamedSharding(mesh, jax.P("task"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.P())
    place = TaskReplay(by_slot, everywhere, everywhere)
    run = jax.jit(on_mesh(mesh, program), out_shardings=(place, by_slot))
    compiled = run.lower(jax.device_put(replay, place), batch, valid).compile()
    kept, found = compiled(jax.device_put(replay, place), batch, valid)
    expected = jax.jit(program)(replay, batch, valid)
    jax.tree.map(np.testing.assert_array_equal, (kept, found), expected)
    for x in jax.tree.leaves((kept.items, found)):
        assert x.size == devices * x.addressable_shards[0].data.size
    # No ring travels: only what is added, and what is drawn.
    sizes = [np.prod([int(n) for n in x.split(",")]) for x in GATHERED.findall(compiled.as_text())]
    assert sizes and max(sizes) < slots * capacity
