"""Agents that a memory is measured by, against closed forms and enumeration."""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax import reference_agents as known
from metajax.envs import make
from metajax.envs.families.tabular import tabular
from metajax.envs.rollouts import check_env, rollout
from metajax.envs.splits import sample_batch
from metajax.policies import window
from metajax.training.evaluation import evaluate
from metajax.types import Discrete, StepInput

KEY = jax.random.key(0)


@functools.cache
def bayes_optimum(left: int, counts: tuple[tuple[int, int], ...]) -> float:
    """Return the expected payment of so many pulls of the best agent there is.

    Args:
        left: pulls.
        counts: wins and losses of each arm, under a uniform prior.
    """
    if left == 0:
        return 0.0
    values = []
    for arm, (wins, losses) in enumerate(counts):
        chance = (wins + 1) / (wins + losses + 2)

        def after(won, arm=arm, wins=wins, losses=losses):
            new = (wins + won, losses + 1 - won)
            return bayes_optimum(left - 1, (*counts[:arm], new, *counts[arm + 1 :]))

        values.append(chance * (1 + after(1)) + (1 - chance) * after(0))
    return max(values)


def total(pulls: int, choose, *, arms: int = 2, tasks: int = 20_000):
    family = make("bernoulli-bandit", arms=arms)
    agent = known.bandit_agent(arms, choose)
    size = {"tasks": tasks, "rounds": 1, "episodes": pulls}
    paid = np.asarray(jax.jit(lambda key: evaluate(agent, family, (), key, **size))(KEY))
    paid = paid.sum(axis=(1, 2), dtype=np.float64)
    return paid.mean(), paid.std() / np.sqrt(tasks)


def test_the_optimum_is_the_published_one():
    assert abs(bayes_optimum(10, ((0, 0),) * 5) - 6.660) < 5e-4


def test_index_by_hand():
    """Of the last pull: the mean. Of two: ν with 2ν = (1 + max(⅔, ν)) / 2 + max(⅓, ν) / 2."""
    table = known.index_table(2, resolution=1000)
    for wins, losses in ((0, 0), (1, 0), (0, 1)):
        expected = (wins + 1) / (wins + losses + 2)
        np.testing.assert_allclose(table[1, wins, losses], expected, atol=1e-6)
    np.testing.assert_allclose(table[2, 0, 0], 5 / 9, atol=1e-6)


def test_what_is_known_to_be_good_is_nearly_optimal_and_not_more():
    pulls, best = 6, bayes_optimum(6, ((0, 0),) * 2)
    index = jnp.asarray(known.index_table(pulls))
    by_index, error = total(pulls, functools.partial(known.by_index, index))
    assert abs(by_index - best) < 0.01 + 3 * error
    confident, error = total(pulls, functools.partial(known.upper_confidence, 0.1))
    assert best - 0.1 < confident < best + 3 * error
    sampled, error = total(pulls, known.thompson)
    assert pulls / 2 + 0.2 < sampled < best - 3 * error
    blind, error = total(pulls, known.at_random)
    assert abs(blind - pulls / 2) < 3 * error


def test_greedy_and_nearly_greedy():
    wins, losses = jnp.array([3.0, 0.0, 1.0]), jnp.array([0.0, 3.0, 1.0])
    keys = jax.random.split(KEY, 2000)
    assert known.greedy(wins, losses, KEY) == 0
    assert known.greedy(losses, losses, KEY) == 0  # the first of equals
    choose = lambda key: known.epsilon_greedy(0.3, wins, losses, key)
    assert abs(float(jnp.mean(jax.vmap(choose)(keys) != 0)) - 0.2) < 0.03


@pytest.fixture(scope="module")
def process():
    family = tabular(states=2, actions=2, episode_length=3)
    return family, family.train.sample(jax.random.key(1))


def test_backward_induction_is_the_best_of_all_plans(process):
    _, task = process
    solved = known.backward_induction(task["reward"], lambda v: task["transition"] @ v, 3)
    transition, reward = np.asarray(task["transition"]), np.asarray(task["reward"])
    values = []
    for plan in itertools.product(range(2), repeat=6):  # of every step and state
        value = np.zeros(2)
        for step in reversed(np.reshape(plan, (3, 2))):
            value = np.array([reward[s, a] + transition[s, a] @ value for s, a in enumerate(step)])
        values.append(value[0])
    np.testing.assert_allclose(solved[0][0], max(values), rtol=1e-6)


