"""What an environment measures in addition to rewards: where it goes, and that it is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.envs.splits import uniform_over
from metajax.export import GymnasiumEnv, GymnasiumVectorEnv
from metajax.runs import read_metrics
from metajax.training.evaluation import evaluate_with_metrics
from metajax.training.plan import Evaluation

GOAL = jnp.array([0.05, 0.03])
ACTIONS = jnp.array([[0.03, 0.0], [0.015, 0.025], [0.1, 0.1]])
# By hand: at (0.03, 0), at (0.045, 0.025), which is within 0.01 of the goal in both coordinates.
DISTANCES = [np.hypot(0.02, 0.03), np.hypot(0.005, 0.005)]


@pytest.fixture(scope="module")
def family():
    return metajax.make("point-goal", episode_length=3)


def test_metrics_are_in_the_trajectory_step_by_step(family):
    def act(count, step_input, key):
        output = metajax.PolicyOutput(distribution=None)
        return count + 1, ACTIONS[count], output

    start = jnp.zeros((), jnp.int32)
    trajectory = metajax.rollout(
        jax.random.key(0), family.env, {"goal": GOAL}, act, start, episodes=1
    )
    assert trajectory.valid.tolist() == [[True, True, False]]
    np.testing.assert_allclose(trajectory.metrics["distance"][0, :2], DISTANCES, rtol=1e-5)
    assert trajectory.metrics["success"][0, :2].tolist() == [0.0, 1.0]


def test_a_reset_measures_as_well(family):
    state = family.env.reset(jax.random.key(0), {"goal": GOAL})
    assert float(state.metrics["distance"]) == pytest.approx(np.hypot(0.05, 0.03), rel=1e-5)
    assert float(state.metrics["success"]) == 0.0


def test_gymnasium_environments_report_them_as_info(family):
    env = GymnasiumEnv(family)
    env.reset(seed=0, options={"task": {"goal": GOAL}})
    info = env.step(ACTIONS[0])[-1]
    assert info["distance"] == pytest.approx(DISTANCES[0], rel=1e-5) and info["success"] == 0.0
    many = GymnasiumVectorEnv(family, num_envs=2)
    many.reset(seed=0, options={"task": {"goal": jnp.stack([GOAL, GOAL])}})
    info = many.step(np.stack([ACTIONS[0], ACTIONS[0]]))[-1]
    np.testing.assert_allclose(info["distance"], [DISTANCES[0]] * 2, rtol=1e-5)


def test_the_distance_of_a_reacher_is_that_of_its_reward():
    family = metajax.make("reacher-goal", backend="mujoco", episode_length=2)
    task = {"goal": jnp.array([0.1, -0.05])}
    state = jax.jit(family.env.reset)(jax.random.key(0), task)
    state = jax.jit(family.env.step)(state, jnp.zeros(2))  # no control, no cost of it
    assert float(state.metrics["distance"]) == pytest.approx(-float(state.reward), rel=1e-6)


def test_an_evaluation_returns_them_after_the_last_step_of_each_episode(family):
    """An agent that walks diagonally, by 2 cm a step more with each adaptation, by hand."""

    def act(speed, memory, step_input, key):
        return memory, speed * jnp.ones(2), metajax.PolicyOutput(distribution=None)

    agent = metajax.Agent(
        init=lambda meta_params, key: jnp.zeros(()),
        initial_memory=lambda: (),
        act=act,
        adapt=lambda meta_params, adapted, trajectory, key: adapted + 0.02,
    )
    goals = uniform_over({"goal": jnp.array([[0.08, 0.08], [0.5, 0.08]])})
    _, metrics = evaluate_with_metrics(
        agent,
        family._replace(test=goals),
        (),
        jax.random.key(0),
        tasks=2,
        rounds=3,
        episodes=1,
    )
    # Three steps, or until the goal is reached: at 4 cm a step the first one is, after two.
    places = [[0.0, 0.06, 0.08], [0.0, 0.06, 0.12]]
    expected = [
        [np.hypot(x - 0.08, x - 0.08) for x in places[0]],
        [np.hypot(x - 0.5, x - 0.08) for x in places[1]],
    ]
    np.testing.assert_allclose(metrics["distance"][:, :, 0], expected, rtol=1e-5, atol=1e-6)
    assert metrics["success"][:, :, 0].tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


@pytest.mark.slow
def test_training_records_them_with_the_held_out_returns(tmp_path, family):
    policy = metajax.mlp(2, family.env.action_space, hidden=(4,))
    result = metajax.train(
        metajax.reinforce(family.env, policy, episodes=2),
        family,
        iterations=4,
        tasks=2,
        segment=2,
        evaluation=Evaluation(tasks=3, episodes=2, rounds=2, every=2, final_tasks=3),
        run_directory=tmp_path / "run",
        report=None,
    )
    assert set(result.environment_metrics) == {"distance", "success"}
    distance = result.environment_metrics["distance"]
    # Every reward is minus a squared distance, the last one that of the place where it ends.
    assert distance.shape == result.returns.shape == (1, 3, 2, 2)
    assert np.all(distance > 0) and np.all(distance**2 < -result.returns * 1.001)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    (middle,) = [r for r in records if "held_out" in r]
    (final,) = [r for r in records if "final_held_out" in r]
    assert np.shape(middle["held_out/success"]) == (1, 3, 2)
    np.testing.assert_allclose(final["final_held_out/distance"], distance.mean(axis=-1))


@pytest.mark.parametrize(
    ("name", "measures"),
    [("gridnav", {"success"}), ("point-sparse", {"distance", "success"})],
)
def test_success_is_where_the_reward_says_so(name, measures):
    """On the goal cell the reward is 1 of 1 and -0.1; within 0.2 of a sparse goal above 0."""
    family = metajax.make(name)
    space = family.env.action_space

    def act(memory, step_input, key):
        if name == "gridnav":
            action = jax.random.randint(key, (), 0, space.size)
        else:
            action = 0.2 * task["goal"] + jax.random.uniform(key, (2,), minval=-1.0)
        return memory, action, metajax.PolicyOutput(distribution=None)

    task = family.train.sample(jax.random.key(1))
    trajectory = metajax.rollout(jax.random.key(0), family.env, task, act, (), episodes=200)
    assert set(trajectory.metrics) == measures
    success = np.asarray(trajectory.metrics["success"]) == 1.0
    assert 0 < success.mean() < 1
    np.testing.assert_array_equal(success, np.asarray(trajectory.reward) > 0)


def test_the_distance_of_an_ant_is_euclidean():
    family = metajax.make("ant-goal", backend="mujoco")
    reset = jax.jit(family.env.reset)
    state = reset(jax.random.key(0), {"goal": jnp.array([3000.0, -4000.0])})
    # It starts within 0.1 m of the origin, in both coordinates.
    assert float(state.metrics["distance"]) == pytest.approx(5000.0, abs=0.15)
