"""PEARL: its encoder against Bayes' rule, its updates against NumPy, what it plays and when."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_learners as reference

import metajax
from metajax import presets
from metajax.adaptation import product_of_gaussians
from metajax.algorithms.pearl import Visit, _collect
from metajax.envs import make
from metajax.envs.builders import Moved, make_env
from metajax.envs.rollouts import rollout, undiscounted_returns
from metajax.envs.splits import (
    finite,
    number_of_tasks,
    sample_batch,
    sample_tasks,
    two_splits,
    uniform,
)
from metajax.errors import MetajaxError
from metajax.outer import double_q, sac, td3
from metajax.policies import conditioned, mlp
from metajax.replay import Steps, empty_task_replay, sample_task_replay
from metajax.types import Continuous, Env, TaskBatch, TaskFamily

KEY = jax.random.key(3)
LENGTH, LATENT = 3, 2
FAMILY = make("point-sparse", variant="pearl", episode_length=LENGTH)
FEW = FAMILY._replace(train=finite(FAMILY.train, 6))
GRID = make("gridnav", episode_length=4)
LEARNER = {"temperature": 0.7, "value_network": True, "output_penalty": 0.3, "reward_scale": 3.0}
SMALL = {
    "initial_episodes": 4,
    "prior_episodes": 1,
    "posterior_episodes": 2,
    "extra_episodes": 3,
    "updates": 3,
    "meta_batch": 4,
    "batch": 5,
    "context": 6,
    "replay_capacity": 100,
}


def policy_of(env):
    return conditioned(env.observation_size, env.action_space, latent=LATENT, hidden=(5,))


def small(env=FEW.env, learner=None, **options):
    learner = learner or sac(hidden=(5, 4), **LEARNER)
    encoder = product_of_gaussians(hidden=(6,))
    return metajax.pearl(env, policy_of(env), encoder=encoder, learner=learner, **SMALL | options)


# --- the posterior -------------------------------------------------------------------------------


def test_a_product_of_factors_is_bayes_rule_of_a_flat_prior():
    """Normal likelihoods of one number, multiplied and normalized on a grid."""
    env = Env(None, None, 1, Continuous(1), 10)
    encoding = product_of_gaussians(hidden=(4,)).build(env, conditioned(1, Continuous(1), latent=1))
    with jax.enable_x64(True):
        params = encoding.init(KEY)
        random = np.random.default_rng(0)
        steps = Steps(
            random.normal(size=(5, 1)),
            random.normal(size=(5, 1)),
            random.normal(size=5),
            None,
            None,
        )
        belief = encoding.evidence(params, steps).posterior()
        grid = np.linspace(-6, 6, 20_001)
        log_density = np.zeros_like(grid)
        for index in range(5):
            one = jax.tree.map(lambda x, index=index: x[index : index + 1], steps)
            factor = encoding.evidence(params, one)
            variance = 1 / float(factor.precision[0])
            mean = float(factor.weighted[0]) * variance
            log_density -= (grid - mean) ** 2 / (2 * variance)
        density = np.exp(log_density - log_density.max())
        density /= density.sum()
        mean = np.sum(grid * density)
        assert float(belief.mean[0]) == pytest.approx(mean, abs=1e-8)
        variance = np.sum((grid - mean) ** 2 * density)
        assert float(jnp.exp(2 * belief.log_std[0])) == pytest.approx(variance, rel=1e-6)


def test_a_posterior_does_not_depend_on_the_order_of_steps_nor_on_padding():
    env = FEW.env
    encoding = product_of_gaussians(hidden=(6,)).build(env, policy_of(env))
    params = encoding.init(KEY)
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    steps = Steps(draw(9, 2), draw(9, 2), draw(9), jnp.zeros(9, bool), draw(9, 2))
    belief = encoding.evidence(params, steps).posterior()
    order = random.permutation(9)
    shuffled = jax.tree.map(lambda x: x[order], steps)
    again = encoding.evidence(params, shuffled).posterior()
    np.testing.assert_allclose(again.mean, belief.mean, rtol=1e-5)
    np.testing.assert_allclose(again.log_std, belief.log_std, rtol=1e-5)
    valid = jnp.arange(9) < 6
    spoilt = dataclasses.replace(steps, reward=jnp.where(valid, steps.reward, jnp.nan))
    part = encoding.evidence(params, jax.tree.map(lambda x: x[:6], steps))
    found = encoding.evidence(params, spoilt, valid)
    np.testing.assert_allclose(found.precision, part.precision, rtol=1e-6)
    np.testing.assert_allclose(found.weighted, part.weighted, rtol=1e-6, atol=1e-6)
    rest = encoding.evidence(params, jax.tree.map(lambda x: x[6:], steps))
    both = (part + rest).posterior()
    np.testing.assert_allclose(both.mean, belief.mean, rtol=1e-5)


def test_of_no_step_the_posterior_is_the_prior():
    env = FEW.env
    encoding = product_of_gaussians(hidden=(6,)).build(env, policy_of(env))
    steps = Steps(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones(3), None, None)
    belief = encoding.evidence(encoding.init(KEY), steps, jnp.zeros(3, bool)).posterior()
    np.testing.assert_array_equal(belief.mean, [0, 0])
    np.testing.assert_array_equal(belief.log_std, [0, 0])


@pytest.mark.parametrize("seen", [False, True])
def test_the_next_observation_is_encoded_where_it_is_asked_for(seen):
    env = FEW.env
    encoding = product_of_gaussians(hidden=(6,), next_observation=seen).build(env, policy_of(env))
    params = encoding.init(KEY)
    steps = Steps(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones(3), None, jnp.ones((3, 2)))
    other = dataclasses.replace(steps, next_observation=2 * steps.next_observation)
    means = [encoding.evidence(params, of).posterior().mean for of in (steps, other)]
    assert np.array_equal(*means) == (not seen)


# --- updates -------------------------------------------------------------------------------------


def layers(params):
    return {"body": params[:-1], "head": params[-1]}


@pytest.mark.parametrize("reduction", ["sum", pytest.param("mean", marks=pytest.mark.slow)])
def test_pearl_is_its_equations(reduction):
    """A meta-iteration's gradient steps, from what it remembers, in double precision."""
    with jax.enable_x64(True):
        family = make("point-sparse", variant="pearl", episode_length=LENGTH)
        tasks = sample_tasks(finite(family.train, 6), KEY, 3)
        learner = sac(0.01, critic_learning_rate=0.02, hidden=(5, 4), **LEARNER)
        algorithm = small(
            family.env, learner, kl_reduction=reduction, kl_weight=0.3, distance_metric="distance"
        )
        state = jax.jit(algorithm.init)(KEY, tasks)
        update = jax.jit(algorithm.update)
        for index in range(2):  # the first visits: 2·4 episodes, in 6 each
            state, metrics = update(state, tasks, jax.random.key(index))
            assert int(metrics["updates"]) == 0
        params = reference.far_from_zero(state.meta_params.policy, 0)
        of = state.learner["learner"]
        critic, value, slow = (reference.far_from_zero(of[n], i) for i, n in enumerate(CRITICS))
        of = of | {"critic": critic, "value": value, "target": slow}
        state = dataclasses.replace(
            state,
            meta_params=dataclasses.replace(state.meta_params, policy=params),
            learner=state.learner | {"learner": of},
        )
        key = jax.random.key(9)
        after, metrics = update(state, tasks, key)
        assert int(metrics["updates"]) == 3

        twins = [
            reference.Perceptron(jax.tree.map(lambda x, index=index: x[index], critic))
            for index in range(2)
        ]
        soft = reference.ValueSac(
            reference.Perceptron(params["policy"]),
            twins,
            reference.Box(*family.env.action_space.bounds),
            rate=0.01,
            critic_rate=0.02,
            discount=0.99,
            tau=0.005,
            scale=3.0,
            penalty=0.3,
            alpha=0.7,
        )
        soft.take_value(reference.Perceptron(value))
        soft.slow_value = reference.Perceptron(slow)
        weight = 0.3 if reduction == "sum" else 0.3 / 4
        checked = reference.Pearl(
            reference.Perceptron(layers(params["encoder"])), soft, rate=0.02, kl_weight=weight
        )
        losses, divergences = zip(
            *(checked.update(*drawn(after.replay, key, index)) for index in range(3)), strict=True
        )
        assert float(metrics["q_loss"]) == pytest.approx(np.mean(losses), rel=1e-9)
        assert float(metrics["belief_kl"]) == pytest.approx(np.mean(divergences) / 4, rel=1e-9)
        found, of = after.meta_params.policy, after.learner["learner"]
        pairs = [
            (found["policy"], soft.policy.tree()),
            (layers(found["encoder"]), checked.encoder.tree()),
            (of["value"], soft.value.tree()),
            (of["target"], soft.slow_value.tree()),
        ]
        for index, twin in enumerate(soft.critics):
            pairs.append((jax.tree.map(lambda x, i=index: x[i], of["critic"]), twin.tree()))
        for pair in pairs:
            for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


