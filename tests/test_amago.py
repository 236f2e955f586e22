"""AMAGO's learner against NumPy: its heads, its targets, what it clones, and how it explores."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_learners as reference
import remembered
import scipy.stats
from remembered import BATCH, OBSERVED, assert_equal, env_of
from trials import ENV, EPISODES, TASKS, batch_of

from metajax.adaptation import Exploration, bilevel
from metajax.adaptation.exploration import exploring
from metajax.algorithms.off_policy_rl2 import off_policy_rl2
from metajax.envs import make
from metajax.envs.rollouts import rollout
from metajax.errors import MetajaxError
from metajax.outer import OffPolicyLearner, amago
from metajax.outer.off_policy import Batch
from metajax.outer.value_heads import (
    RATE,
    first_moments,
    moments_after,
    rescaling,
    scalar,
    symexp,
    two_hot,
    two_hot_weights,
    unit_moments,
)
from metajax.policies import deterministic, gru, mlp, squashed
from metajax.policies.squashed import q_networks
from metajax.steps import WORD, count_steps, share_of
from metajax.training import Evaluation, train
from metajax.types import Continuous, Discrete, Part

UPDATES = 3
SPACE = Continuous(2, low=(-2.0, -0.5), high=(1.0, 0.5))
DISCRETE = Discrete(4)
BOX = reference.Box(*SPACE.bounds)
KEY = jax.random.key(5)
DISCOUNTS = (0.3, 0.9)
OPTIONS = {
    "learning_rate": 0.01,
    "critic_learning_rate": 0.02,
    "discounts": DISCOUNTS,
    "tau": 0.2,
    "reward_scale": 3.0,
    "value_weight": 0.7,
    "behaviour_cloning": 0.4,
    "hidden": (5, 4),
    "bins": 6,
    "highest_value": 20.0,
}

pytestmark = pytest.mark.usefixtures("float64")


steps_of = partial(remembered.steps_of, stretched=1.2)  # some actions are at a bound


def policy_of(space):
    if isinstance(space, Discrete):
        return mlp(OBSERVED, space, hidden=(6,), activation="relu")
    return squashed(OBSERVED, space, hidden=(6,))


# --- once more, in NumPy, with derivatives written down by hand ----------------------------------


class Scalar:
    """A number, in units of the standard deviation of targets or of 1."""

    numbers = 1

    def value(self, outputs, mean, std):
        return mean + std * outputs[..., 0]

    def slope(self, outputs, by_value, std):
        """Return derivatives by outputs, given those by values."""
        return (by_value * std)[..., None]

    def error(self, outputs, targets, mean, std):
        """Return errors and their derivatives by outputs."""
        off = outputs[..., 0] - (targets - mean) / std
        return off**2, 2 * off[..., None]


class TwoHot:
    numbers, edge = OPTIONS["bins"], np.log(1 + OPTIONS["highest_value"])
    bins = np.linspace(-edge, edge, numbers)

    def chance(self, outputs):
        chance = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        return chance / chance.sum(axis=-1, keepdims=True)

    def value(self, outputs, mean, std):
        z = self.chance(outputs) @ self.bins
        return np.sign(z) * (np.exp(np.abs(z)) - 1)

    def slope(self, outputs, by_value, std):
        chance = self.chance(outputs)
        z = (chance @ self.bins)[..., None]
        return by_value[..., None] * np.exp(np.abs(z)) * chance * (self.bins - z)

    def weights(self, targets):
        """Return those of the two nearest bins, one target after the other."""
        found = np.zeros((*targets.shape, self.numbers))
        for index in np.ndindex(targets.shape):
            z = np.sign(targets[index]) * np.log(1 + abs(targets[index]))
            above = int(np.clip(np.searchsorted(self.bins, z), 1, self.numbers - 1))
            low, high = self.bins[above - 1], self.bins[above]
            share = np.clip((z - low) / (high - low), 0, 1)
            found[index][above - 1], found[index][above] = 1 - share, share
        return found

    def error(self, outputs, targets, mean, std):
        weights, chance = self.weights(targets), self.chance(outputs)
        return -np.sum(weights * np.log(chance), axis=-1), chance - weights


class Amago:
    """One policy and its critics, which are all in the minimum of the target."""

    def __init__(self, policy, critics, head, space, *, popart, samples=1):
        self.policy, self.critics, self.head, self.space = policy, critics, head, space
        self.slow_policy, self.slow = policy.copy(), [critic.copy() for critic in critics]
        self.optimizers = reference.Adam(0.01), reference.Adam(0.02)
        self.popart, self.samples, self.seen = popart, samples, []
        self.mean, self.std = np.zeros(2), np.ones(2)
        if popart:
            self.seen, self.std = [(np.zeros(2), np.full(2, 100.0))], np.full(2, 10.0)

    def outputs(self, critic, observation, action):
        """Return `[step, (action), discount, number]`; a policy's actions, where continuous."""
        if isinstance(self.space, Discrete):
            found = critic(observation)
            return found.reshape(len(found), -1, 2, self.head.numbers)
        return critic(BOX.inputs(observation, action)).reshape(-1, 2, self.head.numbers)

    def draw(self, policy, observation, noise):
        """Return a distribution's numbers, and actions where they are drawn."""
        out = policy(observation)
        if isinstance(self.space, Discrete):
            return TwoHot().chance(out), None
        mean, raw = np.split(out, 2, axis=1)
        u = mean + np.exp(np.clip(raw, -20, 2)) * noise
        return (mean, raw, u), BOX.center + BOX.half * np.tanh(u)

    def expected(self, critic, observation, drawn):
        """Return values `[step, discount]` of one action that is drawn, or of the policy."""
        chance, action = drawn
        q = self.head.value(self.outputs(critic, observation, action), self.mean, self.std)
        return np.einsum("sa,sag->sg", chance, q) if action is None else q

    def update(self, steps, next_noise, noises):
        drawn = self.draw(self.slow_policy, steps.next_observation, next_noise)
        later = [self.expected(one, steps.next_observation, drawn) for one in self.slow]
        going = ~steps.terminated[:, None]
        targets = 3.0 * steps.reward[:, None] + np.array(DISCOUNTS) * going * np.min(later, axis=0)
        if self.popart:
            self.track(targets)
        loss = self.critic_step(steps, targets)
        share = self.policy_step(steps, noises)
        self.slow_policy = reference.mixed(self.slow_policy, self.policy, 0.2)
        self.slow = [
            reference.mixed(*pair, 0.2) for pair in zip(self.slow, self.critics, strict=True)
        ]
        return loss, share

    def track(self, targets):
        """Weigh all batches by their age, and keep what networks say."""
        self.seen.append((targets.mean(axis=0), (targets**2).mean(axis=0)))
        ages = (1 - RATE) ** np.arange(len(self.seen))[::-1]
        mean, square = np.einsum("b,bkg->kg", ages, np.array(self.seen)) / ages.sum()
        std = np.sqrt(square - mean**2)
        factor, shift = self.std / std, (self.mean - mean) / std
        for critic in [*self.critics, *self.slow]:
            kernel, bias = critic.weights[-2:]
            for output in range(len(bias)):
                discount = output % 2
                kernel[:, output] *= factor[discount]
                bias[output] = bias[output] * factor[discount] + shift[discount]
        self.mean, self.std = mean, std

    def critic_step(self, steps, targets):
        discrete, loss, gradients = isinstance(self.space, Discrete), 0.0, []
        for critic in self.critics:
            outputs = self.outputs(critic, steps.observation, steps.action)
            at = (np.arange(BATCH), steps.action) if discrete else (slice(None),)
            error, by_taken = self.head.error(outputs[at], targets, self.mean, self.std)
            count = len(self.critics) * error.size
            loss += error.sum() / count
            slope = np.zeros_like(outputs)
            slope[at] = by_taken / count
            gradients += critic.backward(slope.reshape(BATCH, -1))[0]
        arrays = [w for critic in self.critics for w in critic.weights]
        arrays = self.optimizers[1].step(arrays, gradients)
        size = len(self.critics[0].weights)
        for index, critic in enumerate(self.critics):
            critic.weights = arrays[index * size : (index + 1) * size]
        return loss

    def policy_step(self, steps, noises):
        observation, action = steps.observation, steps.action
        discrete = isinstance(self.space, Discrete)
        drawn = [self.draw(self.policy, observation, noise) for noise in noises]
        found = np.mean(
            [[self.expected(q, observation, one)[:, -1] for q in self.critics] for one in drawn],
            axis=0,
        )
        taken = []
        for critic in self.critics:
            outputs = self.outputs(critic, observation, action)
            q = self.head.value(outputs, self.mean, self.std)[..., -1]
            taken.append(q[np.arange(BATCH), action] if discrete else q)
        cloned = np.mean(np.array(taken) - found, axis=0) > 0
        lowest, unit = np.argmin(found, axis=0), 0.7 / self.std[-1] / BATCH
        by_output = 0.0
        for (numbers, drawn_action), noise in zip(drawn, noises, strict=True):
            for index, critic in enumerate(self.critics):
                outputs = self.outputs(critic, observation, drawn_action)
                mine = (lowest == index) * unit / self.samples
                if discrete:
                    q = self.head.value(outputs, self.mean, self.std)[..., -1]
                    mean = np.sum(numbers * q, axis=1, keepdims=True)
                    by_output -= mine[:, None] * numbers * (q - mean)
                    continue
                by_value = np.zeros((BATCH, 2))
                by_value[:, -1] = mine
                slope = self.head.slope(outputs, by_value, self.std).reshape(BATCH, -1)
                by_action = critic.backward(slope)[1][:, OBSERVED:] / BOX.half
                mean, raw, u = numbers
                by_u = by_action * BOX.half * (1 - np.tanh(u) ** 2)
                inside = (raw > -20) & (raw < 2)
                by_log_std = by_u * noise * np.exp(np.clip(raw, -20, 2)) * inside
                by_output -= np.concatenate([by_u, by_log_std], axis=1)
        cloning = 0.4 * cloned[:, None] / BATCH
        numbers = drawn[0][0]
        if discrete:
            by_output -= cloning * (np.eye(self.space.size)[action] - numbers)
        else:
            mean, raw, _ = numbers
            std, inside = np.exp(np.clip(raw, -20, 2)), (raw > -20) & (raw < 2)
            z = np.arctanh(np.clip((action - BOX.center) / BOX.half, -0.99, 0.99)) - mean
            by_log_std = (z**2 / std**2 - 1) * inside
            by_output -= cloning * np.concatenate([z / std**2, by_log_std], axis=1)
        self.policy(observation)
        gradient = self.policy.backward(by_output)[0]
        self.policy.weights = self.optimizers[0].step(self.policy.weights, gradient)
        return cloned.mean()


