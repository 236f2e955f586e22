"""Update rules: what they compute, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.errors import MetajaxError
from metajax.rules import fixed, sgd
from metajax.rules.fixed import decayed_sgd


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
    found = steps(decayed_sgd(0.5, 0.25), [1.0, 2.0, -4.0])
    np.testing.assert_allclose(found, [-0.5, -0.75, -0.25])


def test_fixed_is_the_optimizer_itself():
    optimizer = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))
    found = steps(fixed(optimizer), [3.0, 0.5])
    np.testing.assert_allclose(found, [-0.1, -0.1 - 0.1 * (0.5 + 0.9)], rtol=1e-6)


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
        fixed(optimizer)
    assert fixed(optimizer, second_order=False).optimizer(()) is optimizer


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
    assert fixed(optimizer).optimizer(()) is optimizer
