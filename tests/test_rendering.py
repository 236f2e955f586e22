"""Renderings show what the agent did, where it was."""

import base64
import io
import json
import math
import re

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from matplotlib.figure import Figure
from packages import PACKAGES
from PIL import Image, ImageColor

import metajax
from metajax import rendering
from metajax.envs import FAMILIES, drawings
from metajax.envs.splits import sample_tasks
from metajax.errors import MetajaxError
from metajax.rendering import bodies, plots
from metajax.rendering.recording import Recording
from metajax.types import Agent, PolicyOutput

# pyright: reportAttributeAccessIssue=false

BODIES = {
    name: spec.drawing for name, spec in FAMILIES.items() if isinstance(spec.drawing, drawings.Body)
}


def learner(name, **options):
    """A family, and an untrained agent with its meta-parameters."""
    family = metajax.make(name, **options)
    policy = metajax.mlp(
        family.env.observation_size, family.env.action_space, hidden=(4,), initial_std=0.1
    )
    algorithm = metajax.maml(family.env, policy, episodes=2)
    key = jax.random.key(0)
    state = algorithm.init(key, sample_tasks(family.train, key, 2))
    return family, algorithm.agent, state.meta_params


def recorded(name, task, *, adaptations=1, shown=2, **options):
    family, agent, meta_params = learner(name, **options)
    drawing = FAMILIES[name].drawing
    position = rendering._qpos if name in BODIES else drawing.position

    @jax.jit
    def record(meta_params, key):
        return rendering.record(
            *(agent, family, meta_params, task, key, position),
            adaptations=adaptations,
            episodes=3,
            shown=shown,
        )

    return jax.tree.map(np.asarray, record(meta_params, jax.random.key(1)))


@pytest.fixture(scope="module")
def walks():
    """Walks on point-goal before and after adaptation; the goal is close by."""
    goal = np.array([0.05, 0.0], np.float32)
    return goal, recorded("point-goal", {"goal": jnp.asarray(goal)}, episode_length=30, shown=8)


@pytest.fixture(scope="module")
def runs():
    """A cheetah before and after adaptation."""
    task = {"direction": jnp.array(-1.0)}
    return recorded("halfcheetah-dir", task, episode_length=6, backend="mujoco", shown=1)


# --- recording ------------------------------------------------------------------------------------


def test_returns_belong_to_the_recorded_states(walks):
    goal, recordings = walks
    for recording in recordings:
        distance = np.linalg.norm(recording.positions[:, 1:] - goal, axis=-1)
        expected = -np.sum(np.where(recording.valid, distance, 0), axis=1)
        np.testing.assert_allclose(recording.returns, expected, rtol=1e-5)


def test_an_episode_ends_at_the_goal_and_is_padding_after_it(walks):
    goal, recordings = walks
    arrived = 0
    for recording in recordings:
        for states, valid in zip(recording.positions, recording.valid, strict=True):
            length = int(valid.sum())
            assert valid[:length].all()
            near = np.all(np.abs(states[1:] - goal) < 0.01, axis=1)
            assert not near[: length - 1].any()
            arrived += near[length - 1]
            assert near[length - 1] == (length < 30)
    assert arrived


def test_before_and_after_start_alike_and_only_adaptation_makes_a_difference(runs):
    before, after = runs
    np.testing.assert_array_equal(before.positions[:, 0], after.positions[:, 0])
    assert not np.array_equal(before.positions, after.positions)

    def third_position(adaptations):
        """The mean over many episodes after three steps, before and after adaptation."""
        recordings = recorded(
            "point-goal",
            {"goal": jnp.array([0.5, 0.5])},
            episode_length=10,
            shown=64,
            adaptations=adaptations,
        )
        return [recording.positions[:, 3].mean(axis=0) for recording in recordings]

    before_none, after_none = third_position(0)
    before_three, after_three = third_position(3)
    noise = 4 * math.sqrt(2 * 3 / 64) * 0.1  # of the difference of two such means
    np.testing.assert_allclose(before_none, after_none, atol=noise)
    np.testing.assert_allclose(before_none, before_three, atol=noise)
    assert np.abs(after_three - before_three).max() > noise