def listed(params):
    """Return a network whose hidden layers are a list: those of `mlp` have names."""
    body = params["body"]
    return params | {"body": list(body.values()) if isinstance(body, dict) else body}


def started(space, **options):
    """Return a learner, and parameters and state far from 0."""
    policy = policy_of(space)
    learner = amago(**OPTIONS | options).build(env_of(space), policy)
    params = reference.far_from_zero(policy.init(jax.random.key(0)))
    state = learner.init(jax.random.key(1), params, ())
    critic = reference.far_from_zero(state["critic"], 1)
    return learner, params, state | {"critic": critic, "target": (params, critic)}


def improving(learner):
    return lambda params, state, steps, key: learner.improve(
        params, (), state, lambda _: Batch(steps), key
    )


def critics_of(params, count):
    one = lambda index: jax.tree.map(lambda x: x[index], params)
    return [reference.Perceptron(one(index)) for index in range(count)]


def normal(key):
    return np.asarray(jax.random.normal(key, (BATCH, 2), float))


@pytest.mark.parametrize(
    ("head", "space"),
    [
        ("popart", SPACE),
        pytest.param("two_hot", SPACE, marks=pytest.mark.slow),
        pytest.param("popart", DISCRETE, marks=pytest.mark.slow),
        pytest.param("scalar", SPACE, marks=pytest.mark.slow),
        pytest.param("scalar", DISCRETE, marks=pytest.mark.slow),
        pytest.param("two_hot", DISCRETE, marks=pytest.mark.slow),
    ],
)
def test_updates_are_their_equations(head, space):
    samples = 2 if head == "popart" else 1
    options = {"critics": 2, "subset": 2, "value_head": head, "samples": samples}
    learner, params, state = started(space, **options)
    improve = jax.jit(improving(learner))
    by_hand = Amago(
        reference.Perceptron(listed(params)),
        critics_of(state["critic"], 2),
        TwoHot() if head == "two_hot" else Scalar(),
        space,
        popart=head == "popart",
        samples=1 if space is DISCRETE else samples,
    )
    shares = []
    for index in range(UPDATES):
        steps, key = steps_of(index, space), jax.random.key(10 + index)
        params, _, state, metrics = improve(params, state, steps, key)
        next_key, action_key = jax.random.split(key)
        next_noise = normal(jax.random.split(jax.random.split(next_key)[0], 1)[0])
        noises = [normal(one) for one in jax.random.split(action_key, by_hand.samples)]
        loss, share = by_hand.update(steps, next_noise, noises)
        assert float(metrics["q_loss"]) == pytest.approx(loss, rel=1e-9)
        assert float(metrics["cloned_share"]) == pytest.approx(share)
        shares.append(share)
        assert_equal(listed(params), by_hand.policy.tree())
        assert_equal(listed(state["target"][0]), by_hand.slow_policy.tree())
        for found, expected in (
            (state["critic"], by_hand.critics),
            (state["target"][1], by_hand.slow),
        ):
            for twin, critic in enumerate(expected):
                assert_equal(jax.tree.map(lambda x, twin=twin: x[twin], found), critic.tree())
        assert_equal((state["moments"].mean, state["moments"].std), (by_hand.mean, by_hand.std))
    assert 0 < np.mean(shares) < 1


