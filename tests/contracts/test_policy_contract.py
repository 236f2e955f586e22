"""What every policy promises."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax.policies
from metajax.policies import (
    DiagonalNormal,
    conditioned,
    deterministic,
    gru,
    lstm,
    mlp,
    snail,
    squashed,
    transformer,
    variational,
    window,
)
from metajax.types import Continuous, Discrete, Policy, StepInput

TIME, SIZE = 6, 3

POLICIES = {
    "mlp": lambda space: mlp(SIZE, space, hidden=(4,)),
    "squashed": lambda space: squashed(SIZE, space, hidden=(4,)),
    "deterministic": lambda space: deterministic(SIZE, space, hidden=(4,)),
    "conditioned": lambda space: conditioned(SIZE, space, latent=2, hidden=(4,)),
    "gru": lambda space: gru(SIZE, space, width=4),
    "lstm": lambda space: lstm(SIZE, space, width=4, critic="separate", hidden=(4,)),
    "snail": lambda space: snail(SIZE, space, trial_length=TIME, filters=3, key_size=2),
    "transformer": lambda space: transformer(
        SIZE, space, trial_length=TIME, width=4, heads=2, layers=2, critic="separate"
    ),
    "variational": lambda space: variational(SIZE, space, latent=2, width=4, hidden=(4,)),
    "window": lambda space: window(SIZE, space, steps=3, hidden=(4,), critic="none"),
}
CONTINUOUS, DISCRETE = Continuous(2), Discrete(3)
# Both kinds of actions for one without and one with a memory.
BOUNDED = ("squashed", "deterministic")  # of continuous actions alone
CASES = [(name, DISCRETE) for name in POLICIES if name not in BOUNDED]
CASES += [(name, CONTINUOUS) for name in ("mlp", "conditioned", "gru", *BOUNDED)]


def test_every_policy_is_covered():
    factories = {
        name
        for name in metajax.policies.__all__
        if inspect.isfunction(factory := getattr(metajax.policies, name))
        and inspect.signature(factory).return_annotation is Policy
    }
    assert factories == POLICIES.keys()


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """Return a policy with a compiled `unroll`, its parameters, a sequence with an end halfway."""
    name, space = request.param
    policy = POLICIES[name](space)
    policy = policy._replace(unroll=jax.jit(policy.unroll))
    discrete = isinstance(space, Discrete)
    action = jnp.arange(TIME) % 3 if discrete else jnp.linspace(-1, 1, 2 * TIME).reshape(TIME, 2)
    sequence = StepInput(
        jax.random.normal(jax.random.key(1), (TIME, SIZE)),
        action,
        jnp.linspace(0, 1, TIME),
        jnp.arange(TIME) == 3,
    )
    return policy, jax.jit(policy.init)(jax.random.key(0)), sequence


def test_it_begins_without_lapack(case):
    """Whose kernels can wait for ever when several devices of a CPU call them at once."""
    assert "lapack" not in jax.jit(case[0].init).lower(jax.random.key(0)).as_text()


def leaves(policy, params, sequence):
    memory, output = policy.unroll(params, policy.initial_memory(), sequence)
    return jax.tree.leaves(memory), jax.tree.leaves(output)


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_unroll_is_a_scan_of_step(case):
    policy, params, sequence = case
    memory, output = jax.lax.scan(
        lambda memory, x: policy.step(params, memory, x), policy.initial_memory(), sequence
    )
    assert_close(leaves(policy, params, sequence), (memory, output))


@pytest.mark.parametrize("time", [2, TIME - 2])
def test_unroll_goes_on_where_it_stopped(case, time):
    policy, params, sequence = case
    first = jax.tree.map(lambda x: x[:time], sequence)
    second = jax.tree.map(lambda x: x[time:], sequence)
    memory, earlier = policy.unroll(params, policy.initial_memory(), first)
    memory, later = policy.unroll(params, memory, second)
    output = jax.tree.map(lambda *x: jnp.concatenate(x), earlier, later)
    assert_close((memory, output), leaves(policy, params, sequence))


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
    """To what is said, or to a belief: actions do not train it."""
    policy, params, sequence = case
    is_belief = lambda x: isinstance(x, DiagonalNormal)

    def score(params):
        memory, output = policy.unroll(params, policy.initial_memory(), sequence)
        beliefs = filter(is_belief, jax.tree.leaves(memory, is_leaf=is_belief))
        action = jax.tree.map(jax.lax.stop_gradient, output.distribution.mode())
        chosen = action + 0.5 if jnp.issubdtype(action.dtype, jnp.floating) else action
        value = 0.0 if output.value is None else jnp.sum(output.value)
        value += sum(jnp.sum(belief.log_prob(jnp.ones_like(belief.mean))) for belief in beliefs)
        return jnp.sum(output.distribution.log_prob(chosen)) + value

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(score))(params)):
        assert np.all(np.isfinite(gradient)) and np.any(gradient), jax.tree_util.keystr(path)
