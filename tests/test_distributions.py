"""Distributions against scipy.stats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from metajax.policies import Categorical, DiagonalNormal, EpsilonGreedy

rng = np.random.default_rng(0)
MEAN, LOG_STD = rng.normal(size=(2, 4, 3)).astype(np.float32)
OTHER_MEAN, OTHER_LOG_STD = rng.normal(size=(2, 4, 3)).astype(np.float32)
LOGITS, OTHER_LOGITS = rng.normal(size=(2, 4, 5)).astype(np.float32)

normal = DiagonalNormal(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
other_normal = DiagonalNormal(jnp.asarray(OTHER_MEAN), jnp.asarray(OTHER_LOG_STD))
categorical = Categorical(jnp.asarray(LOGITS))
other_categorical = Categorical(jnp.asarray(OTHER_LOGITS))
probabilities = scipy.special.softmax(LOGITS.astype(np.float64), axis=-1)
other_probabilities = scipy.special.softmax(OTHER_LOGITS.astype(np.float64), axis=-1)


def test_normal():
    """Quantities of an action are sums over its dimensions, never means."""
    reference = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    action = rng.normal(size=MEAN.shape).astype(np.float32)
    np.testing.assert_allclose(
        normal.log_prob(jnp.asarray(action)), reference.logpdf(action).sum(-1), rtol=1e-5
    )
    np.testing.assert_allclose(normal.entropy(), reference.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(normal.mode(), MEAN)


def test_categorical():
    for action in range(5):
        np.testing.assert_allclose(
            categorical.log_prob(jnp.full(4, action)), np.log(probabilities[:, action]), rtol=1e-5
        )
    np.testing.assert_allclose(
        categorical.entropy(), scipy.stats.entropy(probabilities, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(categorical.mode(), LOGITS.argmax(-1))


def test_epsilon_greedy():
    """Against the table of its probabilities."""
    epsilon, other_epsilon = np.array([0.05, 0.3, 0.5, 1.0]), np.array([0.2, 0.4, 0.6, 0.8])

    def table(q_values, epsilon):
        greedy = np.eye(5)[q_values.argmax(-1)]
        return epsilon[:, None] / 5 + (1 - epsilon[:, None]) * greedy

    one = EpsilonGreedy(jnp.asarray(LOGITS), jnp.asarray(epsilon))
    other = EpsilonGreedy(jnp.asarray(OTHER_LOGITS), jnp.asarray(other_epsilon))
    expected, other_expected = table(LOGITS, epsilon), table(OTHER_LOGITS, other_epsilon)
    for action in range(5):
        found = one.log_prob(jnp.full(4, action))
        np.testing.assert_allclose(found, np.log(expected[:, action]), rtol=1e-5)
    np.testing.assert_allclose(one.entropy(), scipy.stats.entropy(expected, axis=-1), rtol=1e-5)
    divergence = scipy.stats.entropy(expected, other_expected, axis=-1)
    np.testing.assert_allclose(one.kl(other), divergence, rtol=1e-5)
    np.testing.assert_array_equal(one.mode(), LOGITS.argmax(-1))
    drawn = jax.vmap(one.sample)(jax.random.split(jax.random.key(1), 20_000))
    frequency = np.mean(np.asarray(drawn)[:, :, None] == np.arange(5), axis=0)
    assert np.all(np.abs(frequency - expected) < 4 * np.sqrt(expected / 20_000))


def test_categorical_divergence():
    expected = scipy.stats.entropy(probabilities, other_probabilities, axis=-1)
    np.testing.assert_allclose(categorical.kl(other_categorical), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("one", "other"), [(normal, other_normal), (categorical, other_categorical)]
)
def test_divergence_is_a_mean_log_ratio(one, other):
    """KL(one ‖ other) = E_one[log one - log other], within 4σ, and not the other way round."""
    action = jax.vmap(one.sample)(jax.random.split(jax.random.key(0), 100_000))
    batch = lambda d: jax.tree.map(lambda x: x[None], d)
    ratio = np.asarray(batch(one).log_prob(action) - batch(other).log_prob(action), np.float64)
    error = ratio.std(axis=0) / np.sqrt(len(ratio))
    assert np.all(np.abs(ratio.mean(axis=0) - one.kl(other)) < 4 * error)
    assert np.any(np.abs(ratio.mean(axis=0) - other.kl(one)) > 4 * error)
    np.testing.assert_allclose(one.kl(one), 0, atol=1e-6)


def test_samples_have_the_right_distribution():
    keys = jax.random.split(jax.random.key(1), 20_000)
    drawn = np.asarray(jax.vmap(normal.sample)(keys))
    for index in np.ndindex(MEAN.shape):
        reference = scipy.stats.norm(MEAN[index], np.exp(LOG_STD[index]))
        assert scipy.stats.kstest(drawn[:, *index], reference.cdf).pvalue > 1e-4
    drawn = np.asarray(jax.vmap(categorical.sample)(keys))
    assert drawn.dtype == np.int32
    for row in range(len(LOGITS)):
        counts = np.bincount(drawn[:, row], minlength=5)
        assert scipy.stats.chisquare(counts, len(keys) * probabilities[row]).pvalue > 1e-4


def test_extreme_logits_stay_finite():
    sure = Categorical(jnp.array([0.0, 1e4, -1e4]))
    values = [sure.log_prob(jnp.array(1)), sure.entropy(), sure.kl(sure)]
    np.testing.assert_array_equal(values, 0)
    slope = jax.grad(lambda x: Categorical(x).entropy() + Categorical(x).log_prob(jnp.array(0)))
    assert np.all(np.isfinite(slope(sure.logits)))


# --- impossible actions --------------------------------------------------------------------------

IMPOSSIBLE = np.array([0.3, -np.inf, -0.5, 1.2, -np.inf])  # logits
OTHER_IMPOSSIBLE = np.array([1.0, -np.inf, 0.2, -0.4, -np.inf])
POSSIBLE = np.isfinite(IMPOSSIBLE)


def test_entropy_and_divergence_with_an_impossible_action():
    """By hand: ln 2, and ln((1 + e) / 2) - 1 / 2."""
    even, uneven = (Categorical(jnp.array([x, 0.0, -jnp.inf])) for x in (0.0, 1.0))
    np.testing.assert_allclose(even.entropy(), 0.6931, atol=5e-5)
    np.testing.assert_allclose(even.kl(uneven), 0.1201, atol=5e-5)
    np.testing.assert_array_equal(even.kl(even), 0)
    every = Categorical(jnp.zeros(3))
    np.testing.assert_allclose(even.kl(every), np.log(3 / 2), rtol=1e-6)
    assert every.kl(even) == np.inf  # it may do what `even` cannot


@pytest.mark.parametrize("masked", [True, False], ids=["selected", "added"])
@pytest.mark.parametrize(
    "quantity",
    [
        lambda d, other: d.entropy(),
        lambda d, other: d.kl(other),
        lambda d, other: other.kl(d),
        lambda d, other: d.kl(d),
        lambda d, other: d.log_prob(jnp.asarray(0)),
        lambda d, other: jnp.exp(d.log_prob(jnp.asarray(0)) - other.log_prob(jnp.asarray(0))),
    ],
    ids=["entropy", "kl", "reverse kl", "kl to itself", "log_prob", "ratio"],
)
def test_an_impossible_action_is_as_good_as_absent(quantity, masked):
    """Value, gradient and Hessian are those without it, whichever way logits are masked."""

    def hide(x):
        if masked:
            return jnp.where(POSSIBLE, x, -jnp.inf)
        return x + jnp.log(jnp.asarray(POSSIBLE, x.dtype))

    def of_all(x):
        return quantity(Categorical(hide(x)), Categorical(jnp.asarray(OTHER_IMPOSSIBLE)))

    def of_possible(x):
        return quantity(Categorical(x), Categorical(jnp.asarray(OTHER_IMPOSSIBLE[POSSIBLE])))

    with jax.enable_x64(True):
        x = jnp.where(POSSIBLE, jnp.asarray(IMPOSSIBLE), 0.7)
        fewer = jnp.asarray(IMPOSSIBLE[POSSIBLE])
        for order in (lambda f: f, jax.grad, lambda f: jax.jacrev(jax.grad(f)), jax.hessian):
            expected = order(of_possible)(fewer)
            found = np.asarray(order(of_all)(x))
            for axis in range(found.ndim):
                np.testing.assert_array_equal(np.compress(~POSSIBLE, found, axis), 0)
            for axis in range(found.ndim):
                found = np.compress(POSSIBLE, found, axis)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_epsilon_greedy_never_explores_the_impossible():
    """Exploring draws from the three possible actions: 0.1 + 0.7 for the best of them."""
    epsilon, q_values = jnp.asarray(0.3), jnp.asarray(IMPOSSIBLE, jnp.float32)
    acting = EpsilonGreedy(q_values, epsilon)
    for action, expected in enumerate([0.1, 0.0, 0.1, 0.8, 0.0]):
        found = acting.log_prob(jnp.asarray(action))
        np.testing.assert_allclose(np.exp(found), expected, rtol=1e-6)
    entropy = scipy.stats.entropy([0.1, 0.1, 0.8])
    np.testing.assert_allclose(acting.entropy(), entropy, rtol=1e-6)
    np.testing.assert_array_equal(acting.kl(acting), 0)
    drawn = jax.vmap(acting.sample)(jax.random.split(jax.random.key(0), 1000))
    assert set(np.asarray(drawn).tolist()) == {0, 2, 3}
