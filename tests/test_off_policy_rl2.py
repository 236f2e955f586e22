"""Off-policy RL²: learners on whole trials, one step after the other, and what is learned from."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_learners as reference
import scipy.stats
from remembered import assert_equal
from trials import ENV, EPISODES, LENGTH, TASKS, batch_of

from metajax import policies
from metajax.algorithms.off_policy_rl2 import off_policy_rl2, trial_batch, trial_steps
from metajax.envs import make
from metajax.envs.rollouts import rollout
from metajax.envs.splits import sample_tasks
from metajax.errors import MetajaxError
from metajax.outer import amago, double_q, sac, td3
from metajax.policies import NoisyAction, SquashedNormal, gru, lstm, mlp, window
from metajax.replay import TrialSteps
from metajax.training import Evaluation, train
from metajax.types import Continuous, Discrete, Env, MetaParams, StepInput

OBSERVED, WIDTH, UPDATES = 2, 3, 2
LENGTHS = (4, 2, 1)  # steps of the trials of a batch
SPACE = Continuous(2, low=(-2.0, -0.5), high=(1.0, 0.5))
DISCRETE = Discrete(3)
BOX = reference.Box(*SPACE.bounds)
NETWORKS = {"hidden": (4,)}
NUMBERS = {"discount": 0.9, "tau": 0.2}
RATES = {"learning_rate": 0.01, "critic_learning_rate": 0.02, **NUMBERS}
KEY, BATCH = jax.random.key(5), batch_of(TASKS)

pytestmark = pytest.mark.usefixtures("float64")


def env_of(space) -> Env:
    """Return sizes: learners do not play."""
    nothing = lambda *_: None
    return Env(nothing, nothing, OBSERVED, space, 10)


def batch(index, space, length=LENGTHS[0], padding=None) -> TrialSteps:
    """Return random trials, behind which there is anything, or `padding`."""
    random, anything = (np.random.default_rng(seed) for seed in (index, 100 + index))
    valid = np.arange(length) < np.array(LENGTHS)[:, None]

    def numbers(*shape, draw=random.normal):
        found = np.zeros((len(LENGTHS), length, *shape))
        for trial, steps in zip(found, LENGTHS, strict=True):
            trial[:steps] = draw(size=(steps, *shape))
        rest = anything.normal(size=found.shape) if padding is None else padding
        return np.where(valid.reshape(*valid.shape, *[1] * len(shape)), found, rest)

    def actions():
        if isinstance(space, Discrete):
            return np.abs(3 * numbers()).astype(int) % space.size
        return numbers(2) / 10

    step_input = StepInput(numbers(OBSERVED), actions(), numbers(), numbers() > 1)
    last = np.arange(length) == np.array(LENGTHS)[:, None] - 1
    return TrialSteps(step_input, actions(), numbers(), last, valid)


# --- one step after the other --------------------------------------------------------------------


def features(params, inputs):
    """Return the memory after each of some inputs, gate by gate."""
    h, found = jnp.zeros(WIDTH), []
    for x in inputs:
        by_input = x @ params["input"]["kernel"] + params["input"]["bias"]
        by_memory = h @ params["recurrent"]["kernel"] + params["recurrent"]["bias"]
        reset, update = (
            1 / (1 + jnp.exp(-by_input[i : i + WIDTH] - by_memory[i : i + WIDTH]))
            for i in (0, WIDTH)
        )
        new = jnp.tanh(by_input[2 * WIDTH :] + reset * by_memory[2 * WIDTH :])
        h = (1 - update) * new + update * h
        found.append(h)
    return found


class Trial(NamedTuple):
    """A trial of a batch, without its padding, and what a network is given of it."""

    observation: Any
    action: Any
    reward: Any
    inputs: Any


def apart(trials, space) -> list[Trial]:
    """Return the trials of a batch; rewards of inputs are in a unit of 2."""
    found = []
    for index, length in enumerate(LENGTHS):
        x, action, reward = jax.tree.map(
            lambda x, index=index, length=length: np.asarray(x[index, :length]),
            (trials.step_input, trials.action, trials.reward),
        )
        previous = x.previous_action
        if isinstance(space, Discrete):
            previous = np.eye(space.size)[previous]
        outcome = np.stack([x.previous_reward / 2, x.previous_end], axis=-1)
        inputs = np.concatenate([x.observation, previous, outcome], axis=1)
        found.append(Trial(x.observation, action, reward, inputs))
    return found


class ByHand:
    """What learners have in common: outputs of networks, and the mean over all steps."""

    def __init__(self, space, policy, critic):
        self.space, self.policy, self.critic = space, policy, critic
        self.slow_policy, self.target = policy, critic
        self.optimizers, self.compiled = {}, {}

    def outputs(self, policy, trial):
        """Return those of the policy at each step."""
        head = policy["head"]
        return [h @ head["kernel"] + head["bias"] for h in features(policy["actor"], trial.inputs)]

    def values(self, critic, trial, actions):
        """Return the values of an action at each step, of all where they are discrete."""
        found = []
        for h, seen, action in zip(
            features(critic["memory"], trial.inputs), trial.observation, actions, strict=True
        ):
            unit = [] if action is None else [(action - BOX.center) / BOX.half]
            x = jnp.concatenate([h, jnp.asarray(seen), *unit])
            each = []
            for index in range(2):
                heads = jax.tree.map(lambda w, index=index: w[index], critic["heads"])
                hidden = heads["body"][0]
                y = jnp.maximum(x @ hidden["kernel"] + hidden["bias"], 0)
                each.append(y @ heads["head"]["kernel"] + heads["head"]["bias"])
            found.append(jnp.stack(each))
        return found

    def descend(self, name, rate, loss, params, *data):
        """Return parameters after a step of Adam, and the loss before it."""
        of = self.compiled.setdefault(name, jax.jit(jax.value_and_grad(loss)))
        value, gradient = of(params, *data)
        leaves, structure = jax.tree.flatten(params)
        optimizer = self.optimizers.setdefault(name, reference.Adam(rate))
        leaves = optimizer.step(leaves, [np.asarray(x) for x in jax.tree.leaves(gradient)])
        return jax.tree.unflatten(structure, leaves), value

    def mixed(self, slow, fast):
        tau = NUMBERS["tau"]
        return jax.tree.map(lambda a, b: (1 - tau) * a + tau * b, slow, fast)

    def critic_step(self, trials, later, scale=1.0):
        """Descend squared errors, given what is expected from each step on but the first."""
        discrete = isinstance(self.space, Discrete)

        def loss(critic, trials, goals):
            total = 0.0
            for trial, goal in zip(trials, goals, strict=True):
                actions = [None] * len(goal) if discrete else trial.action
                for step, q in enumerate(self.values(critic, trial, actions)):
                    q = q[:, trial.action[step]] if discrete else q[:, 0]
                    total += jnp.sum((q - goal[step]) ** 2)
            return total / sum(LENGTHS)

        # Nothing follows the last step of a trial.
        goals = [
            scale * trial.reward + 0.9 * np.append(np.array(after[1:]), 0.0)
            for trial, after in zip(trials, later, strict=True)
        ]
        self.critic, value = self.descend("critic", 0.02, loss, self.critic, trials, goals)
        return value


def noise_of(key):
    """Return noise by trial and step; that of what is after a step is drawn with the step."""
    return np.asarray(jax.random.normal(key, (len(LENGTHS), LENGTHS[0], 2), float))


def moved_on(noise):
    """Return noise by the step that it is of, not by the one that it is drawn with."""
    return [
        np.concatenate([np.zeros((1, 2)), of[: n - 1]])
        for of, n in zip(noise, LENGTHS, strict=True)
    ]


class Sac(ByHand):
    scale, wanted, log_temperature = 3.0, -2.0, np.zeros(())

    def act(self, output, noise):
        mean, log_std = jnp.split(output, 2)
        u = mean + jnp.exp(log_std) * noise
        density = -(noise**2) / 2 - log_std - np.log(2 * np.pi) / 2
        log_prob = jnp.sum(density - np.log(BOX.half) - jnp.log(1 - jnp.tanh(u) ** 2))
        return BOX.center + BOX.half * jnp.tanh(u), log_prob

    def soft(self, policy, critic, trial, noise):
        """Return min Q and -log π of the action drawn at each step."""
        drawn = [self.act(*of) for of in zip(self.outputs(policy, trial), noise, strict=True)]
        values = self.values(critic, trial, [action for action, _ in drawn])
        return [(jnp.min(q), -log_prob) for q, (_, log_prob) in zip(values, drawn, strict=True)]

    def expected(self, policy, critic, trials, noise, alpha):
        return [
            [q + alpha * surprise for q, surprise in self.soft(policy, critic, *of)]
            for of in zip(trials, noise, strict=True)
        ]

    def update(self, trials, key):
        alpha = np.exp(self.log_temperature)
        after, now = map(noise_of, jax.random.split(key))
        if "later" not in self.compiled:
            self.compiled["later"] = jax.jit(self.expected)
        later = self.compiled["later"](self.policy, self.target, trials, moved_on(after), alpha)
        loss = self.critic_step(trials, later, self.scale)

        def policy_loss(actor, critic, trials, noises, alpha):
            """Of policy and log α, whose slope is the entropy beyond what is wanted."""
            (policy, log_temperature), cost, entropy = actor, 0.0, 0.0
            for trial, noise in zip(trials, noises, strict=True):
                for q, surprise in self.soft(policy, critic, trial, noise[: len(trial.inputs)]):
                    cost -= (q + alpha * surprise) / sum(LENGTHS)
                    entropy += surprise / sum(LENGTHS)
            return cost + log_temperature * (jax.lax.stop_gradient(entropy) - self.wanted)

        (self.policy, self.log_temperature), _ = self.descend(
            "policy",
            0.01,
            policy_loss,
            (self.policy, self.log_temperature),
            *(self.critic, trials, now, alpha),
        )
        self.target = self.mixed(self.target, self.critic)
        return loss


class DiscreteSac(Sac):
    wanted = 0.5

    def soft(self, policy, critic, trial, noise):
        """Return the expected min Q and the entropy at each step."""
        values = self.values(critic, trial, [None] * len(trial.inputs))
        found = []
        for logits, q in zip(self.outputs(policy, trial), values, strict=True):
            log_prob = logits - jnp.log(jnp.sum(jnp.exp(logits)))
            chance = jnp.exp(log_prob)
            found.append((chance @ jnp.min(q, axis=0), -chance @ log_prob))
        return found


class Td3(ByHand):
    count = 0

    def actions(self, policy, trial):
        return [BOX.center + BOX.half * jnp.tanh(x) for x in self.outputs(policy, trial)]

    def expected(self, policy, critic, trials, noise):
        found = []
        for trial, moves in zip(trials, noise, strict=True):
            moves = BOX.half[None] * jnp.clip(0.5 * moves, -0.4, 0.4)
            moved = jnp.stack(self.actions(policy, trial)) + moves
            values = self.values(critic, trial, jnp.clip(moved, BOX.low[None], BOX.high[None]))
            found.append([jnp.min(q) for q in values])
        return found

    def update(self, trials, key):
        if "later" not in self.compiled:
            self.compiled["later"] = jax.jit(self.expected)
        noise = moved_on(noise_of(key))
        later = self.compiled["later"](self.slow_policy, self.target, trials, noise)
        loss = self.critic_step(trials, later)
        self.count += 1
        if self.count % 2 == 0:

            def policy_loss(policy, critic, trials):
                first = [
                    q[0, 0]
                    for trial in trials
                    for q in self.values(critic, trial, self.actions(policy, trial))
                ]
                return -sum(first) / sum(LENGTHS)

            others = self.critic, trials
            self.policy, _ = self.descend("policy", 0.01, policy_loss, self.policy, *others)
            self.slow_policy = self.mixed(self.slow_policy, self.policy)
            self.target = self.mixed(self.target, self.critic)
        return loss


class Amago(Sac):
    """Two discounts, squared errors, and cloning of what is better than the policy."""

    discounts = np.array([0.5, 0.9])

    def drawn(self, policy, critic, trial, noise):
        """Return the values `[critic, discount]` of the action drawn at each step."""
        outputs = zip(self.outputs(policy, trial), noise, strict=True)
        return self.values(critic, trial, [self.act(*of)[0] for of in outputs])

    def expected(self, policy, critic, trials, noise):
        both = zip(trials, noise, strict=True)
        return [[jnp.min(q, axis=0) for q in self.drawn(policy, critic, *of)] for of in both]

    def update(self, trials, key):
        next_key, action_key = jax.random.split(key)
        next_key = jax.random.split(next_key)[0]
        after, now = (noise_of(jax.random.split(key, 1)[0]) for key in (next_key, action_key))
        if "later" not in self.compiled:
            self.compiled["later"] = jax.jit(self.expected)
        later = self.compiled["later"](self.slow_policy, self.target, trials, moved_on(after))
        goals = []
        for trial, found in zip(trials, later, strict=True):
            following = np.array([*found[1:], np.zeros(2)])
            goals.append(self.scale * trial.reward[:, None] + self.discounts * following)

        def loss(critic, trials, goals):
            total = 0.0
            for trial, goal in zip(trials, goals, strict=True):
                for q, y in zip(self.values(critic, trial, trial.action), goal, strict=True):
                    total += jnp.mean((q - y[None]) ** 2) / sum(LENGTHS)
            return total

        self.critic, value = self.descend("critic", 0.02, loss, self.critic, trials, goals)

        def policy_loss(policy, critic, trials, noises):
            total = 0.0
            for trial, noise in zip(trials, noises, strict=True):
                own = self.drawn(policy, critic, trial, noise[: len(trial.inputs)])
                taken = self.values(critic, trial, trial.action)
                for step, output in enumerate(self.outputs(policy, trial)):
                    better = jnp.mean(taken[step][:, -1] - own[step][:, -1]) > 0
                    mean, log_std = jnp.split(output, 2)
                    unit = (trial.action[step] - BOX.center) / BOX.half
                    u = jnp.arctanh(jnp.clip(unit, -0.99, 0.99))
                    cloning = jnp.sum(-((u - mean) ** 2) / jnp.exp(2 * log_std) / 2 - log_std)
                    total -= jnp.min(own[step][:, -1]) + 0.1 * better * cloning
            return total / sum(LENGTHS)

        others = self.critic, trials, now
        self.policy, _ = self.descend("policy", 0.01, policy_loss, self.policy, *others)
        self.slow_policy = self.mixed(self.slow_policy, self.policy)
        self.target = self.mixed(self.target, self.critic)
        return value


class DoubleQ(ByHand):
    def update(self, trials, key):
        del key

        def loss(policy, fixed, slow, trials):
            total = 0.0
            for trial in trials:
                best = [jnp.argmax(x) for x in self.outputs(fixed, trial)]
                later = self.outputs(slow, trial)
                for step, q in enumerate(self.outputs(policy, trial)):
                    goal = trial.reward[step]
                    if step + 1 < len(trial.inputs):
                        goal += 0.9 * later[step + 1][best[step + 1]]
                    total += (q[trial.action[step]] - goal) ** 2
            return total / sum(LENGTHS)

        others = self.policy, self.slow_policy, trials
        self.policy, value = self.descend("policy", 0.01, loss, self.policy, *others)
        self.slow_policy = self.mixed(self.slow_policy, self.policy)
        return value


LEARNERS = {
    "sac": (sac(reward_scale=3.0, **RATES, **NETWORKS), SPACE, "squashed", Sac),
    "td3": (
        td3(target_noise=0.5, target_noise_clip=0.4, **RATES, **NETWORKS),
        SPACE,
        "deterministic",
        Td3,
    ),
    "sac-discrete": (
        sac(reward_scale=3.0, target_entropy=0.5, **RATES, **NETWORKS),
        DISCRETE,
        "unbounded",
        DiscreteSac,
    ),
    "amago": (
        amago(
            learning_rate=0.01,
            critic_learning_rate=0.02,
            discounts=(0.5, 0.9),
            tau=0.2,
            reward_scale=3.0,
            value_head="scalar",
            critics=2,
            **NETWORKS,
        ),
        SPACE,
        "squashed",
        Amago,
    ),
    "double-q": (double_q(0.01, **NUMBERS), DISCRETE, "unbounded", DoubleQ),
}


def started(name):
    """Return a learner, and policy and state far from where everything is small."""
    learner, space, actions, by_hand = LEARNERS[name]
    policy = gru(OBSERVED, space, width=WIDTH, critic="none", actions=actions)
    learner = learner.build(env_of(space), policy)
    params = reference.far_from_zero(policy.init(jax.random.key(0)), 1)
    state = learner.init(jax.random.key(1), params, ())
    if "critic" not in state:
        return learner, space, params, state, by_hand(space, params, None)
    critic = reference.far_from_zero(state["critic"], 2)
    target = (params, critic) if isinstance(state["target"], tuple) else critic
    state |= {"critic": critic, "target": target}
    return learner, space, params, state, by_hand(space, params, critic)


def improving(learner):
    units = MetaParams((), mean_square_reward=jnp.array(4.0))

    @jax.jit
    def improve(params, state, trials, key):
        of_batch = trial_batch(units, trials)
        return learner.improve(params, (), state, lambda _: of_batch, key)

    return improve


def one_quick(names):
    """Return cases of which all but the first are slow tests."""
    first, *rest = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in rest)]


@pytest.mark.parametrize("name", one_quick(LEARNERS))
def test_a_learner_on_trials_is_its_equations_step_by_step(name):
    learner, space, params, state, by_hand = started(name)
    improve = improving(learner)
    for index in range(UPDATES):
        trials, key = batch(index, space), jax.random.key(10 + index)
        params, _, state, metrics = improve(params, state, trials, key)
        loss = by_hand.update(apart(trials, space), key)
        assert float(metrics["q_loss"]) == pytest.approx(float(loss), rel=1e-9)
        assert_equal(params, by_hand.policy)
        if "critic" in state:
            slow = state["target"][1] if isinstance(state["target"], tuple) else state["target"]
            assert_equal((state["critic"], slow), (by_hand.critic, by_hand.target))
    if "log_temperature" in state:
        expected = float(by_hand.log_temperature)
        assert float(state["log_temperature"]) == pytest.approx(expected, rel=1e-9)
        assert abs(expected) > 0.01


@pytest.mark.parametrize("name", one_quick(LEARNERS))
def test_padding_changes_nothing(name):
    """Whatever is in it; and where nothing is drawn, however long it is."""
    learner, space, params, state, _ = started(name)
    improve = improving(learner)
    found = improve(params, state, batch(0, space), KEY)
    for length in (4, 4 if space is SPACE else 7):
        assert_equal(improve(params, state, batch(0, space, length, padding=0.7), KEY), found)
    other = improve(params, state, batch(1, space), KEY)
    assert float(other[3]["q_loss"]) != pytest.approx(float(found[3]["q_loss"]), rel=1e-3)


@pytest.mark.parametrize("name", one_quick(["sac", "td3", "sac-discrete"]))
def test_policy_and_critics_share_no_parameters(name):
    """Neither one's loss moves the other: a rate of almost nothing keeps each where it was."""
    _, space, actions, _ = LEARNERS[name]
    policy = gru(OBSERVED, space, width=WIDTH, critic="none", actions=actions)
    factory = td3 if name == "td3" else sac
    options = {"policy_delay": 1} if name == "td3" else {}
    params = policy.init(jax.random.key(0))
    for rate, other in ((1e-30, 1e-2), (1e-2, 1e-30)):
        rates = {"learning_rate": rate, "critic_learning_rate": other}
        learner = factory(**rates, **options, **NETWORKS).build(env_of(space), policy)
        state = learner.init(jax.random.key(1), params, ())
        start = state["critic"]
        assert not np.allclose(
            start["memory"]["input"]["kernel"], params["actor"]["input"]["kernel"], atol=0.01
        )
        new, _, state, _ = improving(learner)(params, state, batch(0, space), KEY)
        moved = [
            any(np.any(np.abs(x) > 1e-20) for x in jax.tree.leaves(jax.tree.map(jnp.subtract, *of)))
            for of in ((new, params), (state["critic"], start))
        ]
        assert moved == [rate > other, other > rate]


