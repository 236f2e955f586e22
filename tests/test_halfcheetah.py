"""The half-cheetah families: against Gymnasium's HalfCheetah-v5 and formulas written out again."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from episodes import play

from metajax.envs.families.halfcheetah import VARIANTS, halfcheetah_dir, halfcheetah_vel
from metajax.envs.splits import is_held_out
from metajax.errors import MetajaxError

STEPS = 50


def actions_of(limit, seed=0):
    return limit * np.random.default_rng(seed).uniform(-1.5, 1.5, (STEPS, 6))  # some are clipped


def gymnasium_steps(qpos, qvel, controls, **options):
    """Observations and rewards of HalfCheetah-v5."""
    env = gymnasium.make("HalfCheetah-v5", **options).unwrapped
    env.reset(seed=0)
    env.set_state(qpos, qvel)
    outcomes = [env.step(control) for control in controls]
    env.close()
    return np.array([x[0] for x in outcomes]), np.array([x[1] for x in outcomes])


@pytest.mark.parametrize(
    ("variant", "options"), [("maml", {"ctrl_cost_weight": 0.05}), ("gymnasium", {})]
)
def test_forward_is_gymnasiums_half_cheetah(tmp_path, monkeypatch, variant, options):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log when Gymnasium loads the model
    with jax.enable_x64(True):
        family = halfcheetah_dir(variant=variant)
        env = family.env
        states = play(env, {"direction": jnp.asarray(1.0)}, jnp.asarray(actions_of(1.0)))
    start = states.simulator
    controls = np.clip(actions_of(1.0), -1, 1)
    observation, reward = gymnasium_steps(start.qpos[0], start.qvel[0], controls, **options)
    np.testing.assert_array_equal(states.observation[1:], observation)
    np.testing.assert_allclose(states.reward[1:], reward, rtol=0, atol=1e-12)
    if variant == "gymnasium":
        assert env.episode_length == 1000 and family.train.finite["direction"].tolist() == [1.0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["forward", "backward", "velocity"])
def test_rewards_and_observations_as_written_in_the_papers(variant, kind):
    # action scale, largest target velocity, horizon: field by field from the papers' code
    scale, fastest, horizon = {
        "maml": (1.0, 2.0, 200),
        "promp": (0.1, 3.0, 100),
        "pearl": (1.0, 3.0, 200),
        "varibad": (1.0, 3.0, 200),
    }[variant]
    family = {"velocity": halfcheetah_vel}.get(kind, halfcheetah_dir)(variant=variant)
    task = {
        "forward": {"direction": jnp.float32(1.0)},
        "backward": {"direction": jnp.float32(-1.0)},
        "velocity": {"velocity": jnp.float32(0.7 * fastest)},
    }[kind]
    actions = actions_of(1.0 / scale)
    states = play(family.env, task, jnp.asarray(actions, jnp.float32))
    assert family.env.episode_length == horizon

    qpos, qvel = np.float64(states.simulator.qpos), np.float64(states.simulator.qvel)
    np.testing.assert_array_equal(
        states.observation, np.concatenate([qpos[:, 1:], qvel], axis=1).astype(np.float32)
    )
    control = np.clip(scale * actions, -1, 1)
    velocity = (qpos[1:, 0] - qpos[:-1, 0]) / 0.05
    progress = {
        "forward": velocity,
        "backward": -velocity,
        "velocity": -np.abs(velocity - 0.7 * fastest),
    }[kind]
    expected = progress - 0.05 * np.sum(control**2, axis=1)
    np.testing.assert_allclose(states.reward[1:], expected, rtol=0, atol=3e-5)
    assert states.reward[0] == 0
    applied = family.env.action_space.to_control(jnp.asarray(actions, jnp.float32))
    np.testing.assert_allclose(applied, control, atol=1e-6)


def test_an_episode_never_terminates_and_ends_at_the_horizon():
    env = halfcheetah_vel(episode_length=7).env
    task = {"velocity": jnp.float32(1.0)}
    states = play(env, task, jnp.zeros((7, 6)))
    assert env.episode_length == 7
    assert not states.terminated.any()
    np.testing.assert_array_equal(states.truncated, [False] * 7 + [True])
    np.testing.assert_array_equal(states.time, np.arange(8))
    np.testing.assert_array_equal(states.task["velocity"], np.ones(8, np.float32))


def test_starts_are_gymnasiums():
    env = halfcheetah_dir().env
    keys = jax.random.split(jax.random.key(0), 4000)
    state = jax.vmap(lambda key: env.reset(key, {"direction": jnp.float32(1)}))(keys).simulator
    assert np.abs(state.qpos).max() <= 0.1
    np.testing.assert_allclose(np.std(state.qpos, axis=0), 0.2 / np.sqrt(12), rtol=0.05)
    np.testing.assert_allclose(np.mean(state.qvel, axis=0), 0, atol=0.01)
    np.testing.assert_allclose(np.std(state.qvel, axis=0), 0.1, rtol=0.05)
    together = np.corrcoef(np.concatenate([state.qpos, state.qvel], axis=1), rowvar=False)
    assert np.abs(together - np.eye(18)).max() < 0.08


@pytest.mark.parametrize(("variant", "fastest"), [("maml", 2.0), ("varibad", 3.0)])
def test_target_velocities_cover_the_range_and_held_out_ones_are_apart(variant, fastest):
    family = halfcheetah_vel(variant=variant)
    keys = jax.random.split(jax.random.key(0), 5000)
    for distribution, held_out in ((family.train, False), (family.test, True)):
        velocity = jax.vmap(distribution.sample)(keys)["velocity"]
        assert velocity.min() >= 0 and velocity.max() <= fastest
        assert (is_held_out(velocity, 0.0, fastest) == held_out).all()
        deciles = np.quantile(velocity, np.linspace(0.1, 0.9, 9))
        np.testing.assert_allclose(deciles, fastest * np.linspace(0.1, 0.9, 9), atol=fastest / 18)


def test_velocities_out_of_the_distribution_are_those_of_the_paper():
    family = halfcheetah_vel(variant="mql")
    keys = jax.random.split(jax.random.key(0), 5000)
    ranges = ((family.train, 0.0, 2.5), (family.test, 0.0, 2.5), (family.extrapolate, 2.5, 3.0))
    for distribution, low, high in ranges:
        velocity = jax.vmap(distribution.sample)(keys)["velocity"]
        assert low <= velocity.min() and velocity.max() <= high
        assert velocity.mean() == pytest.approx((low + high) / 2, abs=(high - low) / 40)
    with pytest.raises(MetajaxError, match="variant 'mql'"):
        halfcheetah_dir(variant="mql")


def test_both_directions_are_all_the_tasks():
    family = halfcheetah_dir()
    for distribution in (family.train, family.test):
        keys = jax.random.split(jax.random.key(0), 1000)
        direction = jax.vmap(distribution.sample)(keys)["direction"]
        assert set(np.unique(direction)) == {-1.0, 1.0}
        assert abs(direction.mean()) < 0.1


def test_names_and_sizes():
    for make, name in (
        (halfcheetah_dir, "halfcheetah-dir-v1"),
        (halfcheetah_vel, "halfcheetah-vel-v1"),
    ):
        family = make(backend="mujoco")
        assert (family.name, family.backend) == (name, "mujoco")
        assert (family.env.observation_size, family.env.action_space.size) == (17, 6)


def test_unknown_variant_or_engine():
    with pytest.raises(MetajaxError, match="unknown variant 'mamel'; did you mean 'maml'"):
        halfcheetah_vel(variant="mamel")
    with pytest.raises(MetajaxError, match="unknown backend 'mjc'"):
        halfcheetah_dir(backend="mjc")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mjx", "spring", "positional", "generalized"])
def test_a_cheetah_on_every_engine_in_jax(backend):
    """It stays on the ground, does not explode, and carries no more than it needs."""
    env = halfcheetah_vel(backend=backend).env
    task = {"velocity": jnp.float32(1.0)}
    run = jax.jit(jax.vmap(lambda key, actions: _rewards(env, task, key, actions)))
    actions = jax.random.uniform(jax.random.key(0), (8, 100, 6), minval=-1.0)
    rewards, observation, size = run(jax.random.split(jax.random.key(1), 8), actions)
    assert jnp.isfinite(rewards).all()
    assert jnp.abs(observation[..., :8]).max() < 4  # metres, radians
    assert jnp.abs(observation[..., 8:]).max() < 60  # per second
    assert size[0] <= 27 + 7 * 13


def _rewards(env, task, key, actions):
    def step(state, action):
        state = env.step(state, action)
        return state, (state.reward, state.observation)

    first = env.reset(key, task)
    _, (reward, observation) = jax.lax.scan(step, first, actions)
    size = sum(x.size for x in jax.tree.leaves(first.simulator))
    return reward, observation, jnp.asarray(size)
