"""Diagnostics of meta-gradients, where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.diagnostics import cosine_similarity, estimator_error, meta_gradient
from metajax.envs.splits import sample_tasks
from metajax.errors import MetajaxError


def test_an_estimator_error_by_hand():
    exact = jnp.array([3.0, 4.0])
    found = estimator_error(jnp.array([[3.0, 4.0], [3.0, -4.0]]), exact)
    np.testing.assert_allclose(found.bias, 4 / 5)
    np.testing.assert_allclose(found.std, np.sqrt(2 * 16) / 5, rtol=1e-6)
    np.testing.assert_allclose(found.cosine, (1 + (9 - 16) / 25) / 2, rtol=1e-6)


def test_the_cosine_is_of_whole_trees():
    a = {"x": jnp.array([1.0, 0.0]), "y": jnp.array(1.0)}
    b = {"x": jnp.array([1.0, 1.0]), "y": jnp.array(0.0)}
    np.testing.assert_allclose(cosine_similarity(a, b), 0.5, rtol=1e-6)
    np.testing.assert_allclose(cosine_similarity(a, a), 1.0, rtol=1e-6)


@pytest.fixture(scope="module")
def family():
    return metajax.make("point-goal", episode_length=4)


def learner(family, outer):
    policy = metajax.mlp(2, family.env.action_space, hidden=(4,), initial_std=0.1)
    return metajax.maml(family.env, policy, episodes=3, outer=outer)


@pytest.mark.slow
def test_the_meta_gradient_is_that_of_the_update(family):
    """Of a later update too, when Adam has a memory."""
    algorithm = learner(family, metajax.outer.adam())
    tasks = sample_tasks(family.train, jax.random.key(0), 2)
    state = algorithm.init(jax.random.key(1), tasks)
    for i in range(2):
        key = jax.random.key(2 + i)
        gradient = meta_gradient(algorithm, state, tasks, key)
        state, metrics = algorithm.update(state, tasks, key)
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(norm, metrics["meta_gradient_norm"], rtol=1e-4)
        assert jax.tree.structure(gradient[0]) == jax.tree.structure(state.meta_params.policy)


def test_of_several_steps_there_is_no_gradient(family):
    algorithm = learner(family, metajax.outer.ppo())
    tasks = sample_tasks(family.train, jax.random.key(0), 2)
    state = algorithm.init(jax.random.key(1), tasks)
    with pytest.raises(MetajaxError, match="update of maml takes 5 steps of Adam"):
        meta_gradient(algorithm, state, tasks, jax.random.key(2))
    compiled = jax.jit(lambda: meta_gradient(algorithm, state, tasks, jax.random.key(2)))
    assert all(np.all(np.isnan(x)) for x in jax.tree.leaves(compiled()))


def test_only_adam_remembers_the_meta_gradient(family):
    algorithm = learner(family, metajax.outer.trpo())
    with pytest.raises(MetajaxError, match="maml has no outer step of Adam"):
        meta_gradient(algorithm, algorithm.init(jax.random.key(0), None), None, jax.random.key(0))
