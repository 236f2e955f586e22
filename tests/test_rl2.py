"""RL² against its definition: what is heard, what is credited, how far gradients reach."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from trials import ENV, EPISODES, LENGTH, TASKS, batch_of

from metajax import policies, presets
from metajax.adaptation import trial_learner, whole_trials
from metajax.adaptation.trials import Statistics
from metajax.algorithms import rl2, snail
from metajax.envs import make
from metajax.envs.rollouts import first_previous, rollout
from metajax.errors import MetajaxError
from metajax.losses import returns
from metajax.outer import adam, ppo, trpo
from metajax.policies import gru, lstm, mlp, window
from metajax.training import Evaluation
from metajax.training.evaluation import adaptation_curve
from metajax.types import Discrete, MetaParams, StepInput, Trajectory

pytestmark = pytest.mark.usefixtures("float64")

STEPS, KEY, BATCH = EPISODES * LENGTH, jax.random.key(2), batch_of(TASKS)
LOOKING_BACK = [policies.snail, policies.transformer]
MEMORIES = [gru, lstm, window, *(functools.partial(p, trial_length=STEPS) for p in LOOKING_BACK)]


def step_of(learning_rate=1e-3, **options):
    """Return one step on all trials, ratios clipped at 0.2."""
    return ppo(learning_rate, **{"epochs": 1, "clip": 0.2, "max_gradient_norm": 1e9} | options)


def algorithm_of(policy, outer=None, **of_objective):
    objective = whole_trials(**{"entropy_weight": 0.0} | of_objective)
    outer = step_of() if outer is None else outer
    return rl2(ENV, policy, objective=objective, outer=outer, episodes=EPISODES)


def prepared(policy):
    """Return a state whose rewards have a scale, and what is played from there with `KEY`."""
    algorithm = algorithm_of(policy)
    state = jax.jit(algorithm.init)(jax.random.key(1), BATCH)
    # Far from where heads are small and nothing that is heard matters.
    theta = jax.tree.map(
        lambda x: x + 0.5 * jnp.sin(7.0 + jnp.arange(x.size).reshape(x.shape)),
        state.meta_params.policy,
    )
    params = MetaParams(theta, mean_square_reward=jnp.array(4.0))
    statistics = Statistics(jnp.array(9.0), jnp.array(1, jnp.int32))

    def trial(task, key):
        act = lambda memory, x, key: algorithm.agent.act(params, memory, x, key)
        return rollout(key, ENV, task, act, policy.initial_memory(), episodes=EPISODES)

    played = jax.jit(jax.vmap(trial))(TASKS, jax.random.split(KEY, 3))
    state = dataclasses.replace(state, meta_params=params, statistics=statistics)
    return state, jax.device_get(played)


@pytest.fixture(scope="module")
def start(float64):
    """Return a policy, and what `prepared` makes of it."""
    policy = gru(2, ENV.action_space, width=3, critic="separate")
    return policy, *prepared(policy)


def heard(trajectory: Trajectory, task: int):
    """Return the input and the action of every step that was played on a task, one by one."""
    valid = np.asarray(trajectory.valid[task])
    for episode, time in zip(*np.nonzero(valid), strict=True):
        at = lambda x, e=episode, t=time: x[task, e, t]
        x = jax.tree.map(at, trajectory.step_input)
        x = dataclasses.replace(x, previous_reward=x.previous_reward / 2)  # root of the mean square
        yield x, trajectory.action[task, episode, time], trajectory.reward[task, episode, time]


def by_hand(
    policy,
    params,
    acting,
    played,
    advantage,
    target,
    *,
    chunk=STEPS,
    burn_in=0,
    tasks=range(3),
    entropy_weight=0.0,
):
    """Return RL²'s loss at λ_value 1/2, step by step; nothing is batched, cut up or padded."""
    gain, error, count = 0.0, 0.0, 0
    for task in tasks:
        told = list(heard(played, task))
        memories = [policy.initial_memory()]
        for x, _, _ in told:
            memories.append(policy.step(acting, memories[-1], x)[0])
        memory = memories[0]
        for step, (x, action, _) in enumerate(told):
            if step and step % chunk == 0:
                memory = memories[step - burn_in]
                for before, _, _ in told[step - burn_in : step]:
                    memory = policy.step(params, memory, before)[0]
                memory = jax.lax.stop_gradient(memory)
            memory, output = policy.step(params, memory, x)
            old = jax.lax.stop_gradient(policy.step(acting, memories[step], x)[1])
            ratio = jnp.exp(
                output.distribution.log_prob(action) - old.distribution.log_prob(action)
            )
            better = advantage[task][step]
            gain += jnp.minimum(ratio * better, jnp.clip(ratio, 0.8, 1.2) * better)
            gain += entropy_weight * output.distribution.entropy()
            error += (output.value - target[task][step]) ** 2 / 2
            count += 1
    return (error / 2 - gain) / count


