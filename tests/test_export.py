"""Task families as Gymnasium environments."""

import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from packages import PACKAGES, is_missing

import metajax
from metajax.envs import FAMILIES
from metajax.envs.splits import is_held_out
from metajax.export import GymnasiumEnv, GymnasiumVectorEnv

SOME = [
    "point-goal",
    "cartpole-params",
    "gridnav",
    "bernoulli-bandit",
    "halfcheetah-vel",
]
REST = [name for name in FAMILIES if name not in [*SOME, *PACKAGES]]
BRIDGES = [
    pytest.param(name, marks=pytest.mark.skipif(is_missing(name), reason=f"needs {package}"))
    for name, package in PACKAGES.items()
]


@pytest.mark.parametrize(
    "name", [*SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in REST), *BRIDGES]
)
def test_it_passes_gymnasiums_own_checks(name):
    env = GymnasiumEnv(metajax.make(name, episode_length=5))
    with warnings.catch_warnings():
        # About rendering, of which there is none, and about bounds, which are the papers'.
        warnings.filterwarnings("ignore", message=".*(spec|infinity|symmetric and normalized).*")
        check_env(env)


def play(env, seed, actions, options=None):
    observation, info = env.reset(seed=seed, options=options)
    rows = [(observation, 0.0, False, False)]
    for action in actions:
        *row, _ = env.step(action)
        rows.append(tuple(row))
        if row[2] or row[3]:
            break
    return rows, info["task"]


def test_it_plays_what_the_family_plays():
    family = metajax.make("point-goal", episode_length=5)
    actions = np.random.default_rng(0).uniform(-0.2, 0.2, (5, 2)).astype(np.float32)
    rows, task = play(GymnasiumEnv(family), 3, actions)
    task = jax.tree.map(jnp.asarray, task)
    state = family.env.reset(jax.random.key(0), task)  # always starts alike
    for action, row in zip([None, *actions], rows, strict=True):
        state = state if action is None else family.env.step(state, jnp.asarray(action))
        expected = state.observation, state.reward, state.terminated, state.truncated
        for found, value in zip(row, expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-6)
    assert rows[-1][3] and not rows[-2][3]


def test_tasks_change_at_a_reset_unless_one_is_given():
    family = metajax.make("point-goal", episode_length=5)
    env = GymnasiumEnv(family)
    goals = [env.reset(seed=0)[1]["task"]["goal"], *(env.reset()[1]["task"]["goal"] for _ in "ab")]
    assert len({tuple(goal) for goal in goals}) == 3
    np.testing.assert_array_equal(env.reset(seed=0)[1]["task"]["goal"], goals[0])
    task = {"goal": [0.25, -0.125]}
    env.reset(options={"task": task})
    for given in (GymnasiumEnv(family, task), env):
        for _ in range(2):
            np.testing.assert_array_equal(given.reset()[1]["task"]["goal"], [0.25, -0.125])


def test_tasks_come_from_the_split_that_was_asked_for():
    family = metajax.make("halfcheetah-vel", backend="mujoco", episode_length=2)
    tests, trains = (
        GymnasiumVectorEnv(family, 50, split=split).reset(seed=0)[1]["task"]["velocity"]
        for split in ("test", "train")
    )
    assert np.all(is_held_out(jnp.asarray(tests), 0.0, 2.0)) and not np.any(
        is_held_out(jnp.asarray(trains), 0.0, 2.0)
    )