CRITICS = ("critic", "value", "target")


def drawn(replay, key, index):
    """Return what a gradient step of an update with `key` draws, for `reference.Pearl`."""
    batch_key, step_key = jax.random.split(jax.random.fold_in(jax.random.split(key)[1], index))
    slot_key, context_key, steps_key, latent_key = jax.random.split(batch_key, 4)
    slot = jax.random.randint(slot_key, (4,), 0, 6)
    context, steps = (
        jax.tree.map(np.asarray, sample_task_replay(replay[name], slot, of_key, count))
        for name, of_key, count in (("context", context_key, 6), ("steps", steps_key, 5))
    )
    parts = (context.observation, context.action, context.reward[..., None])
    noise = np.asarray(jax.random.normal(latent_key, (4, LATENT)))
    of_actions = np.asarray(jax.random.normal(jax.random.split(step_key)[1], (20, 2)))
    return np.concatenate(parts, axis=2), steps, noise, of_actions


@pytest.mark.parametrize(
    "learner",
    [pytest.param(sac(hidden=(5,), temperature=0.5), marks=pytest.mark.slow), double_q()],
    ids=["sac", "double-q"],
)
def test_discrete_actions_are_learned_and_encoded(learner):
    """And the encoder moves by the critics' loss, or that of the Q-network."""
    family = GRID._replace(train=finite(GRID.train, 6))
    algorithm = small(family.env, learner)
    tasks = sample_tasks(family.train, KEY, 3)
    state = jax.jit(algorithm.init)(KEY, tasks)
    update = jax.jit(algorithm.update)
    start = state.meta_params.policy
    for index in range(3):
        state, metrics = update(state, tasks, jax.random.key(index))
    assert int(metrics["updates"]) == 3 and state.replay["steps"].items.action.dtype == jnp.int32
    for name, params in state.meta_params.policy.items():
        leaves = zip(*map(jax.tree.leaves, (params, start[name])), strict=True)
        assert all(np.any(a != b) and np.all(np.isfinite(a)) for a, b in leaves)


