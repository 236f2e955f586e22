"""MAML's relatives against exact answers, on enumerated trajectories. All in float64."""

import itertools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from enumerated import (
    INNER_LOOP,
    Problem,
    action_probabilities,
    meta_gradient_of,
    occupancy,
    plain_steps,
    relative_error,
    rollout_of_everything,
    start,
)
from jax.flatten_util import ravel_pytree
from trials import batch_of

import metajax
from metajax import outer, rules
from metajax.adaptation import gradient_steps, linear, policy_gradient
from metajax.adaptation.gradient_steps import DAMPING
from metajax.algorithms import (
    anil,
    cavia,
    e_maml,
    fomaml,
    maml,
    meta_lstm,
    meta_sgd,
    ppo,
    promp,
    reinforce,
    reptile,
)
from metajax.errors import MetajaxError
from metajax.policies import gru
from metajax.rules import RULES, sgd
from metajax.types import Continuous, Discrete, MetaParams, TrainState, UpdateRule

STEP = 1.0  # long enough for the curvature of the return to matter


pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def plain():
    return Problem()


@pytest.fixture(scope="module")
def with_context():
    return Problem(context=2)


@pytest.fixture
def play_everything(monkeypatch):
    """Let algorithms on a problem play every trajectory, weighted by its probability."""

    def prepare(problem, factory, **options):
        env = problem.family.env
        monkeypatch.setattr(INNER_LOOP, "rollout", rollout_of_everything(env, problem.everything))
        return factory(env, problem.policy, episodes=problem.count, **options)

    return prepare


# The losses are means over steps: their rates carry a factor of the length.
RATE = STEP * 3
ADAM = outer.adam()


def loss(problem, flat, task):
    return -problem.expected_return(flat, task) / problem.length


def average(problem, of_task, *arguments):
    """Return the mean over tasks of minus the loss after adaptation."""
    return -jnp.mean(jax.vmap(lambda task: of_task(task, *arguments))(problem.tasks))


# --- what is refused -----------------------------------------------------------------------------


def test_policies_that_cannot_be_adapted_are_refused(plain):
    env, space = plain.family.env, plain.family.env.action_space
    with pytest.raises(MetajaxError, match="with 3 observed numbers and Discrete"):
        maml(env, metajax.mlp(4, space))
    with pytest.raises(MetajaxError, match="actions are 5; the environment has Discrete"):
        maml(env, metajax.mlp(3, Discrete(5)))
    with pytest.raises(MetajaxError, match=r"actions have the shape \[2\]; the environment"):
        maml(env, metajax.mlp(3, Continuous(2)))
    with pytest.raises(MetajaxError, match="without a memory"):
        maml(env, gru(3, space))


@pytest.mark.parametrize("rule", ["meta-sgd", "meta-lstm", "learned-mlp"])
def test_joint_training_refuses_a_rule_that_it_cannot_learn(plain, rule):
    inner = gradient_steps(policy_gradient(critic=None), rule=RULES[rule]())
    for factory in (ppo, reinforce):
        with pytest.raises(MetajaxError, match="no gradient to learn a rule with"):
            factory(plain.family.env, plain.policy, inner=inner)


# --- advantages ----------------------------------------------------------------------------------


def test_without_a_critic_returns_are_discounted_once(plain, play_everything):
    """λ is of advantages; over no values it would be one more discount."""

    def gradient(critic, gae_lambda):
        of_objective = {"critic": critic, "discount": 0.9, "gae_lambda": gae_lambda}
        inner = plain_steps(rule=sgd(RATE), of_objective=of_objective)
        algorithm = play_everything(plain, fomaml, inner=inner, outer=ADAM)
        return meta_gradient_of_policy(algorithm, plain)

    np.testing.assert_array_equal(gradient(None, 0.5), gradient(None, 1.0))
    assert relative_error(gradient(linear(), 0.5), gradient(linear(), 1.0)) > 0.01


# --- natural steps -------------------------------------------------------------------------------


