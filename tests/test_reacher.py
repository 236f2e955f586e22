"""The reacher with a hidden goal: against Gymnasium's Reacher-v5, on every engine."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import physics
from metajax.envs.families.reacher import reacher_goal
from metajax.envs.splits import is_held_out
from metajax.physics.tracing import engine_code

STEPS = 40
GOAL = np.array([0.05, -0.12])


def play(env, actions, *, seed=0):
    """The states of one episode, the reset first: `[1 + time]`."""

    def step(state, action):
        state = env.step(state, action)
        return state, state

    @jax.jit
    def run(key, actions):
        first = env.reset(key, {"goal": jnp.asarray(GOAL, actions.dtype)})
        _, rest = jax.lax.scan(step, first, actions)
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)

    return jax.tree.map(np.asarray, run(jax.random.key(seed), actions))


def fingertip(angles):
    """Two links of 0.1 and 0.11 m."""
    total = angles[..., 0] + angles[..., 1]
    x = 0.1 * np.cos(angles[..., 0]) + 0.11 * np.cos(total)
    y = 0.1 * np.sin(angles[..., 0]) + 0.11 * np.sin(total)
    return np.stack([x, y], axis=-1)


@pytest.fixture(scope="module")
def actions():
    return np.random.default_rng(0).uniform(-1.3, 1.3, (STEPS, 2))  # some are clipped


@pytest.fixture(scope="module")
def states(actions):
    with jax.enable_x64(True):
        return play(reacher_goal().env, jnp.asarray(actions))


def test_the_arm_moves_as_gymnasiums(states, actions):
    env = gymnasium.make("Reacher-v5").unwrapped
    env.reset(seed=0)
    start = states.simulator
    env.set_state(np.append(start.qpos[0], GOAL), np.append(start.qvel[0], [0, 0]))
    for time, action in enumerate(np.clip(actions, -1, 1)):
        env.step(action)
        angles, speeds = env.data.qpos[:2], env.data.qvel[:2]
        np.testing.assert_allclose(start.qpos[time + 1], angles, rtol=0, atol=1e-12)
        np.testing.assert_allclose(start.qvel[time + 1], speeds, rtol=0, atol=1e-12)
    env.close()


def test_observations_and_rewards_written_out_again(states, actions):
    angles, speeds = states.simulator.qpos, states.simulator.qvel
    tip = fingertip(angles)
    observation = np.concatenate([np.cos(angles), np.sin(angles), speeds, tip], axis=1)
    np.testing.assert_allclose(states.observation, observation, rtol=0, atol=1e-12)
    distance = np.linalg.norm(tip[1:] - GOAL, axis=1)
    expected = -distance - np.sum(np.clip(actions, -1, 1) ** 2, axis=1)
    np.testing.assert_allclose(states.reward[1:], expected, rtol=0, atol=1e-12)
    assert states.reward[0] == 0
    assert not states.terminated.any()


def test_an_episode_ends_at_the_horizon():
    env = reacher_goal(episode_length=STEPS).env
    states = play(env, jnp.zeros((STEPS, 2)))
    np.testing.assert_array_equal(states.truncated, [False] * STEPS + [True])
    assert reacher_goal().env.episode_length == 50


def test_starts_are_gymnasiums():
    env = reacher_goal().env
    keys = jax.random.split(jax.random.key(0), 4000)
    reset = jax.jit(jax.vmap(lambda key: env.reset(key, {"goal": jnp.zeros(2)})))
    state = reset(keys).simulator
    for values, limit in ((state.qpos, 0.1), (state.qvel, 0.005)):
        assert np.abs(values).max() <= limit
        np.testing.assert_allclose(np.mean(values, axis=0), 0, atol=0.05 * limit)
        np.testing.assert_allclose(np.std(values, axis=0), 2 * limit / np.sqrt(12), rtol=0.05)


def test_goals_fill_the_disk_and_held_out_ones_are_apart():
    family = reacher_goal()
    keys = jax.random.split(jax.random.key(0), 5000)
    for distribution, held_out in ((family.train, False), (family.test, True)):
        goal = jax.vmap(distribution.sample)(keys)["goal"]
        squared = jnp.sum(goal**2, axis=1)
        assert squared.max() <= 0.2**2
        # rounding may carry a goal over the edge of its ring
        assert (is_held_out(squared, 0.0, 0.2**2) == held_out).mean() > 0.999
        deciles = np.quantile(squared, np.linspace(0.1, 0.9, 9)) / 0.2**2
        np.testing.assert_allclose(deciles, np.linspace(0.1, 0.9, 9), atol=1 / 18)
        np.testing.assert_allclose(goal.mean(axis=0), 0, atol=0.01)


# ---------------------------------------------------------------------------------------------
# The arm compiles fast: what is true of every engine is tested on it
# ---------------------------------------------------------------------------------------------


def arm(backend):
    return physics.make_physics(
        "reacher", without="target", backend=backend, frame_skip=2, brax_substeps=4
    )


@pytest.mark.slow
def test_mjx_in_single_precision_follows_the_c_engine(actions):
    ours, reference = (
        play(reacher_goal(backend=backend).env, jnp.asarray(actions, jnp.float32))
        for backend in ("mjx", "mujoco")
    )
    np.testing.assert_array_equal(ours.observation[0], reference.observation[0])
    np.testing.assert_allclose(ours.observation, reference.observation, atol=2e-3)
    np.testing.assert_allclose(ours.reward, reference.reward, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["spring", "positional", "generalized"])
def test_a_brax_step_continues_exactly_and_has_a_gradient(pipeline):
    """Three steps from what is carried, and Brax's own loop that carries everything."""
    from brax.io import mjcf

    bundle = arm(pipeline)
    substeps = 2 if pipeline == "generalized" else 4
    start = jnp.array([0.3, -0.8]), jnp.array([1.0, 2.0])
    controls = jnp.array([[0.1, -0.2], [-0.05, 0.3], [0.2, 0.1]])

    def carried(controls):
        step = lambda state, control: (bundle.step(state, control), None)
        state, _ = jax.lax.scan(step, bundle.init(*start), controls)
        return jnp.concatenate([bundle.qpos(state), bundle.qvel(state)])

    def brax_alone(controls):
        with engine_code():
            engine = __import__(f"brax.{pipeline}.pipeline", fromlist=["pipeline"])
            model = physics.load_model("reacher", without="target", for_brax=True)
            system = mjcf.load_model(model).tree_replace({"opt.timestep": 0.02 / substeps})
            step = lambda state, control: (engine.step(system, state, control), None)
            repeated = jnp.repeat(controls, substeps, axis=0)
            state, _ = jax.lax.scan(step, engine.init(system, *start), repeated)
        return jnp.concatenate([state.q, state.qd])

    ours, derivative = jax.jit(lambda x: (carried(x), jax.jacrev(carried)(x)))(controls)
    np.testing.assert_allclose(ours, jax.jit(brax_alone)(controls), rtol=1e-5, atol=1e-5)
    assert jnp.isfinite(derivative).all()
    for joint in range(2):  # each motor turns its own joint, whenever it is used
        assert (jnp.abs(derivative[2 + joint, :, joint]) > 1e-3).all()


@pytest.mark.slow
def test_mjx_has_forward_derivatives():
    with jax.enable_x64(True):
        bundle = arm("mjx")
        start = jnp.array([0.3, -0.8]), jnp.array([1.0, 2.0])
        after = lambda control: bundle.qvel(bundle.step(bundle.init(*start), control))
        control, direction = jnp.array([0.1, -0.2]), jnp.array([1.0, 0.5])
        both = jax.jit(lambda x: jax.jvp(after, (x,), (direction,)))
        _, derivative = both(control)
        up, down = (np.asarray(both(control + sign * direction)[0]) for sign in (1e-5, -1e-5))
    np.testing.assert_allclose(np.asarray(derivative), (up - down) / 2e-5, rtol=1e-6)
