"""Meta-Q-Learning: contexts, propensities, adaptation and its proximal step, and the updates."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_learners as reference
import scipy.optimize

import metajax
from metajax import presets
from metajax.adaptation import two_phases
from metajax.adaptation.propensity import (
    effective_sample_size,
    fit_propensity,
    propensity,
    pulled,
)
from metajax.deployment import simulate
from metajax.envs import make
from metajax.envs.rollouts import rollout
from metajax.envs.splits import sample_tasks
from metajax.errors import MetajaxError
from metajax.outer import double_q, sac, td3
from metajax.outer.off_policy import Batch
from metajax.policies import conditioned, deterministic, gru, mlp
from metajax.policies.history import Recent, history_encoder
from metajax.replay import (
    Steps,
    TimedSteps,
    Windows,
    empty_replay,
    extend_replay,
    sample_windows,
    steps_in_context,
    timed_steps,
    windows_at,
)
from metajax.training.evaluation import evaluate_on
from metajax.types import Continuous, Discrete, Env, StepInput

KEY = jax.random.key(5)
FAMILY = make("point-goal", episode_length=6)
TABULAR = make("tabular", states=2, actions=2, episode_length=6)
CONTEXT, HISTORY = 4, 2
HIDDEN = {"hidden": (5,)}
SMALL = {"batch": 4, "replay_capacity": 64, "random_steps": 8}


def mql(family=FAMILY, **options):
    env = family.env
    sizes = {"latent": CONTEXT, "actions": "deterministic", **HIDDEN}
    policy = conditioned(env.observation_size, env.action_space, **sizes)
    learner = double_q() if isinstance(env.action_space, Discrete) else td3(**HIDDEN)
    options = {"learner": learner, "adaptation": adaptation(), "history": HISTORY} | options
    return metajax.mql(env, policy, **SMALL | options)


def adaptation(**options):
    return two_phases(**{"steps": 3, "replay_steps": 4, "batch": 8, "kept_steps": 20} | options)


def trained(algorithm, family=FAMILY, updates=2):
    tasks = sample_tasks(family.train, jax.random.key(0), 3)
    state, update = algorithm.init(jax.random.key(1), tasks), jax.jit(algorithm.update)
    for index in range(updates):
        state, metrics = update(state, tasks, jax.random.key(index))
    return state, metrics, tasks


@pytest.fixture(scope="module")
def meta_learned():
    """Return meta-parameters and tasks; how agents adapt changes nothing in training."""
    state, _, tasks = trained(mql())
    return state, tasks


def played(algorithm, meta_params, task, key=KEY, env=FAMILY.env, episodes=2):
    agent = algorithm.agent
    adapted = agent.init(meta_params, key)
    act = lambda memory, x, key: agent.act(adapted, memory, x, key)
    return rollout(key, env, task, act, agent.initial_memory(), episodes=episodes)


def after(algorithm, meta_params, trajectory, key=KEY):
    agent = algorithm.agent
    return jax.jit(agent.adapt)(meta_params, agent.init(meta_params, key), trajectory, key)


def same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return [np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs]


# --- propensities --------------------------------------------------------------------------------


def test_propensities_of_two_normal_distributions_are_their_ratio():
    """Of N(δ, 1) to N(0, 1): e^{δx - δ²/2}, whose effective sample size is e^{-δ²}."""
    shift, count = 0.5, 100_000
    random = np.random.default_rng(0)
    old, new = (jnp.asarray(random.normal(size=(count, 1)) + by) for by in (0.0, shift))
    with jax.enable_x64(True):
        weights = fit_propensity(new, jnp.ones(count, bool), old, penalty=1e-9)
        # The standard error of each is 0.5 % of 1.
        assert float(-weights[0]) == pytest.approx(shift, abs=0.02)
        assert float(-weights[1]) == pytest.approx(-(shift**2) / 2, abs=0.02)
        beta = np.asarray(propensity(weights, old, clip=1e6))
        expected = np.exp(shift * old[:, 0] - shift**2 / 2)
        np.testing.assert_allclose(beta, expected, rtol=0.1)
        assert np.abs(beta / expected - 1).mean() < 0.02 and beta.mean() == pytest.approx(1)
        size = float(effective_sample_size(jnp.asarray(beta)))
        assert size == pytest.approx(math.exp(-(shift**2)), abs=0.02)


def test_propensities_of_equal_data_are_1_and_nothing_is_pulled():
    old = jax.random.normal(KEY, (50, 3))
    weights = fit_propensity(old, jnp.ones(50, bool), old, penalty=0.05)
    beta = propensity(weights, old, clip=7.0)
    np.testing.assert_allclose(beta, 1.0, atol=1e-5)
    assert float(1 - effective_sample_size(beta)) == pytest.approx(0, abs=1e-6)


def test_propensities_are_clipped_before_they_are_divided_by_their_mean():
    old = jnp.array([[0.0], [1.0], [5.0]])
    beta = propensity(jnp.array([-1.0, 0.5]), old, clip=2.0)
    each = np.minimum(np.exp([-0.5, 0.5, 4.5]), 2.0)
    np.testing.assert_allclose(beta, each / each.mean(), rtol=1e-6)


@pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.5, 1.0, 2.5]])
def test_the_effective_sample_size_is_its_formula(weight):
    found = float(effective_sample_size(jnp.array(weight)))
    assert found == pytest.approx(sum(weight) ** 2 / (3 * np.sum(np.square(weight))), rel=1e-6)


@pytest.mark.parametrize(("apart", "penalty"), [(1.0, 0.05), (0.3, 1e-4), (30.0, 1e-3)])
def test_the_logistic_regression_is_that_of_scipy(apart, penalty):
    """Of unequal counts, steps that were not played, and data that a plane separates."""
    random = np.random.default_rng(1)
    old, new = random.normal(size=(40, 3)), random.normal(size=(70, 3)) + apart
    valid = random.random(70) < 0.7
    x = np.concatenate([np.c_[new[valid], np.ones(valid.sum())], np.c_[old, np.ones(40)]])
    sign = np.concatenate([-np.ones(valid.sum()), np.ones(40)])
    share = np.concatenate([np.full(valid.sum(), 1 / valid.sum()), np.full(40, 1 / 40)]) / 2

    def loss(w):
        return share @ np.logaddexp(0, -sign * (x @ w)) + penalty * np.sum(w[:3] ** 2)

    expected = scipy.optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-10})
    with jax.enable_x64(True):
        spoilt = jnp.where(valid[:, None], new, 1e3)
        fit = jax.jit(lambda *of: fit_propensity(*of, penalty=penalty))
        found = np.asarray(fit(spoilt, jnp.asarray(valid), jnp.asarray(old)))
    assert loss(found) <= loss(expected.x) + 1e-12
    np.testing.assert_allclose(found, expected.x, rtol=1e-3, atol=1e-4)


# --- the proximal step ---------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.3, 5.0])
def test_the_proximal_step_minimizes_its_objective(strength):
    anchor, moved = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5])
    found = pulled(anchor, moved, strength)
    slope = jax.grad(lambda x: jnp.sum((x - moved) ** 2 + strength * (x - anchor) ** 2))(found)
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)


def test_without_strength_the_proximal_step_keeps_the_bits_and_with_all_those_of_the_anchor():
    anchor = jnp.array([0.1, -0.0, 1e-30, -7.0])
    moved = anchor + jnp.array([1e-3, 0.1, -1.0, 0.3])
    assert same(pulled(anchor, moved, 0.0), moved) == [True]
    assert same(pulled(anchor, moved, jnp.inf), anchor) == [True]
    assert same(pulled(anchor, moved, 1.0), anchor) == [False]


@pytest.mark.parametrize("pull", [0.0, 1e30])
def test_an_agent_that_is_pulled_with_all_strength_keeps_its_bits(meta_learned, pull):
    algorithm = mql(adaptation=adaptation(pull=pull))
    state, tasks = meta_learned
    task = jax.tree.map(lambda x: x[0], tasks.task)
    meta_params = state.meta_params
    adapted = after(algorithm, meta_params, played(algorithm, meta_params, task))
    for one, other in (
        (adapted.policy, meta_params.policy),
        (adapted.critic["critic"], meta_params.critic["critic"]),
    ):
        kept = same(one, other)
        assert all(kept) if pull else not any(kept)


# --- adaptation ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(meta_learned):
    """Return an algorithm whose second phase is off, its meta-parameters, and two trials."""
    algorithm = mql(adaptation=adaptation(replay_steps=0, pull=0.5))
    state, tasks = meta_learned
    at = lambda index: jax.tree.map(lambda x: x[index], tasks.task)
    trials = [played(algorithm, state.meta_params, at(i), jax.random.key(i)) for i in range(2)]
    return algorithm, state.meta_params, trials


@pytest.mark.slow
def test_the_first_phase_learns_from_the_tasks_own_steps_alone(learned):
    algorithm, meta_params, (trial, other) = learned
    found = after(algorithm, meta_params, trial)
    scaled = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), meta_params.experience.inputs)
    experience = dataclasses.replace(
        meta_params.experience, inputs=dataclasses.replace(scaled, known=scaled.known > 0)
    )
    assert all(
        same(
            after(algorithm, dataclasses.replace(meta_params, experience=experience), trial), found
        )
    )
    assert not all(same(after(algorithm, meta_params, other), found))


def test_the_second_phase_learns_from_those_of_meta_training(learned):
    _, meta_params, (trial, other) = learned
    algorithm = mql(adaptation=adaptation(steps=0, pull=0.0, clip=1e-9))
    # Where all weights are clipped to the same number, nothing is left of the task.
    found = after(algorithm, meta_params, trial)
    assert all(same(after(algorithm, meta_params, other), found))
    weighted = mql(adaptation=adaptation(steps=0, pull=0.0, penalty=1e-3))
    ours, theirs = (after(weighted, meta_params, of) for of in (trial, other))
    assert not all(same(ours, theirs)) and not all(same(ours, found))


def test_what_was_not_played_teaches_nothing(learned):
    algorithm, meta_params, (trial, _) = learned
    algorithm = mql(adaptation=adaptation())
    short = dataclasses.replace(trial, valid=trial.valid & (jnp.arange(6)[None] < 4))

    def spoilt(x):
        there = jnp.expand_dims(short.valid, range(2, x.ndim))
        return jnp.where(there, x, jnp.asarray(9, x.dtype))

    changed = dataclasses.replace(
        short,
        step_input=jax.tree.map(spoilt, short.step_input),
        action=spoilt(short.action),
        reward=spoilt(short.reward),
    )
    found, expected = (after(algorithm, meta_params, of) for of in (changed, short))
    assert all(same(found, expected))


def test_without_steps_nothing_is_adapted(learned):
    _, meta_params, (trial, _) = learned
    algorithm = mql(adaptation=adaptation(steps=0, replay_steps=0))
    start = algorithm.agent.init(meta_params, KEY)
    assert algorithm.agent.adapt(meta_params, start, trial, KEY) is start


@pytest.mark.slow
def test_each_task_starts_from_the_meta_parameters():
    """What a task returns does not depend on the one before it."""
    algorithm = mql()
    state, _, tasks = trained(algorithm)
    keys = jax.random.split(KEY, 3)

    def returns(*which):
        index = jnp.array(which)
        trials = jax.tree.map(lambda x: x[index], tasks.task), keys[index]
        evaluate = jax.jit(
            lambda trials, meta_params: (
                evaluate_on(
                    trials, algorithm.agent, FAMILY.env, meta_params, rounds=3, episodes=1
                ).returns
            )
        )
        return np.asarray(evaluate(trials, state.meta_params))

    np.testing.assert_array_equal(returns(0, 1)[1], returns(2, 1)[1])
    assert not np.array_equal(returns(0, 1)[0], returns(2, 1)[0])


def test_a_weighted_gradient_is_that_of_the_other_distribution():
    """Values that are linear in two states, enumerated: Σ q(s, a)·2(Q - y)·∂Q."""
    pairs = [(state, action) for state in range(2) for action in range(2)]
    old, new = np.array([8, 4, 2, 2]) / 16, np.array([1, 5, 7, 3]) / 16
    reward, following = np.array([0.3, -1.0, 2.0, 0.7]), np.array([1, 0, 0, 1])
    discount, eye = 0.9, np.eye(2)
    policy = mlp(2, Discrete(2), hidden=())
    nothing = lambda *_: None
    with jax.enable_x64(True):
        env = Env(nothing, nothing, 2, Discrete(2), 5)
        learner = double_q(discount=discount).build(env, policy)
        params = policy.init(jax.random.key(0))
        random = np.random.default_rng(0)
        params = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape)), params)
        kernel, bias = (np.asarray(params["head"][name]) for name in ("kernel", "bias"))
        counts = np.repeat(np.arange(4), (16 * old).astype(int))
        observation = np.array([eye[pairs[i][0]] for i in counts])
        action = np.array([pairs[i][1] for i in counts])
        ended = np.zeros(16, bool)
        steps = Steps(observation, action, reward[counts], ended, eye[following[counts]])
        state = learner.init(jax.random.key(1), params, ())
        weight = jnp.asarray((new / old)[counts])
        assert float(jnp.mean(weight)) == pytest.approx(1)
        improve = jax.jit(
            lambda params, state, steps, weight: learner.improve(
                params, (), state, lambda _: Batch(steps, 0.0, weight), KEY
            )
        )
        moment = improve(params, state, steps, weight)[2]["optimizer"][0].mu[0]
        values = eye @ kernel + bias
        by_kernel, by_bias = np.zeros((2, 2)), np.zeros(2)
        for index, (state, action) in enumerate(pairs):
            target = reward[index] + discount * values[following[index]].max()
            slope = new[index] * 2 * (values[state, action] - target)
            by_kernel[state, action] += slope
            by_bias[action] += slope
        np.testing.assert_allclose(10 * moment["head"]["kernel"], by_kernel, rtol=1e-9)
        np.testing.assert_allclose(10 * moment["head"]["bias"], by_bias, rtol=1e-9)


# --- contexts ------------------------------------------------------------------------------------

OBSERVED, SPACE, BATCH, WIDTH = 3, Continuous(2, low=(-2.0, -0.5), high=(1.0, 0.5)), 6, 4


def windows_of(index, history):
    """Return random windows, of which each knows another number of steps before."""
    random = np.random.default_rng(index)
    shape = (BATCH, history + 2)
    before = np.arange(BATCH) % (history + 2)
    known = np.arange(history + 2)[None] >= history - before[:, None]
    action = random.uniform(*SPACE.bounds, (*shape, 2))
    reward = random.normal(size=shape)
    inputs = Recent(random.normal(size=(*shape, OBSERVED)), action, reward, known)
    return Windows(inputs, random.random(BATCH) < 0.25)


def test_updates_with_a_context_are_their_equations():
    """Of TD3 and of the recurrent network, which the critics' loss alone trains."""
    history, rates = 3, {"discount": 0.9, "tau": 0.2}
    nothing = lambda *_: None
    with jax.enable_x64(True):
        env = Env(nothing, nothing, OBSERVED + WIDTH, SPACE, 10)
        policy = deterministic(OBSERVED + WIDTH, SPACE, hidden=(6,))
        part = td3(0.01, critic_learning_rate=0.02, hidden=(5, 4), **rates)
        learner = part.build(env, policy)
        encoder = history_encoder(OBSERVED, SPACE, width=WIDTH, history=history)
        random = np.random.default_rng(0)
        drawn = lambda tree: jax.tree.map(
            lambda x: jnp.asarray(random.normal(size=x.shape) / 2), tree
        )
        params, of_encoder = drawn(policy.init(KEY)), drawn(encoder.init(KEY))
        state = learner.init(KEY, params, of_encoder)
        critic = drawn(state["critic"])
        state |= {"critic": critic, "target": (params, critic)}
        twins = [reference.Perceptron(jax.tree.map(lambda x, i=i: x[i], critic)) for i in range(2)]
        checked = reference.Td3(
            reference.Perceptron(params),
            twins,
            reference.Box(*SPACE.bounds),
            rate=0.01,
            critic_rate=0.02,
            noise=0.2,
            clip=0.5,
            delay=2,
            **rates,
        )
        units, adam = reference.Gru(of_encoder), reference.Adam(0.02)
        improve = jax.jit(
            lambda params, of_encoder, state, windows, key: learner.improve(
                params,
                of_encoder,
                state,
                lambda params: Batch(steps_in_context(encoder, params, windows)),
                key,
            )
        )
        for index in range(5):
            windows, key = windows_of(index, history), jax.random.key(10 + index)
            inputs = windows.inputs
            x = np.concatenate(
                [inputs.observation, inputs.previous_action, inputs.previous_reward[..., None]], -1
            )
            sequence = lambda row, part, x=x, inputs=inputs: x[row, part][inputs.known[row, part]]
            now, later = slice(None, -1), slice(1, None)
            contexts = [
                [units(sequence(row, part)) for row in range(BATCH)] for part in (now, later)
            ]
            seen = [
                np.concatenate([inputs.observation[:, place], context], axis=1)
                for place, context in zip((-2, -1), contexts, strict=True)
            ]
            last = inputs.previous_action[:, -1], inputs.previous_reward[:, -1]
            steps = Steps(seen[0], *last, windows.terminated, seen[1])
            params, of_encoder, state, metrics = improve(params, of_encoder, state, windows, key)
            noise = np.asarray(jax.random.normal(key, (BATCH, 2), float))
            loss = checked.update(steps, noise)
            by_context = sum(critic.by_input for critic in checked.critics)[:, OBSERVED:]
            gradients = [np.zeros_like(weight) for weight in units.weights]
            for row in range(BATCH):
                units(sequence(row, now))
                of_row = units.backward(by_context[row, :WIDTH])
                gradients = [a + b for a, b in zip(gradients, of_row, strict=True)]
            units.weights = adam.step(units.weights, gradients)
            assert float(metrics["q_loss"]) == pytest.approx(loss, rel=1e-9)
            for found, expected in (
                (params, checked.policy.tree()),
                (of_encoder, units.tree()),
                (jax.tree.map(lambda x: x[1], state["critic"]), checked.critics[1].tree()),
            ):
                for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "family",
    [FAMILY, pytest.param(TABULAR, marks=pytest.mark.slow)],
    ids=["continuous", "discrete"],
)
def test_contexts_that_are_learned_from_are_those_that_were_acted_on(family):
    """Also where an episode is longer than the history, and where the trial goes on."""
    algorithm = mql(family)
    env = family.env
    tasks = sample_tasks(family.train, jax.random.key(0), 1)
    meta_params = algorithm.init(KEY, tasks).meta_params
    task = jax.tree.map(lambda x: x[0], tasks.task)
    encoder = history_encoder(env.observation_size, env.action_space, width=4, history=HISTORY)
    params = meta_params.policy["encoder"]
    trial = played(algorithm, meta_params, task, env=env, episodes=3)
    kept, valid = timed_steps(trial)
    windows = windows_at(kept, jnp.arange(len(valid)), HISTORY)
    steps = jax.jit(lambda params, windows: steps_in_context(encoder, params, windows))(
        params, windows
    )
    inputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trial.step_input)

    @jax.jit
    def acted(params, inputs):
        def step(memory, step_input):
            memory = encoder.remember(memory, step_input)
            return memory, encoder.encode(params, memory)

        return jax.lax.scan(step, encoder.initial_memory(), inputs)[1]

    size = env.observation_size
    np.testing.assert_allclose(steps.observation[:, size:], acted(params, inputs), atol=1e-6)
    # Within an episode what follows a step is what the next one is taken in.
    inside = np.arange(len(valid)) % env.episode_length < env.episode_length - 1
    following = np.asarray(steps.next_observation)[:-1][inside[:-1]]
    np.testing.assert_allclose(following, steps.observation[1:][inside[:-1]], atol=1e-6)
    np.testing.assert_array_equal(steps.action, kept.steps.action)
    np.testing.assert_array_equal(steps.reward, kept.steps.reward)