def test_each_discount_has_the_values_that_it_would_have_alone():
    """The loss of several is the mean of theirs, of heads cut out of the same critics."""
    options = {"critics": 2, "subset": 2, "value_head": "scalar"}
    steps = steps_of(0, DISCRETE)

    def loss_of(learner, *of):
        return float(jax.jit(lambda *of: improving(learner)(*of)[3]["q_loss"])(*of, steps, KEY))

    together, params, state = started(DISCRETE, **options)
    losses = []
    for index, discount in enumerate(DISCOUNTS):
        alone, _, own = started(DISCRETE, discounts=(discount,), **options)
        head = jax.tree.map(lambda x, i=index: x[..., i::2], state["critic"]["head"])
        critic = state["critic"] | {"head": head}
        losses.append(loss_of(alone, params, own | {"critic": critic, "target": (params, critic)}))
    assert losses[0] != pytest.approx(losses[1], rel=0.01)
    assert loss_of(together, params, state) == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.7], ids=["mean", "lowest"])
def test_targets_are_of_two_critics_that_are_drawn_anew(weight):
    """Their lowest value; their mean, where the policy does not climb it."""
    learner, params, state = started(DISCRETE, critics=3, subset=2, value_weight=weight)
    steps = steps_of(0, DISCRETE)
    chance = TwoHot().chance(reference.Perceptron(listed(params))(steps.next_observation))
    outputs = np.array([q(steps.next_observation) for q in critics_of(state["critic"], 3)])
    # Before there are targets a standard deviation of 10 is the unit.
    later = 10 * np.einsum("sa,csag->csg", chance, outputs.reshape(3, BATCH, 4, 2))
    expected = []
    for pair in itertools.combinations(range(3), 2):
        of_two = np.mean(later[list(pair)], axis=0) if weight == 0 else later[list(pair)].min(0)
        going = np.array(DISCOUNTS) * ~steps.terminated[:, None]
        targets = 3 * steps.reward[:, None] + going * of_two
        # What was before the first batch has a mean of 0 and is older by one.
        expected.append(targets.mean(axis=0) / (2 - RATE))
    mean_of = jax.jit(lambda *of: improving(learner)(*of)[2]["moments"].mean)
    which = []
    for seed in range(12):
        found = mean_of(params, state, steps, jax.random.key(seed))
        same = [np.allclose(found, mean, rtol=1e-9) for mean in expected]
        assert sum(same) == 1
        which.append(same.index(True))
    assert {*which} == {0, 1, 2}


