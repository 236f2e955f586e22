"""Numbers in the state: one program for all of them, and the same training as with constants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trials import batch_of

import metajax
from metajax.adaptation import gradient_steps
from metajax.algorithms import tunable
from metajax.outer import adam

FAMILY = metajax.make("point-goal", episode_length=4)
POLICY = metajax.mlp(2, FAMILY.env.action_space, hidden=(4,), initial_std=0.1)
TASKS = batch_of({"goal": jnp.array([[0.1, 0.2], [-0.3, 0.1], [0.2, -0.2]])})
KEY = jax.random.key(3)


def make(inner_rate, outer_rate):
    return metajax.maml(
        FAMILY.env,
        POLICY,
        inner=gradient_steps(rule=metajax.sgd(inner_rate)),
        outer=adam(outer_rate),
        episodes=2,
    )


@pytest.fixture(scope="module")
def tuned():
    """Return the algorithm, its first state, and its compiled update."""
    algorithm = tunable(make, inner_rate=0.1, outer_rate=1e-3)
    return algorithm, algorithm.init(jax.random.key(0), TASKS), jax.jit(algorithm.update)


def with_numbers(state, **numbers):
    held = {name: jnp.asarray(value, float) for name, value in numbers.items()}
    return dataclasses.replace(state, hyperparameters=held)


def test_other_numbers_need_no_other_program_and_train_as_constants_do(tuned):
    _, start, update = tuned
    for numbers in (
        {"inner_rate": 0.1, "outer_rate": 1e-3},
        {"inner_rate": 0.3, "outer_rate": 0.01},
    ):
        found, _ = update(with_numbers(start, **numbers), TASKS, KEY)
        fixed = make(**numbers)
        expected, _ = jax.jit(fixed.update)(fixed.init(jax.random.key(0), TASKS), TASKS, KEY)
        for a, b in zip(
            jax.tree.leaves(found.meta_params), jax.tree.leaves(expected.meta_params), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        assert {n: float(x) for n, x in found.hyperparameters.items()} == pytest.approx(numbers)
    assert update._cache_size() == 1


def test_states_with_several_numbers_are_trained_at_once(tuned):
    algorithm, start, update = tuned
    rates = [1e-3, 1e-2]
    states = [with_numbers(start, inner_rate=0.1, outer_rate=rate) for rate in rates]
    together = jax.tree.map(lambda *x: jnp.stack(x), *states)
    found, _ = jax.jit(jax.vmap(algorithm.update, in_axes=(0, None, None)))(together, TASKS, KEY)
    for i, state in enumerate(states):
        alone, _ = update(state, TASKS, KEY)
        for a, b in zip(
            jax.tree.leaves(found.meta_params), jax.tree.leaves(alone.meta_params), strict=True
        ):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def test_what_is_no_number_is_refused():
    for value in ("0.1", [0.1, 0.2], None):
        with pytest.raises(metajax.MetajaxError, match=r"inner_rate is .*; it must be a number"):
            tunable(make, inner_rate=value, outer_rate=1e-3)
    with pytest.raises(metajax.MetajaxError, match="learning_rate is -1"):
        tunable(make, inner_rate=0.1, outer_rate=-1.0)
