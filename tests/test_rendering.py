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
from PIL import Image, ImageColor

import metajax
from metajax import rendering
from metajax.errors import MetajaxError

# pyright: reportAttributeAccessIssue=false


def learner(name, **options):
    """A family, and an untrained agent with its meta-parameters."""
    family = metajax.make(name, **options)
    policy = metajax.mlp(
        family.env.observation_size, family.env.action_space, hidden=(4,), initial_std=0.1
    )
    algorithm = metajax.maml(family.env, policy, episodes=2)
    key = jax.random.key(0)
    state = algorithm.init(key, jax.vmap(family.train.sample)(jax.random.split(key, 2)))
    return family, algorithm.agent, state.meta_params


def recorded(name, task, *, adaptations=1, shown=2, **options):
    family, agent, meta_params = learner(name, **options)
    position = rendering._qpos if name in rendering.BODIES else rendering._observation

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


def test_the_cheetah_is_paid_for_where_it_went(runs):
    for recording in runs:
        x = recording.positions[0, :, 0]
        assert len(x) == 7
        cost = -1.0 * (x[-1] - x[0]) / 0.05 - recording.returns[0]
        assert 0 <= cost <= 0.05 * 6 * 6  # of six controls in six steps


# --- bodies ---------------------------------------------------------------------------------------


def panel(name, qpos, task):
    """The picture of a body in a position, as an array `[row, column, color]`."""
    body = rendering.BODIES[name]
    model = body.model()
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    width = round(rendering._HEIGHT * body.window[0] / body.window[1])
    return np.asarray(rendering._panel(body, model, data, task, 0.0, width)).astype(int)


def color_at(picture, name, x, y):
    """The color at a point of the world; with `follow`, x counts from the body."""
    body = rendering.BODIES[name]
    scale = rendering._HEIGHT / body.window[1]
    row = picture.shape[0] - (y - body.lowest) * scale
    return tuple(picture[int(row), int((x + body.window[0] / 2) * scale)])


def near(color, name):
    return max(abs(a - b) for a, b in zip(color, ImageColor.getrgb(name), strict=True)) < 24


def test_the_arm_is_where_its_angles_put_it():
    goal = {"goal": np.array([-0.1, 0.05])}
    colors = list(rendering.BODIES["reacher-goal"].colors)
    straight = panel("reacher-goal", [0.0, 0.0], goal)
    for x, color in ((0.05, colors[0]), (0.15, colors[1]), (0.21, colors[2])):
        assert near(color_at(straight, "reacher-goal", x, 0.0), color)
        assert not near(color_at(straight, "reacher-goal", 0.0, x), color)
    up = panel("reacher-goal", [math.pi / 2, 0.0], goal)
    for y, color in ((0.05, colors[0]), (0.15, colors[1]), (0.21, colors[2])):
        assert near(color_at(up, "reacher-goal", 0.0, y), color)
    assert near(color_at(straight, "reacher-goal", -0.1, 0.05), rendering._GOAL)


def test_the_cheetah_is_drawn_from_the_side():
    color = next(c for c, names in rendering.BODIES["halfcheetah-dir"].colors.items()
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
    arguments = ("halfcheetah-dir", agent, family, meta_params, jax.random.key(0), outputs)
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
        assert animation.height == 2 * (rendering._HEIGHT + 2 * rendering._LINE + rendering._GAP)
    first, last = (np.asarray(pictures[i].convert("RGB")).astype(int) for i in (0, -1))
    panels = slice(2 * rendering._LINE, 2 * rendering._LINE + rendering._HEIGHT)
    half = first.shape[1] // 2
    assert np.abs(first - last)[panels].max() > 100  # it moves
    left, right = (first[panels, 10:455], first[panels, 467:912])
    assert half > 455 and np.abs(left - right).mean() < 2  # both start alike


# --- points ---------------------------------------------------------------------------------------


def test_the_picture_of_points_has_every_path(walks, monkeypatch):
    goal, recordings = walks
    drawn = []
    plot = rendering.Figure.savefig

    def savefig(figure, *arguments, **options):
        drawn.append(figure)
        return plot(figure, *arguments, **options)

    monkeypatch.setattr(rendering.Figure, "savefig", savefig)
    batch = jax.tree.map(lambda x: x[None], recordings)
    content = rendering._draw_points({"goal": goal[None]}, batch, ("before", "after"))
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
    (axes,) = drawn[0].axes
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
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    means = [recording.returns.mean() for recording in recordings]
    assert labels == [f"before: {means[0]:.1f}", f"after: {means[1]:.1f}"]


# --- mistakes -------------------------------------------------------------------------------------


def test_mistakes(tmp_path):
    assert rendering.formats("halfcheetah-vel") == (".html", ".gif")
    assert rendering.formats("point-goal") == (".png",)
    with pytest.raises(MetajaxError, match="there is no picture of tabular"):
        rendering.formats("tabular")
    family, agent, meta_params = learner("point-goal", episode_length=5)
    sizes = {"tasks": 1, "adaptations": 1, "episodes": 2}
    arguments = ("point-goal", agent, family, meta_params, jax.random.key(0))
    with pytest.raises(MetajaxError, match="unknown picture format of point-goal"):
        rendering.render(*arguments, [tmp_path / "a.gif"], **sizes)
    with pytest.raises(MetajaxError, match="No such file or directory"):
        rendering._write(tmp_path / "no" / "a.png", b"")


def test_every_family_says_what_its_task_is():
    for name, body in rendering.BODIES.items():
        family = metajax.make(name)
        task = jax.tree.map(np.asarray, family.test.sample(jax.random.key(0)))
        assert body.task(task)
    assert rendering.BODIES["halfcheetah-vel"].task({"velocity": np.array(1.234)}) == (
        "run at 1.23 m/s"
    )
    directions = [
        rendering.BODIES["halfcheetah-dir"].task({"direction": np.array(d)}) for d in (1.0, -1.0)
    ]
    assert directions == ["run forward", "run backward"]