def test_a_context_is_of_the_last_steps_of_the_episode_alone():
    encoder = history_encoder(1, Continuous(1), width=3, history=2)
    params = encoder.init(KEY)

    remember, encode = jax.jit(encoder.remember), jax.jit(encoder.encode)

    def context(observations, ends):
        memory = encoder.initial_memory()
        for observation, end in zip(observations, ends, strict=True):
            x = StepInput(jnp.array([observation]), jnp.ones(1), jnp.ones(()), jnp.asarray(end))
            memory = remember(memory, x)
        return np.asarray(encode(params, memory))

    base = context([1.0, 2.0, 3.0, 4.0], [False] * 4)
    np.testing.assert_array_equal(base, context([9.0, 2.0, 3.0, 4.0], [False] * 4))
    assert np.all(base != context([1.0, 9.0, 3.0, 4.0], [False] * 4))
    ended = context([1.0, 2.0, 3.0, 4.0], [False, False, True, False])
    np.testing.assert_array_equal(ended, context([8.0, 7.0, 3.0, 4.0], [False, True, True, False]))


def ring(capacity, episodes, history=2):
    """Return a ring of episodes of some lengths; observations say which step it was."""

    def items(lengths):
        time = np.concatenate([np.arange(n) for n in lengths])
        number = np.concatenate([np.full(n, index) for index, n in enumerate(lengths)])
        return number, time

    number, time = items(episodes)
    labels = jnp.asarray(np.stack([number, time], 1), float)
    after = labels.at[:, 1].add(1.0)
    zero = jnp.zeros(len(time))
    steps = Steps(labels, labels[:, :1], labels[:, 1], zero > 0, after)
    kept = TimedSteps(steps, jnp.asarray(time, jnp.int32))
    replay = empty_replay(jax.tree.map(lambda x: x[:1], kept), capacity)
    for start in range(0, len(time), 4):
        chunk = jax.tree.map(lambda x, s=start: x[s : s + 4], kept)
        replay = extend_replay(replay, chunk, jnp.ones(len(chunk.time), bool))
    return replay, number, time