def test_what_is_better_than_the_policy_is_cloned_and_nothing_else():
    """Of two actions worth 2 and 1, under a policy that takes either half of the time."""
    space = Discrete(2)
    options = {"value_weight": 0.0, "behaviour_cloning": 1.0, "value_head": "scalar"}
    options |= {"critics": 2, "critic_learning_rate": 1e-30, "hidden": ()}
    policy = mlp(OBSERVED, space, hidden=())
    learner = amago(**OPTIONS | options).build(env_of(space), policy)
    params = jax.tree.map(jnp.zeros_like, policy.init(KEY))
    state = learner.init(KEY, params, ())
    # The outputs are of action 0 under both discounts, then of action 1.
    worth = jnp.array([[1.0, 2.0, 2.0, 1.0]] * 2)
    head = {"kernel": jnp.zeros_like(state["critic"]["head"]["kernel"]), "bias": worth}
    state["critic"] = state["critic"] | {"head": head}
    steps = dataclasses.replace(steps_of(0, space), action=np.array([0, 1, 1, 1, 1, 1, 1]))
    improve = jax.jit(improving(learner))
    _, _, after, metrics = improve(params, state, steps, KEY)
    assert float(metrics["cloned_share"]) == pytest.approx(1 / BATCH)
    # Adam's first moment, after one step, is a tenth of the gradient.
    slope = 10 * after["policy_optimizer"][0].mu["head"]["bias"]
    np.testing.assert_allclose(slope, np.array([-0.5, 0.5]) / BATCH, rtol=1e-9)
    worse = dataclasses.replace(steps, action=np.ones(BATCH, int))
    _, _, after, metrics = improve(params, state, worse, KEY)
    assert float(metrics["cloned_share"]) == 0
    assert not np.any(after["policy_optimizer"][0].mu["head"]["bias"])