# --- what is played, and kept --------------------------------------------------------------------


@pytest.fixture(scope="module")
def visits():
    """Return an algorithm, tasks, and its states after so many meta-iterations."""
    algorithm = small(distance_metric="distance")
    tasks = sample_tasks(FEW.train, KEY, 3)
    states, update = [jax.jit(algorithm.init)(KEY, tasks)], jax.jit(algorithm.update)
    for index in range(3):
        states.append(update(states[-1], tasks, jax.random.key(index))[0])
    return algorithm, tasks, states


def test_first_every_task_is_visited_then_those_of_the_batch(visits):
    """Six tasks in groups of 3, 4 episodes each: 8 of them are over after two iterations of 6."""
    _, tasks, states = visits
    sizes = lambda state: [np.asarray(state.replay[n].size) for n in ("steps", "context")]
    steps, context = sizes(states[2])
    # The first group's turn came again; only the latest of its context is kept.
    np.testing.assert_array_equal(steps, LENGTH * np.repeat([8, 4], 3))
    np.testing.assert_array_equal(context, LENGTH * np.repeat(4, 6))
    visited = np.isin(np.arange(6), tasks.slot)
    more, latest = sizes(states[3])
    np.testing.assert_array_equal(more, steps + np.where(visited, 6 * LENGTH, 0))
    np.testing.assert_array_equal(latest, np.where(visited, 3 * LENGTH, context))
    before, after = (jax.tree.leaves(state.meta_params) for state in (states[0], states[2]))
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    after = jax.tree.leaves(states[3].meta_params)
    assert not any(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_critics_learn_from_the_distance_and_the_encoder_from_the_reward(visits):
    _, tasks, states = visits
    goals = np.asarray(tasks.finite["goal"])
    for name, ring in states[3].replay.items():
        for slot in range(6):
            size = int(ring.size[slot])
            after, reward = (
                np.asarray(x[slot, :size]) for x in (ring.items.next_observation, ring.items.reward)
            )
            distance = np.linalg.norm(after - goals[slot], axis=1)
            sparse = np.where(distance <= 0.2, 1 - distance, 0)
            expected = -distance if name == "steps" else sparse
            np.testing.assert_allclose(reward, expected, atol=1e-6)


def test_a_visit_is_played_by_the_prior_then_by_what_it_has_shown():
    """An encoder that reads the task off its steps: z is its number, or drawn from N(0, I)."""
    visit = Visit(initial=2, prior=2, posterior=3, extra=2)
    env = FEW.env

    def play(params, task, latent, key):
        steps = Steps(
            jnp.stack([latent, jnp.full(LATENT, task["number"])]),
            jnp.zeros((2, 2)),
            jnp.zeros(2),
            jnp.zeros(2, bool),
            jnp.zeros((2, LATENT)),
        )
        return {"context": steps, "steps": steps}, jnp.ones(2, bool), (latent[0], latent[0])

    encoding = product_of_gaussians(hidden=()).build(env, policy_of(env))

    def evidence(params, steps, valid=None):
        precise = 1e8 * jnp.ones(LATENT)
        number = jnp.max(steps.observation, axis=-2)
        return dataclasses.replace(
            jax.tree.map(jnp.zeros_like, encoding.evidence(encoding.init(KEY), steps)),
            precision=jnp.broadcast_to(precise, number.shape),
            weighted=1e8 * number,
        )

    collect = _collect(play, encoding._replace(evidence=evidence), visit, 50)
    numbers = {"number": 100.0 * (1 + jnp.arange(4))}
    slot = jnp.array([2, 0])
    tasks = TaskBatch({"number": numbers["number"][slot]}, slot, 4, numbers)
    items = jax.eval_shape(lambda: play((), {"number": 1.0}, jnp.zeros(LATENT), KEY))[0]
    of_two = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), items)
    replay = {name: empty_task_replay(of, 4, 40) for name, of in of_two.items()}
    run = jax.jit(partial(collect, {"encoder": ()}))
    replay, warm, _ = run(replay, tasks, jnp.int32(0), KEY)  # 2 groups x 2 episodes, of 7
    assert warm
    visited, warm, _ = run(replay, tasks, jnp.int32(1), KEY)
    assert not warm
    for index in slot:
        played = visited["steps"].items.observation[index]
        start, end = int(replay["steps"].next[index]), int(visited["steps"].next[index])
        latents = np.asarray(played[start:end:2])
        assert len(latents) == visit.episodes
        by_posterior = np.array([0, 0, 0, 1, 1, 0, 1], bool)
        np.testing.assert_array_equal(by_posterior, visit.by_posterior())
        assert np.all(np.abs(latents[~by_posterior]) < 6)
        np.testing.assert_allclose(latents[by_posterior], numbers["number"][index], rtol=1e-3)
        kept = visited["context"].items.observation[index][: int(visited["context"].size[index])]
        np.testing.assert_array_equal(kept[::2], latents[:5])  # not those that are extra


