"""The adaptation curve: which tasks, which rounds, which actions; and how it is summed up."""

import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.algorithms import maml
from metajax.envs import make
from metajax.envs.splits import finite as finite_tasks
from metajax.envs.splits import is_held_out, on_split, two_splits, uniform
from metajax.envs.tabular import tabular
from metajax.errors import MetajaxError
from metajax.evaluation import adaptation_curve, evaluate, hurtful_steps, interquartile_mean
from metajax.policies import mlp
from metajax.types import Agent, Continuous, Env, EnvState, PolicyOutput, TaskFamily

LENGTH = 2


def scoreboard() -> TaskFamily:
    """Return a family whose reward is the task plus the action: returns tell what happened."""

    def reset(key, task):
        no = jnp.zeros((), bool)
        return EnvState(jnp.zeros(1), jnp.zeros(()), no, no, jnp.zeros((), jnp.int32), task, ())

    def step(state, action):
        time, no = state.time + 1, jnp.zeros((), bool)
        reward = state.task["score"] + action[0]
        return EnvState(state.observation, reward, no, time == LENGTH, time, state.task, ())

    env = Env(reset, step, 1, Continuous(1, -np.inf, np.inf), LENGTH)
    draw = lambda key, split: {"score": uniform(key, 0.0, 1.0, split=split)}
    return TaskFamily(env, *two_splits(draw), "board")


def counting_agent(memory=()) -> Agent:
    """Return an agent that acts 10 · (times adapted), 1000 in its mode, 1 per step remembered.

    It adapts by one if the episodes it learns from hold no mode.
    """

    def act(adapted, memory, step_input, key):
        remembered = sum(jax.tree.leaves(memory), jnp.zeros(()))
        action = jnp.where(key is None, 1000.0, 10.0 * adapted) + remembered
        return jax.tree.map(lambda x: x + 1, memory), action[None], PolicyOutput(())

    def adapt(meta_params, adapted, trajectory, key):
        return adapted + meta_params * jnp.all(trajectory.action < 1000)

    return Agent(lambda meta_params, key: jnp.zeros(()), lambda: memory, act, adapt)


def curve(agent, family, key=0, **options):
    options = {"tasks": 6, "rounds": 3, "episodes": 4} | options
    returns = evaluate(agent, family, jnp.ones(()), jax.random.key(key), **options)
    assert returns.shape == (options["tasks"], options["rounds"], options["episodes"])
    return np.asarray(returns)


def test_round_k_is_played_after_k_adaptations_on_held_out_tasks():
    returns = curve(counting_agent(), scoreboard())
    tasks = returns[:, 0, 0] / LENGTH
    assert np.all(is_held_out(jnp.asarray(tasks), 0.0, 1.0)) and len(set(tasks)) == 6
    expected = LENGTH * (tasks[:, None, None] + 10 * np.arange(3)[:, None])
    np.testing.assert_allclose(returns, np.broadcast_to(expected, returns.shape), rtol=1e-6)


