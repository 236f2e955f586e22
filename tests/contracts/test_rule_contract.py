"""What every update rule promises."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax.rules
from metajax.rules import (
    decayed,
    from_optax,
    learned_lstm,
    learned_mlp,
    meta_lstm,
    meta_sgd,
    sgd,
    sum_of_rules,
)
from metajax.types import UpdateRule

RULES = {
    "sum_of_rules": [
        sum_of_rules(learned_mlp(hidden=4), from_optax(optax.sgd(0.1, momentum=0.5))),
        sum_of_rules(meta_lstm(0.1), meta_sgd(0.1)),
    ],
    "from_optax": [
        from_optax(optax.sgd(0.1, momentum=0.5)),
        from_optax(optax.adam(0.1, eps_root=1e-8)),
        from_optax(optax.rmsprop(0.1, eps_in_sqrt=True)),
    ],
    "decayed": [decayed(meta_sgd(0.2), 0.3)],
    "learned_lstm": [learned_lstm(0.1, hidden=4)],
    "learned_mlp": [learned_mlp(0.1, hidden=4)],
    "meta_lstm": [meta_lstm(0.1), meta_lstm(0.3, hidden=3)],
    "meta_sgd": [meta_sgd(0.1)],
    "sgd": [sgd(0.1), sgd(optax.exponential_decay(0.2, 10, 0.9))],
}
CENTRE = jnp.array([1.0, -2.0, 0.0])  # the third weight starts where it should be: no gradient
START = jnp.zeros(3)


def loss(params):
    return jnp.sum((params - CENTRE) ** 2)


def learn(rule, rule_params, start, count, wrap=lambda optimizer: optimizer):
    """Return the parameters after `count` steps down the parabola."""
    optimizer = optax.with_extra_args_support(wrap(rule.optimizer(rule_params)))

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), length=count)[0][0]


def test_every_rule_is_covered():
    factories = {
        name
        for name in metajax.rules.__all__
        if inspect.isfunction(factory := getattr(metajax.rules, name))
        and inspect.signature(factory).return_annotation is UpdateRule
    }
    assert factories == RULES.keys()
    assert set(metajax.rules.RULES.values()) <= {getattr(metajax.rules, n) for n in factories}


@pytest.fixture(params=[(name, i) for name in RULES for i in range(len(RULES[name]))], ids=str)
def rule(request):
    name, index = request.param
    return RULES[name][index]


def test_it_descends(rule):
    rule_params = rule.init(jax.random.key(0), START)
    assert loss(learn(rule, rule_params, START, 100)) < 0.05 * loss(START)


def test_second_derivatives_are_finite_and_right(rule):
    """Through three steps, against finite differences; one weight has no gradient at all."""
    with jax.enable_x64(True):
        start = START.astype(float)
        rule_params = jax.tree.map(lambda x: x.astype(float), rule.init(jax.random.key(0), START))
        after = jax.jit(lambda start: loss(learn(rule, rule_params, start, 3)))
        found = jax.grad(after)(start)
        for weight, direction in enumerate(np.eye(3)[:2]):
            slope = (after(start + 1e-6 * direction) - after(start - 1e-6 * direction)) / 2e-6
            np.testing.assert_allclose(found[weight], slope, rtol=1e-6)
        assert np.all(np.isfinite(found))


def test_every_rule_parameter_has_a_gradient(rule):
    rule_params = rule.init(jax.random.key(0), START)
    slopes = jax.grad(lambda p: loss(learn(rule, p, START, 3)))(rule_params)
    assert all(np.all(np.isfinite(x)) and np.any(x) for x in jax.tree.leaves(slopes))


def test_it_composes(rule):
    """A chain that halves the update moves half as far in the first step."""
    rule_params = rule.init(jax.random.key(0), START)
    whole = learn(rule, rule_params, START, 1)
    half = learn(rule, rule_params, START, 1, lambda o: optax.chain(o, optax.scale(0.5)))
    np.testing.assert_allclose(half, 0.5 * whole, rtol=1e-6)
