"""Agents that learn in their memory, on bandits whose Bayes optimum is known."""

import dataclasses

import jax
import numpy as np
import pytest
from test_reference_agents import bayes_optimum

from metajax.algorithms import rl2
from metajax.envs import make
from metajax.envs.rollouts import rollout
from metajax.outer import ppo
from metajax.policies import gru
from metajax.training import train
from metajax.training.evaluation import evaluate
from metajax.types import MetaParams

ARMS, PULLS, TASKS = 2, 6, 20_000


@pytest.fixture(scope="module")
def trained():
    """Return a family, an agent and its parameters after 200 000 pulls."""
    family = make("bernoulli-bandit", arms=ARMS)
    policy = gru(family.env.observation_size, family.env.action_space, width=16)
    outer = ppo(5e-3, epochs=4, minibatches=4, clip=0.2, max_gradient_norm=1.0)
    algorithm = rl2(family.env, policy, outer=outer, episodes=PULLS)
    result = train(
        algorithm, family, iterations=80, tasks=400, segment=80, evaluation=None, devices=1
    )
    return family, algorithm.agent, result.meta_params()


def total(family, agent, params):
    """Return the mean payment of a trial, and its standard error."""
    size = {"tasks": TASKS, "rounds": 1, "episodes": PULLS}
    play = jax.jit(lambda key: evaluate(agent, family, params, key, **size))
    paid = np.asarray(play(jax.random.key(3)), np.float64).sum(axis=(1, 2))
    return paid.mean(), paid.std() / np.sqrt(TASKS)


def test_it_is_nearly_optimal_and_not_more(trained):
    best = bayes_optimum(PULLS, ((0, 0),) * ARMS)
    paid, error = total(*trained)
    print(f"{paid:.3f} ± {error:.3f}, at best {best:.3f}, at random {PULLS / 2}")
    assert best - 0.15 < paid < best + 3 * error


def test_who_hears_no_rewards_learns_nothing(trained):
    family, agent, params = trained

    def act(adapted, memory, step_input, key):
        deaf = dataclasses.replace(step_input, previous_reward=0 * step_input.previous_reward)
        return agent.act(adapted, memory, deaf, key)

    paid, error = total(family, agent._replace(act=act), params)
    assert abs(paid - PULLS / 2) < 3 * error


def test_what_the_environment_does_not_read_of_a_task_changes_nothing():
    """An agent plays the same trial whatever label its task has."""
    env = (family := make("gridnav")).env
    policy = gru(env.observation_size, env.action_space, width=8)
    agent = rl2(env, policy, episodes=3).agent
    params = MetaParams(policy.init(jax.random.key(0)), mean_square_reward=np.float32(1))
    task = family.test.sample(jax.random.key(1))

    @jax.jit
    @jax.vmap
    def play(label):
        act = lambda memory, x, key: agent.act(params, memory, x, key)
        start, labelled = agent.initial_memory(), task | {"label": label}
        played = rollout(jax.random.key(2), env, labelled, act, start, episodes=3)
        return dataclasses.replace(played, initial_state=None)

    for x in jax.tree.leaves(play(np.arange(5))):
        np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))
