"""The adaptation curve: which tasks, which rounds, which actions; and how it is summed up."""

import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scoreboard import LENGTH, scoreboard

from metajax.adaptation import gradient_steps, linear, policy_gradient, value_network
from metajax.algorithms import maml
from metajax.envs import make
from metajax.envs.families.tabular import tabular
from metajax.envs.splits import even_count, is_held_out, on_split, uniform_over
from metajax.errors import MetajaxError
from metajax.policies import mlp
from metajax.training import Evaluation, train
from metajax.training.evaluation import (
    adaptation_curve,
    evaluate,
    hurtful_steps,
    interquartile_mean,
    iqm,
    trial_total,
)
from metajax.types import (
    Agent,
    Algorithm,
    PolicyOutput,
    TaskFamily,
    TrainState,
    Trial,
)


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
    returns = curve(counting_agent(), scoreboard(), deterministic=True)
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
    returns = curve(agent, family, deterministic=True)
    steps = (returns - returns[:, :1]) / LENGTH
    np.testing.assert_allclose(
        steps, np.broadcast_to(np.arange(3)[:, None], steps.shape), atol=1e-5
    )
    assert seen == [(4, LENGTH, 1)]


@pytest.mark.parametrize("deterministic", [False, True])
def test_memory_is_kept_through_the_whole_trial(deterministic):
    returns = curve(counting_agent(memory=jnp.zeros(())), scoreboard(), deterministic=deterministic)
    rounds, episodes = np.arange(3)[:, None], np.arange(12).reshape(3, 4)
    expected = LENGTH * (1000 if deterministic else 10 * rounds) + 4 * episodes + 1
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
    returns = curve(agent, scoreboard(), deterministic=True, rounds=rounds, episodes=6 // rounds)
    np.testing.assert_allclose(np.diff(returns.reshape(6, 6)), LENGTH**2, rtol=1e-5)


def of_finite(*scores: float) -> TaskFamily:
    return scoreboard()._replace(test=uniform_over({"score": jnp.array(scores)}))


@pytest.mark.parametrize(
    ("scores", "asked", "played"),
    [
        ([3, 5], 6, [3, 3, 3, 5, 5, 5]),
        ([9, 7, 8], 20, [9] * 7 + [7] * 7 + [8] * 7),
        ([4, 2, 1], 2, [4, 2, 1]),
    ],
)
def test_finitely_many_tasks_are_played_equally_often_in_their_order(scores, asked, played):
    family = of_finite(*map(float, scores))
    returns = evaluate(
        counting_agent(), family, jnp.ones(()), jax.random.key(0), tasks=asked, rounds=1, episodes=1
    )
    np.testing.assert_allclose(returns[:, 0, 0], LENGTH * np.array(played))


def test_of_more_tasks_than_can_be_afforded_each_is_played_once_at_most():
    family = of_finite(*np.arange(50.0))
    tasks = curve(counting_agent(), family, tasks=20)[:, 0, 0]
    assert len(set(tasks)) == 20
    assert [even_count(family.test, 20, most=most) for most in (0, 49, 50)] == [20, 20, 50]
    assert even_count(scoreboard().test, 20, most=100) == 20  # they cannot be counted


def test_the_final_evaluation_plays_each_of_few_tasks_equally_often():
    """Also in several batches, of which each alone would be uneven, or too small."""
    family = of_finite(0.0, 1.0, 2.0)
    state = TrainState(jnp.ones(()), ())
    algorithm = Algorithm(
        lambda key, tasks: state,
        lambda state, tasks, key: (state, {"return": jnp.zeros(())}),
        counting_agent(),
        "idle",
        Trial(1, 1, 0),
        ("return",),
    )
    for tasks, batch, played in ((4, 6, 12), (1, 3, 9)):
        evaluation = Evaluation(tasks=tasks, final_tasks=7, rounds=1, episodes=1)
        assert evaluation.batch(family) == batch
        returns = train(algorithm, family, iterations=1, tasks=2, evaluation=evaluation).returns
        assert returns is not None
        scores = np.round(returns / LENGTH).astype(int)
        assert np.bincount(scores.ravel()).tolist() == [played // 3] * 3


@pytest.mark.parametrize("critic", [linear(), value_network(hidden=(4,)), None], ids=repr)
def test_other_rounds_and_episodes_than_in_training(critic):
    family = tabular(states=2, actions=2, episode_length=3)
    policy = mlp(2, family.env.action_space, hidden=())
    inner = gradient_steps(policy_gradient(critic=critic))
    algorithm = maml(family.env, policy, inner=inner, episodes=2)
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
    assert interquartile_mean(returns).iqm == 3.5  # of 2, 3, 4 and 5
    # Over two seeds the middle half is that of all sixteen.
    returns = np.array([[0.0, 1, 2, 3, 4, 5, 6, 7], [10, 11, 12, 13, 14, 15, 16, 17]])
    assert interquartile_mean(returns).iqm == np.mean([4, 5, 6, 7, 10, 11, 12, 13])


def resampled(draw) -> tuple[float, float]:
    """Return the 95 % interval of the mean of the middle half of what `draw()` returns."""
    means = []
    for _ in range(4000):
        drawn = np.sort(draw())
        means.append(drawn[len(drawn) // 4 : -(len(drawn) // 4)].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return low, high


def check_interval(found, low, high):
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.1 * (high - low))
    assert found.low < found.iqm < found.high


def test_the_interval_of_one_seed_is_a_bootstrap_of_its_tasks():
    rng = np.random.default_rng(0)
    returns = rng.normal(size=(1, 40))
    check_interval(interquartile_mean(returns), *resampled(lambda: rng.choice(returns[0], 40)))


def test_the_interval_of_several_seeds_is_a_bootstrap_of_seeds_and_of_their_tasks():
    rng = np.random.default_rng(0)
    returns = np.stack([mean + rng.normal(size=40) for mean in (0.0, 1.0, 1.5, 4.0)])

    def draw():
        return np.concatenate([rng.choice(returns[i], 40) for i in rng.integers(4, size=4)])

    found = interquartile_mean(returns)
    check_interval(found, *resampled(draw))
    of_tasks = resampled(lambda: np.concatenate([rng.choice(seed, 40) for seed in returns]))
    assert found.high - found.low > 2 * (of_tasks[1] - of_tasks[0])


def test_a_seed_that_failed_is_in_the_interval():
    """Its tasks agree, so all that resampling can do is to draw other seeds: 27 ways."""
    returns = np.repeat([[200.0], [153.0], [200.0]], 40, axis=1)
    found = interquartile_mean(returns)
    assert found.iqm == pytest.approx((10 * 153 + 50 * 200) / 60)
    assert found.mean == pytest.approx(553 / 3)
    drawn = list(itertools.product((200, 153, 200), repeat=3))
    assert drawn.count((153, 153, 153)) / len(drawn) > 0.025
    assert (found.low, found.high) == (153, 200)


@pytest.mark.parametrize(
    ("lost", "by", "expected"),
    [
        ([], 0.0, 9.5),
        ([0, 1, 2, 3], np.nan, 11.5),  # of 8 ... 15
        ([16, 17, 18, 19], np.nan, 7.5),  # of 4 ... 11
        ([19], np.nan, 9.0),  # of 4 ... 14
        ([19], np.inf, 9.0),
        ([0], -np.inf, 10.0),  # of 5 ... 15
    ],
)
def test_a_return_that_is_not_finite_is_left_out_and_counted(lost, by, expected):
    """Sorted with the others, it would be the best, or the worst, and be trimmed away."""
    returns = np.arange(20.0)
    returns[lost] = by
    kept = np.delete(np.arange(20.0), lost)
    found = interquartile_mean(returns[None])
    assert (found.iqm, found.mean, found.not_finite) == (expected, kept.mean(), len(lost))
    assert kept.min() < found.low < expected < found.high < kept.max()
    assert iqm(returns) == expected


def test_a_seed_of_which_nothing_is_finite_is_left_out():
    returns = np.stack([np.full(8, np.nan), np.arange(8.0)])
    found = interquartile_mean(returns)
    assert found == interquartile_mean(returns[1:])._replace(not_finite=8)
    nothing = interquartile_mean(returns[:1])
    assert np.isnan(nothing[:4]).all() and nothing.not_finite == 8


def test_memory_does_not_grow_with_resamples_times_tasks():
    returns = np.random.default_rng(0).normal(size=(1, 1000))
    tracemalloc.start()
    try:
        interquartile_mean(returns)
        assert tracemalloc.get_traced_memory()[1] < 2000 * returns.nbytes / 50
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("returns", [np.full((2, 5), 3.0), np.array([[3.0]])])
def test_without_spread_the_interval_is_a_point(returns):
    assert interquartile_mean(returns) == (3, 3, 3, 3, 0)


def test_the_total_of_a_trial_is_the_sum_over_its_episodes():
    """Ten pulls of an arm that pays with probability 0.6 are worth 6, in however many rounds."""
    pulls = (np.random.default_rng(0).random((2, 4000, 10)) < 0.6).astype(float)
    totals = [trial_total(pulls.reshape(2, 4000, rounds, -1)) for rounds in (1, 2, 10)]
    assert totals[0] == totals[1] == totals[2]
    assert totals[0].mean == pulls.sum(-1).mean() == pytest.approx(6.0, abs=0.06)


def test_adaptation_curve_is_per_round_over_means_of_episodes():
    returns = np.zeros((2, 8, 3, 4))
    returns += 10 * np.arange(3)[:, None] + np.array([-3.0, -1, 1, 3])
    found = adaptation_curve(returns)
    assert [s.iqm for s in found] == [0, 10, 20]


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
