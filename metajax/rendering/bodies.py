"""Robots in motion, drawn from their positions alone, without OpenGL."""

import fnmatch
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import mujoco
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from metajax.envs import ant, halfcheetah, humanoid, reacher, swimmer, walker
from metajax.physics import load_model
from metajax.types import Task

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)

GOAL = "#d55e00"
INK = "#333333"
GREY = "#6b757e"
HEIGHT, LINE, GAP, WIDEST = 190, 22, 10, 950  # pixels of a panel, a line of text ...
SUPERSAMPLING = 3
MOST_FRAMES_PER_SECOND = 25

_DARK, _MIDDLE, _LIGHT = "#2c5f8a", "#4a86b8", "#8ab4d8"


class View(NamedTuple):
    """From where a world is seen, from infinitely far.

    Attributes:
        right: the direction in the world that is to the right in the picture.
        up: the direction that is up.
    """

    right: tuple[float, float, float]
    up: tuple[float, float, float]

    @property
    def towards(self) -> np.ndarray:
        """The direction towards the eye: the higher along it, the nearer."""
        return np.cross(self.right, self.up)


SIDE = View((1, 0, 0), (0, 0, 1))
TOP = View((1, 0, 0), (0, 1, 0))
_TURN, _SLANT = np.radians(25), np.radians(35)
SLANTED = View(
    (np.cos(_TURN), -np.sin(_TURN), 0),
    (np.sin(_TURN) * np.sin(_SLANT), np.cos(_TURN) * np.sin(_SLANT), np.cos(_SLANT)),
)


class Body(NamedTuple):
    """How a robot is drawn.

    Attributes:
        model: its MuJoCo model; positions of every engine are this model's `qpos`.
        seconds: per environment step.
        view: from where.
        window: metres shown, to the right and up.
        below: metres of the window below the point that is followed.
        follow: how many of the first coordinates of `qpos` the window moves with.
        colors: of geoms, or of their bodies where they have no name, by patterns; the first ones
            are drawn first where none is nearer. Other geoms are not drawn.
        task: what a task asks for, in words.
    """

    model: Callable[[], Any]
    seconds: float
    view: View
    window: tuple[float, float]
    below: float
    follow: int
    colors: dict[str, tuple[str, ...]]
    task: Callable[[Task], str]


def _run_at(task: Task) -> str:
    return f"run at {float(task['velocity']):.2f} m/s"


def _forward_or_backward(task: Task) -> str:
    return "run forward" if np.ravel(task["direction"])[0] > 0 else "run backward"


def _towards(task: Task) -> str:
    x, y = np.asarray(task["direction"])
    return f"run towards {math.degrees(math.atan2(y, x)) % 360:.0f}°"


def _weight(task: Task) -> str:
    return f"torso {float(task['mass'][1]):.2f} times as heavy"


_CHEETAH = Body(
    model=lambda: load_model("half_cheetah"),
    seconds=0.01 * halfcheetah.FRAME_SKIP,
    view=SIDE,
    window=(4.0, 1.7),
    below=0.25,
    follow=1,
    colors={
        _DARK: ("bthigh", "bshin", "bfoot"),
        _LIGHT: ("fthigh", "fshin", "ffoot"),
        _MIDDLE: ("torso", "head"),
    },
    task=_run_at,
)
_WALKER = _CHEETAH._replace(
    model=lambda: load_model("walker2d"),
    seconds=0.002 * walker.FRAME_SKIP,
    window=(4.0, 2.0),
    colors={
        _DARK: ("*_left_geom",),
        _LIGHT: ("thigh_geom", "leg_geom", "foot_geom"),
        _MIDDLE: ("torso*",),
    },
    task=_run_at,
)
_ANT = Body(
    model=lambda: load_model("ant"),
    seconds=0.01 * ant.FRAME_SKIP,
    view=SLANTED,
    window=(4.8, 2.9),
    below=1.1,
    follow=2,
    colors={_DARK: ("aux*", "*leg*"), _LIGHT: ("*ankle*",), _MIDDLE: ("torso*",)},
    task=_run_at,
)
_HUMANOID = Body(
    model=lambda: load_model("humanoid"),
    seconds=0.003 * humanoid.FRAME_SKIP,
    view=SLANTED,
    window=(3.4, 2.1),
    below=0.5,
    follow=2,
    colors={
        _DARK: ("left_*",),
        _MIDDLE: ("torso*", "head", "*waist", "butt"),
        _LIGHT: ("right_*",),
    },
    task=_towards,
)