def test_what_steps_are_made_from_descends_the_critics_loss_and_its_penalty():
    """An encoder that moves observations, against finite differences."""
    learner, params, state = started(DISCRETE, critics=2, subset=2)
    steps, encoder = steps_of(0, DISCRETE), jnp.array([0.3, -0.2, 0.1])
    state["critic_optimizer"] = learner.init(KEY, params, encoder)["critic_optimizer"]

    @jax.jit
    def improve(encoder):
        def batch_of(encoder):
            observation = steps.observation + jnp.broadcast_to(encoder, (BATCH, OBSERVED))
            moved = dataclasses.replace(steps, observation=observation)
            return Batch(moved, penalty=jnp.sum(encoder**2))

        return learner.improve(params, encoder, state, batch_of, KEY)[1:]

    moved, after, metrics = improve(encoder)
    # Adam's first moment, after one step, is a tenth of the gradient; its step has the other sign.
    slope = 10 * after["critic_optimizer"][0].mu[1]
    for index in range(OBSERVED):
        nudge = 1e-5 * np.eye(OBSERVED)[index]
        high, low = (float(improve(encoder + by)[2]["q_loss"]) for by in (nudge, -nudge))
        expected = (high - low) / 2e-5 + 2 * encoder[index]
        assert float(slope[index]) == pytest.approx(float(expected), rel=1e-5)
    assert np.all(np.sign(moved - encoder) == -np.sign(slope))
    assert float(metrics["meta_gradient_norm"]) > float(jnp.linalg.norm(slope))


@pytest.mark.parametrize("space", [SPACE, DISCRETE], ids=["continuous", "discrete"])
def test_steps_without_weight_change_nothing(space):
    """Neither networks nor moments nor metrics: as if only the other steps were there."""
    learner, params, state = started(space, critics=2, subset=2)
    weight = np.array([1, 1, 0, 1, 0, 1, 0]) * BATCH / 4

    @jax.jit
    def improve(steps, weight):
        return learner.improve(params, (), state, lambda _: Batch(steps, weight=weight), KEY)

    def mixed(index):
        """Return the first batch, with steps of another one where there is no weight."""
        there = lambda x: (weight > 0).reshape(-1, *[1] * (x.ndim - 1))
        where = lambda x, y: np.where(there(x), x, y)
        return jax.tree.map(where, steps_of(0, space), steps_of(index, space))

    found = improve(mixed(1), weight)
    assert_equal(improve(mixed(2), weight), found, rtol=1e-12)
    everything = improve(mixed(2), np.ones(BATCH))
    assert not np.allclose(everything[2]["moments"].mean, found[2]["moments"].mean, rtol=1e-3)