def test_other_keys_draw_other_tasks():
    one, again, other = (curve(counting_agent(), scoreboard(), key=key) for key in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.any(np.isin(one[:, 0, 0], other[:, 0, 0]))


def test_mode_is_scored_but_not_learnt_from():
    returns = curve(counting_agent(), scoreboard(), mode=True)
    assert np.all(returns >= 1000 * LENGTH)
    # Had it adapted on its modes, sampled actions would stay where they were; see the next round.
    family = scoreboard()
    seen = []

    def adapt(meta_params, adapted, trajectory, key):
        seen.append(trajectory.action.shape)
        return adapted + jnp.mean(trajectory.action) + 1

    def act(adapted, memory, step_input, key):
        return memory, jnp.where(key is None, adapted, 0.0)[None], PolicyOutput(())

    agent = Agent(lambda meta_params, key: jnp.zeros(()), tuple, act, adapt)
    returns = curve(agent, family, mode=True)
    steps = (returns - returns[:, :1]) / LENGTH
    np.testing.assert_allclose(
        steps, np.broadcast_to(np.arange(3)[:, None], steps.shape), atol=1e-5
    )
    assert seen == [(4, LENGTH, 1)]


@pytest.mark.parametrize("mode", [False, True])
def test_memory_lives_through_the_whole_trial(mode):
    returns = curve(counting_agent(memory=jnp.zeros(())), scoreboard(), mode=mode)
    rounds, episodes = np.arange(3)[:, None], np.arange(12).reshape(3, 4)
    expected = LENGTH * (1000 if mode else 10 * rounds) + 4 * episodes + 1
    task = returns[:, :1, :1] - expected[0, 0]
    assert np.all((task >= 0) & (task <= LENGTH))
    np.testing.assert_allclose(returns - task, np.broadcast_to(expected, returns.shape), rtol=1e-5)


@pytest.mark.parametrize("rounds", [1, 2, 6])
def test_who_is_scored_by_its_mode_remembers_modes(rounds):
    """However a trial is cut into rounds."""

    def act(memory_, memory, step_input, key):
        del memory_
        mode = jnp.asarray(float(key is None))
        return memory + mode, memory[None], PolicyOutput(())

    agent = Agent(lambda *_: (), lambda: jnp.zeros(()), act, lambda _, adapted, *rest: adapted)
    returns = curve(agent, scoreboard(), mode=True, rounds=rounds, episodes=6 // rounds)
    np.testing.assert_allclose(np.diff(returns.reshape(6, 6)), LENGTH**2, rtol=1e-5)


def test_of_finitely_many_tasks_each_is_played_as_often():
    both = finite_tasks({"score": jnp.array([3.0, 5.0])})
    family = scoreboard()._replace(test=both)
    tasks = curve(counting_agent(), family)[:, 0, 0] / LENGTH
    assert sorted(tasks) == [3, 3, 3, 5, 5, 5]


@pytest.mark.parametrize("baseline", ["linear", "value_network", "none"])
def test_other_rounds_and_episodes_than_in_training(baseline):
    family = tabular(states=2, actions=2, episode_length=3)
    policy = mlp(2, family.env.action_space, hidden=())
    algorithm = maml(family.env, policy, episodes=2, baseline=baseline, critic_hidden=(4,))
    meta_params = algorithm.init(jax.random.key(0), None).meta_params
    play = jax.jit(
        lambda key: evaluate(
            algorithm.agent, family, meta_params, key, tasks=3, rounds=3, episodes=5
        )
    )
    returns = play(jax.random.key(1))
    assert returns.shape == (3, 3, 5) and jnp.all(jnp.isfinite(returns))


# --- summaries -----------------------------------------------------------------------------------


def test_interquartile_mean_by_hand():
    returns = np.array([[100.0, 1, 2, 3, 4, 5, 6, -100]])
    assert interquartile_mean(returns).mean == 3.5  # of 2, 3, 4 and 5
    # Over two seeds the middle half is that of all sixteen.
    returns = np.array([[0.0, 1, 2, 3, 4, 5, 6, 7], [10, 11, 12, 13, 14, 15, 16, 17]])
    assert interquartile_mean(returns).mean == np.mean([4, 5, 6, 7, 10, 11, 12, 13])


def test_the_interval_is_a_bootstrap_within_seeds():
    rng = np.random.default_rng(0)
    returns = np.stack([rng.normal(size=40), 10 + rng.normal(size=40)])
    found = interquartile_mean(returns)
    means = []
    for _ in range(4000):
        drawn = np.concatenate([rng.choice(seed, len(seed)) for seed in returns])
        drawn.sort()
        means.append(drawn[20:60].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    width = high - low
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.1 * width)
    assert found.low < found.mean < found.high


def test_many_tasks_are_resampled_a_few_at_a_time(monkeypatch):
    """Memory does not grow with resamples times tasks, and the interval does not change."""
    returns = np.random.default_rng(0).normal(size=(1, 1000))
    at_once = interquartile_mean(returns)
    monkeypatch.setattr(sys.modules["metajax.evaluation"], "_RESAMPLED", 20_000)
    tracemalloc.start()
    try:
        assert interquartile_mean(returns) == at_once
        assert tracemalloc.get_traced_memory()[1] < 2000 * returns.nbytes / 10
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("returns", [np.full((2, 5), 3.0), np.array([[3.0]])])
def test_without_spread_there_is_no_interval(returns):
    assert interquartile_mean(returns) == (3, 3, 3)


def test_adaptation_curve_is_per_round_over_means_of_episodes():
    returns = np.zeros((2, 8, 3, 4))
    returns += 10 * np.arange(3)[:, None] + np.array([-3.0, -1, 1, 3])
    found = adaptation_curve(returns)
    assert [s.mean for s in found] == [0, 10, 20]


def test_another_split_takes_the_place_of_the_held_out_tasks():
    family = make("halfcheetah-vel", backend="mujoco")
    keys = jax.random.split(jax.random.key(0), 50)
    beyond = jax.vmap(on_split(family, "extrapolate").test.sample)(keys)["velocity"]
    assert beyond.min() > 2 and beyond.max() <= 2.5
    assert on_split(family, "train").test is family.train
    assert on_split(family, "test") == family
    with pytest.raises(MetajaxError, match="halfcheetah-dir-v1 has no tasks to extrapolate to"):
        on_split(make("halfcheetah-dir", backend="mujoco"), "extrapolate")
    with pytest.raises(MetajaxError, match="unknown split 'tests'; did you mean 'test'"):
        on_split(family, "tests")


def test_steps_that_hurt():
    """Only those whose interval lies below that of step 0; not those that merely help less."""
    rng = np.random.default_rng(0)
    means = np.array([0.0, 3.0, -0.05, -2.0])
    returns = means[None, None, :, None] + rng.normal(size=(2, 50, 4, 3))
    assert hurtful_steps(adaptation_curve(returns)) == [3]
    assert hurtful_steps(adaptation_curve(returns[:, :, :2])) == []