@pytest.mark.slow
def test_adaptation_by_natural_gradients(plain, play_everything):
    """Steps and meta-gradient against dense algebra; every stand-in episode counts the same."""
    max_kl, rate = 0.2, 0.7
    inner = plain_steps("dice", sgd(rate), max_kl=max_kl)
    algorithm = play_everything(plain, maml, inner=inner, outer=ADAM)

    def after(flat):
        def log_pi(flat):
            return jnp.log(action_probabilities(plain.policy, plain.unravel(flat), plain.states))

        visits = np.bincount(plain.everything.states.ravel()) / plain.everything.states.size
        slopes = jax.jacobian(log_pi)(flat)
        weight = visits[:, None] * jnp.exp(log_pi(flat))
        fisher = jnp.einsum("sa,sai,saj->ij", weight, slopes, slopes)
        fisher += DAMPING * jnp.eye(len(flat))

        def of_task(task):
            direction = jnp.linalg.solve(fisher, jax.grad(plain.expected_return)(flat, task))
            length = jnp.sqrt(2 * max_kl / (direction @ fisher @ direction))
            return loss(plain, flat + rate * length * direction, task)

        return average(plain, of_task)

    exact = jax.jit(jax.grad(after))(plain.flat)
    found = meta_gradient_of(algorithm, start(algorithm, plain.params), plain.tasks)
    assert relative_error(found, exact) < 1e-7


# --- learned rules -------------------------------------------------------------------------------


def test_meta_sgd(plain, play_everything):
    """Weights and rates, both far from where they begin."""
    inner = plain_steps("dice", rules.meta_sgd(RATE))
    algorithm = play_everything(plain, meta_sgd, inner=inner, outer=ADAM)
    state = start(algorithm, plain.params)
    rates = 3 * jax.random.normal(jax.random.key(0), plain.flat.shape)
    meta_params = MetaParams(plain.params, plain.unravel(rates), ())
    state = TrainState(meta_params, state.learner)

    def after(flat, rates):
        def of_task(task):
            gradient = jax.grad(lambda f: loss(plain, f, task))(flat)
            return loss(plain, flat - rates * gradient, task)

        return average(plain, of_task)

    exact = jax.jit(jax.grad(after, argnums=(0, 1)))(plain.flat, rates)
    for part in range(2):
        found = meta_gradient_of(algorithm, state, plain.tasks, rule=bool(part))
        assert relative_error(found, exact[part]) < 1e-9


@pytest.mark.parametrize(("factory", "rule"), [(maml, sgd), (meta_sgd, rules.meta_sgd)])
def test_meta_sgd_begins_as_maml(plain, play_everything, factory, rule):
    inner = plain_steps("dice", rule(RATE))
    algorithm = play_everything(plain, factory, inner=inner, outer=ADAM)

    def after(flat):
        def of_task(task):
            step = STEP * jax.grad(plain.expected_return)(flat, task)
            return loss(plain, flat + step, task)

        return average(plain, of_task)

    exact = jax.jit(jax.grad(after))(plain.flat)
    assert relative_error(meta_gradient_of_policy(algorithm, plain), exact) < 1e-9


def meta_gradient_of_policy(algorithm, problem):
    return meta_gradient_of(algorithm, start(algorithm, problem.params), problem.tasks)


@pytest.mark.parametrize("first_order", [pytest.param(False, marks=pytest.mark.slow), True])
def test_meta_lstm(plain, play_everything, first_order):
    """Two steps, so that the memory of the first matters to the second."""
    options = {"inner_steps": 2, "first_order": first_order, "outer": ADAM}
    inner = plain_steps("dice", rules.meta_lstm(0.5))
    algorithm = play_everything(plain, meta_lstm, inner=inner, **options)
    state = start(algorithm, plain.params)
    weights, unravel = ravel_pytree(state.meta_params.rule)
    weights += 0.3 * jax.random.normal(jax.random.key(0), weights.shape)  # no longer a descent
    meta_params = MetaParams(plain.params, unravel(weights), ())
    state = TrainState(meta_params, state.learner)
    maybe_constant = jax.lax.stop_gradient if first_order else lambda x: x

    def after(flat, weights):
        optimizer = RULES["meta-lstm"](0.5).optimizer(unravel(weights))

        def of_task(task):
            theta, memory = plain.unravel(flat), optimizer.init(plain.unravel(flat))
            for _ in range(2):
                of_params = lambda p: loss(plain, ravel_pytree(p)[0], task)
                value, gradient = maybe_constant(jax.value_and_grad(of_params)(theta))
                updates, memory = optimizer.update(gradient, memory, theta, value=value)
                theta = optax.apply_updates(theta, updates)
            return loss(plain, ravel_pytree(theta)[0], task)

        return average(plain, of_task)

    exact = jax.jit(jax.grad(after, argnums=(0, 1)))(plain.flat, weights)
    for part in range(2):
        found = meta_gradient_of(algorithm, state, plain.tasks, rule=bool(part))
        assert relative_error(found, exact[part]) < 1e-7