# --- the agent -----------------------------------------------------------------------------------


def test_an_agent_tries_hypotheses_then_infers_from_all_it_has_seen(visits):
    algorithm, tasks, states = visits
    meta_params = states[3].meta_params
    agent = algorithm.agent
    encoding = product_of_gaussians(hidden=(6,)).build(FEW.env, policy_of(FEW.env))
    adapted = agent.init(meta_params, jax.random.key(0))
    np.testing.assert_array_equal(
        adapted["latent"], jax.random.normal(jax.random.key(0), (LATENT,))
    )
    task = jax.tree.map(lambda x: x[0], tasks.task)
    total = None
    for index in range(3):
        act = lambda memory, x, key, adapted=adapted: agent.act(adapted, memory, x, key)
        trajectory = metajax.rollout(KEY, FEW.env, task, act, (), episodes=1)
        greedy = lambda memory, x, key, adapted=adapted: agent.act(adapted, memory, x, None)
        same = metajax.rollout(KEY, FEW.env, task, greedy, (), episodes=1)
        np.testing.assert_array_equal(trajectory.action, same.action)
        key = jax.random.key(10 + index)
        adapted = agent.adapt(meta_params, adapted, trajectory, key)
        steps = metajax.replay.all_steps(trajectory)[0]
        evidence = encoding.evidence(meta_params.policy["encoder"], steps)
        total = evidence if total is None else total + evidence
        np.testing.assert_allclose(adapted["evidence"].precision, total.precision, rtol=1e-5)
        noise = np.asarray(jax.random.normal(key, (LATENT,)))
        belief = total.posterior()
        expected = belief.mean + jnp.exp(belief.log_std) * noise if index >= 1 else noise
        np.testing.assert_allclose(adapted["latent"], expected, rtol=1e-4)


