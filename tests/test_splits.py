"""No task is of two splits, with 100 000 of each; validation tasks are spread as held-out ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.envs import make
from metajax.envs.bridges import gymnax
from metajax.envs.splits import MARGIN, between, on_split, uniform
from metajax.errors import MetajaxError

COUNT, STRIPS = 100_000, 99
KEYS = jax.random.split(jax.random.key(0), COUNT)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 3.0), (0.1, 0.2), (5.0, 15.0)])
def test_strips_of_one_range_are_disjoint(low, high):
    """By where a draw lies among the 99 strips, in double precision."""

    def places(split):
        draw = jax.jit(jax.vmap(lambda key: uniform(key, low, high, split=split)))
        values = np.asarray(draw(KEYS), np.float64)
        return (values - low) / (high - low) * STRIPS

    train, test, validation = map(places, ("train", "test", "validation"))
    held_out = np.arange(5, STRIPS, 11)
    assert set(np.floor(test)) == set(held_out)
    assert set(np.floor(train)) == set(range(STRIPS)) - set(held_out)
    edge = np.round(validation)
    assert set(edge) == set(range(1, STRIPS))  # every place where two strips meet
    assert np.abs(validation - edge).max() < 0.6 * MARGIN  # its half and rounding
    for places_of_split in (train, test):
        from_edge = np.abs(places_of_split - np.round(places_of_split))
        assert from_edge.min() > 0.9 * MARGIN
    assert len(np.unique(validation)) > 5_000  # as many tasks as anyone evaluates
    for places_of_split in (train, test, validation):
        standard_error = places_of_split.std() / np.sqrt(COUNT)
        assert abs(places_of_split.mean() - STRIPS / 2) < 4 * standard_error


def test_between_is_in_the_middle_halves_of_the_gaps():
    """Gaps of 1, 3 and 4 are hit in proportion; one that rounding could close is not."""
    listed = np.array([4.0, 1.0, 4.0 + 1e-6])
    draw = jax.jit(jax.vmap(lambda key: between(key, listed, 0.0, 8.0)))
    values = np.asarray(draw(KEYS), np.float64)
    share = [np.mean((low < values) & (values < high)) for low, high in ((0, 1), (1, 4), (4, 8))]
    np.testing.assert_allclose(share, [1 / 8, 3 / 8, 4 / 8], atol=0.01)
    inside = [(0.25, 0.75), (1.75, 3.25), (5.0, 7.0)]
    assert np.all(
        np.any([(low - 1e-5 < values) & (values < high + 1e-5) for low, high in inside], 0)
    )


# Of families whose tasks are listed: by what number of a task they are told apart, and its range.
LISTED = {
    "halfcheetah-vel": (lambda task: task["velocity"], 3.0),
    "humanoid-dir": (
        lambda task: np.arctan2(task["direction"][..., 1], task["direction"][..., 0]) % (2 * np.pi),
        2 * np.pi,
    ),
    "ant-goal": (lambda task: np.sum(np.square(task["goal"]), axis=-1), 9.0),
    "point-sparse": (lambda task: np.arctan2(task["goal"][..., 1], task["goal"][..., 0]), np.pi),
}


@pytest.mark.parametrize("name", LISTED)
def test_validation_tasks_lie_beside_the_listed_ones(name):
    engine = {} if name == "point-sparse" else {"backend": "mujoco"}
    family = make(name, variant="pearl", **engine)
    number, width = LISTED[name]
    drawn = jax.jit(jax.vmap(family.validation.sample))(KEYS)
    listed = [number(jax.tree.map(np.asarray, d.finite)) for d in (family.train, family.test)]
    values = np.sort(np.concatenate(listed).astype(np.float64))
    assert jax.tree.structure(drawn) == jax.tree.structure(family.test.finite)
    places = number(jax.tree.map(np.asarray, drawn)).astype(np.float64)
    after = np.searchsorted(values, places)
    below, above = np.concatenate([[0], values])[after], np.concatenate([values, [width]])[after]
    nearest = np.minimum(places - below, above - places) / (above - below)
    assert nearest.min() > 0.2
    assert places.min() < 0.1 * width and places.max() > 0.9 * width


def test_gymnax_seeds_are_disjoint():
    train, test, validation = (
        set(np.asarray(jax.vmap(tasks.sample)(KEYS)["seed"]).tolist())
        for tasks in gymnax._seeds().values()
    )
    assert not train & test and not train & validation and not test & validation
    assert len(validation) > 0.99 * COUNT
    # Other seeds are other keys, also the negative ones.
    draws = jax.vmap(lambda seed: jax.random.bits(jax.random.key(seed)))
    assert jnp.unique(draws(jnp.array(sorted(validation)[:1000]))).size == 1000


def test_where_no_task_is_left_it_is_said():
    for name in ("gridnav", "dark-key-door"):
        family = make(name)
        assert family.validation is None
        with pytest.raises(MetajaxError, match=f"{family.name} has no validation tasks: all that"):
            on_split(family, "validation")
    family = make("point-goal")
    assert on_split(family, "validation").test is family.validation