@pytest.mark.parametrize("estimator", ["likelihood_ratio", "dice", "naive", "clipped", "pathwise"])
def test_rules_hear_minus_the_mean_reward(estimator):
    """Whatever the surrogate's own value is, which of normalized advantages is 0."""

    def update(updates, state, params=None, *, value, **_):
        return jax.tree.map(lambda x: jnp.full_like(x, value), updates), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
    rule = UpdateRule(lambda key, params: (), lambda rule_params: optimizer)
    family = metajax.make("point-goal", episode_length=5)
    policy = metajax.mlp(2, family.env.action_space, hidden=(3,))
    inner = gradient_steps(policy_gradient(estimator), rule=rule)
    algorithm = maml(family.env, policy, inner=inner, episodes=3, outer=ADAM)
    meta_params = algorithm.init(jax.random.key(0), None).meta_params
    agent, task = algorithm.agent, family.train.sample(jax.random.key(1))
    adapted = agent.init(meta_params, jax.random.key(2))
    act = lambda memory, x, key: agent.act(adapted, memory, x, key)
    played = metajax.rollout(
        jax.random.key(3), family.env, task, act, (), episodes=3, parallel=True
    )
    after = agent.adapt(meta_params, adapted, played, jax.random.key(4))
    expected = -np.mean(np.asarray(played.reward)[np.asarray(played.valid)])
    for old, new in zip(*map(jax.tree.leaves, (adapted.policy, after.policy)), strict=True):
        np.testing.assert_allclose(new - old, expected, rtol=1e-9)


# --- part of the policy --------------------------------------------------------------------------


def exact_of_part(problem, names, begin=lambda params: params):
    """Return the meta-gradient where a step changes the named parts only."""

    def after(flat):
        params = begin(problem.unravel(flat))

        def of_task(task):
            def of_part(part):
                return loss(problem, ravel_pytree(params | part)[0], task)

            part = {name: params[name] for name in names}
            gradient = jax.grad(of_part)(part)
            rate = STEP * problem.length
            return of_part(jax.tree.map(lambda x, g: x - rate * g, part, gradient))

        return average(problem, of_task)

    return jax.jit(jax.grad(after))(problem.flat)


def test_anil(plain, play_everything):
    inner = plain_steps("dice", sgd(RATE), adapts="head")
    algorithm = play_everything(plain, anil, inner=inner, outer=ADAM)
    found = meta_gradient_of_policy(algorithm, plain)
    assert relative_error(found, exact_of_part(plain, ["head"])) < 1e-9
    assert relative_error(found, exact_of_part(plain, ["head", "body"])) > 0.1


def test_cavia(with_context, play_everything):
    """The context begins at 0, wherever the parameters have it, and is not meta-learned."""
    problem = with_context
    inner = plain_steps("dice", sgd(RATE), adapts="context")
    algorithm = play_everything(problem, cavia, inner=inner, outer=ADAM)
    found = meta_gradient_of_policy(algorithm, problem)
    exact = exact_of_part(problem, ["context"], lambda p: p | {"context": jnp.zeros(2)})
    assert np.any(problem.params["context"])
    np.testing.assert_array_equal(problem.unravel(found)["context"], 0)
    assert relative_error(found, exact) < 1e-9


def test_what_a_policy_lacks_cannot_adapt(plain):
    with pytest.raises(MetajaxError, match=r"has no context to adapt; give it one: mlp\(\.\.\., c"):
        cavia(plain.family.env, plain.policy)


# --- other objectives ----------------------------------------------------------------------------