def test_many_environments_are_as_many_single_ones():
    """Against Gymnasium's own vectorization, over several episodes of unequal length."""
    family = metajax.make("point-goal", episode_length=7)
    count = 3
    goals = np.array([[0.15, 0.0], [-0.1, 0.1], [0.4, 0.4]], np.float32)
    makers = [lambda i=i: GymnasiumEnv(family, {"goal": goals[i]}) for i in range(count)]
    envs = (
        gymnasium.vector.SyncVectorEnv(makers),
        GymnasiumVectorEnv(family, count, {"goal": goals}),
    )
    assert envs[0].observation_space == envs[1].observation_space
    assert envs[0].action_space == envs[1].action_space
    assert envs[0].metadata["autoreset_mode"] == envs[1].metadata["autoreset_mode"]
    first = [env.reset(seed=0)[0] for env in envs]
    np.testing.assert_array_equal(*first)
    ended = np.zeros(count, int)
    for time in range(40):
        # Straight to the goal in the first two environments, which therefore terminate early.
        actions = [0.1 * np.sign(goals - env_first) for env_first in first]
        if time % 3 == 2:
            actions = [np.zeros_like(a) for a in actions]
        outcomes = [e.step(a.astype(np.float32)) for e, a in zip(envs, actions, strict=True)]
        for one, other in zip(*(outcome[:4] for outcome in outcomes), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
        infos = [outcome[4] for outcome in outcomes]
        assert infos[0].keys() == infos[1].keys()
        for name in ("distance", "success") if "distance" in infos[0] else ():
            played = infos[0][f"_{name}"]
            np.testing.assert_array_equal(played, infos[1][f"_{name}"])
            np.testing.assert_allclose(
                *(info[name][played] for info in infos), rtol=1e-6, atol=1e-7
            )
        if "task" in infos[0]:
            np.testing.assert_array_equal(infos[0]["_task"], infos[1]["_task"])
            new = infos[0]["_task"]
            np.testing.assert_array_equal(*(info["task"]["goal"][new] for info in infos))
        first = [outcome[0] for outcome in outcomes]
        ended += outcomes[0][2] | outcomes[0][3]
    assert ended.min() >= 4 and ended.max() > ended.min()


def test_environments_get_new_tasks_with_new_episodes():
    family = metajax.make("halfcheetah-vel", backend="mujoco", episode_length=2)
    env = GymnasiumVectorEnv(family, 4)
    first = env.reset(seed=0)[1]["task"]["velocity"]
    infos = [env.step(np.zeros((4, 6), np.float32))[4] for _ in range(5)]
    assert [bool(info) for info in infos] == [False, False, True, False, False]
    assert infos[2]["_task"].all() and not np.any(infos[2]["task"]["velocity"] == first)


def test_what_it_returns_is_the_callers_own():
    for env in (GymnasiumEnv, lambda family: GymnasiumVectorEnv(family, 2)):
        with jax.enable_x64(True):
            made = env(metajax.make("cartpole-params"))
            observation, info = made.reset(seed=0)
            assert observation.dtype == np.float32
            observation += 1
            info["task"]["mass"] += 1
            made.step(made.action_space.sample())[0][...] = 0


def test_nothing_is_compiled_twice():
    env = GymnasiumVectorEnv(metajax.make("cartpole-params", episode_length=3), 2)
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(5):
            env.step(np.array([0, 1]))
    assert env._step._cache_size() == env._reset._cache_size() == 1


def test_mistakes():
    family = metajax.make("point-goal", episode_length=2)
    env = GymnasiumEnv(family)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))
    env.reset(seed=0)
    with pytest.raises(metajax.MetajaxError, match=r"it must be of the shape \(2,\)"):
        env.step(np.zeros(3))
    env.step(np.zeros(2))
    env.step(np.zeros(2))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))
    for action in ([[1], [1, 2]], "north"):
        with pytest.raises(metajax.MetajaxError, match="it must be of the shape"):
            env.step(action) if env.reset() else None
    bandit = GymnasiumEnv(metajax.make("bernoulli-bandit"))
    for action in (-1, 5):
        bandit.reset()
        with pytest.raises(metajax.MetajaxError, match=r"it must be in Discrete\(5\)"):
            bandit.step(action)
    for task in ({"velocity": 1.0}, {"goal": [1.0]}, {"goal": "north"}, {"goal": [10**400, 0]}):
        with pytest.raises(metajax.MetajaxError, match=r"of the form \{'goal': 'float32\[2\]'\}"):
            env.reset(options={"task": task})
    with pytest.raises(metajax.MetajaxError, match="unknown option of reset 'tasks'; did you mean"):
        env.reset(options={"tasks": {}})
    with pytest.raises(metajax.MetajaxError, match="would need 40 GB for the environments; this"):
        GymnasiumVectorEnv(metajax.make("point-goal"), num_envs=10**9)
    with pytest.raises(metajax.MetajaxError, match="num_envs is 0"):
        GymnasiumVectorEnv(family, 0)
    with pytest.raises(metajax.MetajaxError, match="no tasks to extrapolate to"):
        GymnasiumEnv(metajax.make("gridnav"), split="extrapolate")


def test_stable_baselines_trains_on_it():
    sb3 = pytest.importorskip("stable_baselines3")
    family = metajax.make("point-goal", episode_length=20)
    env = GymnasiumEnv(family, {"goal": [0.4, -0.3]})
    agent = sb3.PPO("MlpPolicy", env, n_steps=200, batch_size=50, gamma=0.9, seed=0, device="cpu")

    def total():
        observation, _ = env.reset(seed=0)
        rewards, end = 0.0, False
        while not end:
            action, _ = agent.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            rewards, end = rewards + reward, terminated or truncated
        return rewards

    before = total()
    agent.learn(10_000)
    assert before < -7 and total() > -4  # standing still: -10; straight there: -0.9
