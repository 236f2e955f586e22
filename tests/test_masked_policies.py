"""Policies that know of impossible actions are trained like any other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trials import batch_of

from metajax.adaptation import gradient_steps, policy_gradient
from metajax.algorithms import dqn, maml, rl2
from metajax.envs import make
from metajax.outer import ppo, trpo
from metajax.policies import Categorical, gru, mlp
from metajax.rules import sgd
from metajax.runs.recorder import training_returns
from metajax.types import PolicyOutput

FAMILY = make("gaussian-bandit", arms=4, reward_std=0.1, episode_length=2)
POSSIBLE = jnp.array([True, False, True, True])
TASKS = 2


def masked(policy):
    """Return a policy that never takes an impossible action."""

    def hide(function):
        def of_possible(params, memory, step_input):
            memory, output = function(params, memory, step_input)
            logits = jnp.where(POSSIBLE, output.distribution.logits, -jnp.inf)
            return memory, PolicyOutput(Categorical(logits), output.value)

        return of_possible

    return policy._replace(step=hide(policy.step), unroll=hide(policy.unroll))


PERCEPTRON = partial(mlp, hidden=(3,))


def by(outer, estimator="likelihood_ratio"):
    inner = gradient_steps(policy_gradient(estimator), rule=sgd(1.0))
    return {"inner": inner, "outer": outer, "episodes": 3}


EPOCHS = ppo(epochs=4, clip=0.2, max_gradient_norm=1.0)
VARIANTS = {
    "maml by trpo": (maml, PERCEPTRON, by(trpo(cg_iterations=3))),
    "maml by ppo": (maml, PERCEPTRON, by(ppo(), "dice")),
    "rl2": (rl2, partial(gru, width=3), {"episodes": 2, "outer": EPOCHS}),
    "dqn": (dqn, PERCEPTRON, {"episodes": 2, "updates": 2, "batch": 4, "replay_capacity": 8}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_masked_policy_is_trained(variant):
    """Everything is finite, something is learned, and the impossible arm is worth nothing.

    That arm gives what nobody could miss: no return would be below 0 if it was never pulled.
    """
    factory, policy, options = VARIANTS[variant]
    env = FAMILY.env
    algorithm = factory(env, masked(policy(1, env.action_space)), **options)
    update = jax.jit(algorithm.update)
    tasks = batch_of({"mean": jnp.tile(jnp.array([1.0, -1e6, 2.0, 3.0]), (TASKS, 1))})
    state = start = algorithm.init(jax.random.key(0), tasks)
    for key in range(2):
        state, metrics = update(state, tasks, jax.random.key(key))
        floats = [x for x in jax.tree.leaves((state, metrics)) if jnp.issubdtype(x.dtype, float)]
        assert all(np.all(np.isfinite(x)) for x in floats)
        assert min(training_returns(metrics)) > 0
    changed = jax.tree.map(lambda a, b: jnp.any(a != b), state.meta_params, start.meta_params)
    assert any(jax.tree.leaves(changed))
