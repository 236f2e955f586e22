"""Rewards, endings and observations of the families, against the papers' formulas in NumPy.

Each is written out again here from the papers' code, and applied to the positions and velocities
of episodes that were played.
"""

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from episodes import play

from metajax.envs import make
from metajax.envs.splits import number_of_tasks
from metajax.physics import load_model

STEPS = 40


def actions_of(env, steps=STEPS, seed=0):
    space = env.action_space
    return 1.2 * space.high * np.random.default_rng(seed).uniform(-1, 1, (steps, space.size))


# ---------------------------------------------------------------------------------------------
# Robots
# ---------------------------------------------------------------------------------------------


def ant_observation(kind, qpos, qvel, force):
    contact = np.clip(force.reshape(len(force), -1), -1, 1)
    if kind == "joints":
        return [qpos[:, 2:], qvel]
    if kind == "gymnasium":
        return [qpos[:, 2:], qvel, contact]
    found = [qpos, qvel, contact]
    if kind == "rllab":
        rotation = np.zeros((len(qpos), 9))
        for row, quaternion in zip(rotation, qpos[:, 3:7], strict=True):
            mujoco.mju_quat2Mat(row, quaternion)
        found += [rotation, qpos[:, :3]]
    return found


# family, variant, task, (action scale, control weight, bonus, lowest height, observation, horizon)
ANTS = [
    ("ant-vel", "maml", {"velocity": 1.7}, (1.0, 0.005, 1.05, 0.2, "rllab", 200)),
    ("ant-dir", "maml", {"direction": (-1.0, 0.0)}, (1.0, 0.005, 0.05, 0.2, "rllab", 200)),
    ("ant-dir", "promp", {"direction": (0.6, 0.8)}, (0.1, 0.5, 1.0, 0.0, "gymnasium", 100)),
    ("ant-dir", "pearl", {"direction": (0.0, 1.0)}, (1.0, 0.5, 1.0, 0.2, "joints", 200)),
    ("ant-dir", "varibad", {"direction": (0.0, 1.0)}, (1.0, 0.5, 1.0, 0.2, "joints", 200)),
    ("ant-goal", "maml", {"goal": (1.0, -2.0)}, (1.0, 0.005, 4.05, 0.2, "rllab", 200)),
    ("ant-goal", "promp", {"goal": (1.0, -2.0)}, (0.1, 0.1, 0.0, None, "all", 200)),
    ("ant-goal", "pearl", {"goal": (1.0, -2.0)}, (1.0, 0.1, 0.0, None, "all", 200)),
    ("ant-goal", "varibad", {"goal": (1.0, -2.0)}, (1.0, 0.1, 0.0, None, "all", 200)),
]


@pytest.mark.parametrize(("name", "variant", "task", "numbers"), ANTS)
def test_ants(name, variant, task, numbers):
    scale, control_weight, bonus, lowest, observed, horizon = numbers
    with jax.enable_x64(True):
        env = make(name, variant=variant).env
        actions = actions_of(env)
        states = play(
            env, jax.tree.map(jnp.asarray, {k: np.array(v) for k, v in task.items()}), actions
        )
    assert env.episode_length == horizon
    qpos, qvel = states.simulator.qpos, states.simulator.qvel
    force = states.simulator.contact_force
    assert (np.abs(force).sum(axis=(1, 2)) > 0).any()
    np.testing.assert_allclose(np.linalg.norm(qpos[:, 3:7], axis=1), 1, atol=1e-12)
    control = np.clip(scale * actions, -1, 1)
    velocity = (qpos[1:, :2] - qpos[:-1, :2]) / 0.05
    progress = {
        "ant-vel": lambda: -np.abs(velocity[:, 0] - task["velocity"]),
        "ant-dir": lambda: velocity @ np.array(task["direction"]),
        "ant-goal": lambda: -np.abs(qpos[1:, :2] - np.array(task["goal"])).sum(axis=1),
    }[name]()
    contact = 5e-4 * (np.clip(force[1:], -1, 1) ** 2).sum(axis=(1, 2))
    expected = progress + bonus - control_weight * (control**2).sum(axis=1) - contact
    np.testing.assert_allclose(states.reward[1:], expected, rtol=0, atol=1e-10)
    height = qpos[1:, 2]
    fallen = np.zeros(STEPS, bool) if lowest is None else (height < lowest) | (height > 1)
    np.testing.assert_array_equal(states.terminated[1:], fallen)
    observation = np.concatenate(ant_observation(observed, qpos, qvel, force), axis=1)
    np.testing.assert_allclose(states.observation, observation, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["varibad", "promp"])