def test_a_memory_is_shown_at_the_start_and_after_what_it_has_heard():
    """Here it counts what it hears, and pulls the arm of that number."""
    family = metajax.make("bernoulli-bandit", arms=5)

    def act(adapted, memory, step_input, key):
        heard = memory + (jnp.sum(step_input.previous_action) >= 0)
        return heard, memory, PolicyOutput(None)

    agent = Agent(
        lambda meta_params, key: meta_params,
        lambda: jnp.zeros((), jnp.int32),
        act,
        lambda meta_params, adapted, trajectory, key: adapted,
    )
    task = family.test.sample(jax.random.key(0))
    before, after = rendering.record(
        *(agent, family, (), task, jax.random.key(1), lambda state: jnp.zeros(1)),
        adaptations=2,
        episodes=2,
        shown=3,
    )
    np.testing.assert_array_equal(before.action, np.zeros((3, 1)))
    np.testing.assert_array_equal(after.action, np.full((3, 1), 4))


def test_the_cheetah_is_paid_for_where_it_went(runs):
    for recording in runs:
        x = recording.positions[0, :, 0]
        assert len(x) == 7
        cost = -1.0 * (x[-1] - x[0]) / 0.05 - recording.returns[0]
        assert 0 <= cost <= 0.05 * 6 * 6  # of six controls in six steps


# --- bodies ---------------------------------------------------------------------------------------


def panel(name, qpos, task):
    """The picture of a body in a position, as an array `[row, column, color]`."""
    body = BODIES[name]
    model = body.model()
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    return np.asarray(bodies.panel(body, model, data, task, 0.0)).astype(int)


def color_at(picture, name, x, y):
    """The color at a point of the world; with `follow`, x counts from the body."""
    body = BODIES[name]
    scale = bodies.HEIGHT / body.window[1]
    row = picture.shape[0] - (y + body.below) * scale
    return tuple(picture[int(row), int((x + body.window[0] / 2) * scale)])


def near(color, name):
    return max(abs(a - b) for a, b in zip(color, ImageColor.getrgb(name), strict=True)) < 24


def test_the_arm_is_where_its_angles_put_it():
    goal = {"goal": np.array([-0.1, 0.05])}
    colors = list(BODIES["reacher-goal"].colors)
    straight = panel("reacher-goal", [0.0, 0.0], goal)
    for x, color in ((0.05, colors[0]), (0.15, colors[1]), (0.21, colors[2])):
        assert near(color_at(straight, "reacher-goal", x, 0.0), color)
        assert not near(color_at(straight, "reacher-goal", 0.0, x), color)
    up = panel("reacher-goal", [math.pi / 2, 0.0], goal)
    for y, color in ((0.05, colors[0]), (0.15, colors[1]), (0.21, colors[2])):
        assert near(color_at(up, "reacher-goal", 0.0, y), color)
    assert near(color_at(straight, "reacher-goal", -0.1, 0.05), bodies.GOAL)


def test_the_cheetah_is_drawn_from_the_side():
    color = next(c for c, names in BODIES["halfcheetah-dir"].colors.items()
                 if "torso" in names)  # fmt: skip
    stand = panel("halfcheetah-dir", np.zeros(9), {})
    # half_cheetah.xml: the torso is a capsule from x = -0.5 to 0.5 at a height of 0.7
    for x in (-0.45, 0.2, 0.45):
        assert near(color_at(stand, "halfcheetah-dir", x, 0.7), color)
        assert not near(color_at(stand, "halfcheetah-dir", x, 1.2), color)
    assert not near(color_at(stand, "halfcheetah-dir", -0.7, 0.7), color)
    lifted = np.zeros(9)
    lifted[1] = 0.5
    assert near(color_at(panel("halfcheetah-dir", lifted, {}), "halfcheetah-dir", 0.2, 1.2), color)


