"""Agents outside the program see, sample and learn what agents inside it do."""

import dataclasses
import gc
import tracemalloc

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.adaptation import gradient_steps, policy_gradient, product_of_gaussians, two_phases
from metajax.deployment import KEPT_EPISODES, simulate
from metajax.envs.splits import sample_tasks
from metajax.outer import sac, td3
from metajax.policies import conditioned, gru
from metajax.training.evaluation import evaluate_on
from metajax.types import Agent, PolicyOutput

EPISODES, LENGTH = 3, 6


@pytest.fixture(scope="module")
def setup():
    family = metajax.make("point-goal", episode_length=LENGTH)
    policy = metajax.mlp(2, family.env.action_space, hidden=(8,), initial_std=0.2)
    # Six steps are too few for a well-conditioned linear critic in float32.
    inner = gradient_steps(policy_gradient(critic=None))
    outer = metajax.outer.adam()
    algorithm = metajax.maml(family.env, policy, inner=inner, outer=outer, episodes=EPISODES)
    task = family.test.sample(jax.random.key(0))
    state = algorithm.init(jax.random.key(1), sample_tasks(family.train, jax.random.key(0), 1))
    return family.env, algorithm.agent, state.meta_params, task


def play_on_host(host, env, task, keys, **options):
    """Play episodes of the environment's own step; return their undiscounted returns."""
    step = jax.jit(env.step)
    totals = []
    for reset_key in keys:
        state, total, end = env.reset(reset_key, task), 0.0, False
        while not end:
            control = host.act(np.asarray(state.observation), **options)
            state = step(state, control)
            outcome = (float(state.reward), bool(state.terminated), bool(state.truncated))
            host.observe(np.asarray(state.observation), *outcome)
            total += outcome[0]
            end = outcome[1] or outcome[2]
        totals.append(total)
    return totals