@pytest.mark.parametrize("plan", [known.psrl, lambda *a: known.ucrl2(a[0], 0.01, *a[1:])])
def test_who_has_seen_much_plans_as_who_knows(process, plan):
    _, task = process
    best = known.backward_induction(task["reward"], lambda v: task["transition"] @ v, 3)[1]
    seen = 1e7
    counts = {"visits": seen * task["transition"], "reward": seen * task["reward"]}
    np.testing.assert_array_equal(plan(3, counts, KEY), best)


def test_optimism_moves_half_the_width_to_the_best_state():
    """One action, nothing known but where it led: (.5, .5); values 0 and 1 for one step more."""
    counts = {"visits": jnp.full((2, 1, 2), 8.0), "reward": jnp.array([[0.0], [16.0]])}
    # Without a width for rewards the second state pays 1, the first nothing.
    steps, actions, states = 32.0, 1, 2
    width = 0.1 * np.sqrt(14 * states * np.log(2 * actions * steps / 0.05) / 16)
    bonus = 0.1 * np.sqrt(7 * np.log(2 * states * actions * steps / 0.05) / (2 * 16))
    last = np.array([bonus, 1 + bonus])
    expected = bonus + (0.5 - width / 2) * last[0] + (0.5 + width / 2) * last[1]
    reward, optimistic = known.optimistic_process(0.1, counts)
    assert steps == counts["visits"].sum()
    value, _ = known.backward_induction(reward, optimistic, 2)
    np.testing.assert_allclose(value[0], expected, rtol=1e-6)


def test_a_process_is_counted_as_it_was_played(process):
    family, task = process
    agent = known.process_agent(2, 2, 3, lambda counts, key: jnp.zeros((3, 2), jnp.int32))
    adapted = agent.init((), KEY)
    act = lambda memory, x, key: agent.act(adapted, memory, x, key)
    played = rollout(KEY, family.env, task, act, agent.initial_memory(), episodes=4)
    counts = agent.adapt((), adapted, played, KEY)["counts"]
    assert counts["visits"].sum() == 12 and counts["visits"][:, 1].sum() == 0
    np.testing.assert_allclose(counts["reward"].sum(), played.reward.sum(), rtol=1e-5)
    states = np.argmax(played.step_input.observation, axis=-1)
    moved = sum(int(a == 0 and b == 1) for row in states for a, b in itertools.pairwise(row))
    ended = int(np.sum((states[:, -1] == 0) & (played.final_input.observation[:, 1] == 1)))
    assert counts["visits"][0, 0, 1] == moved + ended


def test_oracle_velocity_is_the_last_observation():
    family = known.oracle_velocity(make("halfcheetah-vel", backend="mujoco"))
    task = {"velocity": jnp.asarray(1.5)}
    check_env(family.env, task)
    state = jax.jit(family.env.reset)(KEY, task)
    stepped = jax.jit(family.env.step)(state, jnp.zeros(6))
    assert state.observation[-1] == stepped.observation[-1] == 1.5
    bare = make("halfcheetah-vel", backend="mujoco").env
    assert np.array_equal(state.observation[:-1], jax.jit(bare.reset)(KEY, task).observation)


def test_observations_only_ignores_all_other_input():
    policy = window(3, Discrete(2), steps=1)
    params, memory = policy.init(KEY), policy.initial_memory()
    said = lambda policy, x: policy.step(params, memory, x)[1].value
    silence = StepInput(jnp.ones(3), jnp.zeros((), int), jnp.zeros(()), jnp.zeros((), bool))
    noise = StepInput(jnp.ones(3), jnp.ones((), int), jnp.ones(()), jnp.ones((), bool))
    assert (
        said(known.observations_only(policy), noise)
        == said(known.observations_only(policy), silence)
        == said(policy, silence)
    )
    assert said(policy, noise) != said(policy, silence)
    assert said(known.observations_only(policy), silence) != said(
        known.observations_only(policy), replace(silence, observation=jnp.ones(3) * 2)
    )


def test_the_whole_prior_is_uniform():
    def chance_of_uniform(family, arm):
        probability = sample_batch(family.test, KEY, 20_000)["probability"][:, arm]
        return scipy.stats.kstest(probability, "uniform").pvalue

    whole, held_out = known.whole_prior("bernoulli-bandit"), make("bernoulli-bandit")
    assert chance_of_uniform(held_out, 0) < 1e-3
    assert chance_of_uniform(whole, 0) > 1e-3 and chance_of_uniform(whole, 1) > 1e-3