def test_the_view_follows_the_cheetah():
    away = np.zeros(9)
    away[0] = 3.0
    here, there = (panel("halfcheetah-dir", qpos, {}) for qpos in (np.zeros(9), away))
    assert not np.array_equal(here, there)  # the marks on the ground
    above = slice(0, 150)  # rows above the ground
    start = slice(here.shape[1] // 2 - 3, here.shape[1] // 2 + 3)  # the line at x = 0
    different = (np.abs(here[above] - there[above]) > 24).any(axis=(0, 2))
    assert different[start].any()
    different[start] = False
    assert not different.any()


def test_a_page_and_an_animation_hold_every_frame(tmp_path):
    family, agent, meta_params = learner("halfcheetah-dir", backend="mujoco", episode_length=6)
    sizes = {"tasks": 3, "adaptations": 1, "episodes": 2}
    outputs = [tmp_path / f"picture{suffix}" for suffix in (".html", ".gif")]
    arguments = (BODIES["halfcheetah-dir"], agent, family, meta_params, jax.random.key(0), outputs)
    rendering.render(*arguments, **sizes)
    page = outputs[0].read_text()
    assert "http" not in page  # nothing to fetch
    assert all(s.startswith("data:") for s in re.findall(r'(?:src|href)="([^"]*)"', page))
    frames = json.loads(re.search(r"const frames = (\[.*?\]),", page)[1])  # type: ignore
    assert len(frames) == 7  # six steps and the start
    assert "milliseconds = 50;" in page
    pictures = [Image.open(io.BytesIO(base64.b64decode(frame))) for frame in frames]
    with Image.open(outputs[1]) as animation:
        assert animation.n_frames == 7
        assert animation.info["duration"] == 50 and animation.info["loop"] == 0
        assert animation.size == pictures[0].size
        # Two tasks, though three were asked for: there are no more.
        assert animation.height == 2 * (bodies.HEIGHT + 2 * bodies.LINE + bodies.GAP)
    first, last = (np.asarray(pictures[i].convert("RGB")).astype(int) for i in (0, -1))
    panels = slice(2 * bodies.LINE, 2 * bodies.LINE + bodies.HEIGHT)
    half = first.shape[1] // 2
    assert np.abs(first - last)[panels].max() > 100  # it moves
    left, right = (first[panels, 10:455], first[panels, 467:912])
    assert half > 455 and np.abs(left - right).mean() < 2  # both start alike


def test_the_slanted_view_is_a_rotation():
    axes = np.array([*drawings.SLANTED, drawings.SLANTED.towards])
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert axes[0, 2] == 0 and axes[1, 2] > 0 and axes[2, 2] > 0  # upright, from above


def test_an_ant_is_drawn_in_space_and_its_goal_on_the_floor():
    stand = BODIES["ant-vel"].model().qpos0
    for name in ("ant-vel", "ant-goal"):
        body = BODIES[name]
        goal = {"goal": np.array([-2.0, 1.0])} if name == "ant-goal" else {}
        picture = panel(name, stand, goal)
        right, up = np.array(body.view[:2]) @ stand[:3]  # the torso is a ball of 0.25 m
        assert near(color_at(picture, name, right, up + 0.2), drawings.MIDDLE)
        assert not near(color_at(picture, name, right, up + 0.3), drawings.MIDDLE)
        if goal:
            assert near(color_at(picture, name, -2.0, 1.0), bodies.GOAL)
            away = stand.copy()
            away[:2] = 2.0, -1.5
            moved = panel(name, away, goal)
            assert near(color_at(moved, name, 2.0, -1.5), drawings.MIDDLE)
            assert near(color_at(moved, name, -2.0, 1.0), bodies.GOAL)
    fallen = stand.copy()
    fallen[2] = 0.3
    assert not np.array_equal(panel("ant-vel", fallen, {}), panel("ant-vel", stand, {}))


def test_what_is_nearer_hides_what_is_farther():
    body = BODIES["ant-goal"]  # from above
    model = body.model()
    data = mujoco.MjData(model)
    data.qpos[:] = model.qpos0
    data.qpos[3:7] = 0, 1, 0, 0  # on its back
    data.qpos[8::2] = 1.5  # feet in the air
    mujoco.mj_kinematics(model, data)
    drawn = sorted(bodies._drawn(body, model, data), key=lambda x: x[0])
    heights = [data.geom_xpos[geom][2] for _, _, geom in drawn]
    np.testing.assert_allclose(heights, sorted(heights), atol=2e-3)
    assert len(drawn) == model.ngeom - 1  # all but the floor


# --- plots ----------------------------------------------------------------------------------------


def drawn(drawing, task, recordings):
    axes = Figure().subplots()
    plots.draw_plot(drawing, axes, task, recordings, ("before", "after"))
    return axes


def test_the_picture_of_points_has_every_path(walks):
    goal, recordings = walks
    axes = drawn(FAMILIES["point-goal"].drawing, {"goal": goal}, recordings)
    paths = [line.get_xydata() for line in axes.get_lines()]
    expected = [
        states[: int(valid.sum()) + 1]
        for recording in recordings
        for states, valid in zip(recording.positions, recording.valid, strict=True)
    ]
    assert len(paths) == len(expected) + 2  # the start and the goal
    for path, states in zip(paths, expected, strict=False):
        np.testing.assert_allclose(path, states, atol=1e-6)
    np.testing.assert_allclose(paths[-1][0], goal)
    labels = [text.get_text() for text in axes.legend().get_texts()]
    means = [recording.returns.mean() for recording in recordings]
    assert labels == [f"before: {means[0]:.1f}", f"after: {means[1]:.1f}"]
    for axis, (low, high) in enumerate((axes.get_xlim(), axes.get_ylim())):
        places = np.concatenate(paths)[:, axis]
        assert low < places.min() and high > places.max()


def test_any_family_can_be_drawn_by_its_rewards(walks):
    axes = drawn(drawings.REWARDS, {}, walks[1])
    lines = [line.get_ydata() for line in axes.get_lines()]
    rewards = [
        reward[valid]
        for recording in walks[1]
        for reward, valid in zip(recording.reward, recording.valid, strict=True)
    ]
    for line, reward in zip(lines, rewards, strict=True):
        np.testing.assert_allclose(line, np.append(0, np.cumsum(reward)), rtol=1e-5)


def test_a_bandit_is_drawn_by_its_arms():
    task = {"probability": np.array([0.1, 0.7])}
    pulls = [np.array([[0], [0], [0], [1]]), np.array([[1], [1], [1], [1]])]
    recordings = [
        Recording(None, action, np.ones((4, 1)), np.ones((4, 1), bool)) for action in pulls
    ]
    axes = drawn(FAMILIES["bernoulli-bandit"].drawing, task, recordings)
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    np.testing.assert_allclose(heights, [[0.1, 0.7], [0.75, 0.25], [0, 1]])


def test_a_pole_is_drawn_by_its_angle():
    task = {"length": jnp.array(0.5), "mass": jnp.array(0.1), "force": jnp.array(10.0)}
    recordings = recorded("cartpole-params", task, shown=2, episode_length=30)
    for angles in (r.positions[..., 0] for r in recordings):
        assert np.all(np.abs(angles[:, 0]) < 3)  # it starts within 0.05 rad
        assert np.any(np.abs(angles) > 6)
    axes = drawn(FAMILIES["cartpole-params"].drawing, jax.tree.map(np.asarray, task), recordings)
    assert axes.get_ylabel() == "angle of the pole (°)"
    np.testing.assert_array_equal(
        axes.get_lines()[0].get_ydata(),
        recordings[0].positions[0, : int(recordings[0].valid[0].sum()) + 1, 0],
    )


QUICK = ["cartpole-params", "gridnav"]
REST = [name for name in FAMILIES if name not in [*QUICK, *PACKAGES]]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)]
)
def test_every_family_is_drawn(name, tmp_path):
    options = {"backend": "mujoco"} if name in BODIES else {}
    family, agent, meta_params = learner(name, **options, episode_length=4)
    output = tmp_path / f"picture{'.gif' if name in BODIES else '.png'}"
    sizes = {"tasks": 2, "adaptations": 1, "episodes": 2}
    drawing = FAMILIES[name].drawing
    rendering.render(drawing, agent, family, meta_params, jax.random.key(0), [output], **sizes)
    with Image.open(output) as picture:
        assert len(set(np.asarray(picture.convert("L")).ravel())) > 10