def advantages_by_hand(policy, acting, played, discount=0.99, gae_lambda=0.95):
    """Return advantages and targets, a list per task: episodes in one line, nothing after them."""
    advantages, targets = [], []
    for task in range(3):
        told, memory, values = list(heard(played, task)), policy.initial_memory(), []
        for x, _, _ in told:
            memory, output = policy.step(acting, memory, x)
            values.append(3 * float(output.value))  # the root of the mean square of returns
        values.append(0.0)
        advantage, later = [], 0.0
        for step in reversed(range(len(told))):
            residual = float(told[step][2]) + discount * values[step + 1] - values[step]
            later = residual + discount * gae_lambda * later
            advantage.insert(0, later)
        advantages.append(np.array(advantage))
        targets.append((advantage + np.array(values[:-1])) / 3)
    every = np.concatenate(advantages)
    return [(a - every.mean()) / (every.std() + 1e-8) for a in advantages], targets


@pytest.fixture
def descent(monkeypatch):
    """Adam is plain gradient descent, so that a step shows the gradient."""
    monkeypatch.setattr(optax, "adam", optax.sgd)


def test_trials_have_gaps(start):
    """Of which the other tests would see nothing, if there were none."""
    assert np.any(~start[2].valid[:, 0])


@pytest.mark.parametrize(
    ("chunk", "burn_in"),
    [
        (4, 2),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in ((STEPS, 0), (4, 0), (2, 2))),
    ],
)
def test_a_step_is_that_of_the_definition(start, descent, chunk, burn_in):
    """Two epochs: the second one's ratios are not 1, and its memories are not those of acting."""
    policy, state, played = start
    rate = 0.05
    algorithm = algorithm_of(policy, step_of(rate, epochs=2), chunk=chunk, burn_in=burn_in)
    after, _ = jax.jit(algorithm.update)(state, BATCH, KEY)

    acting = state.meta_params.policy
    expected = advantages_by_hand(policy, acting, played)

    @jax.jit
    def step(params):
        loss = lambda params: by_hand(
            policy, params, acting, played, *expected, chunk=chunk, burn_in=burn_in
        )
        return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params))

    found, expected = (ravel_pytree(p)[0] for p in (after.meta_params.policy, step(step(acting))))
    assert np.abs(found - ravel_pytree(acting)[0]).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_every_minibatch_is_another_part_of_the_trials(start, descent):
    policy, state, played = start
    rate, weight, acting = 0.05, 0.3, state.meta_params.policy
    algorithm = algorithm_of(policy, step_of(rate, minibatches=3), entropy_weight=weight)
    after, _ = jax.jit(algorithm.update)(state, BATCH, KEY)
    advantages = advantages_by_hand(policy, acting, played)
    expected = acting
    for task in range(3):

        def loss(params, task=task):
            return by_hand(
                policy, params, acting, played, *advantages, tasks=[task], entropy_weight=weight
            )

        gradient = jax.jit(jax.grad(loss))(expected)
        expected = jax.tree.map(lambda p, g: p - rate * g, expected, gradient)
    found, expected = (ravel_pytree(p)[0] for p in (after.meta_params.policy, expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_rate_halves(start, descent):
    policy, state, played = start
    # Three times the same trial, so that every minibatch has the same gradient.
    trials = jax.tree.map(lambda x: jnp.repeat(x[:1], 3, axis=0), played)
    moved = []
    for half_life in (None, 1.5):
        outer = step_of(1e-8, epochs=2, minibatches=3, half_life=half_life)
        objective = whole_trials(entropy_weight=0.0).build(ENV, policy)
        learner = trial_learner(ENV, policy, objective=objective, outer=outer, episodes=EPISODES)
        optimizer_state = learner.init(jax.random.key(0)).learner
        # As after two iterations of six steps each; a constant rate counts nothing.
        counted = jax.tree.map(lambda x: jnp.full_like(x, 2 * 6), optimizer_state)
        before = dataclasses.replace(state, learner=counted)
        after = jax.jit(learner.improve)(before, trials)[0].meta_params.policy
        acting = state.meta_params.policy
        moved.append(ravel_pytree(jax.tree.map(jnp.subtract, after, acting))[0])
    expected = np.mean(0.5 ** ((2 + np.arange(6) / 6) / 1.5)) * moved[0]
    np.testing.assert_allclose(moved[1], expected, rtol=1e-5, atol=1e-14)
    assert np.abs(expected).max() > 1e-9


def test_trials_are_heard_again_as_they_were_played():
    policy = lstm(2, ENV.action_space, width=3)
    algorithm = algorithm_of(policy, chunk=4, burn_in=3)
    _, metrics = jax.jit(algorithm.update)(prepared(policy)[0], BATCH, KEY)
    assert metrics["kl"] < 1e-14


def test_the_gradient_is_that_of_the_expected_return_of_a_trial(descent, monkeypatch):
    """Every trial of two pulls, by its probability; what the first one teaches counts, too."""
    paid, policy = jnp.array([1.0, 3.0]), gru(1, Discrete(2), width=3, critic="separate")
    env = make("bernoulli-bandit", arms=2).env
    algorithm = rl2(
        env,
        policy,
        objective=whole_trials(
            discount=1.0, gae_lambda=1.0, entropy_weight=0.0, value_weight=1e-30
        ),
        outer=step_of(1.0, clip=1e9),
        episodes=2,
    )
    state = algorithm.init(jax.random.key(0), None)
    theta = jax.tree.map(
        lambda x: x + jnp.cos(3.0 + jnp.arange(x.size).reshape(x.shape)), state.meta_params.policy
    )
    meta_params = dataclasses.replace(state.meta_params, policy=theta)
    every = np.array(list(itertools.product(range(2), repeat=2)))

    def play(act, actions):
        """Return what was heard and said at each pull."""
        memory, previous, seen = policy.initial_memory(), first_previous(env), []
        for pull in range(2):
            x = StepInput(jnp.zeros(1), *previous)
            memory, _, output = act(memory, x, None)
            seen.append((x, output))
            previous = (actions[pull], paid[actions[pull]], jnp.array(True))
        return jax.tree.map(lambda *x: jnp.stack(x)[:, None], *seen)

    def forced(key, env, task, act, memory, *, episodes):
        x, output = play(act, task)
        yes = jnp.ones((2, 1), bool)
        final = jax.tree.map(lambda x: x[:, 0], x)
        return Trajectory(x, task[:, None], output, paid[task][:, None], ~yes, yes, yes, final)

    def probability(theta, actions):
        act = lambda memory, x, key: (
            *policy.step(theta, memory, x)[:1],
            None,
            policy.step(theta, memory, x)[1],
        )
        _, output = play(act, actions)
        return jnp.exp(jnp.sum(output.distribution.log_prob(actions[:, None])))

    def expected_return(theta):
        return sum(probability(theta, jnp.array(a)) * jnp.sum(paid[a]) for a in every)

    chance = jnp.array([probability(theta, jnp.array(a)) for a in every])
    assert abs(jnp.sum(chance) - 1) < 1e-12 and chance.min() > 0.01
    monkeypatch.setattr("metajax.adaptation.trials.rollout", forced)
    # The mean over 4 trials and 2 pulls becomes the expectation of the sum.
    monkeypatch.setattr(returns, "normalize", lambda x, valid, size: x * 8 * chance[:, None])
    state = dataclasses.replace(state, meta_params=meta_params)
    after, _ = jax.jit(algorithm.update)(state, batch_of(jnp.array(every)), KEY)
    found = ravel_pytree(after.meta_params.policy)[0] - ravel_pytree(theta)[0]
    exact = ravel_pytree(jax.grad(expected_return)(theta))[0]
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-12)


def test_rewards_and_values_have_a_scale(start):
    policy, state, played = start
    algorithm = algorithm_of(policy)
    agent, params = algorithm.agent, state.meta_params
    x, _, _ = list(heard(played, 0))[1]
    loud = dataclasses.replace(x, previous_reward=2 * x.previous_reward)
    np.testing.assert_array_equal(
        agent.act(params, agent.initial_memory(), loud, None)[2].value,
        policy.step(params.policy, policy.initial_memory(), x)[1].value,
    )
    after, _ = jax.jit(algorithm.update)(state, BATCH, KEY)
    square = np.mean(np.asarray(played.reward)[np.asarray(played.valid)] ** 2)
    np.testing.assert_allclose(after.meta_params.mean_square_reward, (4 + square) / 2, rtol=1e-12)
    to_come = []
    for task in range(3):
        total = 0.0
        for _, _, reward in reversed(list(heard(played, task))):
            total = float(reward) + 0.99 * total
            to_come.append(total)
    square = np.mean(np.square(to_come))
    np.testing.assert_allclose(after.statistics.mean_square_return, (9 + square) / 2, rtol=1e-12)
    assert after.statistics.iterations == 2
    fresh = algorithm.init(jax.random.key(0), BATCH).meta_params
    unscaled = agent.act(fresh, agent.initial_memory(), x, None)[2].value
    assert unscaled == policy.step(fresh.policy, policy.initial_memory(), x)[1].value


def test_the_trust_region_moves_the_policy_and_epochs_the_critic(start):
    policy, state, _ = start
    critic = adam(1e-3, max_gradient_norm=1e9)
    algorithm = algorithm_of(policy, trpo(1e-3), critic=critic)
    after, metrics = jax.jit(algorithm.update)(state, BATCH, KEY)
    assert metrics["step_accepted"] == 1 and 5e-4 < metrics["kl"] <= 1e-3
    moved = {
        name: np.abs(
            ravel_pytree(after.meta_params.policy[name])[0]
            - ravel_pytree(state.meta_params.policy[name])[0]
        ).max()
        for name in state.meta_params.policy
    }
    # Adam's first step has the length of its rate.
    np.testing.assert_allclose([moved["critic"], moved["value"]], 1e-3, rtol=1e-3)
    assert moved["actor"] > 1e-3 and moved["head"] > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: {"outer": "adam"}, "outer is 'adam'; it must be an OuterStep"),
        (lambda: {"objective": whole_trials(chunk=3)}, "chunk is 3; it must divide the 8 steps"),
        (
            lambda: {"objective": whole_trials(chunk=4, burn_in=5)},
            "burn_in is 5; it must be at most the chunk, 4",
        ),
        (lambda: {"objective": whole_trials(critic=trpo())}, "a trust region trains no critic"),
        (lambda: {"episodes": 0}, "episodes is 0"),
        (lambda: {"outer": ppo(clip=0.0)}, "clip is 0.0"),
        (lambda: {"outer": ppo(half_life=0.0)}, "half_life is 0.0"),
    ],
)
def test_what_is_out_of_range_is_one_sentence(options, message):
    policy = gru(2, ENV.action_space)
    with pytest.raises(MetajaxError, match=message):
        rl2(ENV, policy, **{"episodes": EPISODES, **options()})


