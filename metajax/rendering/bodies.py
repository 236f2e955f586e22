"""Robots in motion, drawn from their positions alone, without OpenGL."""

import fnmatch
import math
from collections.abc import Iterator

import jax
import mujoco
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from metajax.envs.drawings import SIDE, Body
from metajax.types import Task

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)

GOAL = "#d55e00"
INK = "#333333"
GREY = "#6b757e"
HEIGHT, LINE, GAP, WIDEST = 190, 22, 10, 950  # pixels of a panel, a line of text ...
SUPERSAMPLING = 3
MOST_FRAMES_PER_SECOND = 25


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