# --- heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [SPACE, DISCRETE], ids=["continuous", "discrete"])
def test_new_moments_move_no_value(space):
    values = q_networks(OBSERVED, space, hidden=(5,), count=3, outputs=2)
    params = reference.far_from_zero(values.init(KEY))
    old = first_moments(2)
    new = moments_after(old, jnp.array([300.0, -0.2]), jnp.array([4e6, 0.03]))
    by = rescaling(old, new)
    assert np.all(np.abs(new.std - old.std) > 1)
    steps = steps_of(0, space)
    action = () if space is DISCRETE else (steps.action,)
    before, after = (
        scalar().value(moments, values.apply(params, steps.observation, *action)[..., None])
        for params, moments in ((params, old), (values.rescaled(params, *by), new))
    )
    assert before.shape[-1] == 2
    np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12)


def test_moments_are_those_of_all_batches_by_their_age():
    random = np.random.default_rng(0)
    batches = 1e3 * random.normal(size=(50, 8, 2)) * random.random((50, 1, 2)) + [0.0, 5e3]
    moments, step = first_moments(2), jax.jit(moments_after)
    for batch in batches:
        moments = step(moments, batch.mean(axis=0), batch.var(axis=0))
    ages = (1 - 5e-4) ** np.arange(51)[::-1]
    mean, square = (
        ages @ np.vstack([np.full((1, 2), first), of_batches.mean(axis=1)]) / ages.sum()
        for first, of_batches in ((0.0, batches), (100.0, batches**2))
    )
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(moments.std**2, square - mean**2, rtol=1e-10)


def test_a_small_variance_far_from_zero_survives_single_precision():
    with jax.enable_x64(False):
        moments = first_moments(1)
        of_batch = jnp.full(1, 1e4, jnp.float32), jnp.ones(1, jnp.float32)
        moments = dataclasses.replace(moments, mean=of_batch[0], variance=of_batch[1])
        assert float(moments_after(moments, *of_batch).std[0]) == 1


def test_standard_deviations_have_bounds():
    moments = dataclasses.replace(unit_moments(2), variance=jnp.array([0.0, 1e20]))
    np.testing.assert_allclose(moments.std, [1e-4, 1e6])


def test_two_bins_say_a_value_and_read_it_again():
    values = np.concatenate([np.linspace(-20, 20, 41), [0.3, -1e-3]])
    weights = np.asarray(two_hot_weights(jnp.asarray(values), 6, 20.0))
    np.testing.assert_allclose(weights, TwoHot().weights(values), atol=1e-12)
    assert np.all(np.sum(weights > 1e-12, axis=1) <= 2)
    read = two_hot(6, 20.0).value(unit_moments(1), jnp.log(weights)[:, None])[:, 0]
    np.testing.assert_allclose(read, values, rtol=1e-9, atol=1e-12)
    beyond = two_hot_weights(jnp.array([-500.0, 21.0]), 6, 20.0)
    np.testing.assert_allclose(beyond, np.eye(6)[[0, 5]])


def test_the_cross_entropy_has_its_derivative():
    random = np.random.default_rng(0)
    outputs, targets = random.normal(size=(9, 2, 6)), 15 * random.normal(size=(9, 2))
    error = two_hot(6, 20.0).error
    found = jax.grad(lambda x: jnp.sum(error(unit_moments(2), x, targets)))(outputs)
    np.testing.assert_allclose(found, TwoHot().error(outputs, targets, 0, 1)[1], atol=1e-12)
    np.testing.assert_allclose(
        error(unit_moments(2), outputs, targets), TwoHot().error(outputs, targets, 0, 1)[0]
    )
    assert float(jax.grad(symexp)(0.0)) == 1


# --- exploration ---------------------------------------------------------------------------------

WIDE = Continuous(3, low=-100.0, high=100.0)
POLICY = gru(2, ENV.action_space, width=3, critic="none")