@pytest.mark.parametrize("memory", MEMORIES)
def test_any_memory_can_be_brought_up_to_date_over_whole_chunks(memory):
    """Then there are no steps before those."""
    policy = memory(2, ENV.action_space)
    algorithm = algorithm_of(policy, chunk=4, burn_in=4)
    state = jax.eval_shape(algorithm.init, KEY, BATCH)
    assert jax.eval_shape(algorithm.update, state, BATCH, KEY)[0] == state


def test_a_policy_for_another_environment_is_refused():
    with pytest.raises(MetajaxError, match="with 2 observed numbers"):
        rl2(ENV, gru(3, ENV.action_space))
    with pytest.raises(MetajaxError, match=r"actions are 5; the environment has Discrete\(size=3"):
        rl2(ENV, gru(2, Discrete(5)))


def test_the_critic_has_to_be_there():
    with pytest.raises(MetajaxError, match="needs a policy with a critic"):
        rl2(ENV, mlp(2, ENV.action_space))
    with pytest.raises(MetajaxError, match="critic='separate'"):
        snail(ENV, gru(2, ENV.action_space))


def test_tasks_are_dealt_evenly(start):
    policy, state, _ = start
    algorithm = algorithm_of(policy, step_of(minibatches=2))
    with pytest.raises(MetajaxError, match="3 tasks cannot be split into 2 minibatches"):
        jax.eval_shape(algorithm.update, state, BATCH, KEY)


