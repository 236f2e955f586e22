"""Returns, advantages, baselines and objectives against hand numbers and plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax._kinks import smallest, within
from metajax.losses import baselines, policy_gradient, returns

TIME = 6  # of the property tests: one length, one compilation


def numpy_advantages(reward, value, final_value, terminated, length, discount, gae_lambda):
    """Return GAE by its definition, Σ_k (γλ)^k δ_{t+k}, in O(time²); `length` steps are valid."""
    advantage = np.zeros(len(reward))
    for t in range(length):
        for s in range(t, length):
            following = value[s + 1] if s + 1 < length else final_value * (not terminated)
            residual = reward[s] + discount * following - value[s]
            advantage[t] += (discount * gae_lambda) ** (s - t) * residual
    return advantage


# --- hand numbers --------------------------------------------------------------------------------


def test_discounted_returns_by_hand():
    reward = jnp.array([1.0, 2.0, 4.0])
    found = returns.discounted_returns(reward, jnp.ones(3, bool), 0.5)
    np.testing.assert_array_equal(found, [3.0, 4.0, 4.0])
    found = returns.discounted_returns(reward, jnp.array([True, True, False]), 0.5)
    np.testing.assert_array_equal(found, [2.0, 2.0, 0.0])


@pytest.mark.parametrize(
    ("end", "gae_lambda", "expected"),
    [
        # Residuals: 1 + .5·4 - 2 = 1, 2 + .5·8 - 4 = 2, then 4 + .5·16 - 8 = 4 or 4 - 8 = -4.
        ("truncated", 0.0, [1.0, 2.0, 4.0]),
        ("terminated", 0.0, [1.0, 2.0, -4.0]),
        ("truncated", 1.0, [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4.0]),
        ("terminated", 1.0, [1 + 0.5 * (2 - 0.5 * 4), 2 - 0.5 * 4, -4.0]),
        ("truncated", 0.5, [1 + 0.25 * (2 + 0.25 * 4), 2 + 0.25 * 4, 4.0]),
        # An early end: the last valid step is the second, and bootstraps from the final value.
        ("padded", 0.0, [1.0, 2 + 0.5 * 16 - 4, 0.0]),
    ],
)
def test_generalized_advantages_by_hand(end, gae_lambda, expected):
    found = returns.generalized_advantages(
        jnp.array([1.0, 2.0, 4.0]),
        jnp.array([2.0, 4.0, 8.0]),
        jnp.array(16.0),
        jnp.array([False, False, end == "terminated"]),
        jnp.array([True, True, end != "padded"]),
        discount=0.5,
        gae_lambda=gae_lambda,
    )
    np.testing.assert_array_equal(found, expected)


def test_moments_by_hand():
    x, valid = jnp.array([1.0, 3.0, 5.0, 99.0]), jnp.array([True, True, True, False])
    mean, std = returns.masked_moments(x, valid)
    np.testing.assert_allclose([mean, std], [3.0, np.sqrt(8 / 3)], rtol=1e-6)
    np.testing.assert_allclose(
        returns.normalize(x, valid), [-np.sqrt(1.5), 0, np.sqrt(1.5), 0], rtol=1e-6
    )
    assert returns.masked_mean(x, jnp.zeros(4, bool)) == 0


# --- properties ----------------------------------------------------------------------------------

number = st.floats(-10, 10, width=32)
numbers = st.lists(number, min_size=TIME, max_size=TIME).map(np.float32)
unit = st.floats(0, 1, width=32)
junk = st.sampled_from([np.nan, np.inf, -np.inf, 1e30])


@jax.jit
def advantages(reward, value, final_value, terminated, valid, discount, gae_lambda):
    return returns.generalized_advantages(
        reward, value, final_value, terminated, valid, discount=discount, gae_lambda=gae_lambda
    )


to_go = jax.jit(returns.discounted_returns)
normalize = jax.jit(returns.normalize)


def ending(length, terminated):
    return np.arange(TIME) == length - 1 if terminated else np.zeros(TIME, bool)


@settings(deadline=None, max_examples=200)
@given(numbers, numbers, number, st.booleans(), st.integers(1, TIME), unit, unit)
def test_advantages_follow_their_definition(
    reward, value, final_value, terminated, length, discount, gae_lambda
):
    valid = np.arange(TIME) < length
    found = advantages(
        reward, value, final_value, ending(length, terminated), valid, discount, gae_lambda
    )
    expected = numpy_advantages(
        reward, value, final_value, terminated, length, discount, gae_lambda
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@settings(deadline=None)
@given(numbers, numbers, st.integers(1, TIME), unit)
def test_with_trace_1_advantages_are_returns_minus_values(reward, value, length, discount):
    valid = np.arange(TIME) < length
    found = advantages(reward, value, 0.0, ending(length, False), valid, discount, 1.0)
    expected = np.where(valid, to_go(reward, valid, discount) - value, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@settings(deadline=None)
@given(numbers, numbers, st.booleans(), st.integers(1, TIME - 1), unit, junk)
def test_padding_does_not_matter(reward, value, terminated, length, discount, junk):
    valid = np.arange(TIME) < length
    rest = (np.float32(2.0), ending(length, terminated), valid, discount, 0.9)
    clean = advantages(np.where(valid, reward, 0), np.where(valid, value, 0), *rest)
    dirty = advantages(np.where(valid, reward, junk), np.where(valid, value, junk), *rest)
    np.testing.assert_array_equal(clean, dirty)
    padded = [np.where(valid, reward, x) for x in (0, junk)]
    np.testing.assert_array_equal(*(to_go(x, valid, discount) for x in padded))
    np.testing.assert_array_equal(*(normalize(x, valid) for x in padded))


@pytest.mark.parametrize("junk", [np.nan, np.inf])
@pytest.mark.parametrize("objective", [*policy_gradient.ESTIMATORS, "importance", "clipped"])
def test_padding_does_not_matter_to_objectives(objective, junk):
    valid = jnp.array([True, True, False])
    log_prob = jnp.array([-0.3, -1.2, -0.1])
    clean = jnp.array([1.0, -2.0, 3.0])

    def value(log_prob, other):
        if objective in policy_gradient.ESTIMATORS:
            return policy_gradient.ESTIMATORS[objective](
                log_prob, other - 1, other, 0.5 * other, valid
            )
        clip = 0.2 if objective == "clipped" else None
        return jnp.sum(
            policy_gradient.importance_weighted(log_prob, other - 1, other, valid, clip=clip)
        )

    def derivatives(padding):
        arguments = [jnp.where(valid, x, padding) for x in (log_prob, clean)]
        return (
            value(*arguments),
            jax.grad(value)(*arguments)[:2],
            jax.hessian(value)(*arguments)[:2, :2],
        )

    for found, expected in zip(derivatives(junk), derivatives(0.0), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert np.all(np.isfinite(expected))


# --- objectives ----------------------------------------------------------------------------------


def test_estimators_have_one_gradient():
    """At the behaviour policy, whatever the credit: Σ_t ∇log π(a_t) A_t."""
    log_prob = jnp.array([-0.3, -1.2, -0.1])
    advantage, baseline = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.2, -0.7])
    for name, estimate in policy_gradient.ESTIMATORS.items():
        found = jax.grad(estimate)(log_prob, log_prob, advantage, baseline, jnp.ones(3, bool))
        np.testing.assert_allclose(found, advantage, rtol=1e-6, err_msg=name)


def test_clipped_surrogate_by_hand():
    ratio = np.array([1.5, 1.5, 0.5, 0.5, 1.1], np.float32)
    advantage = jnp.array([2.0, -2.0, 2.0, -2.0, 2.0])
    valid = jnp.ones(5, bool)

    def surrogate(log_prob, clip):
        behaviour = jnp.full(5, -1.0)
        return policy_gradient.importance_weighted(log_prob, behaviour, advantage, valid, clip=clip)

    log_prob = jnp.log(ratio) - 1
    np.testing.assert_allclose(surrogate(log_prob, None), ratio * advantage, rtol=1e-6)
    np.testing.assert_allclose(surrogate(log_prob, 0.2), [2.4, -3, 1, -1.6, 2.2], rtol=1e-6)
    # Beyond the bound there is nothing more to gain; on the pessimistic side there is.
    slope = jax.grad(lambda x: jnp.sum(surrogate(x, 0.2)))(log_prob)
    np.testing.assert_allclose(slope, [0, -3, 1, 0, 2.2], rtol=1e-6)


# --- the linear baseline -------------------------------------------------------------------------


def test_linear_features_by_hand():
    found = baselines.linear_features(jnp.array([[2.0, -50.0], [0.5, 1.0]]))
    expected = [
        [2, -10, 4, 100, 0, 0, 0, 1],
        [0.5, 1, 0.25, 1, 0.01, 0.0001, 0.000001, 1],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def samples(observation_size=4, scale=1.0):
    """Return features and returns of 20 episodes of 100 steps, in float64."""
    rng = np.random.default_rng(0)
    walk = scale * np.cumsum(rng.normal(size=(20, 100, observation_size)), axis=1) / 10
    time = np.arange(100) / 100
    clipped = np.clip(walk, -10, 10)
    powers = np.broadcast_to(np.stack([time, time**2, time**3, time**0], -1), (20, 100, 4))
    features = np.concatenate([clipped, clipped**2, powers], axis=-1).reshape(2000, -1)
    target = (
        5 * (1 - time) ** 2 + walk[..., 0] + np.sin(3 * walk[..., 1]) + rng.normal(size=(20, 100))
    )
    return features, target.ravel()


@pytest.mark.parametrize("ridge", [1e-5, 10.0])
def test_fit_linear_solves_the_ridge_regression(ridge):
    features, target = samples()
    valid = np.arange(2000) % 3 > 0
    kept = features[valid]
    expected = np.linalg.solve(
        kept.T @ kept + ridge * np.eye(features.shape[1]), kept.T @ target[valid]
    )
    with jax.enable_x64(True):
        dirty = [jnp.where(v, x, jnp.nan) for v, x in ((valid[:, None], features), (valid, target))]
        found = baselines.fit_linear(*dirty, jnp.asarray(valid), ridge=ridge)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("extra", ["none", "constant", "collinear"])
def test_fit_linear_in_float32(scale, extra):
    """Its residuals are those of a float64 least-squares fit, to half a percent."""
    features, target = samples(17, scale)
    ones = np.ones((len(target), 1))
    more = {
        "none": [],
        "constant": [0 * ones, 3 * ones],
        "collinear": [features[:, :1], -2 * features[:, 1:3]],
    }[extra]
    features = np.concatenate([features, *more], axis=1)
    best = features @ np.linalg.lstsq(features, target)[0] - target
    single = jnp.asarray(features, jnp.float32)
    weights = baselines.fit_linear(
        single, jnp.asarray(target, jnp.float32), jnp.ones(len(target), bool)
    )
    residual = np.asarray(single, np.float64) @ np.asarray(weights, np.float64) - target
    assert np.std(residual) < 1.005 * np.std(best)


def test_fit_linear_without_samples_is_zero():
    found = baselines.fit_linear(jnp.ones((3, 2)), jnp.ones(3), jnp.zeros(3, bool))
    np.testing.assert_array_equal(found, 0)


# --- minima and bounds ---------------------------------------------------------------------------


@pytest.mark.parametrize("x", [-3.0, -1.0, 0.3, 2.0, 5.0])
def test_minima_and_bounds_have_their_derivatives(x):
    """At ends and ties too, where that of `jnp.clip` is a half."""
    bounded = jax.value_and_grad(lambda x: within(x, -1.0, 2.0))
    value, slope = bounded(x)
    assert (value, slope) == (np.clip(x, -1, 2), -1 <= x <= 2)
    others = jnp.array([0.3, 4.0])
    value, slope = jax.value_and_grad(lambda x: smallest(jnp.append(others, x)))(x)
    assert (value, slope) == (pytest.approx(min(x, 0.3)), x <= 0.3)
    assert np.isnan(within(jnp.nan, -1.0, 2.0))
