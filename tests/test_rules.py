"""Update rules: what they compute, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.errors import MetajaxError
from metajax.rules import decayed, from_optax, meta_lstm, meta_sgd, sgd, sum_of_rules
from metajax.rules.coordinatewise import log_and_sign


def steps(rule, gradients, params=0.0):
    """Return the parameters after each gradient."""
    optimizer = rule.optimizer(rule.init(jax.random.key(0), jnp.asarray(params)))
    state, params, path = optimizer.init(jnp.asarray(params)), jnp.asarray(params), []
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        path.append(float(params))
    return path


def test_sgd_by_hand():
    np.testing.assert_allclose(steps(sgd(0.5), [1.0, 2.0, -4.0]), [-0.5, -1.5, 0.5])


def test_steps_after_the_first_are_shorter_by_the_decay():
    found = steps(decayed(sgd(0.5), 0.25), [1.0, 2.0, -4.0])
    np.testing.assert_allclose(found, [-0.5, -0.75, -0.25])


def test_fixed_is_the_optimizer_itself():
    optimizer = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))
    found = steps(from_optax(optimizer), [3.0, 0.5])
    np.testing.assert_allclose(found, [-0.1, -0.1 - 0.1 * (0.5 + 0.9)], rtol=1e-6)


def test_rules_beside_one_another_add_their_steps():
    """Each with its own memory: momentum, and the count that decays."""
    rule = sum_of_rules(decayed(sgd(0.5), 0.25), from_optax(optax.sgd(0.1, momentum=0.9)))
    found = np.diff(steps(rule, [1.0, 2.0, -4.0]), prepend=0.0)
    expected = [-0.5 - 0.1, -0.25 - 0.1 * 2.9, 0.5 - 0.1 * (-4 + 0.9 * 2.9)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.adamw(0.1),
        optax.chain(optax.clip(1.0), optax.adam(0.1)),
        # Only where every weight's gradient is 0: a task whose episodes all earned the same.
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    ],
)
def test_optimizers_without_a_finite_derivative_are_refused(optimizer):
    with pytest.raises(MetajaxError, match="no finite derivative at a zero gradient"):
        from_optax(optimizer)
    assert from_optax(optimizer, second_order=False).optimizer(()) is optimizer


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1),
        optax.adam(0.1, eps_root=1e-8),
        optax.chain(optax.clip(1.0), optax.sgd(optax.cosine_decay_schedule(0.1, 5))),
        optax.rmsprop(0.1, eps=1e-8, eps_in_sqrt=True),
    ],
)
def test_smooth_optimizers_are_accepted(optimizer):
    assert from_optax(optimizer).optimizer(()) is optimizer


# --- learned rules -------------------------------------------------------------------------------


def test_meta_sgd_by_hand():
    optimizer = meta_sgd(0.1).optimizer({"a": jnp.array([0.5, -2.0]), "b": jnp.array(0.0)})
    gradient = {"a": jnp.array([1.0, 3.0]), "b": jnp.array(7.0)}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(updates["a"], [-0.5, 6.0])
    np.testing.assert_allclose(updates["b"], 0.0)
    rates = meta_sgd(0.1).init(jax.random.key(0), gradient)
    np.testing.assert_allclose(rates["a"], [0.1, 0.1])


@pytest.mark.parametrize(
    ("x", "size", "direction"),
    [
        (1.0, 0.0, 1.0),
        (-np.e, 0.1, -1.0),
        (1e-3, -0.6907755, 1.0),
        (0.0, -1.0, 0.0),
        (-1e-5, -1.0, -0.2202647),  # e^-10 is 4.5e-5
    ],
)
def test_numbers_of_any_size_become_two_of_about_one(x, size, direction):
    np.testing.assert_allclose(log_and_sign(jnp.asarray(x)), [size, direction], rtol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_meta_lstm_by_hand():
    """Two steps of one weight in NumPy, gate by gate."""
    rule = meta_lstm(0.1, hidden=3)
    weights = rule.init(jax.random.key(0), jnp.zeros(1))
    leaves, structure = jax.tree.flatten(weights)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    weights = jax.tree.unflatten(structure, leaves)
    kernel, bias = (np.asarray(weights["lstm"][k], np.float64) for k in ("kernel", "bias"))
    gate_kernel, gate_bias = (np.asarray(weights["gates"][k]) for k in ("kernel", "bias"))

    optimizer = rule.optimizer(weights)
    params, state = jnp.array([0.7]), optimizer.init(jnp.array([0.7]))
    theta, hidden, cell, gates = 0.7, np.zeros(3), np.zeros(3), np.zeros(2)
    for gradient, loss in [(0.3, 2.0), (-1e-6, -0.5)]:
        updates, state = optimizer.update(
            jnp.array([gradient]), state, params, value=jnp.asarray(loss)
        )
        params = optax.apply_updates(params, updates)

        seen = [*log_and_sign(jnp.asarray(gradient)), *log_and_sign(jnp.asarray(loss)), *hidden]
        into, keep, new, out = (np.array(seen) @ kernel + bias).reshape(4, 3)
        cell = sigmoid(keep) * cell + sigmoid(into) * np.tanh(new)
        hidden = sigmoid(out) * np.tanh(cell)
        for gate in range(2):
            inputs = np.array([*hidden, theta, gates[gate]])
            gates[gate] = inputs @ gate_kernel[:, gate] + gate_bias[gate]
        theta = sigmoid(gates[0]) * theta - sigmoid(gates[1]) * gradient
        np.testing.assert_allclose(params, [theta], rtol=1e-5)


def test_meta_lstm_begins_as_gradient_descent():
    rule = meta_lstm(0.25)
    weights = rule.init(jax.random.key(0), jnp.zeros(2))
    optimizer, params = rule.optimizer(weights), jnp.array([0.0, 2.0])
    state = optimizer.init(params)
    updates, _ = optimizer.update(jnp.array([3.0, 1.0]), state, params, value=jnp.asarray(1.0))
    # The weights near the gates are small, and the forget gate is just below 1.
    np.testing.assert_allclose(updates, [-0.75, -0.25 - 0.011 * 2], rtol=0.05)


@pytest.mark.parametrize("learning_rate", [0.0, 1.0, -0.1])
def test_the_rate_of_a_gate_is_a_fraction(learning_rate):
    with pytest.raises(MetajaxError, match=r"must lie in \(0, 1\)"):
        meta_lstm(learning_rate)