def factors():
    """A family whose reward is a hidden factor in [-1, 1] times the action."""
    env = make_env(
        lambda key, task: jnp.zeros(1),
        lambda nothing, action, task: Moved(nothing, task["factor"] * action[0]),
        lambda nothing, task: nothing,
        observation_size=1,
        action_space=Continuous(1),
        episode_length=4,
    )
    draw = lambda key, split: {"factor": uniform(key, -1.0, 1.0, split=split)}
    return TaskFamily(env, name="factors", **two_splits(draw))


@pytest.mark.slow
def test_another_tasks_latent_variable_is_worth_nothing():
    """The best return is 4 times the size of the factor, 2 on average."""
    family, tasks = factors(), 50
    env = family.env
    policy = conditioned(1, env.action_space, latent=LATENT, hidden=(32, 32))
    learner = sac(
        3e-3,
        critic_learning_rate=3e-3,
        temperature=0.1,
        discount=0.5,
        tau=0.05,
        value_network=True,
        hidden=(32, 32),
    )
    algorithm = metajax.pearl(
        env,
        policy,
        encoder=product_of_gaussians(hidden=(32, 32)),
        learner=learner,
        prior_episodes=4,
        extra_episodes=2,
        updates=30,
        meta_batch=8,
        batch=32,
        context=10,
        kl_weight=0.01,
        replay_capacity=1000,
        exploration_episodes=1,
    )
    run = {"iterations": 30, "tasks": 5, "training_tasks": 20, "segment": 30, "devices": 1}
    result = metajax.train(algorithm, family, **run, evaluation=None, report=None)
    agent = algorithm.agent

    def play(adapted, task, key):
        act = lambda memory, x, key: agent.act(adapted, memory, x, key)
        return rollout(key, env, task, act, (), episodes=1)

    def adapt(meta_params, task, key):
        adapted = agent.init(meta_params, key)
        for turn in range(2):
            trajectory = play(adapted, task, key)
            adapted = agent.adapt(meta_params, adapted, trajectory, jax.random.fold_in(key, turn))
        return adapted

    drawn = sample_batch(family.test, KEY, tasks)
    keys = jax.random.split(KEY, tasks)

    @jax.jit
    def returns(meta_params):
        adapted = jax.vmap(adapt, in_axes=(None, 0, 0))(meta_params, drawn, keys)
        others = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), adapted)
        played = lambda adapted: jax.vmap(play)(adapted, drawn, keys)
        return [jnp.mean(undiscounted_returns(played(x))) for x in (adapted, others)]

    own, others = returns(jax.tree.map(lambda x: x[0], result.state.train_state.meta_params))
    print(f"return by the own latent variable {own:.2f}, by another task's {others:.2f}")
    assert own > 1.1 and others < 0.6


# --- presets -------------------------------------------------------------------------------------