@pytest.mark.parametrize(
    ("length", "episodes", "given", "sizes"),
    [
        (200, 2, {}, (2, 1)),
        (4, 100, {}, (10, 10)),
        (4, 25, {}, (5, 5)),
        (4, 6, {"rounds": 3}, (3, 2)),
        (4, 6, {"episodes": 6, "rounds": 1}, (1, 6)),
        # Of pulls, a round has five at least, if there are so many.
        (1, 10, {}, (2, 5)),
        (1, 100, {}, (10, 10)),
        (1, 7, {}, (1, 7)),
        (1, 3, {}, (1, 3)),
    ],
)
def test_a_trial_is_evaluated_as_long_as_it_was_trained(length, episodes, given, sizes):
    env = ENV._replace(episode_length=length)
    algorithm = rl2(env, gru(2, ENV.action_space), episodes=episodes)
    found = Evaluation(**given).sizes(algorithm, env)
    assert found == dict(zip(("rounds", "episodes"), sizes, strict=True))


def test_the_summary_of_a_bandit_is_near_the_mean():
    """Where a round is one pull it is not: the middle half of those that pay with .76 is all 1."""
    experiment = presets.build(presets.default_config("rl2", "bernoulli-bandit"))
    sizes = experiment.evaluation.sizes(experiment.algorithm, experiment.family.env)
    pulls = np.random.default_rng(0).random((1, 2000, *sizes.values())) < 0.76
    for summary in adaptation_curve(pulls.astype(float)):
        assert abs(summary.mean - 0.76) < 0.03


def test_memories_that_look_back_fit_the_trial():
    config = presets.default_config("rl2", "bernoulli-bandit", "transformer")
    config["algorithm"]["episodes"] = 7
    experiment = presets.build(config)
    memory = experiment.algorithm.agent.initial_memory()
    assert {len(x) for x in jax.tree.leaves(memory) if x.ndim} == {7}
    with pytest.raises(MetajaxError, match=r"unknown policy for rl2 'mlp'.*gru, lstm"):
        presets.default_config("rl2", "bernoulli-bandit", "mlp")