@pytest.mark.parametrize(
    ("share", "time", "epsilon"),
    [
        (0.0, 0.0, 1.0),
        (0.0, 1.0, 0.8),
        (1.0, 0.0, 0.05),
        (1.0, 1.0, 0.01),
        (0.5, 0.0, 0.525),
        (0.5, 1.0, 0.405),
        (0.5, 0.5, 0.465),
        (2.0, 0.5, 0.03),
    ],
)
def test_exploration_falls_within_a_trial_and_over_the_training(share, time, epsilon):
    """Of actions in the middle of their bounds, of half a trial's strength."""
    taken = count_steps(jnp.zeros(2, jnp.uint32), int(share * 1000))
    part, key = bilevel(steps=1000), jax.random.key(3)
    explore = part.build(env_of(WIDE), None).explore
    noise = jax.random.normal(key, (3,), float)
    assert np.all(np.abs(noise) < 2)
    found = explore(0.5, jnp.zeros(3), jnp.asarray(time), taken, key)
    np.testing.assert_allclose(found, 100 * 0.5 * epsilon * noise, rtol=1e-9)

    explore = part.build(env_of(DISCRETE), None).explore
    one = lambda key: explore(0.5, jnp.int32(2), jnp.asarray(time), taken, key)
    actions = jax.vmap(one)(jax.random.split(KEY, 4000))
    expected = np.full(4, 0.5 * epsilon / 4) + (1 - 0.5 * epsilon) * np.eye(4)[2]
    counts = np.bincount(actions, minlength=4)
    assert scipy.stats.chisquare(counts, 4000 * expected).pvalue > 1e-4


def test_noise_stays_within_the_bounds_and_trials_differ_in_strength():
    exploration = bilevel().build(env_of(SPACE), None)
    taken, low_high = jnp.zeros(2, jnp.uint32), np.stack(SPACE.bounds)
    one = lambda key: exploration.explore(1.0, jnp.array([0.9, 0.4]), jnp.zeros(()), taken, key)
    actions = np.asarray(jax.vmap(one)(jax.random.split(KEY, 500)))
    assert np.all((actions >= low_high[0]) & (actions <= low_high[1]))
    assert np.all(np.any(actions == low_high[1], axis=0))
    strengths = jax.vmap(exploration.init)(jax.random.split(KEY, 1000))
    assert scipy.stats.kstest(np.asarray(strengths), "uniform").pvalue > 1e-3


def test_the_share_of_steps_counts_beyond_a_word():
    for steps in (0, 5, WORD - 1, WORD + 7):
        count = count_steps(jnp.zeros(2, jnp.uint32), steps)
        assert float(share_of(count, 4.0 * WORD)) == pytest.approx(steps / (4 * WORD), rel=1e-12)
    assert float(share_of(count_steps(count, WORD), 100.0)) == 1


def test_time_goes_on_from_episode_to_episode_and_starts_anew_with_a_trial():
    """What is explored with is one number for a trial, and the time is that of the trial."""
    exploration = Exploration(
        jax.random.uniform, lambda strength, action, time, taken, key: strength + 10 * time
    )
    act = lambda memory, x, key: (memory + 1, jnp.zeros(()), memory)
    taken, found = jnp.zeros(2, jnp.uint32), []
    for trial in range(2):
        explore, memory = exploring(exploration, act, 0, 8, taken, jax.random.key(trial))
        for step in range(8):
            memory, action, output = explore(memory, None, jax.random.key(step))
            assert output == step
            found.append(float(action))
    found = np.array(found).reshape(2, 8)
    np.testing.assert_allclose(found - found[:, :1], [10 * np.arange(8) / 8] * 2, atol=1e-9)
    assert 0 < found[0, 0] < 1 and found[0, 0] != found[1, 0]


