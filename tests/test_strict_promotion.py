"""Whoever forbids JAX to mix types can use all of this package."""

from functools import partial

import jax
import numpy as np
import pytest

from metajax.adaptation import (
    bilevel,
    evidence_lower_bound,
    gradient_steps,
    policy_gradient,
    q_prop,
    two_phases,
    value_network,
)
from metajax.algorithms import ALGORITHMS, off_policy_rl2
from metajax.envs import FAMILIES, make
from metajax.envs.rollouts import check_env
from metajax.envs.splits import finite, sample_tasks
from metajax.outer import amago, ppo
from metajax.policies import conditioned, deterministic, gru, mlp, snail, squashed, variational
from metajax.training import Evaluation, train

LENGTH, TASKS, EPISODES = 4, 4, 2
EVALUATION = Evaluation(tasks=2, rounds=2, episodes=1, final_tasks=2, deterministic=True)
CONTINUOUS = make("point-goal", episode_length=LENGTH)
DISCRETE = make("tabular", states=3, actions=2, episode_length=LENGTH)
REPLAY = {"updates": 2, "batch": 2, "replay_capacity": 64}
OPTIONS = {
    "maml": {
        "outer": ppo(),
        "inner": gradient_steps(policy_gradient(critic=value_network(hidden=(4,)))),
    },
    "learned-optimizer": {"lifetime": 2, "unroll": 1},
    "q-prop": {
        "inner": gradient_steps(
            policy_gradient(gae_lambda=0.97, control_variate=q_prop(updates=2, replay_capacity=64))
        )
    },
    "dqn": REPLAY,
    "sac": {"batch": 2, "replay_capacity": 64, "random_steps": 2},
    "td3": {"batch": 2, "replay_capacity": 64, "random_steps": 2},
    "pearl": {"updates": 1, "meta_batch": 2, "batch": 2, "context": 2},
    "off-policy-rl2": {"batch": 2, "replay_capacity": 8, "random_trials": 2},
    "mql": {
        "adaptation": two_phases(kept_steps=4, batch=2),
        "history": 2,
        "batch": 2,
        "replay_capacity": 64,
        "random_steps": 2,
    },
    "maml-dqn": REPLAY,
    "varibad": {
        "model": evidence_lower_bound(state_weight=1.0),
        "vae_batch": 2,
        "replay_capacity": 4,
    },
}
POLICIES = {
    "sac": partial(squashed, hidden=(4,)),
    "td3": partial(deterministic, hidden=(4,)),
    "pearl": partial(conditioned, hidden=(4,)),
    "mql": partial(conditioned, latent=3, actions="deterministic", hidden=(4,)),
    "rl2": partial(gru, width=4),
    "snail": partial(
        snail,
        trial_length=EPISODES * LENGTH,
        filters=2,
        key_size=2,
        value_size=2,
        critic="separate",
    ),
    "off-policy-rl2": partial(gru, width=4, critic="none", actions="squashed"),
    "varibad": partial(variational, latent=2, width=4, hidden=(4,)),
}


def algorithm_of(name):
    family = DISCRETE if "dqn" in name or name == "rl2" else CONTINUOUS
    policy = POLICIES.get(name, partial(mlp, hidden=(4,), context=2 * (name == "cavia")))
    env = family.env
    options = {"episodes": EPISODES} | OPTIONS.get(name, {})
    if name == "pearl":
        del options["episodes"]
        family = family._replace(train=finite(family.train, 4))
    policy = policy(env.observation_size, env.action_space)
    return ALGORITHMS[name](env, policy, **options), family


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maml", "rl2", "dqn", "mql"])
def test_training_mixes_no_types(name):
    options = {"iterations": 1, "tasks": TASKS, "segment": 1, "devices": 1}
    with jax.numpy_dtype_promotion("strict"):
        result = train(*algorithm_of(name), evaluation=EVALUATION, **options)
    assert not np.any(result.state.discarded) and np.all(np.isfinite(result.returns))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_algorithm_mixes_types(name):
    with jax.numpy_dtype_promotion("strict"):
        algorithm, family = algorithm_of(name)

        def both(key):
            tasks = sample_tasks(family.train, key, TASKS)
            return algorithm.update(algorithm.init(key, tasks), tasks, key)

        jax.eval_shape(both, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("head", ["scalar", "popart", "two_hot"])
def test_no_value_head_mixes_types(head, discrete):
    family = DISCRETE if discrete else CONTINUOUS
    sizes = family.env.observation_size, family.env.action_space
    options = OPTIONS["off-policy-rl2"] | {"episodes": EPISODES, "exploration": bilevel()}
    with jax.numpy_dtype_promotion("strict"):
        algorithm = off_policy_rl2(
            family.env,
            POLICIES["off-policy-rl2"](*sizes),
            learner=amago(value_head=head, hidden=(4,)),
            **options,
        )

        def both(key):
            tasks = sample_tasks(family.train, key, TASKS)
            return algorithm.update(algorithm.init(key, tasks), tasks, key)

        jax.eval_shape(both, jax.random.key(0))


@pytest.mark.parametrize("name", [name for name, spec in FAMILIES.items() if spec.package is None])
def test_no_family_mixes_types(name):
    """Engines, which do, are traced on their own terms."""
    with jax.numpy_dtype_promotion("strict"):
        family = make(name)
        for tasks in (family.train, family.test, family.extrapolate):
            if tasks is not None:
                jax.eval_shape(tasks.sample, jax.random.key(0))
        check_env(family.env, jax.eval_shape(family.train.sample, jax.random.key(0)))