@pytest.mark.parametrize("episodes", [[5, 3, 1, 4], [5, 3, 6, 1, 1, 7, 4, 5, 2]])
def test_windows_of_a_ring_are_whole_and_of_every_step(episodes):
    """A full ring has lost the first steps of the episode that it has the rest of."""
    capacity, history = 20, 2
    replay, number, time = ring(capacity, episodes)
    windows = jax.jit(lambda replay: sample_windows(replay, KEY, 2000, history=history))(replay)
    inputs, drawn = jax.tree.map(np.asarray, windows.inputs), set()
    for row in range(2000):
        episode, step = inputs.observation[row, -2]
        drawn.add((episode, step))
        known = min(int(step), history)
        assert inputs.known[row].tolist() == [i >= history - known for i in range(history + 2)]
        for place in range(history - known, history + 2):
            assert inputs.observation[row, place].tolist() == [episode, step - history + place]
            before = step - history + place - 1
            expected = [episode, before] if before >= 0 else [0.0, 0.0]
            assert [inputs.previous_action[row, place, 0], inputs.previous_reward[row, place]] == (
                expected
            )
    full = len(time) > capacity
    kept = list(zip(number, time, strict=True))[-capacity:][history + 1 if full else 0 :]
    assert drawn == {(float(n), float(t)) for n, t in kept}


