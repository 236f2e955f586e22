"""Tasks and their slots: which of the training tasks each is, where they can be counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packages import is_missing
from scoreboard import scoreboard

import metajax
from metajax import _memory
from metajax.algorithms import tunable
from metajax.envs import FAMILIES, make
from metajax.envs.splits import (
    finite,
    is_held_out,
    number_of_tasks,
    sample_batch,
    sample_tasks,
    uniform_over,
)
from metajax.errors import MetajaxError
from metajax.steps import count_update
from metajax.types import Agent, Algorithm, PolicyOutput, TaskBatch, TrainState, Trial

SCORES = np.array([0.5, -2.0, 3.0, 8.0], np.float32)
FOUR = uniform_over({"score": jnp.asarray(SCORES), "at": jnp.arange(8.0).reshape(4, 2)})
FAMILY = scoreboard()._replace(train=uniform_over({"score": jnp.asarray(SCORES)}))
KEY = jax.random.key(0)


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 8, 7, 3])
def test_a_task_of_a_list_is_the_one_in_its_slot(count):
    """Each as often as the others, to one where they do not divide evenly."""
    for draw in (sample_tasks, lambda *of: jax.jit(lambda: sample_tasks(*of))()):
        batch = draw(FOUR, KEY, count)
        assert len(batch) == count and batch.slots == 4 and batch.slot.dtype == jnp.int32
        for name, listed in FOUR.finite.items():
            np.testing.assert_array_equal(batch.task[name], np.asarray(listed)[batch.slot])
        each = np.bincount(batch.slot, minlength=4)
        assert each.min() >= count // 4 and each.max() <= -(-count // 4)


def test_tasks_that_cannot_be_counted_have_no_slot():
    batch = sample_tasks(scoreboard().train, KEY, 5)
    assert batch.slots == 0 and batch.slot.dtype == jnp.int32 and len(batch) == 5
    np.testing.assert_array_equal(batch.slot, [-1] * 5)
    assert len(np.unique(batch.task["score"])) == 5


def test_tasks_are_those_that_they_were_before_they_had_slots():
    """The numbers are recorded: those who need no slots get the same tasks, to the bit."""
    three = uniform_over({"x": 10.0 * jnp.arange(3)})
    for key, recorded in ((0, [0, 0, 1, 2, 2, 0, 1]), (1, [1, 0, 1, 2, 2, 0])):
        batch = sample_tasks(three, jax.random.key(key), len(recorded))
        assert batch.slot.tolist() == recorded
        assert batch.task["x"].tolist() == [10.0 * slot for slot in recorded]
    train = scoreboard().train
    expected = jax.vmap(train.sample)(jax.random.split(KEY, 6))["score"]
    np.testing.assert_array_equal(sample_tasks(train, KEY, 6).task["score"], expected)
    for distribution in (three, train):
        batch, alone = (draw(distribution, KEY, 5) for draw in (sample_tasks, sample_batch))
        jax.tree.map(np.testing.assert_array_equal, batch.task, alone)


def test_a_program_knows_how_many_slots_there_are():
    """A batch is a pytree of its tasks and their slots; their number is a part of the structure."""
    seen = []

    @jax.jit
    def program(batch):
        seen.append(batch.slots)
        return jnp.zeros(batch.slots).at[batch.slot].add(jnp.ones(len(batch)))

    batch = sample_tasks(FOUR, KEY, 8)
    for _ in range(2):
        np.testing.assert_array_equal(program(batch), [2.0] * 4)
    assert program(dataclasses.replace(batch, slots=6)).shape == (6,)
    assert seen == [4, 6] and all(type(slots) is int for slots in seen)
    leaves, structure = jax.tree.flatten(batch)
    assert len(leaves) == 2 * len(jax.tree.leaves(batch.task)) + 1  # of the batch, and of all
    assert structure.unflatten(leaves).slots == 4
    of_seeds = jax.vmap(lambda key: sample_tasks(FOUR, key, 8))(jax.random.split(KEY, 3))
    assert isinstance(of_seeds, metajax.TaskBatch) and of_seeds.slot.shape == (3, 8)
    assert (of_seeds.slots, len(of_seeds)) == (4, 8)


# --- training ------------------------------------------------------------------------------------


def keeping(rate=1.0) -> Algorithm:
    """Return an algorithm that counts how often it has seen each task, and keeps its score."""
    trial = Trial(1, 1, 0)
    agent = Agent(
        lambda meta_params, key: meta_params,
        lambda: (),
        lambda adapted, memory, x, key: (memory, jnp.zeros(1) + adapted, PolicyOutput(())),
        lambda meta_params, adapted, trajectory, key: adapted,
    )

    def init(key, tasks: TaskBatch) -> TrainState:
        kept = {
            "seen": jnp.zeros(tasks.slots, jnp.int32),
            "score": jnp.zeros(tasks.slots),
            "tasks": jnp.zeros((), jnp.int32),
        }
        return TrainState(jnp.zeros(()), kept)

    def update(state, tasks: TaskBatch, key):
        kept = {
            "seen": state.learner["seen"].at[tasks.slot].add(1),
            "score": state.learner["score"].at[tasks.slot].set(tasks.task["score"]),
            "tasks": state.learner["tasks"] + len(tasks),
        }
        new = dataclasses.replace(
            state,
            meta_params=state.meta_params + rate,
            learner=kept,
            environment_steps=count_update(state.environment_steps, len(tasks), trial, FAMILY.env),
        )
        return new, {"return": jnp.zeros(())}

    return Algorithm(init, update, agent, "keeping", trial, ("return",))


def trained(family, algorithm, **options):
    options = {"iterations": 3, "tasks": 8, "seeds": 2} | options
    result = metajax.train(algorithm, family, evaluation=None, report=None, **options)
    return result.state.train_state


@pytest.mark.parametrize("devices", [1, 2])
def test_an_algorithm_keeps_something_of_each_task(devices):
    """In three iterations with each of four tasks twice, every seed meets every task six times."""
    kept = trained(FAMILY, keeping(), devices=devices).learner
    np.testing.assert_array_equal(kept["seen"], np.full((2, 4), 3 * 8 // 4))
    np.testing.assert_array_equal(kept["score"], [SCORES] * 2)
    np.testing.assert_array_equal(kept["tasks"], [3 * 8] * 2)


def test_where_tasks_cannot_be_counted_there_is_no_place_for_them():
    kept = trained(scoreboard(), keeping(), devices=1).learner
    assert kept["seen"].shape == kept["score"].shape == (2, 0)
    np.testing.assert_array_equal(kept["tasks"], [3 * 8] * 2)


def test_training_tasks_are_at_most_as_many_as_one_says():
    """Those of a family that has no more; else so many are drawn once, by the seed."""
    kept = trained(scoreboard(), keeping(), training_tasks=4, seed=3, devices=1).learner
    np.testing.assert_array_equal(kept["seen"], np.full((2, 4), 3 * 8 // 4))
    expected = finite(scoreboard().train, 4, seed=3).finite["score"]
    np.testing.assert_array_equal(kept["score"], [expected] * 2)
    kept = trained(FAMILY, keeping(), training_tasks=5, devices=1).learner
    np.testing.assert_array_equal(kept["score"], [SCORES] * 2)
    kept = trained(FAMILY, keeping(), training_tasks=3, devices=1).learner
    assert kept["score"].shape == (2, 3) and set(np.ravel(kept["score"])) < set(SCORES)
    with pytest.raises(MetajaxError, match="training_tasks is 0"):
        trained(FAMILY, keeping(), training_tasks=0)


def test_a_batch_has_all_tasks_in_the_order_of_their_slots():
    batch = sample_tasks(FOUR, KEY, 3)
    for name, listed in FOUR.finite.items():
        np.testing.assert_array_equal(batch.finite[name], listed)
    assert sample_tasks(scoreboard().train, KEY, 3).finite == ()


def test_numbers_in_the_state_leave_the_slots_as_they_are():
    kept = trained(FAMILY, tunable(keeping, rate=0.5), devices=1, iterations=1).learner
    np.testing.assert_array_equal(kept["seen"], np.full((2, 4), 8 // 4))


# --- families ------------------------------------------------------------------------------------


def test_any_distribution_becomes_one_of_so_many_tasks():
    train = scoreboard().train
    five = finite(train, 5)
    scores = np.asarray(five.finite["score"])
    assert number_of_tasks(five) == 5 == len(np.unique(scores))
    assert not np.any(is_held_out(five.finite["score"], 0.0, 1.0))  # they are training tasks
    np.testing.assert_array_equal(finite(train, 5, seed=0).finite["score"], scores)
    other = np.asarray(finite(train, 5, seed=1).finite["score"])
    assert not set(scores) & set(other)
    drawn = jax.vmap(five.sample)(jax.random.split(KEY, 100))["score"]
    assert set(np.asarray(drawn)) == set(scores)
    family = scoreboard()._replace(train=five)
    kept = trained(family, keeping(), tasks=5, devices=1).learner
    np.testing.assert_array_equal(kept["seen"], np.full((2, 5), 3))
    np.testing.assert_array_equal(kept["score"], [scores] * 2)


@pytest.mark.parametrize(("count", "each"), [(8, [2]), (3, [0, 1]), (10, [2, 3])])
def test_of_a_list_each_task_is_taken_as_often(count, each):
    scores = np.asarray(finite(FAMILY.train, count, seed=3).finite["score"])
    assert len(scores) == count
    assert set(np.sum(scores[:, None] == SCORES, axis=0)) == set(each)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is 0; it must be at least 1"),
        ({"count": 2.5}, "count is 2.5; it must be a whole number"),
        ({"count": 2, "seed": -1}, "seed is -1; it must be a whole number from 0 to"),
    ],
)
def test_no_task_is_too_few(options, message):
    with pytest.raises(MetajaxError, match=message):
        finite(FAMILY.train, **options)


def names_of(tasks) -> set[str]:
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tasks)}


@pytest.mark.parametrize("name", [name for name in FAMILIES if not is_missing(name)])
def test_tasks_carry_no_number_of_their_own(name):
    """Tasks of all splits have the same leaves, those of the reward, and no number on a list."""
    spec = FAMILIES[name]
    for variant in spec.variants or (None,):
        family = make(
            name,
            **({"backend": "mujoco"} if spec.backends else {}),
            **({"variant": variant} if variant else {}),
        )
        splits = (family.train, family.test, family.validation, family.extrapolate)
        splits = [split for split in splits if split is not None]
        leaves = [names_of(jax.eval_shape(split.sample, KEY)) for split in splits]
        leaves += [names_of(split.finite) for split in splits if split.finite is not None]
        assert all(names == leaves[0] for names in leaves) and "['index']" not in leaves[0]


@pytest.mark.parametrize(
    "draw",
    [
        lambda many: sample_tasks(scoreboard().train, KEY, many),
        lambda many: sample_batch(FOUR, KEY, many),
        lambda many: finite(FOUR, many),
        lambda many: jax.eval_shape(lambda: sample_tasks(FOUR, KEY, many)),
    ],
)
def test_tasks_that_do_not_fit_into_memory_are_refused_before_they_are_drawn(draw, monkeypatch):
    megabyte = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 1000}
    monkeypatch.setattr(_memory.os, "sysconf", megabyte.get)
    with pytest.raises(MetajaxError, match=r"would need [\d.]+ GB for the tasks; .* has 1 MB"):
        draw(10**9)