BODIES = {
    "ant-dir": _ANT._replace(task=_towards),
    "ant-goal": _ANT._replace(
        view=TOP, window=(7.6, 7.6), below=3.8, follow=0, task=lambda task: "run to the goal"
    ),
    "ant-params": _ANT._replace(task=_weight),
    "ant-vel": _ANT,
    "halfcheetah-dir": _CHEETAH._replace(task=_forward_or_backward),
    "halfcheetah-vel": _CHEETAH,
    "hopper-params": _WALKER._replace(
        model=lambda: load_model("hopper"),
        seconds=0.008,
        colors={_DARK: ("thigh*",), _LIGHT: ("leg*", "foot*"), _MIDDLE: ("torso*",)},
        task=_weight,
    ),
    "humanoid-dir": _HUMANOID,
    "reacher-goal": Body(
        model=lambda: load_model("reacher", without="target"),
        seconds=0.01 * reacher.FRAME_SKIP,
        view=TOP,
        window=(0.52, 0.52),
        below=0.26,
        follow=0,
        colors={_DARK: ("link0",), _MIDDLE: ("link1",), _LIGHT: ("fingertip",)},
        task=lambda task: "reach the goal",
    ),
    "swimmer-vel": Body(
        model=lambda: load_model("swimmer"),
        seconds=0.01 * swimmer.FRAME_SKIP,
        view=TOP,
        window=(6.0, 3.0),
        below=1.5,
        follow=2,
        colors={_DARK: ("back",), _MIDDLE: ("mid",), _LIGHT: ("torso",)},
        task=lambda task: f"swim at {float(task['velocity']):.2f} m/s",
    ),
    "walker2d-dir": _WALKER._replace(task=_forward_or_backward),
    "walker2d-params": _WALKER._replace(seconds=0.008, task=_weight),
    "walker2d-vel": _WALKER,
}


