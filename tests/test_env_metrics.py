"""What an environment measures in addition to rewards: where it goes, and that it is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.envs.splits import uniform_over
from metajax.export import GymnasiumEnv, GymnasiumVectorEnv
from metajax.training.evaluation import evaluate_with_metrics

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
    family = metajax.make("reacher-goal", backend="mjx", episode_length=2)
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