@pytest.mark.slow
def test_exploration_disturbs_what_is_collected_until_it_is_over_and_never_the_agent():
    """Of a policy that always takes the first action; three trials of eight steps are the rest."""
    exploration = bilevel(first_end=1.0, last_start=0.0, last_end=0.0, steps=24)
    still = OffPolicyLearner(
        lambda key, params, encoder: {},
        lambda params, encoder, state, batch_of, key: (params, encoder, state, {}),
        (),
        POLICY,
    )
    options = {"batch": 3, "replay_capacity": 40, "random_trials": 0, "episodes": EPISODES}
    tasks = batch_of(TASKS)

    learner = Part(lambda env, policy: still)
    algorithm = off_policy_rl2(ENV, POLICY, learner=learner, exploration=exploration, **options)
    state = jax.jit(algorithm.init)(KEY, tasks)
    params = state.meta_params.policy
    head = params["head"] | {"bias": jnp.array([99.0, 0.0, 0.0])}
    meta_params = dataclasses.replace(state.meta_params, policy=params | {"head": head})
    state = dataclasses.replace(state, meta_params=meta_params)
    update, others = jax.jit(algorithm.update), []
    for index in range(2):
        state, _ = update(state, tasks, jax.random.key(index))
        kept = jax.tree.map(lambda x, i=index: x[3 * i : 3 * i + 3], state.replay.items)
        others.append(int(np.sum((kept.action > 0) & kept.valid)))
    assert others[0] > 2 and others[1] == 0

    @jax.jit
    def played(meta_params, key):
        act = lambda *of: algorithm.agent.act(meta_params, *of)
        task = jax.tree.map(lambda x: x[0], TASKS)
        start = algorithm.agent.initial_memory()
        return rollout(key, ENV, task, act, start, episodes=EPISODES).action

    assert not np.any(played(state.meta_params, KEY))


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (amago, {"discounts": ()}, "the number of discounts is 0; it must be at least 1"),
        (amago, {"discounts": (0.9, 0.0)}, r"a discount in discounts is 0\.0; it must be above 0"),
        (amago, {"discounts": (1.5, 0.9)}, r"a discount in discounts is 1\.5; it must be at most"),
        (amago, {"subset": 5}, "subset is 5; it must be at most 4"),
        (amago, {"subset": 0}, "subset is 0"),
        (amago, {"samples": 0}, "samples is 0"),
        (amago, {"bins": 1}, "bins is 1; it must be at least 2"),
        (amago, {"highest_value": 0.0}, "highest_value"),
        (amago, {"behaviour_cloning": -0.1}, "behaviour_cloning"),
        (amago, {"value_weight": -0.1}, "value_weight"),
        (amago, {"reward_scale": 0.0}, "reward_scale"),
        (amago, {"value_head": "two-hot"}, "unknown value of value_head 'two-hot'; did you mean"),
        (bilevel, {"first_start": 1.1}, r"first_start is 1\.1; it must lie in \[0, 1\]"),
        (bilevel, {"last_end": -0.1}, r"last_end is -0\.1; it must lie in \[0, 1\]"),
        (bilevel, {"steps": 0.0}, r"steps is 0\.0; it must be above 0"),
    ],
)
def test_mistakes(factory, options, message):
    with pytest.raises(MetajaxError, match=message):
        factory(**options)


def test_what_it_cannot_train_or_disturb_is_refused():
    with pytest.raises(MetajaxError, match="amago cannot train a policy whose distribution is Noi"):
        amago().build(env_of(SPACE), deterministic(OBSERVED, SPACE))
    with pytest.raises(MetajaxError, match="amago cannot train a policy whose distribution is Dia"):
        amago().build(env_of(SPACE), mlp(OBSERVED, SPACE))
    unbounded = Continuous(2, low=-np.inf)
    with pytest.raises(MetajaxError, match="bilevel exploration needs bounds of each action"):
        bilevel().build(env_of(unbounded), None)
    assert isinstance(bilevel(), Part) and bilevel().made.options["steps"] == 1e6


# --- that it learns ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "enough"),
    [
        (amago, 2.17),
        (partial(amago, value_head="two_hot", value_weight=0.0, behaviour_cloning=1.0), 2.08),
    ],
    ids=["amago", "amago-2"],
)
def test_two_arms_are_told_apart_after_six_thousand_pulls(learner, enough):
    """Of four pulls at random two win; at best, 41/18 = 2.278 (by dynamic programming)."""
    with jax.enable_x64(False):
        family = make("bernoulli-bandit", arms=2)
        policy = gru(1, family.env.action_space, width=16, critic="none")
        of = {"critic_learning_rate": 3e-3, "discounts": (0.5, 1.0), "hidden": (32,), "tau": 0.02}
        algorithm = off_policy_rl2(
            family.env,
            policy,
            learner=learner(3e-3, **of),
            exploration=bilevel(steps=4000),
            episodes=4,
            updates_per_step=0.25,
            batch=32,
            replay_capacity=1500,
            random_trials=100,
        )
        evaluation = Evaluation(
            every=75, tasks=2000, rounds=1, episodes=4, final_tasks=2000, deterministic=True
        )
        options = {"iterations": 75, "tasks": 20, "devices": 1, "report": None}
        result = train(algorithm, family, evaluation=evaluation, **options)
    total = result.returns.sum(axis=(2, 3)).mean()
    assert total > enough