def frames(body: Body, tasks, recordings, titles, stride: int) -> Iterator[Image.Image]:
    """Yield pictures of all tasks, each before on the left and after on the right.

    Args:
        body: how the robot is drawn.
        tasks: `[task]`.
        recordings: of `qpos`, before and after adaptation, `[task, episode]`.
        titles: of the two.
        stride: environment steps per frame.
    """
    model = body.model()
    data = mujoco.MjData(model)
    count, steps = len(recordings[0].returns), recordings[0].valid.shape[-1]
    width = panel_width(body)
    cell = (2 * (width + GAP), HEIGHT + 2 * LINE + GAP)
    columns = min(count, max(1, WIDEST // cell[0]))
    size = (columns * cell[0] + GAP, math.ceil(count / columns) * cell[1])
    font = ImageFont.load_default(13)
    for time in range(0, steps + 1, stride):
        frame = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(frame)
        for index in range(count):
            task = jax.tree.map(lambda x, index=index: x[index], tasks)
            left, top = index % columns * cell[0] + GAP, index // columns * cell[1]
            draw.text((left, top + 6), body.task(task), fill=INK, font=font)
            for recording, title in zip(recordings, titles, strict=True):
                now = min(time, int(recording.valid[index, 0].sum()))
                data.qpos[:] = recording.positions[index, 0, now]
                mujoco.mj_kinematics(model, data)
                words = f"{title}: return {recording.returns[index, 0]:.1f}"
                draw.text((left, top + LINE + 3), words, fill=GREY, font=font)
                frame.paste(
                    panel(body, model, data, task, now * body.seconds), (left, top + 2 * LINE)
                )
                left += width + GAP
        yield frame


def panel_width(body: Body) -> int:
    """Return how many pixels wide a panel of `HEIGHT` is."""
    return round(HEIGHT * body.window[0] / body.window[1])


def panel(body: Body, model, data, task: Task, seconds: float) -> Image.Image:
    """Return a picture of a robot where it is.

    Args:
        body: how it is drawn.
        model: its MuJoCo model.
        data: its MuJoCo data, with kinematics computed.
        task: one task; its goal is drawn, if it has one.
        seconds: that have passed, to be written into the picture.
    """
    scale = SUPERSAMPLING * HEIGHT / body.window[1]  # pixels per metre
    size = (SUPERSAMPLING * panel_width(body), SUPERSAMPLING * HEIGHT)
    axes = np.array(body.view[:2], float)
    center = np.zeros(3)
    center[: body.follow] = data.qpos[: body.follow]
    corner = axes @ center - (body.window[0] / 2, body.below)
    image = Image.new("RGB", size, "#f4f6f8")
    draw = ImageDraw.Draw(image)

    def pixel(point: Float[np.ndarray, "3"]) -> tuple[float, float]:
        right, up = (axes @ point - corner) * scale
        return right, size[1] - up

    def disc(place: Float[np.ndarray, "3"], radius: float, color: str) -> None:
        x, y = pixel(place)
        r = radius * scale
        draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    if body.view == SIDE:
        _draw_ground(draw, pixel, center[0] - body.window[0] / 2, body)
    elif body.follow or body.window[0] > 1:
        _draw_floor(draw, pixel, center, max(body.window))
    if "goal" in task:
        disc(np.append(task["goal"], 0), max(0.012, 0.025 * body.window[0]), GOAL)
    for _, color, geom in sorted(_drawn(body, model, data), key=lambda x: x[0]):
        radius, half_length = model.geom_size[geom][:2]
        along = data.geom_xmat[geom].reshape(3, 3)[:, 2] * half_length
        ends = [data.geom_xpos[geom] + sign * along for sign in (-1, 1)]
        draw.line([pixel(end) for end in ends], fill=color, width=round(2 * radius * scale))
        for end in ends:
            disc(end, radius, color)
    font = ImageFont.load_default(12 * SUPERSAMPLING)
    draw.text((6 * SUPERSAMPLING, 4 * SUPERSAMPLING), f"{seconds:.1f} s", fill=INK, font=font)
    return image.resize((panel_width(body), HEIGHT), Image.Resampling.LANCZOS)


def _drawn(body: Body, model, data) -> Iterator[tuple[tuple[float, int], str, int]]:
    """Yield (order, color, geom): the nearer ones later, then as the colors are listed."""
    for geom in range(model.ngeom):
        name = model.geom(geom).name or model.body(model.geom_bodyid[geom]).name
        for order, (color, patterns) in enumerate(body.colors.items()):
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                depth = round(float(data.geom_xpos[geom] @ body.view.towards), 3)
                yield (depth, order), color, geom
                break


def _draw_ground(draw, pixel, left: float, body: Body) -> None:
    """Draw the ground from the side with a mark per metre, and where the body started."""
    right = left + body.window[0]
    font = ImageFont.load_default(11 * SUPERSAMPLING)

    def at(x, z):
        return pixel(np.array([x, 0.0, z]))

    draw.rectangle([at(left, 0.0), at(right, -body.below)], fill="#dde3e8")
    for metre in range(math.floor(left), math.ceil(right) + 1):
        color = GOAL if metre == 0 else "#9aa5ae"
        top = body.window[1] if metre == 0 else 0.0
        draw.line([at(metre, top), at(metre, -0.06)], fill=color, width=SUPERSAMPLING)
        draw.text(at(metre, -0.07), f"{metre} m", fill=INK, font=font, anchor="mt")


def _draw_floor(draw, pixel, center: Float[np.ndarray, "3"], reach: float) -> None:
    """Draw the floor from above with a line per metre, and the axes through the start."""
    low, high = np.floor(center - reach), np.ceil(center + reach)
    for axis in (0, 1):
        for metre in range(int(low[axis]), int(high[axis]) + 1):
            ends = np.stack([low, high]) * (1, 1, 0)
            ends[:, axis] = metre
            color = "#e8b48c" if metre == 0 else "#d3dae0"
            draw.line([pixel(end) for end in ends], fill=color, width=SUPERSAMPLING)
