"""No constant and no unit of reward is a special one: equal returns teach nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trials import batch_of

from metajax import outer as steps
from metajax.adaptation import gradient_steps, policy_gradient, value_network, whole_trials
from metajax.adaptation.trials import Statistics
from metajax.algorithms import e_maml, maml, rl2, trpo
from metajax.envs import make
from metajax.losses import returns
from metajax.outer.evolution import init_particles, persistent_evolution_strategies
from metajax.outer.trust_region import trust_region_step
from metajax.policies import gru, mlp
from metajax.rules import sgd

EPS = np.finfo(np.float32).eps
TASKS = 2


def policy_of(family):
    env = family.env
    return mlp(env.observation_size, env.action_space, hidden=(4,))


def update_of(algorithm, tasks, state=None, key=1):
    batch = batch_of(tasks)
    state = algorithm.init(jax.random.key(0), batch) if state is None else state
    return state, *jax.jit(algorithm.update)(state, batch, jax.random.key(key))


def largest_difference(one, other):
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)


# --- what differs by rounding alone --------------------------------------------------------------


@pytest.mark.parametrize("constant", [10.3, 0.7, 1.0, -1e-6, 1e6, 0.0])
@pytest.mark.parametrize("count", [37, 1001])
def test_equal_numbers_are_normalized_to_0(constant, count):
    found = returns.normalize(jnp.full(count, constant), jnp.arange(count) > 2)
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_numbers_are_normalized_in_any_unit(unit):
    """Mean 3, variance 8/3; so also on top of a constant, while it leaves them their digits."""
    x, valid = jnp.array([1.0, 3.0, 5.0, np.nan]), jnp.array([True, True, True, False])
    expected = [-np.sqrt(1.5), 0, np.sqrt(1.5), 0]
    np.testing.assert_allclose(returns.normalize(unit * x, valid), expected, rtol=1e-6, atol=1e-6)
    on_top = returns.normalize(unit * (x + 1000.0), valid)
    np.testing.assert_allclose(on_top, expected, atol=5e-4)


def test_rounding_is_that_of_what_values_were_subtracted_from():
    rounding = jnp.array([1.0, -2.0, 3.0, 0.0]) * EPS
    valid, constant = jnp.ones(4, bool), jnp.full(4, 1.0)
    np.testing.assert_array_equal(returns.normalize(rounding, valid, constant), 0)
    alone = returns.normalize(rounding, valid)
    np.testing.assert_allclose(jnp.std(alone), 1, rtol=1e-5)
    found = returns.normalize(rounding, valid, 1e-3 * constant)
    np.testing.assert_allclose(found, alone, rtol=1e-3)


def test_what_is_not_finite_shows():
    for bad in (np.nan, np.inf):
        x = jnp.array([1.0, bad, 1.0])
        assert not np.all(np.isfinite(returns.normalize(x, jnp.ones(3, bool))))
        assert not returns.alike(jnp.stack([x, x]))


def test_episodes_are_alike_if_none_comes_to_more_from_any_time_on():
    total = jnp.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert returns.alike(total) and returns.alike(total * (1 + EPS))
    assert returns.alike(total.at[0].multiply(1 + EPS))
    for other in (total.at[0, 1].set(2.001), total.at[1, 2].set(0.0)):
        assert not returns.alike(other)
    assert not returns.alike(total[:1])  # of one episode nobody can say


# --- equal returns -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "options"),
    [
        (1, {"critic": value_network(hidden=(4,), epochs=1)}),
        (1, {"normalize_advantages": False}),
        (3, {"gae_lambda": 0.9}),
    ],
    ids=["value network", "not normalized", "several pulls"],
)
def test_trpo_stands_still_where_all_arms_give_the_same(length, options):
    """Whatever the constant: nothing is learned, the step refused and the policy the same bits."""
    family = make("gaussian-bandit", arms=3, reward_std=0.0, episode_length=length)
    inner = gradient_steps(policy_gradient(**{"gae_lambda": 0.97} | options))
    algorithm = trpo(family.env, policy_of(family), inner=inner, episodes=7)
    update = jax.jit(algorithm.update)
    for constant in (0.7, 1.0, 10.3, -3e-5):
        tasks = batch_of({"mean": jnp.full((TASKS, 3), constant)})
        before = after = algorithm.init(jax.random.key(0), tasks)
        for key in range(2):
            after, metrics = update(after, tasks, jax.random.key(key))
            assert metrics["step_accepted"] == metrics["meta_gradient_norm"] == 0
        jax.tree.map(
            np.testing.assert_array_equal, after.meta_params.policy, before.meta_params.policy
        )


def test_rl2_stands_still_where_all_arms_give_the_same():
    family = make("gaussian-bandit", arms=3, reward_std=0.0)
    policy = gru(1, family.env.action_space, width=4, critic="separate")
    objective = whole_trials(critic=steps.adam(max_gradient_norm=1.0))
    outer = steps.trpo(cg_iterations=3)
    algorithm = rl2(family.env, policy, objective=objective, outer=outer, episodes=3)
    before, after, metrics = update_of(algorithm, {"mean": jnp.full((TASKS, 3), 0.7)})
    assert metrics["step_accepted"] == metrics["meta_gradient_norm"] == 0
    for part in ("actor", "head"):
        old, new = (state.meta_params.policy[part] for state in (before, after))
        jax.tree.map(np.testing.assert_array_equal, new, old)


def test_a_step_to_nowhere_is_refused_even_if_the_objective_seems_to_rise():
    values = iter([1.0, 1.0 + 2 * EPS])  # the same surrogate, compiled twice
    objective = lambda params: (jnp.asarray(next(values)), jnp.zeros(()))
    step = trust_region_step(objective, jnp.zeros(2), lambda v: v, jnp.ones(2), max_kl=0.01)
    assert not step.accepted
    np.testing.assert_array_equal(step.params, 1)


def test_evolution_makes_nothing_of_rounding():
    rule = jnp.zeros(3)

    def advance(rule, state, key):
        return state, 10.3 * jnp.where(rule[0] > 0, 1 + EPS, 1.0)

    particles = init_particles(rule, jnp.zeros(4))
    gradient, _, losses = persistent_evolution_strategies(
        advance, rule, particles, jax.random.key(0), std=0.1
    )
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_allclose(losses, 10.3, rtol=1e-6)


@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_exploration_is_credited_in_the_unit_of_outcomes_where_episodes_have_none(spread):
    """Tasks give a constant each: advantages have no unit, and outcomes are ±1 of their own."""
    family = make("gaussian-bandit", arms=3, reward_std=0.0)
    inner = gradient_steps(policy_gradient("naive", critic=None))
    options = {"inner": inner, "outer": steps.adam(), "episodes": 3}
    algorithm = e_maml(family.env, policy_of(family), **options)
    found = []
    for unit in (1.0, 1e6):
        constants = unit * (0.7 + spread * jnp.arange(TASKS, dtype=float))
        tasks = {"mean": jnp.tile(constants[:, None], (1, 3))}
        found.append(float(update_of(algorithm, tasks)[2]["meta_gradient_norm"]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    assert 0.01 < found[0] < 100 if spread else found[0] == 0


# --- any unit of reward --------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [steps.trpo(), steps.ppo(epochs=2)], ids=repr)
@pytest.mark.usefixtures("float64")
def test_maml_takes_the_same_step_in_any_unit_of_reward(outer):
    family = make("tabular", states=2, actions=3, episode_length=3, reward_std=0.0)
    inner = gradient_steps(rule=sgd(1.0))
    algorithm = maml(family.env, policy_of(family), inner=inner, outer=outer, episodes=4)
    tasks = jax.vmap(family.train.sample)(jax.random.split(jax.random.key(0), TASKS))
    update, before = jax.jit(algorithm.update), algorithm.init(jax.random.key(0), batch_of(tasks))
    steps = []
    for unit in (1.0, 1e-6, 1e6):
        scaled = batch_of(tasks | {"reward": unit * tasks["reward"]})
        after, _ = update(before, scaled, jax.random.key(1))
        steps.append(
            jax.tree.map(jnp.subtract, after.meta_params.policy, before.meta_params.policy)
        )
    size = largest_difference(steps[0], jax.tree.map(jnp.zeros_like, steps[0]))
    assert size > 1e-4
    for step in steps[1:]:
        assert largest_difference(step, steps[0]) < 1e-5 * size


@pytest.mark.usefixtures("float64")
def test_rl2_takes_the_same_step_in_any_unit_of_reward():
    """Once it has seen a batch, whose mean squares are its unit."""
    family = make("tabular", states=2, actions=3, episode_length=3, reward_std=0.0)
    outer = steps.ppo(epochs=4, clip=0.2, max_gradient_norm=1.0)
    algorithm = rl2(family.env, gru(2, family.env.action_space, width=4), outer=outer)
    tasks = jax.vmap(family.train.sample)(jax.random.split(jax.random.key(0), TASKS))
    update, state = jax.jit(algorithm.update), algorithm.init(jax.random.key(0), batch_of(tasks))
    found = []
    for unit in (1.0, 1e-6, 1e6):
        of_rewards = jnp.asarray(2.0 * unit**2)
        before = dataclasses.replace(
            state,
            meta_params=dataclasses.replace(state.meta_params, mean_square_reward=of_rewards),
            statistics=Statistics(jnp.asarray(5.0 * unit**2), jnp.asarray(1, jnp.int32)),
        )
        scaled = batch_of(tasks | {"reward": unit * tasks["reward"]})
        found.append(update(before, scaled, jax.random.key(1))[0].meta_params.policy)
    size = largest_difference(found[0], state.meta_params.policy)
    for params in found[1:]:
        assert largest_difference(params, found[0]) < 1e-5 * size