# --- what is remembered --------------------------------------------------------------------------


def test_a_trial_is_one_sequence_whose_episodes_follow_each_other():
    policy = gru(2, ENV.action_space, width=WIDTH, critic="none")
    params = policy.init(KEY)

    def play(key):
        def act(memory, x, key):
            memory, output = policy.step(params, memory, x)
            return memory, output.distribution.sample(key), output

        task = jax.tree.map(lambda x: x[0], TASKS)
        return rollout(key, ENV, task, act, policy.initial_memory(), episodes=EPISODES)

    played = jax.jit(jax.vmap(play))(jax.random.split(KEY, 20))
    trials = jax.vmap(trial_steps)(played)
    early = 0
    for index in range(20):
        of, found = (jax.tree.map(lambda x, i=index: x[i], tree) for tree in (played, trials))
        where = list(zip(*np.nonzero(np.asarray(of.valid)), strict=True))
        for step, (episode, time) in enumerate(where):
            at = lambda tree, *at: jax.tree.map(lambda x: x[at], tree)
            expected = at((of.step_input, of.action, of.reward), episode, time)
            assert_equal(at((found.step_input, found.action, found.reward), step), expected)
        first = int(np.sum(of.valid[0]))
        assert np.flatnonzero(found.step_input.previous_end[: len(where)]).tolist() == [first]
        assert np.flatnonzero(found.terminated).tolist() == [len(where) - 1]
        assert found.valid.tolist() == [step < len(where) for step in range(EPISODES * LENGTH)]
        early += first < LENGTH
    assert 0 < early < 20