def test_humanoids(variant):
    scale, horizon = {"varibad": (1.0, 200), "promp": (0.1, 100)}[variant]
    direction = np.array([0.6, -0.8])
    with jax.enable_x64(True):
        env = make("humanoid-dir", variant=variant).env
        actions = actions_of(env)
        states = play(env, {"direction": jnp.asarray(direction)}, actions)
    assert env.episode_length == horizon and env.observation_size == 376
    body = states.simulator.body
    model = load_model("humanoid")
    data = mujoco.MjData(model)
    center, observation = np.zeros((STEPS + 1, 2)), []
    control = np.concatenate([np.zeros((1, 17)), np.clip(0.4 * scale * actions, -0.4, 0.4)])
    for time in range(STEPS + 1):
        data.qpos[:], data.qvel[:], data.ctrl[:] = body.qpos[time], body.qvel[time], control[time]
        mujoco.mj_forward(model, data)
        center[time] = (model.body_mass @ data.xipos / model.body_mass.sum())[:2]
        parts = [data.qpos[2:], data.qvel, data.cinert, data.cvel, data.qfrc_actuator]
        parts.append(body.contact_force[time])
        observation.append(np.concatenate([np.ravel(x) for x in parts]))
    np.testing.assert_allclose(states.observation, observation, rtol=0, atol=1e-9)
    impact = np.minimum(5e-7 * (body.contact_force[1:] ** 2).sum(axis=(1, 2)), 10)
    progress = 0.25 * (center[1:] - center[:-1]) @ direction / 0.003
    expected = progress - 0.1 * (control[1:] ** 2).sum(axis=1) - impact + 5
    np.testing.assert_allclose(states.reward[1:], expected, rtol=0, atol=1e-9)
    height = body.qpos[1:, 2]
    np.testing.assert_array_equal(states.terminated[1:], (height < 1) | (height > 2))
    assert states.terminated.any()


PLANAR = {
    "walker2d-vel": (0.1, 0.016, {"velocity": 4.0}, 100),
    "walker2d-dir": (0.1, 0.016, {"direction": -1.0}, 100),
    "walker2d-params": (1.0, 0.008, None, 200),
    "hopper-params": (1.0, 0.008, None, 200),
    "swimmer-vel": (0.1, 0.04, {"velocity": 0.13}, 100),
}