def test_host_and_program_take_the_same_trial(setup, monkeypatch):
    env, agent, meta_params, task = setup
    key = jax.random.key(2)
    adapted = agent.init(meta_params, key)

    def act(memory, step_input, key):
        return agent.act(adapted, memory, step_input, key)

    trajectory = metajax.rollout(key, env, task, act, (), episodes=EPISODES, parallel=True)
    inside = agent.adapt(meta_params, adapted, trajectory, key)

    episode_keys = [jax.random.split(k) for k in jax.random.split(key, EPISODES)]
    action_keys = iter(
        [jax.random.fold_in(act_key, t) for _, act_key in episode_keys for t in range(LENGTH)]
    )
    host = simulate(agent, env, meta_params)
    monkeypatch.setattr(host, "_next_key", lambda: next(action_keys, key))
    totals = play_on_host(host, env, task, [reset_key for reset_key, _ in episode_keys])
    host.adapt()

    np.testing.assert_allclose(totals, trajectory.reward.sum(-1), rtol=1e-5)
    before = jax.tree.leaves(adapted.policy)
    for a, b, start in zip(
        jax.tree.leaves(host.adapted.policy), jax.tree.leaves(inside.policy), before, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert not np.array_equal(a, start)


class Plane(gymnasium.Env):
    """`point-sparse` with a dense reward, in NumPy: what an agent of it meets outside."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float32)

    def __init__(self, goal, early):
        self.goal, self.early = np.asarray(goal, np.float64), early

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.time = np.zeros(2), 0
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.position, self.time = self.position + np.clip(action, -0.1, 0.1), self.time + 1
        reward = -np.linalg.norm(self.position - self.goal)
        observation = self.position.astype(np.float32)
        terminated = bool(self.early and abs(self.position[0]) > 0.04)
        return observation, reward, terminated, self.time == LENGTH, {}


def plane(early):
    """Return the family, whose episodes may end early as those of `Plane` do."""
    family = metajax.make("point-sparse", variant="pearl", dense=True, episode_length=LENGTH)
    if not early:
        return family

    def step(state, action):
        after = family.env.step(state, action)
        return dataclasses.replace(after, terminated=jnp.abs(after.observation[0]) > 0.04)

    return family._replace(env=family.env._replace(step=step))


def pearl(env):
    encoder = product_of_gaussians(hidden=(6,), next_observation=True)
    policy = conditioned(2, env.action_space, latent=2, hidden=(5,))
    learner = sac(hidden=(5,), temperature=0.1)
    return metajax.pearl(env, policy, encoder=encoder, learner=learner, context=10)


def mql(env):
    policy = conditioned(2, env.action_space, latent=3, actions="deterministic", hidden=(5,))
    adaptation = two_phases(steps=3, replay_steps=2, batch=8, kept_steps=20)
    learner = td3(0.01, hidden=(5,))
    return metajax.mql(env, policy, learner=learner, adaptation=adaptation, history=2)


def off_policy_rl2(env):
    policy = gru(2, env.action_space, width=4, critic="none", actions="squashed")
    learner = sac(hidden=(4,))
    return metajax.off_policy_rl2(env, policy, learner=learner, batch=2, random_trials=2)


@pytest.mark.parametrize(
    ("learner", "early"),
    [
        (pearl, True),
        pytest.param(pearl, False, marks=pytest.mark.slow),
        pytest.param(mql, True, marks=pytest.mark.slow),
        (off_policy_rl2, True),
    ],
)
def test_in_gymnasium_a_trial_is_what_evaluation_plays(learner, early, monkeypatch):
    """The same meta-parameters, keys and task: the same return of every episode."""
    family, rounds = plane(early), 5
    algorithm = learner(family.env)
    tasks = sample_tasks(family.train, jax.random.key(0), 3)
    params = algorithm.init(jax.random.key(1), tasks).meta_params
    random = np.random.default_rng(0)
    apart = lambda x: x + jnp.asarray(random.normal(size=x.shape), x.dtype)
    params = jax.tree.map(lambda x: apart(x) if x.dtype == jnp.float32 else x, params)
    trials = jax.tree.map(lambda x: x[:1], tasks.task), jax.random.split(jax.random.key(2), 1)
    inside = evaluate_on(trials, algorithm.agent, family.env, params, rounds=rounds, episodes=1)

    host = simulate(algorithm.agent, family.env, params)
    monkeypatch.setattr(host, "_next_key", lambda: next(keys))
    init_key, rounds_key = jax.random.split(trials[1][0])
    keys = iter([init_key])
    host.reset()
    env, returns, steps = Plane(tasks.task["goal"][0], early), [], 0
    for round_key in jax.random.split(rounds_key, rounds):
        sample_key, adapt_key, _ = jax.random.split(round_key, 3)
        act_key = jax.random.split(jax.random.split(sample_key, 1)[0])[1]
        keys = iter([jax.random.fold_in(act_key, time) for time in range(LENGTH)])
        (observation, _), total, end = env.reset(), 0.0, False
        while not end:
            observation, reward, terminated, truncated, _ = env.step(host.act(observation))
            host.observe(observation, reward, terminated, truncated)
            total, end = total + reward, terminated or truncated
        returns.append(total)
        steps += env.time
        keys = iter([adapt_key])
        host.adapt()
    np.testing.assert_allclose(returns, inside.returns[0, :, 0], rtol=1e-4)
    assert len(set(returns)) == rounds, "it acts otherwise in every episode"
    assert (steps < rounds * LENGTH) == early, steps


def test_the_memory_of_an_episode_is_not_carried_into_the_next_one(setup):
    """Of an agent that counts its steps, the actions are counts."""
    env, *_ = setup

    def act(adapted, memory, step_input, key):
        count = memory + 0.01
        seen = step_input.previous_reward + step_input.previous_end
        return count, jnp.stack([count, 0.01 * seen]), PolicyOutput(jnp.zeros(()))

    adapt = lambda _, adapted, *rest: adapted
    agent = Agent(lambda *_: (), lambda: jnp.zeros(()), act, adapt, episodic=True)
    host, actions = simulate(agent, env, ()), []
    for t in range(2 * LENGTH):
        actions.append(host.act(np.zeros(2)))
        host.observe(np.zeros(2), 1.0, False, (t + 1) % LENGTH == 0)
    expected = 0.01 * np.stack([1 + np.arange(LENGTH), np.arange(LENGTH) > 0], axis=1)
    np.testing.assert_allclose(actions, np.tile(expected, (2, 1)), rtol=1e-5)


def test_an_early_end_is_padding(setup):
    env, agent, meta_params, _ = setup
    host = simulate(agent, env, meta_params)
    for length in (2, LENGTH):
        for t in range(length):
            host.act(np.zeros(2))
            host.observe(np.full(2, 0.1), -1.0, length == 2 and t == 1, t == LENGTH - 1)
    short, full = map(host._padded, host._complete)
    assert short.valid.tolist() == [True, True] + [False] * 4
    assert full.valid.all() and bool(full.truncated[-1])
    assert short.terminated.tolist() == [False, True] + [False] * 4
    assert float(short.reward.sum()) == -2.0
    assert not full.step_input.previous_end[0], "it starts as every episode does in the program"
    host.adapt()
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(host.adapted))


def test_deterministic_actions_repeat_and_reset_forgets(setup):
    env, agent, meta_params, task = setup
    host = simulate(agent, env, meta_params)
    first = play_on_host(host, env, task, [jax.random.key(0)] * 2, deterministic=True)
    assert first[0] == first[1]
    play_on_host(host, env, task, [jax.random.key(0)])
    host.adapt()
    assert play_on_host(host, env, task, [jax.random.key(0)], deterministic=True) != first[:1]
    host.reset()
    assert play_on_host(host, env, task, [jax.random.key(0)], deterministic=True) == first[:1]


def act_for(host, steps, *, end_every=LENGTH):
    for t in range(steps):
        host.act(np.zeros(2))
        host.observe(np.zeros(2), 1.0, False, (t + 1) % end_every == 0)


def held_bytes(host, steps) -> int:
    """Return how much more is held after `steps` steps than before them."""
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    act_for(host, steps)
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


@pytest.fixture
def remembering(setup):
    """An agent that counts its steps and the rewards it was given, on the host."""
    env, *_ = setup

    def act(adapted, memory, step_input, key):
        memory = memory + jnp.stack([jnp.ones(()), step_input.previous_reward])
        return memory, jnp.zeros(2), PolicyOutput(jnp.zeros(64), jnp.zeros(()))

    agent = Agent(lambda *_: (), lambda: jnp.zeros(2), act, lambda _, adapted, *rest: adapted)
    return simulate(agent, env, ())


def memory_stays(host, steps):
    act_for(host, 10 * LENGTH)
    tracemalloc.start()
    try:
        held_bytes(host, 10 * LENGTH)
        assert held_bytes(host, steps) < 2**16  # a byte a step would be more, in the long test
    finally:
        tracemalloc.stop()


def test_an_agent_with_a_memory_keeps_no_step(remembering):
    memory_stays(remembering, 2000 * LENGTH // 6)
    assert remembering._memory[0] - remembering._memory[1] == 1  # it was given every reward
    remembering.adapt()  # it has as it went


@pytest.mark.slow
def test_an_agent_with_a_memory_lives_in_constant_memory(remembering):
    memory_stays(remembering, 100_000 // LENGTH * LENGTH)


def test_an_agent_that_adapts_keeps_the_newest_episodes(setup):
    env, agent, meta_params, _ = setup
    host = simulate(agent, env, meta_params)
    act_for(host, (KEPT_EPISODES + 5) * LENGTH)
    assert len(host._complete) == KEPT_EPISODES and not host._episode
    host.adapt()
    with pytest.raises(metajax.MetajaxError, match="no complete episode"):
        host.adapt()


def test_misuse_is_named(setup):
    env, agent, meta_params, _ = setup
    host = simulate(agent, env, meta_params)
    with pytest.raises(metajax.MetajaxError, match="no complete episode"):
        host.adapt()
    with pytest.raises(metajax.MetajaxError, match=r"shape \(3,\).*\(2,\)"):
        host.act(np.zeros(3))
    with pytest.raises(metajax.MetajaxError, match="call act first"):
        host.observe(np.zeros(2), 0.0, False, False)
    for _ in range(LENGTH):
        host.act(np.zeros(2))
        with pytest.raises(metajax.MetajaxError, match="call observe"):
            host.act(np.zeros(2))
        host.observe(np.zeros(2), 0.0, False, False)
    host.act(np.zeros(2))
    with pytest.raises(metajax.MetajaxError, match="longer than the 6 steps"):
        host.observe(np.zeros(2), 0.0, False, False)