SMALL = {"batch": 3, "replay_capacity": 40, "random_trials": 7}
POLICY = gru(2, ENV.action_space, width=WIDTH, critic="none")


def small(**options):
    options = SMALL | {"learner": sac(hidden=(4,)), "episodes": EPISODES} | options
    return off_policy_rl2(ENV, POLICY, **options)


def test_it_learns_once_it_has_seen_enough_and_as_often_as_it_is_told():
    """Three trials in a meta-iteration, seven of random actions; one gradient step at least."""
    update = jax.jit(lambda ratio, *of: small(updates_per_step=ratio).update(*of))
    state = jax.jit(small().init)(jax.random.key(1), BATCH)
    means = []
    for index, ratio in enumerate((0.3, 0.3, 0.3, 0.3, 1e-3)):
        new, metrics = update(ratio, state, BATCH, jax.random.key(index))
        assert int(new.replay.size) == 3 * (index + 1)
        rewards, valid = (
            np.asarray(x)[3 * index : 3 * index + 3]
            for x in (new.replay.items.reward, new.replay.items.valid)
        )
        assert int(metrics["valid_steps"]) == np.sum(valid)
        due = max(int(ratio * np.sum(valid)), 1) if index > 1 else 0
        assert int(metrics["updates"]) == due
        before, after = (of.meta_params.policy["head"]["kernel"] for of in (state, new))
        assert np.any(before != after) == (index > 1)
        means.append(np.sum(rewards**2) / np.sum(valid))
        mean_square = float(new.meta_params.mean_square_reward)
        assert mean_square == pytest.approx(np.mean(means), rel=1e-9)
        state = new


