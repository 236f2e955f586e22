"""Every hyperparameter that is a number may be one that JAX traces, so that a sweep is a `vmap`."""

import functools
import inspect
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.algorithms import ALGORITHMS
from metajax.errors import MetajaxError
from metajax.rules import RULES, decayed, from_optax, sgd

sys.path.insert(0, str(Path(__file__).parent / "contracts"))
from test_algorithm_contract import TASKS, VARIANTS, build, family_of

pytestmark = pytest.mark.usefixtures("float64")

KINDS = (float, float | None)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
SHARES = jnp.array([0.9, 0.6])  # of each hyperparameter, in two runs


def hyperparameters(name, chosen):
    """Return the numbers among an algorithm's options, some of which default to none, or to 0."""
    parameters = inspect.signature(ALGORITHMS[name]).parameters
    found = {n: chosen.get(n, p.default) for n, p in parameters.items() if p.annotation in KINDS}
    return {n: value or 0.5 for n, value in found.items()}


def updated(name, options):
    """Return what the meta-parameters and the metrics are after two updates."""
    algorithm, family = build(name, options), family_of(name)
    tasks = jax.vmap(family.train.sample)(jax.random.split(jax.random.key(0), TASKS))
    state = algorithm.init(jax.random.key(1), tasks)
    for key in jax.random.split(jax.random.key(2)):
        state, metrics = algorithm.update(state, tasks, key)
    return state.meta_params, metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_number_among_the_options_of_an_algorithm_may_be_traced(name):
    options = VARIANTS[name][0]
    found = jax.eval_shape(lambda n: updated(name, options | n), hyperparameters(name, options))
    assert jax.tree.leaves(found)


@pytest.mark.parametrize(
    ("name", "options", "swept"),
    [
        ("maml", {"outer": "adam"}, "outer_learning_rate inner_learning_rate discount trace"),
        slow("maml", {"outer": "ppo"}, "outer_learning_rate inner_learning_rate clip kl_penalty"),
        slow("maml", {"outer": "trpo"}, "max_kl cg_damping inner_learning_rate_decay inner_max_kl"),
        slow(
            "rl2",
            {"minibatches": 1},
            "outer_learning_rate outer_half_life clip entropy_weight value_weight discount trace "
            "max_gradient_norm",
        ),
        slow(
            "dqn",
            {"updates": 2, "batch": 5, "replay_capacity": 60, "target_period": 3},
            "outer_learning_rate inner_learning_rate discount epsilon error_clip",
        ),
    ],
)
def test_two_values_side_by_side_are_two_runs(name, options, swept):
    numbers = hyperparameters(name, options)
    values = {n: SHARES * numbers[n] for n in swept.split()}
    together = jax.jit(jax.vmap(lambda values: updated(name, options | values)))(values)
    for run in range(len(SHARES)):
        alone = {n: float(x[run]) for n, x in values.items()}
        expected = jax.jit(lambda alone=alone: updated(name, options | alone))()
        found = jax.tree.map(lambda x, run=run: x[run], together)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.max(np.abs(b)))
    assert any(np.any(x[0] != x[1]) for x in jax.tree.leaves(together[0]))  # else nothing was swept


@pytest.mark.parametrize("rule", RULES)
def test_the_rate_of_a_rule_may_be_traced(rule):
    params, gradient = {"w": jnp.ones(3)}, {"w": jnp.arange(3.0)}

    def step(rate):
        made = decayed(RULES[rule](rate), rate)
        optimizer = optax.with_extra_args_support(
            made.optimizer(made.init(jax.random.key(0), params))
        )
        return optimizer.update(gradient, optimizer.init(params), params, value=jnp.ones(()))[0]

    both = jax.vmap(step)(jnp.array([0.1, 0.2]))["w"]
    np.testing.assert_allclose(both, [step(0.1)["w"], step(0.2)["w"]], rtol=1e-6)


def test_an_optimizer_that_has_no_derivative_is_refused_where_its_rate_is_a_number():
    with pytest.raises(MetajaxError, match="eps_root"):
        from_optax(optax.adam(0.1))
    jax.eval_shape(lambda rate: from_optax(optax.adam(rate)).optimizer(()).init(jnp.ones(2)), 0.1)
    assert from_optax(optax.adam(0.1, eps_root=1e-8)) and sgd(0.1)