# --- mistakes -------------------------------------------------------------------------------------


def test_mistakes(tmp_path):
    formats = {name: rendering.formats(spec.drawing) for name, spec in FAMILIES.items()}
    assert formats["halfcheetah-vel"] == (".html", ".gif")
    assert formats["point-goal"] == formats["tabular"] == (".png",)
    family, agent, meta_params = learner("point-goal", episode_length=5)
    sizes = {"tasks": 1, "adaptations": 1, "episodes": 2}
    arguments = (agent, family, meta_params, jax.random.key(0))
    with pytest.raises(MetajaxError, match="unknown picture format of point-goal-v1"):
        rendering.render(drawings.GOALS, *arguments, [tmp_path / "a.gif"], **sizes)
    unknown = drawings.GOALS._replace(kind="path")
    with pytest.raises(MetajaxError, match="unknown kind of plot of point-goal-v1 'path'"):
        rendering.render(unknown, *arguments, [tmp_path / "a.png"], **sizes)
    with pytest.raises(MetajaxError, match="need 160 GB for the episodes of all tasks; this mach"):
        rendering.render(
            drawings.GOALS, *arguments, [tmp_path / "a.png"], **sizes | {"tasks": 4 * 10**8}
        )
    with pytest.raises(MetajaxError, match="No such file or directory"):
        rendering._write(tmp_path / "no" / "a.png", b"")


def test_every_family_says_what_its_task_is():
    for name, body in BODIES.items():
        family = metajax.make(name)
        task = jax.tree.map(np.asarray, family.test.sample(jax.random.key(0)))
        assert body.task(task)
    assert BODIES["halfcheetah-vel"].task({"velocity": np.array(1.234)}) == ("run at 1.23 m/s")
    directions = [BODIES["halfcheetah-dir"].task({"direction": np.array(d)}) for d in (1.0, -1.0)]
    assert directions == ["run forward", "run backward"]