@pytest.mark.slow
def test_first_actions_are_uniform():
    family = make("point-goal", episode_length=5)
    env = family.env
    policy = gru(2, env.action_space, width=WIDTH, critic="none", actions="squashed")
    options = {"batch": 2, "replay_capacity": 100, "random_trials": 60, "episodes": 3}
    algorithm = off_policy_rl2(env, policy, learner=sac(hidden=(4,)), **options)
    tasks = sample_tasks(family.train, jax.random.key(0), 50)
    state = jax.jit(algorithm.init)(KEY, tasks)
    state, _ = jax.jit(algorithm.update)(state, tasks, KEY)
    kept = state.replay.items
    action = np.asarray(kept.action)[np.asarray(kept.valid)]
    low, high = env.action_space.bounds
    for dimension in ((action - low) / (high - low)).T:
        assert scipy.stats.kstest(dimension, "uniform").pvalue > 1e-3


# --- policies ------------------------------------------------------------------------------------

STEPS = EPISODES * LENGTH
MEMORIES = {
    "gru": partial(gru, width=WIDTH),
    "gru-hidden": partial(gru, width=WIDTH, hidden=(4,)),
    "lstm": partial(lstm, width=WIDTH),
    "window": partial(window, steps=3, hidden=(4,)),
    "transformer": partial(policies.transformer, trial_length=STEPS, width=4, heads=2, layers=1),
    "snail": partial(policies.snail, trial_length=STEPS, filters=2, key_size=2, value_size=2),
}


