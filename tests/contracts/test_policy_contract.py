"""What every policy promises."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax.policies
from metajax.policies import mlp
from metajax.types import Continuous, Discrete, Policy, StepInput

TIME, SIZE = 6, 3

POLICIES = {"mlp": lambda space: mlp(SIZE, space, hidden=(4,))}
SPACES = [Continuous(2), Discrete(3)]


def test_every_policy_is_covered():
    factories = {
        name
        for name in metajax.policies.__all__
        if inspect.isfunction(factory := getattr(metajax.policies, name))
        and inspect.signature(factory).return_annotation is Policy
    }
    assert factories == POLICIES.keys()


@pytest.fixture(params=[(name, space) for name in POLICIES for space in SPACES], ids=str)
def case(request):
    """Return a policy, its parameters and a sequence that ends an episode halfway."""
    name, space = request.param
    policy = POLICIES[name](space)
    discrete = isinstance(space, Discrete)
    action = jnp.arange(TIME) % 3 if discrete else jnp.linspace(-1, 1, 2 * TIME).reshape(TIME, 2)
    sequence = StepInput(
        jax.random.normal(jax.random.key(1), (TIME, SIZE)),
        action,
        jnp.linspace(0, 1, TIME),
        jnp.arange(TIME) == 3,
    )
    return policy, policy.init(jax.random.key(0)), sequence


def leaves(policy, params, sequence):
    memory, output = policy.unroll(params, policy.initial_memory(), sequence)
    return jax.tree.leaves(memory), jax.tree.leaves(output)


def test_unroll_is_a_scan_of_step(case):
    policy, params, sequence = case
    memory, output = jax.lax.scan(
        lambda memory, x: policy.step(params, memory, x), policy.initial_memory(), sequence
    )
    found_memory, found_output = leaves(policy, params, sequence)
    for a, b in zip(found_memory, jax.tree.leaves(memory), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(found_output, jax.tree.leaves(output), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("time", [1, TIME - 1])
def test_the_future_does_not_reach_the_past(case, time):
    policy, params, sequence = case
    changed = jax.tree.map(
        lambda x: x.at[time:].set(~x[time:] if x.dtype == bool else x[time:] + 1), sequence
    )
    (_, before), (_, after) = (leaves(policy, params, s) for s in (sequence, changed))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a[:time], b[:time])
    moved = [not np.array_equal(a[time:], b[time:]) for a, b in zip(before, after, strict=True)]
    assert any(moved)


def test_every_parameter_matters(case):
    policy, params, sequence = case

    def score(params):
        _, output = policy.unroll(params, policy.initial_memory(), sequence)
        action = jax.tree.map(jax.lax.stop_gradient, output.distribution.mode())
        chosen = action + 0.5 if jnp.issubdtype(action.dtype, jnp.floating) else action
        return jnp.sum(output.distribution.log_prob(chosen))

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.grad(score)(params)):
        assert np.all(np.isfinite(gradient)) and np.any(gradient), jax.tree_util.keystr(path)