def test_fomaml(plain, play_everything):
    inner = plain_steps("naive", sgd(RATE))
    algorithm = play_everything(plain, fomaml, inner=inner, outer=ADAM)

    def of_task(task):
        step = STEP * jax.grad(plain.expected_return)(plain.flat, task)
        return jax.grad(plain.expected_return)(plain.flat + step, task) / plain.length

    exact = jnp.mean(jax.jit(jax.vmap(of_task))(plain.tasks), axis=0)
    assert relative_error(meta_gradient_of_policy(algorithm, plain), exact) < 1e-9


def test_joint_training(plain, play_everything):
    algorithm = play_everything(plain, reinforce, inner=plain_steps())
    mean_return = lambda flat: average(plain, lambda task: loss(plain, flat, task))
    exact = jax.jit(jax.grad(mean_return))(plain.flat)
    assert relative_error(meta_gradient_of_policy(algorithm, plain), exact) < 1e-9


def expected_kl(problem, old, new):
    """Return the mean over tasks of KL(old ‖ new), over the states that `old` visits."""
    before, after = (
        action_probabilities(problem.policy, problem.unravel(x), problem.states) for x in (old, new)
    )
    per_state = jnp.sum(before * (jnp.log(before) - jnp.log(after)), axis=-1)
    visits = jax.vmap(lambda task: occupancy(before, task, problem.length))(problem.tasks)
    return jnp.mean(jnp.sum(visits * per_state[None, None], axis=-1))


STEPS = plain_steps(rule=sgd(RATE))


def test_promp_at_ratio_one(plain, play_everything):
    """Its gradient is that of low variance curvature: exact but for the terms left out."""
    algorithm = play_everything(plain, promp, inner=STEPS, outer=outer.ppo(epochs=1))
    found = meta_gradient_of_policy(algorithm, plain)

    def of_task(task):
        gradient = jax.grad(plain.expected_return)
        adapted = plain.flat + STEP * gradient(plain.flat, task)
        missing = plain.missing_terms(plain.flat, task=task)
        curvature = jax.hessian(plain.expected_return)(plain.flat, task) - missing - missing.T
        after = gradient(adapted, task) / plain.length
        return after + STEP * curvature @ after

    exact = jnp.mean(jax.jit(jax.vmap(of_task))(plain.tasks), axis=0)
    assert relative_error(found, exact) < 1e-6


@pytest.mark.parametrize(
    ("learning_rate", "target", "factor"), [(1e-3, 1e-9, 2.0), (1e-3, 1.0, 0.5)]
)
def test_promp_adapts_its_penalty(plain, play_everything, learning_rate, target, factor):
    """Doubled where the policy moved too far, halved where it hardly moved."""
    algorithm = play_everything(
        plain, promp, inner=STEPS, outer=outer.ppo(learning_rate), target_kl=target
    )
    state = start(algorithm, plain.params)
    new, _ = jax.jit(algorithm.update)(state, batch_of(plain.tasks), jax.random.key(0))
    np.testing.assert_allclose(new.learner["kl_penalty"], [factor * 5e-4])


def test_the_penalty_cannot_vanish_and_need_not_change(plain, play_everything):
    for options, expected in (({"target_kl": 1.0}, 5e-4 / 1024), ({}, 5e-4)):
        algorithm = play_everything(plain, promp, inner=STEPS, **options)
        state, update = start(algorithm, plain.params), jax.jit(algorithm.update)
        for _ in range(12):
            state, metrics = update(state, batch_of(plain.tasks), jax.random.key(0))
        np.testing.assert_allclose(state.learner["kl_penalty"], [expected])
        assert metrics.get("kl_penalty", expected) == pytest.approx(expected)


def test_promp_pays_for_moving(plain, play_everything):
    def moved(penalty):
        algorithm = play_everything(
            plain, promp, inner=STEPS, outer=outer.ppo(0.05), kl_penalty=penalty
        )
        state = start(algorithm, plain.params)
        new, metrics = jax.jit(algorithm.update)(state, batch_of(plain.tasks), jax.random.key(0))
        return ravel_pytree(new.meta_params.policy)[0], metrics["inner_kl"]

    far, near = moved(1e-9), moved(100.0)
    assert expected_kl(plain, plain.flat, near[0]) < 0.5 * expected_kl(plain, plain.flat, far[0])


# --- E-MAML: all batches of episodes there can be ------------------------------------------------


