"""What every task family promises."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.envs import FAMILIES, make
from metajax.envs.reacher import GOAL_RADIUS
from metajax.envs.splits import is_held_out
from metajax.rollout import check_env, rollout
from metajax.types import Continuous, Discrete, PolicyOutput, TaskFamily, Trajectory

LENGTH, EPISODES, TASKS = 4, 2, 3

# The number whose range is split into training and held-out strips; None where all tasks are both.
SPLIT = {
    "halfcheetah-dir": None,
    "halfcheetah-vel": lambda task: (task["velocity"], 0.0, 2.0),
    "point-goal": lambda task: (task["goal"][..., 0], -0.5, 0.5),
    "reacher-goal": lambda task: (jnp.sum(task["goal"] ** 2, axis=-1), 0.0, GOAL_RADIUS**2),
    "tabular": lambda task: (jax.scipy.stats.norm.cdf(task["reward"][..., 0, 0] - 1), 0.0, 1.0),
}
SMALL = {"tabular": {"states": 3, "actions": 2}}
ALWAYS_STARTS_ALIKE = {"point-goal", "tabular"}


class Played(NamedTuple):
    family: TaskFamily
    tasks: dict
    play: object  # jitted, batched over tasks
    trajectory: Trajectory  # [task, episode, time]


def random_action(space, key):
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.size)
    return jax.random.uniform(key, (space.size,), minval=space.low, maxval=space.high)


@pytest.fixture(scope="module", params=FAMILIES)
def played(request):
    options = {"episode_length": LENGTH, **SMALL.get(request.param, {})}
    if "backend" in inspect.signature(FAMILIES[request.param]).parameters:
        options["backend"] = "mujoco"
    family = make(request.param, **options)

    def act(memory, step_input, key):
        action = random_action(family.env.action_space, key)
        return memory, action, PolicyOutput(distribution=())

    @jax.jit
    def play(key, tasks):
        def trial(key, task):
            return rollout(key, family.env, task, act, (), episodes=EPISODES)

        return jax.vmap(trial)(jax.random.split(key, TASKS), tasks)

    tasks = jax.vmap(family.train.sample)(jax.random.split(jax.random.key(0), TASKS))
    return Played(family, tasks, play, play(jax.random.key(1), tasks))


def assert_same(one, other):
    one, other = (jax.tree_util.tree_leaves_with_path(x) for x in (one, other))
    for (path, a), (_, b) in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_every_family_says_how_its_tasks_are_split():
    assert SPLIT.keys() == FAMILIES.keys()


def test_it_keeps_its_shapes_and_sizes(played):
    env, task = played.family.env, jax.tree.map(lambda x: x[0], played.tasks)
    check_env(env, task)
    seen = played.trajectory.step_input.observation
    assert seen.shape == (TASKS, EPISODES, LENGTH, env.observation_size)
    assert seen.dtype == played.trajectory.reward.dtype == jnp.float32
    assert played.family.name.rpartition("-v")[2].isdigit()


def test_it_stays_finite(played):
    for leaf in jax.tree.leaves(played.trajectory):
        assert np.all(np.isfinite(leaf))


def test_the_same_key_and_tasks_give_the_same_trajectory_without_compiling_again(played):
    again = played.play(jax.random.key(1), played.tasks)
    assert_same(again, played.trajectory)
    other = played.play(jax.random.key(2), played.tasks)
    assert not np.array_equal(other.reward, played.trajectory.reward)
    assert played.play._cache_size() == 1


def test_an_episode_ends_on_time_and_once(played):
    trajectory = played.trajectory
    ends = trajectory.terminated | trajectory.truncated
    assert not np.any(trajectory.terminated & trajectory.truncated)
    np.testing.assert_array_equal(np.sum(ends, axis=-1), 1)
    lengths = np.sum(trajectory.valid, axis=-1)
    np.testing.assert_array_equal(np.argmax(ends, axis=-1), lengths - 1)
    np.testing.assert_array_equal(lengths[np.any(trajectory.truncated, axis=-1)], LENGTH)


def test_episodes_start_differently_where_the_start_is_random(played):
    first = np.asarray(played.trajectory.step_input.observation[:, :, 0])
    distinct = len(np.unique(first.reshape(TASKS * EPISODES, -1), axis=0))
    alike = played.family.name.rpartition("-v")[0] in ALWAYS_STARTS_ALIKE
    assert distinct == (1 if alike else TASKS * EPISODES)


def test_the_state_carries_its_task_and_counts_its_time(played):
    env = played.family.env
    task = jax.tree.map(lambda x: x[0], played.tasks)
    step = jax.jit(env.step)
    state = jax.jit(env.reset)(jax.random.key(0), task)
    assert state.time == 0 and state.reward == 0 and not (state.terminated | state.truncated)
    for time in range(1, 4):
        state = step(state, random_action(env.action_space, jax.random.key(time)))
        assert_same(state.task, task)
        assert state.time == time
    assert step._cache_size() == 1


def test_the_task_matters(played):
    """The same start and the same actions earn something else on another task."""
    env = played.family.env
    wanted = np.array([[1.0], [-1.0]]) if SPLIT[_name(played)] is None else None
    tasks = {"direction": jnp.asarray(wanted[:, 0])} if wanted is not None else played.tasks

    @jax.jit
    @jax.vmap
    def rewards(task):
        state = env.reset(jax.random.key(0), task)
        found = []
        for time in range(3):
            state = env.step(state, random_action(env.action_space, jax.random.key(time)))
            found.append(state.reward)
        return jnp.stack(found)

    found = np.asarray(rewards(tasks))
    assert len(np.unique(found, axis=0)) == len(found)


def _name(played):
    return played.family.name.rpartition("-v")[0]


def test_actions_beyond_their_bounds_are_clipped(played):
    env = played.family.env
    if not isinstance(env.action_space, Continuous):
        return
    task = jax.tree.map(lambda x: x[0], played.tasks)
    state = jax.jit(env.reset)(jax.random.key(0), task)
    bound = jnp.full(env.action_space.size, env.action_space.high)
    step = jax.jit(env.step)
    assert_same(step(state, bound), step(state, 10 * bound))


def test_no_training_task_is_held_out(played):
    family, split = played.family, SPLIT[_name(played)]
    count = 2000
    keys = jax.random.split(jax.random.key(3), count)
    train, test = (jax.jit(jax.vmap(d.sample))(keys) for d in (family.train, family.test))
    if split is None:
        assert_same(family.train.finite, family.test.finite)
        return
    assert not np.any(is_held_out(*split(train)))
    assert np.all(is_held_out(*split(test)))
    for distribution in (train, test):  # held-out tasks are spread evenly over the whole range
        value, low, high = split(distribution)
        counts = np.histogram(value, bins=9, range=(low, high))[0]
        np.testing.assert_allclose(counts / count, 1 / 9, atol=0.03)