def test_a_step_that_was_left_out_ends_what_is_known():
    replay, _, _ = ring(20, [6])
    broken = dataclasses.replace(replay.items, time=replay.items.time.at[2].set(7))
    known = windows_at(broken, jnp.array([4]), 3).inputs.known
    assert known.tolist() == [[False, False, True, True, True]]


# --- the algorithm -------------------------------------------------------------------------------


@pytest.mark.slow
def test_discrete_actions_are_learned_and_adapted_to():
    algorithm = mql(TABULAR, adaptation=adaptation(pull=0.0))
    state, metrics, tasks = trained(algorithm, TABULAR)
    task = jax.tree.map(lambda x: x[0], tasks.task)
    trial = played(algorithm, state.meta_params, task, env=TABULAR.env)
    adapted = after(algorithm, state.meta_params, trial)
    assert int(metrics["updates"]) == 18 and np.isfinite(float(metrics["q_loss"]))
    assert not any(same(adapted.policy, state.meta_params.policy))
    assert trial.action.dtype == jnp.int32


def test_agents_keep_steps_of_meta_training_that_are_in_the_replay(meta_learned):
    state, _ = meta_learned
    kept = state.meta_params.experience.inputs
    size = int(state.replay.size)
    there = {tuple(x) for x in np.asarray(state.replay.items.steps.next_observation[:size])}
    last = [tuple(x) for x in np.asarray(kept.observation[:, -1])]
    assert len(last) == 20 and {*last} <= there and len({*last}) > 5