@pytest.mark.slow
def test_e_maml_is_unbiased(monkeypatch):
    """Its mean over all pairs of episodes, before and after, in two tasks, is the exact gradient.

    One episode before adaptation is the hardest case: the adapted policy is another one for each
    of them. MAML's own gradient, at the same episodes, is far off.
    """
    problem = Problem(states=2, length=2)
    count, everything = problem.count, problem.everything
    reward = lambda task: task["reward"][everything.states, everything.actions]

    def rollout(key, env, task, act, memory, *, episodes, parallel):
        """Play the trajectory that the task names for this round."""
        stored = rollout_of_everything(env, everything)(
            key, env, task, act, memory, episodes=count, parallel=parallel
        )
        unadapted = problem.policy.step(problem.params, (), stored.step_input)[1]
        first = jnp.all(unadapted.distribution.logits == stored.output.distribution.logits)
        index = jnp.where(first, task["before"], task["after"])
        chosen = jax.tree.map(lambda x: x[index][None], stored)
        return chosen.__class__(**vars(chosen) | {"reward": reward(task)[index][None]})

    monkeypatch.setattr(INNER_LOOP, "rollout", rollout)
    rate = STEP * problem.length

    def adapted(flat, task, index):
        """Return the parameters after a step on an episode; its advantages are returns to go."""
        to_go = jnp.cumsum(reward(task)[index][::-1])[::-1]
        objective = lambda f: problem.log_probs(f)[index] @ to_go / problem.length
        return flat + rate * jax.grad(objective)(flat)

    def exact_return(flat):
        def of_task(task):
            after = lambda i: problem.expected_return(adapted(flat, task, i), task)
            return problem.probability(flat, task) @ jax.vmap(after)(jnp.arange(count))

        return jnp.mean(jax.vmap(of_task)(problem.tasks)) / problem.length

    exact = jax.jit(jax.grad(exact_return))(problem.flat)

    def probabilities(task):
        """Return the probability `[before, after]` of the two episodes of a task."""
        of_after = lambda i: problem.probability(adapted(problem.flat, task, i), task)
        return problem.probability(problem.flat, task)[:, None] * jax.vmap(of_after)(
            jnp.arange(count)
        )

    weights = jax.vmap(probabilities)(problem.tasks)
    indices = jnp.array(list(itertools.product(range(count), repeat=4))).reshape(-1, 2, 2)
    weight = jnp.prod(weights[jnp.arange(2)[None], indices[..., 0], indices[..., 1]], axis=-1)
    np.testing.assert_allclose(weight.sum(), 1, rtol=1e-12)

    def expected(factory):
        inner = plain_steps("naive", sgd(rate))
        algorithm = factory(problem.family.env, problem.policy, inner=inner, outer=ADAM, episodes=1)
        state = start(algorithm, problem.params)

        @jax.jit
        @jax.vmap
        def gradient(indices):
            tasks = problem.tasks | {"before": indices[:, 0], "after": indices[:, 1]}
            new, _ = algorithm.update(state, batch_of(tasks), jax.random.key(0))
            return -10 * ravel_pytree(new.learner["outer"][0].mu[0])[0]

        return weight @ gradient(indices)

    assert relative_error(expected(e_maml), exact) < 1e-9
    assert relative_error(expected(maml), exact) > 0.1


def test_a_constant_reward_changes_nothing_in_e_maml():
    """What exploration led to is compared with other tasks before it has a unit."""
    problem = Problem(states=2, length=1)  # all of a return is one step's, whose mean is 0
    inner = gradient_steps(policy_gradient("naive", critic=None))
    algorithm = e_maml(problem.family.env, problem.policy, inner=inner, outer=ADAM, episodes=6)
    state = start(algorithm, problem.params)
    shifted = problem.tasks | {"reward": problem.tasks["reward"] + 5.0}
    found = [meta_gradient_of(algorithm, state, tasks) for tasks in (problem.tasks, shifted)]
    assert relative_error(*found) < 1e-9


def test_exploration_is_not_credited_twice(plain):
    for options in ({}, {"inner": gradient_steps(policy_gradient("dice"))}):
        with pytest.raises(MetajaxError, match="already; take the estimator 'naive'"):
            maml(plain.family.env, plain.policy, credit_exploration=True, **options)
    with pytest.raises(MetajaxError, match="inner_steps is 0"):
        e_maml(plain.family.env, plain.policy, inner_steps=0)
    maml(plain.family.env, plain.policy, credit_exploration=True, first_order=True)
    with pytest.raises(
        MetajaxError, match="unknown value of estimator 'naiv'; did you mean 'naive'"
    ):
        policy_gradient("naiv")