# Training and held-out tasks, trials of each of the latter, episodes by the prior, as context and
# beyond it, tasks and context of a gradient step, such steps and weight of the divergence: the
# authors' configurations, whose visits are of so many steps of episodes of 200 (here of 20).
PUBLISHED = {
    "halfcheetah-vel": (100, 30, 1, 2, 0, 3, 16, 100, 2000, 0.1),
    "halfcheetah-dir": (2, 2, 4, 5, 0, 5, 4, 256, 2000, 0.1),
    "ant-dir": (2, 2, 4, 2, 0, 3, 4, 256, 4000, 0.1),
    "ant-goal": (150, 30, 1, 2, 0, 3, 10, 256, 4000, 1.0),
    "humanoid-dir": (100, 30, 1, 2, 0, 3, 16, 256, 4000, 0.1),
    "walker2d-params": (40, 10, 2, 2, 0, 3, 10, 100, 4000, 0.1),
    "hopper-params": (40, 10, 2, 2, 0, 3, 10, 100, 4000, 0.1),
    "point-sparse": (80, 20, 1, 5, 45, 0, 16, 1024, 1000, 1.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_settings(name):
    train, test, trials, prior, posterior, extra, *sizes = PUBLISHED[name]
    config = presets.default_config("pearl", name)
    options, evaluation = config["algorithm"], config["evaluation"]
    family = make(name, variant=config["family"]["variant"])
    counts = [number_of_tasks(family.train), number_of_tasks(family.test)]
    assert counts == [train, test] and config["training"]["training_tasks"] >= train
    assert evaluation["tasks"] == trials * test
    episodes = [options[f"{kind}_episodes"] for kind in ("initial", "prior", "posterior", "extra")]
    assert episodes == [10, prior, posterior, extra]
    found = [options[option] for option in ("meta_batch", "context", "updates", "kl_weight")]
    assert found == sizes
    of_points = name == "point-sparse"
    assert family.env.episode_length == (20 if of_points else 200)
    assert options["exploration_episodes"] == (5 if of_points else 2)
    assert evaluation["rounds"] == (20 if of_points else 3)
    assert options["encoder"]["next_observation"] == name.endswith("-params")
    # What is kept of a task is what five hundred visits, shared among all, come to, or more.
    visits = config["training"]["tasks"] * 500 / train
    played = visits * (prior + posterior + extra) * family.env.episode_length
    assert options["replay_capacity"] >= min(played, 1e6)
    presets.build(config)


# --- what is refused -----------------------------------------------------------------------------

OTHER = {
    "policy": (
        lambda: metajax.pearl(FEW.env, mlp(2, FEW.env.action_space)),
        "given no latent variable; take metajax.policies.conditioned",
    ),
    "learner": (
        lambda: small(learner=td3()),
        "td3 cannot train a policy whose distribution is SquashedNormal; take 'deterministic'",
    ),
    "actions": (
        lambda: small(learner=double_q()),
        "double-q needs discrete actions; this environment's are continuous",
    ),
    "visits": (
        lambda: small(posterior_episodes=1, extra_episodes=0),
        "posterior_episodes is 1 and extra_episodes is 0; one of them must be at least 2",
    ),
    "context": (
        lambda: small(context=19),
        "context is 19 steps; it must be at most 18, twice the 9 that the encoder has of a visit",
    ),
    "updates": (lambda: small(updates=0), "updates"),
    "reduction": (lambda: small(kl_reduction="most"), "kl_reduction"),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_pearl_is_refused(name):
    make_it, message = OTHER[name]
    with pytest.raises(MetajaxError, match=message):
        make_it()


def test_a_context_of_twice_a_visit_is_taken():
    assert small(context=18).name == "pearl"


def test_tasks_that_cannot_be_counted_are_refused():
    family = make("point-goal", episode_length=LENGTH)
    options = {"iterations": 3, "tasks": 2, "evaluation": None, "report": None}
    with pytest.raises(MetajaxError, match=r"cannot be counted.*training_tasks=100"):
        metajax.train(small(family.env), family, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay_capacity": 2}, "replay_capacity is 2 for each task.*room for the 3"),
        ({"distance_metric": "far"}, "distance_metric 'far'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_played(options, message):
    with pytest.raises(MetajaxError, match=message):
        metajax.train(small(**options), FEW, iterations=1, tasks=3, evaluation=None, report=None)