def test_a_host_agent_keeps_its_steps_and_adapts(meta_learned):
    """Its memory is one of the episode, so what it learns of a task it learns by adaptation."""
    algorithm = mql()
    state, _ = meta_learned
    agent = simulate(algorithm.agent, FAMILY.env, state.meta_params)
    before = agent.adapted
    for step in range(6):
        action = agent.act(np.full(2, 0.1 * step))
        agent.observe(np.full(2, 0.1 * step + 0.1), -1.0, False, step == 5)
    assert action.shape == (2,)
    agent.adapt()
    assert not any(same(agent.adapted.policy["policy"], before.policy["policy"]))


def test_a_configuration_makes_a_policy_that_sees_the_context():
    config = presets.default_config("mql", "point-goal")
    config["algorithm"] |= {"history": 3}
    config["policy"] |= {"latent": 7}
    experiment = presets.build(config)
    tasks = sample_tasks(experiment.family.train, KEY, 2)
    shapes = jax.eval_shape(lambda key: experiment.algorithm.init(key, tasks).meta_params, KEY)
    assert shapes.policy["policy"]["body"][0]["kernel"].shape == (2 + 7, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 6}, "history is 6; it must be below the 6 steps of an episode"),
        ({"history": -1}, "history"),
        (
            {"replay_capacity": 3},
            "replay_capacity is 3; it must be above 3, a step and its history",
        ),
        ({"random_steps": 65}, "replay_capacity is 64; it must hold the 65 steps"),
        ({"batch": 65}, "replay_capacity is 64; it must hold the 65 steps"),
        (
            {"learner": double_q()},
            "learner is 'double_q'; in MQL it must be 'td3' where actions are c",
        ),
        ({"learner": sac()}, "learner is 'sac'; in MQL it must be 'td3'"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(MetajaxError, match=message):
        mql(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": -1},
        {"kept_steps": 0},
        {"batch": 0},
        {"penalty": 0.0},
        {"clip": 0.0},
        {"pull": -1.0},
    ],
)
def test_mistakes_in_adaptation(options):
    with pytest.raises(MetajaxError, match=next(iter(options))):
        two_phases(**options)


def test_policies_that_it_cannot_train_are_refused():
    env = FAMILY.env
    for other in (gru, deterministic):
        with pytest.raises(MetajaxError, match=r"no latent variable; take metajax\.policies\.cond"):
            metajax.mql(env, other(env.observation_size, env.action_space), history=2)
    squashed = conditioned(env.observation_size, env.action_space)
    with pytest.raises(MetajaxError, match=r"td3 cannot train .* SquashedNormal; take 'determ"):
        metajax.mql(env, squashed, history=2)
    with pytest.raises(MetajaxError, match=r"learner is 'td3'; in MQL it must be 'double_q'"):
        mql(TABULAR, learner=td3())