@pytest.mark.parametrize("name", one_quick(MEMORIES))
def test_critics_have_the_policys_memory_and_look_at_no_later_step(name):
    """What later steps hold does not change a value, what earlier ones hold does."""
    policy = MEMORIES[name](OBSERVED, SPACE, critic="none", actions="squashed")
    learner = sac(critics=3, **NETWORKS).build(env_of(SPACE), policy)
    params = policy.init(jax.random.key(0))
    state = learner.init(jax.random.key(1), params, ())
    encoder, memory = policy.encoder, reference.far_from_zero(state["critic"]["memory"])
    x = jax.tree.map(lambda x: jnp.asarray(x[0]), batch(0, SPACE).step_input)
    encode = jax.jit(encoder.encode)
    found = encode(memory, x)
    assert found.shape == (4, encoder.size)
    for step in (1, 3):
        changed = dataclasses.replace(x, observation=x.observation.at[step].add(1.0))
        change = np.abs(encode(memory, changed) - found).max(axis=1) > 1e-12
        assert not change[:step].any() and change[step]
    jax.eval_shape(improving(learner), params, state, batch(0, SPACE), KEY)


def test_actions_of_memories_are_within_the_bounds_where_they_have_to_be():
    x = jax.tree.map(lambda x: jnp.asarray(x[0]), batch(0, SPACE).step_input)
    for actions, kind in (("squashed", SquashedNormal), ("deterministic", NoisyAction)):
        policy = gru(OBSERVED, SPACE, width=WIDTH, critic="none", actions=actions)
        params = policy.init(jax.random.key(0))
        found = policy.unroll(params, policy.initial_memory(), x)[1].distribution
        assert isinstance(found, kind)
        many = np.asarray(jax.vmap(found.sample)(jax.random.split(KEY, 500)))
        low, high = SPACE.bounds
        assert np.all(many >= low) and np.all(many <= high)
        mode = np.asarray(found.mode())
        assert np.all((mode > low) & (mode < high))
        if kind is NoisyAction:
            spread = np.broadcast_to(0.1 * BOX.half, (4, 2))
            np.testing.assert_allclose(np.exp(found.normal.log_std), spread)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_trials": 41}, r"replay_capacity is 40; it must hold the 41 trials \(random"),
        ({"batch": 41}, "replay_capacity is 40; it must hold the 41 trials"),
        ({"updates_per_step": 0.0}, "updates_per_step"),
        ({"episodes": 0}, "episodes"),
        ({"learner": sac(value_network=True)}, "value_network is of policies without a memory"),
        ({"learner": td3()}, "td3 needs continuous actions"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(MetajaxError, match=message):
        small(**options)


def test_policies_that_it_cannot_train_are_refused():
    env = make("point-goal", episode_length=5).env
    sizes = env.observation_size, env.action_space
    with pytest.raises(MetajaxError, match=r"needs a policy with a memory, such as metajax\.gru"):
        off_policy_rl2(env, mlp(*sizes))
    with pytest.raises(MetajaxError, match=r"give it none \(critic='none'\)"):
        off_policy_rl2(env, gru(*sizes, actions="squashed"))
    with pytest.raises(MetajaxError, match=r"is DiagonalNormal; take one with actions='squashed'"):
        off_policy_rl2(env, gru(*sizes, critic="none"))
    with pytest.raises(
        MetajaxError, match=r"is SquashedN.*; take one with actions='deterministic'"
    ):
        squashed = gru(*sizes, critic="none", actions="squashed")
        off_policy_rl2(env, squashed, learner=td3())
    own = gru(*sizes, critic="none", actions="squashed")._replace(encoder=None)
    with pytest.raises(MetajaxError, match="this policy has no encoder"):
        off_policy_rl2(env, own)
    with pytest.raises(MetajaxError, match="actions are squashed needs bounds of each action"):
        gru(3, Continuous(2, low=-np.inf), actions="squashed")
    with pytest.raises(MetajaxError, match="replay_capacity is 2; it must have room for the 3"):
        small(batch=1, replay_capacity=2, random_trials=1).init(KEY, BATCH)
    short = policies.transformer(2, ENV.action_space, trial_length=STEPS - 1, critic="none")
    algorithm = off_policy_rl2(ENV, short, episodes=EPISODES, **SMALL)
    with pytest.raises(MetajaxError, match=f"{STEPS} steps were given to a policy with a trial_l"):
        jax.eval_shape(algorithm.update, algorithm.init(KEY, BATCH), BATCH, KEY)


# --- that it learns ------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_arms_are_told_apart_after_four_thousand_pulls():
    """Of four pulls at random two win; at best, 41/18 = 2.278 (by dynamic programming)."""
    with jax.enable_x64(False):
        family = make("bernoulli-bandit", arms=2)
        policy = gru(1, family.env.action_space, width=16, critic="none")
        learner = double_q(3e-3, discount=1.0, tau=0.02)
        options = {"batch": 32, "replay_capacity": 1000, "random_trials": 100}
        algorithm = off_policy_rl2(
            family.env, policy, learner=learner, episodes=4, updates_per_step=0.25, **options
        )
        evaluation = Evaluation(
            every=50, tasks=2000, rounds=1, episodes=4, final_tasks=2000, deterministic=True
        )
        result = train(
            algorithm,
            family,
            iterations=50,
            tasks=20,
            evaluation=evaluation,
            devices=1,
            report=None,
        )
    total = result.returns.sum(axis=(2, 3)).mean()
    print(f"{total:.3f} of four pulls")
    assert total > 2.17