def test_e_maml_clips_the_ratios_of_exploration(monkeypatch):
    """Many epochs on one step per task, which its critic explains: exploration alone moves."""
    problem, clip = Problem(states=1, length=1), 0.2

    def rollout(key, env, task, act, memory, *, episodes, parallel):
        """Play the action that the task names."""
        both = rollout_of_everything(env, problem.everything)(
            key, env, task, act, memory, episodes=problem.count, parallel=parallel
        )
        chosen = jax.tree.map(lambda x: x[task["action"]][None], both)
        return chosen.__class__(**vars(chosen) | {"reward": task["return"][None, None]})

    monkeypatch.setattr(INNER_LOOP, "rollout", rollout)
    algorithm = e_maml(
        problem.family.env,
        problem.policy,
        inner=plain_steps("naive", sgd(1e-9), of_objective={"critic": linear()}),
        outer=outer.ppo(1e-3, epochs=300, clip=clip),
        episodes=1,
    )
    # The first action did better in one task, the second worse in the other.
    named = {"action": jnp.array([0, 1]), "return": jnp.array([1.0, -1.0])}
    tasks = batch_of(problem.tasks | named)
    new, _ = jax.jit(algorithm.update)(start(algorithm, problem.params), tasks, jax.random.key(0))
    probabilities = [
        action_probabilities(problem.policy, params, 1)[0]
        for params in (problem.params, new.meta_params.policy)
    ]
    ratio = probabilities[1] / probabilities[0]
    # Each side stops at its own bound; the epochs go on until both are there.
    assert ratio[0] > 1 + 0.9 * clip or ratio[1] < 1 - 0.9 * clip
    assert ratio[0] < 1 + 1.1 * clip or ratio[1] > 1 - 1.1 * clip


# --- Reptile -------------------------------------------------------------------------------------


def test_reptile_is_its_definition(plain, play_everything):
    """θ + ε (mean over tasks of θ after K exact gradient steps - θ)."""
    options = {"inner_steps": 3, "step_size": 0.25}
    algorithm = play_everything(plain, reptile, inner=STEPS, **options)
    state = start_reptile(algorithm, plain)
    new, metrics = jax.jit(algorithm.update)(state, batch_of(plain.tasks), jax.random.key(0))

    def of_task(task):
        adapted = plain.flat
        for _ in range(3):
            adapted += STEP * jax.grad(plain.expected_return)(adapted, task)
        return adapted

    change = jnp.mean(jax.jit(jax.vmap(of_task))(plain.tasks), axis=0) - plain.flat
    found = ravel_pytree(new.meta_params.policy)[0]
    np.testing.assert_allclose(found, plain.flat + 0.25 * change, rtol=1e-9)
    np.testing.assert_allclose(metrics["meta_gradient_norm"], jnp.linalg.norm(change), rtol=1e-9)


def start_reptile(algorithm, problem):
    return TrainState(MetaParams(problem.params, (), ()), {"critic": ()})


def test_reptile_cannot_learn_a_rule(plain):
    with pytest.raises(MetajaxError, match="no gradient to learn a rule with"):
        reptile(plain.family.env, plain.policy, inner=gradient_steps(rule=rules.meta_sgd()))


def test_the_table_of_the_family_fine_tunes_joint_training_alone_by_natural_steps():
    """In a process of its own: benchmarks choose the devices before JAX starts."""
    code = """
import gradient_family as table
from metajax import presets

for method in ("maml", "maml, trpo", "meta-sgd", "reptile", "reinforce", "trpo"):
    config = table.configuration(method, "point-goal")
    joint = presets.build(config).algorithm.joint
    assert joint == (method in ("reinforce", "trpo")), method
    max_kl = config["algorithm"]["inner"]["max_kl"]
    assert max_kl == (table.FINE_TUNING_KL if joint else 0.0), method
"""
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    subprocess.run([sys.executable, "-c", code], cwd=benchmarks, check=True)
