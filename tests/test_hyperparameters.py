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
from metajax.envs.splits import sample_tasks
from metajax.errors import MetajaxError
from metajax.outer import adam, ppo, trpo
from metajax.rules import RULES, decayed, from_optax, sgd
from metajax.types import Scalar

sys.path.insert(0, str(Path(__file__).parent / "contracts"))
from test_algorithm_contract import TASKS, VARIANTS, build, family_of

pytestmark = pytest.mark.usefixtures("float64")

KINDS = (Scalar, Scalar | None, Scalar | optax.Schedule)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
SHARES = jnp.array([0.9, 0.6])  # of each hyperparameter, in two runs


def hyperparameters(factory, chosen, prefix=""):
    """Return the numbers among a factory's options, some of which default to none, or to 0.

    Those of parts have dotted names.
    """
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        value = chosen.get(name, parameter.default)
        if getattr(value, "made", None) is not None:
            found |= hyperparameters(*value.made, prefix=f"{prefix}{name}.")
        elif parameter.annotation in KINDS:
            found[prefix + name] = value or 0.5
    return found


def with_numbers(factory, chosen, numbers):
    """Return options with other numbers; parts are made again."""
    new = dict(chosen)
    for name, parameter in inspect.signature(factory).parameters.items():
        within = {n.partition(".")[2]: x for n, x in numbers.items() if n.startswith(f"{name}.")}
        if within:
            make, options = chosen.get(name, parameter.default).made
            new[name] = make(**with_numbers(make, options, within))
        elif name in numbers:
            new[name] = numbers[name]
    return new


def updated(name, chosen, numbers):
    """Return what the meta-parameters and the metrics are after two updates."""
    options = with_numbers(ALGORITHMS[name], chosen, numbers)
    algorithm, family = build(name, options), family_of(name)
    tasks = sample_tasks(family.train, jax.random.key(0), TASKS)
    state = algorithm.init(jax.random.key(1), tasks)
    for key in jax.random.split(jax.random.key(2)):
        state, metrics = algorithm.update(state, tasks, key)
    return state.meta_params, metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_number_among_the_options_of_an_algorithm_may_be_traced(name):
    options = next(iter(VARIANTS[name].values()))
    numbers = hyperparameters(ALGORITHMS[name], options)
    assert len(numbers) > 2
    assert jax.tree.leaves(jax.eval_shape(lambda numbers: updated(name, options, numbers), numbers))


@pytest.mark.parametrize(
    ("name", "options", "swept"),
    [
        slow(
            "maml",
            {"outer": adam()},
            "outer.learning_rate inner.rule.learning_rate inner.objective.discount "
            "inner.objective.gae_lambda",
        ),
        slow(
            "maml",
            {"outer": ppo()},
            "outer.learning_rate inner.rule.learning_rate outer.clip kl_penalty",
        ),
        slow(
            "maml",
            {"outer": trpo()},
            "outer.max_kl outer.cg_damping inner.learning_rate_decay inner.max_kl",
        ),
        slow(
            "rl2",
            {"outer": ppo(epochs=4, clip=0.2, max_gradient_norm=1.0)},
            "outer.learning_rate outer.half_life outer.clip outer.max_gradient_norm "
            "objective.entropy_weight objective.value_weight objective.discount "
            "objective.gae_lambda",
        ),
        slow(
            "dqn",
            {"updates": 2, "batch": 5, "replay_capacity": 60, "target_period": 3},
            "outer.learning_rate inner.rule.learning_rate inner.objective.discount epsilon "
            "inner.objective.error_clip",
        ),
    ],
)
def test_two_values_side_by_side_are_two_runs(name, options, swept):
    numbers = hyperparameters(ALGORITHMS[name], options)
    values = {n: SHARES * numbers[n] for n in swept.split()}
    together = jax.jit(jax.vmap(lambda values: updated(name, options, values)))(values)
    for run in range(len(SHARES)):
        alone = {n: float(x[run]) for n, x in values.items()}
        expected = jax.jit(lambda alone=alone: updated(name, options, alone))()
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
