"""Meta-gradients of long inner problems, on one that has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.outer.evolution import (
    init_particles,
    persistent_evolution_strategies,
    restart,
    truncated_gradient,
)

KEEP, STEPS, SEGMENTS = 0.8, 2, 3
THETA = {"a": jnp.array([0.5, -0.3]), "b": jnp.array(0.2)}


def advance(theta, state, key):
    """x ← keep x + a; the loss is ‖x‖² + b x₀ x₁."""
    del key

    def step(x, _):
        x = KEEP * x + theta["a"]
        return x, jnp.sum(x**2) + theta["b"] * x[0] * x[1]

    x, losses = jax.lax.scan(step, state, length=STEPS)
    return x, jnp.mean(losses)


START = jnp.array([1.0, 2.0])


def whole_loss(theta):
    x, total = START, 0.0
    for _ in range(SEGMENTS):
        x, loss = advance(theta, x, None)
        total += loss
    return total


def flat(tree):
    return np.concatenate([np.ravel(tree["a"]), np.ravel(tree["b"])])


def test_truncated_gradient_is_that_of_the_segment():
    states = jnp.stack([START, 2 * START])
    found, new, losses = truncated_gradient(advance, THETA, states, jax.random.key(0))

    def mean_loss(theta):
        return sum(advance(theta, s, None)[1] for s in states) / 2

    exact = jax.grad(mean_loss)(THETA)
    np.testing.assert_allclose(flat(found), flat(exact), rtol=1e-5)
    np.testing.assert_allclose(new[1], advance(THETA, states[1], None)[0], rtol=1e-6)
    np.testing.assert_allclose(losses[1], advance(THETA, states[1], None)[1], rtol=1e-6)


@pytest.fixture(scope="module")
def estimates():
    """Return sums over the segments of many single-pair estimates, and with ξ forgotten each time.

    `b` multiplies a square of `a`: its smoothed gradient is exact only for a small std.
    """

    @jax.jit
    @jax.vmap
    def total(key):
        kept = forgotten = init_particles(THETA, START[None])
        sums = [jax.tree.map(jnp.zeros_like, THETA)] * 2
        for segment_key in jax.random.split(key, SEGMENTS):
            first, kept, _ = persistent_evolution_strategies(
                advance, THETA, kept, segment_key, std=0.02
            )
            second, forgotten, _ = persistent_evolution_strategies(
                advance, THETA, forgotten, segment_key, std=0.02
            )
            forgotten = init_particles(THETA, forgotten.plus)
            sums = [jax.tree.map(jnp.add, *x) for x in zip(sums, (first, second), strict=True)]
        return sums

    persistent, truncated = total(jax.random.split(jax.random.key(1), 200_000))
    both = []
    for tree in (persistent, truncated):
        samples = np.concatenate([tree["a"], tree["b"][:, None]], axis=1).astype(np.float64)
        error = samples.std(axis=0) / np.sqrt(len(samples))
        both.append((samples.mean(axis=0) - flat(jax.grad(whole_loss)(THETA))) / error)
    return both


def test_persistent_evolution_strategies_are_unbiased(estimates):
    print(f"standard errors: {estimates[0].round(1)}")
    assert np.abs(estimates[0]).max() < 4


def test_without_persistence_they_are_not(estimates):
    assert np.abs(estimates[1]).max() > 20


def test_a_problem_that_is_over_begins_again():
    particles = init_particles(THETA, jnp.stack([START, 2 * START]))
    _, moved, _ = persistent_evolution_strategies(
        advance, THETA, particles, jax.random.key(0), std=0.1
    )
    fresh = jnp.stack([3 * START, 4 * START])
    found = restart(moved, jnp.array([False, True]), fresh)
    np.testing.assert_array_equal(found.plus[0], moved.plus[0])
    np.testing.assert_array_equal(found.minus[1], fresh[1])
    np.testing.assert_array_equal(found.accumulated["a"][0], moved.accumulated["a"][0])
    np.testing.assert_array_equal(found.accumulated["a"][1], 0)
