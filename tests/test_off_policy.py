"""Off-policy learners against NumPy, and what their algorithms do with what they remember."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_learners as reference
import scipy.integrate
import scipy.stats
from remembered import BATCH, OBSERVED, assert_equal, env_of, steps_of

import metajax
from metajax.envs import make
from metajax.envs.splits import sample_tasks, uniform_over
from metajax.errors import MetajaxError
from metajax.outer import double_q, sac, td3
from metajax.outer.off_policy import Batch
from metajax.outer.soft_actor_critic import _lowest_of
from metajax.policies import (
    DiagonalNormal,
    SquashedNormal,
    deterministic,
    gru,
    mlp,
    squashed,
)
from metajax.policies.squashed import q_networks
from metajax.types import Continuous, Discrete, StepInput

UPDATES = 5
SPACE = Continuous(2, low=(-2.0, -0.5), high=(1.0, 0.5))
NETWORKS = {"hidden": (5, 4)}
DISCRETE = Discrete(4)
BOX = reference.Box(*SPACE.bounds)
KEY = jax.random.key(5)


def critic_of(params, index):
    return reference.Perceptron(jax.tree.map(lambda x: x[index], params))


def listed(params):
    """Return a network whose hidden layers are a list: those of `mlp` have names."""
    body = params["body"]
    return params | {"body": list(body.values()) if isinstance(body, dict) else body}


def compare(learner, policy, noise_of, ours, space=SPACE):
    """Compare updates in double precision, one after the other, on other steps each."""
    learner = learner.build(env_of(space), policy)
    params = reference.far_from_zero(policy.init(jax.random.key(0)))
    state = learner.init(jax.random.key(1), params, ())
    critic = reference.far_from_zero(state["critic"])
    value = reference.far_from_zero(state.get("value", ()))
    target = critic if "log_temperature" in state else (params, critic)
    state = state | {"critic": critic, "target": value or target}
    if value:
        state["value"] = value
    twins = [critic_of(critic, index) for index in range(2)]
    checked = ours(reference.Perceptron(listed(params)), twins)
    if value:
        checked.take_value(reference.Perceptron(value))
    improve = jax.jit(lambda *of: learner.improve(of[0], (), of[1], lambda _: Batch(of[2]), of[3]))
    for index in range(UPDATES):
        steps, key = steps_of(index, space), jax.random.key(10 + index)
        params, _, state, metrics = improve(params, state, steps, key)
        loss = checked.update(steps, *noise_of(key))
        assert float(metrics["q_loss"]) == pytest.approx(loss, rel=1e-9)
        assert_equal(listed(params), checked.policy.tree())
        slow = state["target"][1] if isinstance(state["target"], tuple) else state["target"]
        pairs = [(state["critic"], checked.critics), (slow, checked.targets)]
        if value:
            assert_equal(state["value"], checked.value.tree())
            assert_equal(slow, checked.slow_value.tree())
            del pairs[1]
        for found, critics in pairs:
            for twin, critic in enumerate(critics):
                assert_equal(jax.tree.map(lambda x, twin=twin: x[twin], found), critic.tree())
    return state, checked


NUMBERS = {"discount": 0.9, "tau": 0.2}
OURS = {"rate": 0.01, "critic_rate": 0.02, **NUMBERS}
RATES = {"learning_rate": 0.01, "critic_learning_rate": 0.02, **NUMBERS}


def draw(key):
    return np.asarray(jax.random.normal(key, (BATCH, 2), float))


def test_sac_is_its_equations():
    with jax.enable_x64(True):
        state, checked = compare(
            sac(reward_scale=3.0, **RATES, **NETWORKS),
            squashed(OBSERVED, SPACE, hidden=(6,)),
            lambda key: [draw(each) for each in jax.random.split(key)],
            lambda *of: reference.Sac(*of, BOX, scale=3.0, entropy=-2.0, **OURS),
        )
    expected = float(checked.log_temperature)
    assert float(state["log_temperature"]) == pytest.approx(expected, rel=1e-9)
    assert abs(expected) > 0.01


def test_sac_with_a_value_network_is_its_equations():
    """As PEARL has it: a fixed temperature, scaled rewards, and outputs near 0."""
    options = {"temperature": 0.7, "value_network": True, "output_penalty": 0.3}
    with jax.enable_x64(True):
        compare(
            sac(reward_scale=3.0, **options, **RATES, **NETWORKS),
            squashed(OBSERVED, SPACE, hidden=(6,)),
            lambda key: [draw(jax.random.split(key)[1])],
            lambda *of: reference.ValueSac(*of, BOX, scale=3.0, penalty=0.3, alpha=0.7, **OURS),
        )


def test_double_q_is_its_equations():
    with jax.enable_x64(True):
        learner = double_q(0.01, **NUMBERS).build(env_of(DISCRETE), Q_POLICY)
        params, target = (
            reference.far_from_zero(Q_POLICY.init(jax.random.key(i)), i) for i in range(2)
        )
        state = learner.init(jax.random.key(1), params, ()) | {"target": target}
        checked = reference.DoubleQ(
            *(reference.Perceptron(listed(of)) for of in (params, target)), rate=0.01, **NUMBERS
        )
        improve = jax.jit(lambda *of: learner.improve(of[0], (), of[1], lambda _: of[2], KEY))
        for index in range(UPDATES):
            steps = steps_of(index, DISCRETE)
            params, _, state, metrics = improve(params, state, Batch(steps))
            loss = checked.update(steps)
            assert float(metrics["q_loss"]) == pytest.approx(loss, rel=1e-9)
            assert_equal(listed(params), checked.policy.tree())
            assert_equal(listed(state["target"]), checked.target.tree())


def test_the_derivative_of_the_lowest_value_survives_what_is_rounded_twice():
    """XLA, told not to optimize, computes critics again for it, and otherwise: none is the lowest.

    Constants of the program, as parameters are here, make it do so.
    """
    learner = sac(**NETWORKS).build(env_of(SPACE), policy := squashed(OBSERVED, SPACE, hidden=(6,)))
    with jax.enable_x64(True):
        params = policy.init(jax.random.key(0))
        state = learner.init(jax.random.key(1), params, ())
        improve = jax.jit(lambda b: learner.improve(params, (), state, lambda _: Batch(b), KEY)[0])
        for leaf in jax.tree.leaves(improve(steps_of(0, SPACE))):
            assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("critics", [2, 4])
def test_sac_with_a_subset_of_critics_is_its_equations(critics):
    """Targets have the minimum of two, the policy the mean of all."""
    policy = squashed(OBSERVED, SPACE, hidden=(6,))
    values = q_networks(OBSERVED, SPACE, count=critics, **NETWORKS)
    options = {"critics": critics, "subset": 2, "temperature": 0.7, **RATES, **NETWORKS}
    with jax.enable_x64(True):
        learner = sac(**options).build(env_of(SPACE), policy)
        params, steps = reference.far_from_zero(policy.init(jax.random.key(0))), steps_of(0, SPACE)
        state = learner.init(jax.random.key(1), params, ())
        critic, target = (reference.far_from_zero(state["critic"], seed) for seed in (1, 2))
        state |= {"critic": critic, "target": target}
        improve = jax.jit(
            lambda *of: learner.improve(of[0], (), of[1], lambda _: Batch(of[2]), KEY)
        )
        _, _, after, _ = improve(params, state, steps)

        keys = jax.random.split(KEY, 3)

        def drawn(params, observation, key):
            seen = StepInput(observation, jnp.zeros(2), jnp.zeros(()), jnp.zeros((), bool))
            return policy.step(params, (), seen)[1].distribution.sample_with_log_prob(key)

        def critic_loss(critic, params, target, pair):
            action, log_prob = drawn(params, steps.next_observation, keys[0])
            later = jnp.minimum(*values.apply(target, steps.next_observation, action)[pair])
            y = steps.reward + 0.9 * ~steps.terminated * (later - 0.7 * log_prob)
            q = values.apply(critic, steps.observation, steps.action)
            return sum(jnp.mean((one - y) ** 2) for one in q)

        def policy_loss(params, critic):
            action, log_prob = drawn(params, steps.observation, keys[1])
            q = values.apply(critic, steps.observation, action)
            return jnp.mean(0.7 * log_prob - sum(q) / critics)

        # Adam's first moment, after one step, is a tenth of the gradient.
        found = jax.tree.map(lambda x: 10 * x, after["critic_optimizer"][0].mu[0])
        slope = jax.jit(jax.grad(critic_loss))
        every = [np.array([i, j]) for i in range(critics) for j in range(i)]
        same = []
        for pair in every:
            expected = jax.tree.leaves(slope(critic, params, target, pair))
            both = zip(jax.tree.leaves(found), expected, strict=True)
            same.append(all(np.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in both))
        assert any(same) and all(same) == (critics == 2)  # one may be the lowest everywhere
        found = jax.tree.map(lambda x: 10 * x, after["policy_optimizer"][0].mu[0])
        assert_equal(found, jax.jit(jax.grad(policy_loss))(params, after["critic"]))


def test_every_pair_of_critics_is_as_likely_a_subset():
    values = 2.0 ** jnp.arange(4)[:, None]
    lowest = jax.vmap(lambda key: _lowest_of(2, key)(values)[0])(jax.random.split(KEY, 6000))
    counts = [int(np.sum(lowest == value)) for value in (1, 2, 4)]  # of three, two and one pairs
    assert sum(counts) == 6000
    assert scipy.stats.chisquare(counts, [3000, 2000, 1000]).pvalue > 1e-3


Q_POLICY = mlp(OBSERVED, DISCRETE, hidden=(6,), activation="relu")
STOCHASTIC, NOISY = squashed(OBSERVED, SPACE), deterministic(OBSERVED, SPACE)


@pytest.mark.parametrize(
    ("learner", "policy", "space"),
    [
        (sac(value_network=True, **NETWORKS), STOCHASTIC, SPACE),
        (sac(**NETWORKS), Q_POLICY, DISCRETE),
        (td3(policy_delay=1, **NETWORKS), NOISY, SPACE),
        (double_q(), Q_POLICY, DISCRETE),
    ],
    ids=["sac-value", "sac-discrete", "td3", "double-q"],
)
def test_steps_of_weight_0_change_nothing(learner, policy, space):
    """And those of weight 2 count as two: half of a batch is all of it."""
    learner = learner.build(env_of(space), policy)
    with jax.enable_x64(True):
        params = policy.init(jax.random.key(0))
        state = learner.init(jax.random.key(1), params, ())
        steps = steps_of(0, space)
        other = steps_of(1, space)
        spoilt, doubled = (
            jax.tree.map(lambda x, y: jnp.concatenate([x, y]), steps, last)
            for last in (other, steps)
        )
        some = jnp.repeat(jnp.array([2.0, 0.0]), BATCH)
        # What is drawn for the first half is the same, if the noise has one shape.
        step = jax.jit(lambda *of: learner.improve(of[0], (), of[1], lambda _: of[2], KEY))
        improve = lambda *of: step(params, state, Batch(*of))
        found = improve(spoilt, 0.0, some)
        assert_equal(found, improve(doubled, 0.0, some))
        first = lambda result: jax.tree.leaves(result)[0]
        assert not np.allclose(first(improve(spoilt)), first(found), rtol=1e-9)


def test_sac_of_discrete_actions_is_its_equations():
    with jax.enable_x64(True):
        state, checked = compare(
            sac(reward_scale=3.0, target_entropy=0.5, **RATES, **NETWORKS),
            mlp(OBSERVED, DISCRETE, hidden=(6,), activation="relu"),
            lambda key: [],
            lambda *of: reference.DiscreteSac(*of, None, scale=3.0, entropy=0.5, **OURS),
            DISCRETE,
        )
    expected = float(checked.log_temperature)
    assert float(state["log_temperature"]) == pytest.approx(expected, rel=1e-9)


def test_td3_is_its_equations():
    noise = {"target_noise": 0.5, "target_noise_clip": 0.4}
    with jax.enable_x64(True):
        state, checked = compare(
            td3(**noise, **RATES, **NETWORKS),
            deterministic(OBSERVED, SPACE, hidden=(6,)),
            lambda key: [draw(key)],
            lambda *of: reference.Td3(*of, BOX, noise=0.5, clip=0.4, delay=2, **OURS),
        )
        assert_equal(state["target"][0], checked.slow_policy.tree())


def test_a_fixed_temperature_stays():
    policy = squashed(OBSERVED, SPACE, hidden=(6,))
    learner = sac(temperature=0.3, **NETWORKS).build(env_of(SPACE), policy)
    params = policy.init(jax.random.key(0))
    state = learner.init(jax.random.key(1), params, ())
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), steps_of(0, SPACE))
    improve = jax.jit(lambda *of: learner.improve(of[0], (), of[1], lambda _: Batch(single), KEY))
    _, _, state, metrics = improve(params, state)
    assert float(metrics["temperature"]) == pytest.approx(0.3) and state["log_temperature"] == ()


# --- what critics' loss trains --------------------------------------------------------------------


def test_what_steps_are_made_from_learns_from_the_critics_alone():
    """Its gradient is that of their error and of the penalty, by differences; of ends y is r."""
    policy = squashed(OBSERVED, SPACE, hidden=(6,))
    values = q_networks(OBSERVED, SPACE, **NETWORKS)
    with jax.enable_x64(True):
        learner = sac(**NETWORKS).build(env_of(SPACE), policy)
        params = reference.far_from_zero(policy.init(jax.random.key(0)))
        encoder, steps = jnp.array([0.5, -1.0, 2.0]), steps_of(0, SPACE)
        steps = dataclasses.replace(steps, terminated=np.ones(BATCH, bool))
        state = learner.init(jax.random.key(1), params, encoder)
        critic = state["critic"] = reference.far_from_zero(state["critic"])

        def steps_from(encoder):
            seen = steps.observation * jnp.broadcast_to(encoder, steps.observation.shape)
            return Batch(dataclasses.replace(steps, observation=seen), 0.01 * jnp.sum(encoder**2))

        improve = jax.jit(lambda *of: learner.improve(*of, steps_from, KEY)[2])
        after = improve(params, encoder, state)
        gradient = 10 * after["critic_optimizer"][0].mu[1]  # Adam's first moment, after one step

        def loss(encoder):
            (seen, penalty, _) = steps_from(encoder)
            q = values.apply(critic, seen.observation, seen.action)
            return sum(jnp.mean((one - steps.reward) ** 2) for one in q) + penalty

        for index in range(3):
            ahead, behind = (encoder.at[index].add(move) for move in (1e-6, -1e-6))
            expected = (loss(ahead) - loss(behind)) / 2e-6
            assert float(gradient[index]) == pytest.approx(float(expected), rel=1e-6)


def test_critics_start_apart_and_stay_apart():
    """Copies of one network, on the same targets, would be one for ever."""
    policy = squashed(OBSERVED, SPACE, hidden=(6,))
    learner = sac(critics=3, **NETWORKS).build(env_of(SPACE), policy)
    params = policy.init(jax.random.key(0))
    state = learner.init(jax.random.key(1), params, ())
    improve = jax.jit(lambda *of: learner.improve(of[0], (), of[1], lambda _: Batch(of[2]), KEY))

    def apart(critic):
        first = jax.tree.leaves(critic["head"])[-1].reshape(3, -1)
        return min(np.abs(first[i] - first[j]).max() for i, j in ((0, 1), (0, 2), (1, 2)))

    assert apart(state["critic"]) > 1e-4
    for index in range(50):
        steps = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), steps_of(index, SPACE))
        params, _, state, _ = improve(params, state, steps)
    assert apart(state["critic"]) > 1e-4


# --- policies ------------------------------------------------------------------------------------


def density(distribution, grid):
    return np.exp(np.asarray(jax.vmap(distribution.log_prob)(jnp.asarray(grid)[:, None])))


def one_squashed(mean, log_std, low=-2.0, high=1.0):
    normal = DiagonalNormal(jnp.array([mean]), jnp.array([log_std]))
    return SquashedNormal(normal, jnp.array([(low + high) / 2]), jnp.array([(high - low) / 2]))


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.5, -0.5), (0.2, 0.5)])
def test_a_squashed_density_is_one_and_has_its_entropy(mean, log_std):
    with jax.enable_x64(True):
        distribution = one_squashed(mean, log_std)
        logarithm = lambda x: float(distribution.log_prob(jnp.array([x])))
        bounds = {"points": [-1.999, 0.999], "limit": 400}
        total = scipy.integrate.quad(lambda x: math.exp(logarithm(x)), -2, 1, **bounds)[0]
        assert total == pytest.approx(1, abs=1e-6)
        entropy = scipy.integrate.quad(
            lambda x: -logarithm(x) * math.exp(logarithm(x)), -2, 1, **bounds
        )[0]
        assert float(distribution.entropy()) == pytest.approx(entropy, abs=1e-6)

        def of(parameters):
            return one_squashed(*parameters).entropy()

        slope = jax.grad(of)(jnp.array([mean, log_std]))
        # The gradient of a sample's log-probability, averaged over noise by quadrature.
        nodes, weights = np.polynomial.hermite_e.hermegauss(100)

        def log_prob_at(parameters, node):
            u = parameters[0] + jnp.exp(parameters[1]) * node
            mapped = one_squashed(*parameters)
            return mapped.normal.log_prob(u[None]) - jnp.log(1.5) - 2 * -jnp.log(jnp.cosh(u))

        expected = sum(
            -weight
            / math.sqrt(2 * math.pi)
            * jax.grad(log_prob_at)(jnp.array([mean, log_std]), node)
            for node, weight in zip(nodes, weights, strict=True)
        )
        np.testing.assert_allclose(slope, expected, atol=1e-5)


@pytest.mark.parametrize("mean", [-40.0, -9.0, 0.0, 9.0, 40.0])
def test_a_squashed_log_probability_is_exact_at_the_bounds(mean):
    """There 1 - tanh²(u) is 0 in single precision, and its logarithm nothing."""
    distribution = one_squashed(mean, -1.0)
    action, log_prob = distribution.sample_with_log_prob(KEY)
    with jax.enable_x64(True):
        normal = DiagonalNormal(jnp.array([mean]), jnp.array([-1.0]))
        noise = float(jax.random.normal(KEY, (1,), jnp.float32)[0])
        u = mean + math.exp(-1.0) * noise
        log_cosh = abs(u) + math.log1p(math.exp(-2 * abs(u))) - math.log(2)
        expected = float(normal.log_prob(jnp.array([u]))) - math.log(1.5) + 2 * log_cosh
    assert float(log_prob) == pytest.approx(expected, rel=1e-5)
    assert -2 <= float(action[0]) <= 1
    assert np.isfinite(float(distribution.log_prob(jnp.array([1.0]))))
    slope = jax.grad(lambda m: one_squashed(m, -1.0).sample_with_log_prob(KEY)[1])(mean)
    assert float(slope) == pytest.approx(2 * math.tanh(u), abs=1e-4)


def test_actions_stay_within_the_bounds_of_each_dimension():
    observation = StepInput(jnp.ones(OBSERVED), jnp.zeros(2), jnp.zeros(()), jnp.zeros((), bool))
    for policy in (squashed(OBSERVED, SPACE), deterministic(OBSERVED, SPACE, noise=3.0)):
        params = policy.init(jax.random.key(0))
        distribution = policy.step(params, (), observation)[1].distribution
        actions = np.asarray(jax.vmap(distribution.sample)(jax.random.split(KEY, 1000)))
        low, high = SPACE.bounds
        assert np.all(actions >= low) and np.all(actions <= high)
        np.testing.assert_allclose(actions.min(axis=0), low, atol=0.05)
        np.testing.assert_allclose(actions.max(axis=0), high, atol=0.05)


# --- the algorithms ------------------------------------------------------------------------------

SMALL = {"batch": 4, "replay_capacity": 64, "random_steps": 12}


def small(family, **options):
    env = family.env
    policy = squashed(env.observation_size, env.action_space, hidden=(4,))
    return metajax.sac(env, policy, **SMALL | {"learner": sac(hidden=(4,))} | options)


def test_it_learns_once_it_has_seen_enough_and_as_often_as_it_is_told():
    """Episodes that reach their goal early count what was played of them."""
    family = make("point-goal", episode_length=5)
    algorithm = small(family, updates_per_step=1.5)
    tasks = sample_tasks(family.train, jax.random.key(0), 2)
    start = state = algorithm.init(jax.random.key(1), tasks)
    update, seen = jax.jit(algorithm.update), 0
    for index in range(4):
        state, metrics = update(state, tasks, jax.random.key(index))
        new = int(state.replay.size) - seen
        seen += new
        assert int(metrics["valid_steps"]) == new
        assert int(metrics["updates"]) == (int(1.5 * new) if seen >= 12 else 0)
        moved = np.any(
            state.meta_params.policy["head"]["bias"] != start.meta_params.policy["head"]["bias"]
        )
        assert moved == (seen >= 12)


def test_actions_that_are_discrete_are_learned_too():
    family = make("tabular", states=3, actions=2, episode_length=5)
    env = family.env
    policy = mlp(env.observation_size, env.action_space, hidden=(4,))
    algorithm = metajax.sac(env, policy, learner=sac(hidden=(4,)), **SMALL)
    tasks = sample_tasks(family.train, jax.random.key(0), 4)
    start = algorithm.init(jax.random.key(1), tasks)
    state, metrics = jax.jit(algorithm.update)(start, tasks, KEY)
    assert int(metrics["updates"]) == 20 and state.replay.items.action.dtype == jnp.int32
    before, after = (s.meta_params.policy["head"]["kernel"] for s in (start, state))
    assert np.all(before != after) and np.all(np.isfinite(after))


def test_first_actions_are_uniform():
    family = make("point-goal", episode_length=20)
    algorithm = small(family, replay_capacity=4000, random_steps=2000)
    tasks = sample_tasks(family.train, jax.random.key(0), 50)
    state = algorithm.init(jax.random.key(1), tasks)
    state, _ = jax.jit(algorithm.update)(state, tasks, KEY)
    action = state.replay.items.action[: int(state.replay.size)]
    low, high = family.env.action_space.bounds
    share = (np.asarray(action) - low) / (high - low)
    for dimension in share.T:
        assert scipy.stats.kstest(dimension, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_steps": 65}, "replay_capacity is 64; it must hold the 65 steps"),
        ({"batch": 65}, "replay_capacity is 64; it must hold the 65 steps"),
        ({"updates_per_step": 0.0}, "updates_per_step"),
        ({"episodes": 0}, "episodes"),
        ({"learner": td3()}, "learner is 'td3'; in SAC it must be 'sac'"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(MetajaxError, match=message):
        small(make("point-goal", episode_length=5), **options)


def test_subsets_that_there_are_not_are_refused():
    with pytest.raises(MetajaxError, match="subset"):
        sac(subset=3)
    with pytest.raises(MetajaxError, match="a value network has no subset of critics"):
        sac(subset=2, value_network=True)


def test_policies_that_it_cannot_train_are_refused():
    family = make("point-goal", episode_length=5)
    env = family.env
    sizes = env.observation_size, env.action_space
    with pytest.raises(MetajaxError, match="sac cannot train a policy whose distribution is Diag"):
        metajax.sac(env, mlp(*sizes))
    with pytest.raises(MetajaxError, match=r"td3 cannot train a policy whose .* take 'determinis"):
        metajax.td3(env, squashed(*sizes))
    with pytest.raises(MetajaxError, match="without a memory"):
        metajax.sac(env, gru(*sizes))
    bandit = make("bernoulli-bandit").env
    with pytest.raises(MetajaxError, match="squashed needs continuous actions"):
        squashed(bandit.observation_size, bandit.action_space)
    with pytest.raises(MetajaxError, match="td3 needs continuous actions"):
        metajax.td3(bandit, mlp(bandit.observation_size, bandit.action_space))
    with pytest.raises(MetajaxError, match="squashed needs bounds of each action"):
        squashed(3, Continuous(2, low=-np.inf))
    with pytest.raises(
        MetajaxError, match=r"replay_capacity is 64; it must have room for the 100 s"
    ):
        algorithm = small(family, episodes=10)
        algorithm.init(KEY, sample_tasks(family.train, KEY, 2))


# --- that they learn -----------------------------------------------------------------------------


def pendulum():
    """Return Pendulum-v1: one task."""
    family = make("pendulum-params")
    only = uniform_over({"length": jnp.ones(1), "mass": jnp.ones(1)})
    return family._replace(train=only, test=only, validation=None, extrapolate=None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac", "td3"])
def test_a_pendulum_is_up_after_twenty_thousand_steps(name):
    """Who does nothing has about -1200; who is good, -150."""
    family, networks = pendulum(), {"hidden": (64, 64)}
    env = family.env
    options = {"batch": 64, "replay_capacity": 20_000, "random_steps": 1000}
    rates = {"learning_rate": 1e-3, "critic_learning_rate": 1e-3}
    if name == "sac":
        policy = squashed(env.observation_size, env.action_space, **networks)
        algorithm = metajax.sac(env, policy, learner=sac(**rates, **networks), **options)
    else:
        policy = deterministic(env.observation_size, env.action_space, **networks)
        algorithm = metajax.td3(env, policy, learner=td3(**rates, **networks), **options)
    evaluation = metajax.Evaluation(
        every=100, tasks=1, rounds=1, episodes=20, final_tasks=1, deterministic=True
    )
    result = metajax.train(
        algorithm, family, iterations=100, tasks=1, seeds=2, evaluation=evaluation, report=None
    )
    print(f"{name}: {result.returns.mean(axis=(1, 2, 3))} of the seeds")
    assert np.all(result.returns.mean(axis=(1, 2, 3)) > -200)