@pytest.mark.parametrize("name", PLANAR)
def test_planar_robots(name):
    scale, dt, task, horizon = PLANAR[name]
    with jax.enable_x64(True):
        family = make(name)
        if task is None:
            task = family.train.sample(jax.random.key(0))
        else:
            task = jax.tree.map(jnp.asarray, task)
        actions = actions_of(family.env)
        states = play(family.env, task, actions)
    assert family.env.episode_length == horizon
    qpos, qvel = states.simulator.qpos, states.simulator.qvel
    control = np.clip(scale * actions, -1, 1)
    cost = (control**2).sum(axis=1)
    velocity = (qpos[1:, 0] - qpos[:-1, 0]) / dt
    if name == "swimmer-vel":
        expected = -np.abs(velocity - 0.13) - 1e-4 * cost
        observation = np.concatenate([qpos[:, 2:], qvel], axis=1)
        fallen = np.zeros(STEPS, bool)
    else:
        progress = {"walker2d-vel": 15 - np.abs(velocity - 4), "walker2d-dir": 1 - velocity}
        expected = progress.get(name, velocity + 1) - 1e-3 * cost
        observation = np.concatenate([qpos[:, 1:], np.clip(qvel, -10, 10)], axis=1)
        height, lean = qpos[1:, 1], qpos[1:, 2]
        fallen = (height <= 0.8) | (height >= 2) | (np.abs(lean) >= 1)
        if name == "hopper-params":
            rest = np.concatenate([qpos[1:, 2:], qvel[1:]], axis=1)
            fallen = (height <= 0.7) | (np.abs(lean) >= 0.2) | (np.abs(rest) >= 100).any(axis=1)
    np.testing.assert_allclose(states.reward[1:], expected, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(states.observation, observation)
    np.testing.assert_array_equal(states.terminated[1:], fallen)


@pytest.mark.parametrize(
    ("name", "package"), [("hopper-params", "Hopper-v5"), ("walker2d-params", "Walker2d-v5")]
)
def test_a_variant_is_gymnasiums_robot(name, package, tmp_path, monkeypatch):
    """That of versions 2 to 4, which version 5 is with the model and the reward of before."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log when Gymnasium loads the model
    with jax.enable_x64(True):
        family = make(name, backend="mujoco", variant="gymnasium")
        actions = actions_of(family.env)
        task = family.train.sample(jax.random.key(0))
        states = play(family.env, task, actions)
    model = f"{name.partition('-')[0]}.xml"
    env = gymnasium.make(package, xml_file=model).unwrapped
    env.reset(seed=0)
    env.set_state(states.simulator.qpos[0], states.simulator.qvel[0])
    found = [env.step(np.clip(action, -1, 1)) for action in actions]
    env.close()
    np.testing.assert_allclose(states.observation[1:], [x[0] for x in found], rtol=0, atol=1e-9)
    # Since version 5 the step that ends the episode has no reward for being healthy.
    terminated = np.array([x[2] for x in found])
    np.testing.assert_array_equal(states.terminated[1:], terminated)
    reward = np.array([x[1] for x in found])
    np.testing.assert_allclose(states.reward[1:], reward + terminated, rtol=0, atol=1e-9)
    assert family.env.episode_length == 1000 and number_of_tasks(family.train) == 1


def test_a_task_of_other_dynamics_is_a_model_edited_by_hand():
    with jax.enable_x64(True):
        family = make("walker2d-params")
        task = family.train.sample(jax.random.key(3))
        actions = actions_of(family.env)
        states = play(family.env, task, actions)
    model, task = load_model("walker2d"), jax.tree.map(np.asarray, task)
    model.body_mass[:] *= task["mass"]
    model.body_inertia[:] *= task["inertia"]
    model.geom_friction[:] *= task["friction"]
    model.dof_damping[:] *= task["damping"]
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = states.simulator.qpos[0], states.simulator.qvel[0]
    for time, action in enumerate(actions):
        data.ctrl[:] = np.clip(action, -1, 1)
        mujoco.mj_step(model, data, nstep=4)
        np.testing.assert_allclose(states.simulator.qpos[time + 1], data.qpos, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["hopper-params", "walker2d-params", "ant-params"])
def test_multipliers_are_those_of_the_papers(name):
    family = make(name)
    tasks = jax.jit(jax.vmap(family.train.sample))(jax.random.split(jax.random.key(0), 3000))
    for field, base in {"mass": 1.5, "inertia": 1.5, "friction": 1.5, "damping": 1.3}.items():
        exponent = np.log(tasks[field]).reshape(3000, -1) / np.log(base)
        assert np.abs(exponent).max() <= 3.001
        np.testing.assert_allclose(np.std(exponent, axis=0), 6 / np.sqrt(12), rtol=0.06)
        together = np.corrcoef(exponent, rowvar=False)
        assert np.abs(together - np.eye(len(together))).max() < 0.1
    consistent = make(name, consistent=True)
    task = consistent.test.sample(jax.random.key(1))
    np.testing.assert_array_equal(task["inertia"], np.repeat(task["mass"][:, None], 3, axis=1))
    assert len(jax.tree.leaves(make(name, variant="pearl").train.finite)[0]) == 40
    assert len(jax.tree.leaves(make(name, variant="pearl").test.finite)[0]) == 10


def test_pearls_velocities_are_its_own():
    family = make("halfcheetah-vel", variant="pearl")
    expected = np.random.RandomState(1337).uniform(0, 3, 130)  # half_cheetah_vel.py
    np.testing.assert_allclose(family.train.finite["velocity"], expected[:100], rtol=1e-6)
    np.testing.assert_allclose(family.test.finite["velocity"], expected[100:], rtol=1e-6)


# name, variant, its control, return of doing nothing (without control cost)
ANCHORS = [
    ("halfcheetah-vel", "varibad", -300, 3),
    ("halfcheetah-vel", "maml", -200, 2),
    ("ant-goal", "varibad", -509, 20),
    ("halfcheetah-dir", "maml", 0, 3),
]


@pytest.mark.parametrize(("name", "variant", "anchor", "tolerance"), ANCHORS)
def test_doing_nothing_earns_what_the_papers_tasks_give(name, variant, anchor, tolerance):
    """The anchors suppose that the robot stays where it is, which it nearly does."""
    family = make(name, variant=variant)
    tasks = jax.vmap(family.train.sample)(jax.random.split(jax.random.key(0), 600))
    if name == "ant-goal":
        returns = -200 * np.abs(tasks["goal"]).sum(axis=1)
    else:
        env = family.env
        still = jnp.zeros((200, 6))

        def episode(key, task):
            step = lambda state, action: (lambda s: (s, s.reward))(env.step(state, action))
            return jax.lax.scan(step, env.reset(key, task), still)[1].sum()

        keys = jax.random.split(jax.random.key(1), 600)
        returns = np.asarray(jax.jit(jax.vmap(episode))(keys, tasks))
    error = 3 * returns.std() / np.sqrt(len(returns))
    assert abs(returns.mean() - anchor) < error + tolerance


# ---------------------------------------------------------------------------------------------
# Small families
# ---------------------------------------------------------------------------------------------


def test_a_cartpole_is_gymnasiums_with_other_numbers():
    with jax.enable_x64(True):
        env = make("cartpole-params").env
        task = {"length": 0.7, "mass": 0.3, "force": 7.0}
        actions = np.random.default_rng(0).integers(0, 2, 100)
        states = play(env, jax.tree.map(jnp.asarray, task), actions)
    reference = gymnasium.make("CartPole-v1").unwrapped
    reference.reset(seed=0)
    reference.length, reference.masspole, reference.force_mag = 0.7, 0.3, 7.0
    reference.total_mass = 0.3 + reference.masscart
    reference.polemass_length = 0.3 * 0.7
    reference.state = states.observation[0]
    assert np.abs(states.observation[0]).max() <= 0.05
    for time, action in enumerate(actions):
        _, reward, terminated, _, _ = reference.step(int(action))
        np.testing.assert_allclose(states.observation[time + 1], reference.state, atol=1e-12)
        assert states.reward[time + 1] == reward and states.terminated[time + 1] == terminated
        if terminated:
            break
    assert terminated


def test_a_pendulum_is_gymnasiums_with_other_numbers():
    with jax.enable_x64(True):
        env = make("pendulum-params").env
        actions = actions_of(env, 200)
        states = play(env, {"length": jnp.asarray(0.8), "mass": jnp.asarray(1.2)}, actions)
    reference = gymnasium.make("Pendulum-v1").unwrapped
    reference.reset(seed=0)
    reference.l, reference.m = 0.8, 1.2
    reference.state = states.simulator[0]
    for time, action in enumerate(actions):
        _, reward, *_ = reference.step(action)
        np.testing.assert_allclose(states.simulator[time + 1], reference.state, atol=1e-9)
        np.testing.assert_allclose(states.reward[time + 1], reward, atol=1e-9)
    angle = states.simulator[:, 0]
    expected = np.stack([np.cos(angle), np.sin(angle), states.simulator[:, 1]], axis=1)
    np.testing.assert_allclose(states.observation, expected, atol=1e-12)


def test_gridnav_by_hand():
    env = make("gridnav").env
    right, up = 2, 1
    states = play(env, {"goal": jnp.array([2, 1])}, [right, right, up, 0, 4, 3, 3, *[right] * 5])
    cells = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 1), (1, 1), (1, 0), (1, 0)]
    cells += [(2, 0), (3, 0), (4, 0), (4, 0), (4, 0)]
    np.testing.assert_array_equal(states.observation, cells)
    on_goal = np.array([cell == (2, 1) for cell in cells[1:]])
    np.testing.assert_allclose(states.reward[1:], np.where(on_goal, 1.0, -0.1))
    assert not states.terminated.any() and env.episode_length == 15
    everything = make("gridnav", variant="varibad").train.finite["goal"]
    assert len(everything) == 21
    split = make("gridnav")
    together = np.concatenate([split.train.finite["goal"], split.test.finite["goal"]])
    assert {tuple(g) for g in together.tolist()} == {tuple(g) for g in everything.tolist()}
    assert not {(0, 0), (0, 1), (1, 0), (1, 1)} & {tuple(g) for g in everything.tolist()}


def test_dark_key_door_by_hand():
    env = make("dark-key-door").env
    task = {"start": jnp.array([0, 0]), "key": jnp.array([0, 2]), "door": jnp.array([1, 1])}
    up, right, down = 1, 2, 3
    actions = [right, up, 4, up, up, down, right, down]
    states = play(env, task, actions)
    cells = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 3), (0, 2), (1, 2), (1, 1)]
    np.testing.assert_allclose(states.observation[:, :2] * 9, cells, atol=1e-6)
    np.testing.assert_array_equal(states.observation[:, 2], [0, 0, 0, 0, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(states.observation[:, 3] * 50, np.arange(9), atol=1e-5)
    np.testing.assert_array_equal(states.reward, [0, 0, 0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(states.terminated, [False] * 8 + [True])


@pytest.mark.parametrize("dense", [False, True])
def test_sparse_points(dense):
    env = make("point-sparse", dense=dense).env
    goal = np.array([np.cos(1.0), np.sin(1.0)])
    actions = np.concatenate([np.tile(1.3 * goal, (12, 1)), [[5.0, -5.0]]])
    states = play(env, {"goal": jnp.asarray(goal, jnp.float32)}, actions)
    path = np.concatenate([[[0, 0]], np.cumsum(0.1 * np.clip(actions, -1, 1), axis=0)])
    np.testing.assert_allclose(states.observation, path, atol=1e-6)
    distance = np.linalg.norm(path - goal, axis=1)[1:]
    expected = -distance if dense else np.where(distance <= 0.2, 1 - distance, 0)
    assert dense or 0 < (expected > 0).sum() < len(expected)
    np.testing.assert_allclose(states.reward[1:], expected, atol=1e-6)
    assert not states.terminated.any()


def test_pearls_half_circle():
    family = make("point-sparse", variant="pearl")
    assert family.env.episode_length == 20
    goals = np.concatenate([family.train.finite["goal"], family.test.finite["goal"]])
    assert (len(family.train.finite["goal"]), len(goals)) == (80, 100)
    angles = np.sort(np.arctan2(goals[:, 1], goals[:, 0]))
    np.testing.assert_allclose(angles, np.linspace(0, np.pi, 100), atol=1e-3)


@pytest.mark.parametrize(("arms", "pulls", "optimum"), [(5, 10, 6.660), (10, 10, 6.714)])
def test_no_rule_beats_the_optimum_of_a_bandit(arms, pulls, optimum):
    """Greedy with a Beta(1, 1) prior earns what was computed for it, below the optimum."""
    family = make("bernoulli-bandit", arms=arms)
    greedy = {5: 6.565, 10: 6.622}[arms]
    trials = 20_000

    def trial(key):
        task_key, *pull_keys = jax.random.split(key, pulls + 1)
        task = family.test.sample(task_key)

        def pull(carry, key):
            wins, losses = carry
            arm = jnp.argmax((1 + wins) / (2 + wins + losses))
            state = family.env.step(family.env.reset(key, task), arm)
            carry = wins.at[arm].add(state.reward), losses.at[arm].add(1 - state.reward)
            return carry, state.reward

        keys = jnp.stack(pull_keys)
        return jax.lax.scan(pull, (jnp.zeros(arms), jnp.zeros(arms)), keys)[1].sum()

    totals = np.asarray(jax.jit(jax.vmap(trial))(jax.random.split(jax.random.key(0), trials)))
    error = totals.std() / np.sqrt(trials)
    assert abs(totals.mean() - greedy) < 4 * error
    assert totals.mean() < optimum + 3 * error


def test_payments_have_the_distribution_they_should():
    gaussian = make("gaussian-bandit", arms=3, reward_std=0.5).env
    task = {"mean": jnp.array([0.1, 0.5, 0.9])}
    keys = jax.random.split(jax.random.key(0), 4000)
    pay = jax.jit(jax.vmap(lambda k: gaussian.step(gaussian.reset(k, task), jnp.array(2)).reward))
    np.testing.assert_allclose([pay(keys).mean(), pay(keys).std()], [0.9, 0.5], atol=0.03)
    bernoulli = make("bernoulli-bandit", arms=3).env
    task = {"probability": jnp.array([0.1, 0.5, 0.9])}
    pay = jax.jit(jax.vmap(lambda k: bernoulli.step(bernoulli.reset(k, task), jnp.array(2)).reward))
    assert set(np.unique(pay(keys))) == {0.0, 1.0}
    np.testing.assert_allclose(pay(keys).mean(), 0.9, atol=0.02)
