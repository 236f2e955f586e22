"""Pictures of an agent before and after adaptation, on held-out tasks.

Everything is drawn from positions alone, without OpenGL, and nothing refers to the network: what
is drawn here plays on any machine. The bodies all move in a plane, which is the plane of the
picture.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from metajax.envs import halfcheetah, reacher
from metajax.envs.physics import load_model
from metajax.envs.splits import sample_batch
from metajax.errors import MetajaxError, unknown
from metajax.rollout import rollout, undiscounted_returns
from metajax.types import Agent, EnvState, Task, TaskFamily, pytree_dataclass

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)


@pytree_dataclass
class Recording:
    """Episodes with every position they went through.

    Attributes:
        positions: from the reset on, one more than there are steps.
        valid: the steps played `[*batch, time]`.
        returns: undiscounted `[*batch]`.
    """

    positions: Float[Array, "*batch steps position"]
    valid: Bool[Array, "*batch time"]
    returns: Float[Array, "*batch"]


def record(
    agent: Agent,
    family: TaskFamily,
    meta_params: PyTree[Array],
    task: Task,
    key: Key[Array, ""],
    position: Callable[[EnvState], Float[Array, "position"]],
    *,
    adaptations: int,
    episodes: int,
    shown: int,
) -> tuple[Recording, Recording]:
    """Return episodes of one task before and after adaptation, `[episode, time]` each.

    The i-th episode starts in the same state before and after. None of them is adapted on.

    Args:
        agent: of the algorithm that trained `meta_params`.
        family: its environment is played.
        meta_params: what was trained.
        task: one task.
        key: consumed.
        position: what to record of a state.
        adaptations: adaptation steps.
        episodes: per adaptation step.
        shown: how many episodes to return.
    """
    env = family.env
    begin_key, adapt_key, before_key, after_key, reset_key = jax.random.split(key, 5)

    def play(env, adapted, key, episodes):
        def act(memory, step_input, key):
            return agent.act(adapted, memory, step_input, key)

        return rollout(key, env, task, act, agent.initial_memory(), episodes=episodes)

    def adapt(adapted, key):
        play_key, learn_key = jax.random.split(key)
        trajectory = play(env, adapted, play_key, episodes)
        return agent.adapt(meta_params, adapted, trajectory, learn_key), None

    def film(adapted, reset_key, key) -> Recording:
        # A rollout keeps no states: play from a known start, then repeat the actions from there.
        start = env.reset(reset_key, task)
        fixed = env._replace(reset=lambda key, task: start)
        trajectory = jax.tree.map(lambda x: x[0], play(fixed, adapted, key, 1))

        def step(state, action):
            new_state = env.step(state, action)
            return new_state, position(new_state)

        _, positions = jax.lax.scan(step, start, trajectory.action)
        positions = jnp.concatenate([position(start)[None], positions])
        return Recording(positions, trajectory.valid, undiscounted_returns(trajectory))

    before = agent.begin(meta_params, begin_key)
    after, _ = jax.lax.scan(adapt, before, jax.random.split(adapt_key, adaptations))
    reset_keys = jax.random.split(reset_key, shown)

    def film_all(adapted, key):
        keys = jax.random.split(key, shown)
        return jax.vmap(lambda r, k: film(adapted, r, k))(reset_keys, keys)

    return film_all(before, before_key), film_all(after, after_key)


class Body(NamedTuple):
    """How a simulated body is drawn.

    Attributes:
        model: its MuJoCo model; positions of every engine are this model's `qpos`.
        seconds: per environment step.
        plane: the two world axes of the picture.
        window: metres shown, to the right and up.
        lowest: what is at the lower edge, in metres.
        follow: the window moves with the first coordinate of `qpos`, above a ground with a scale.
        colors: the geoms drawn in each, from the back to the front.
        task: what a task asks for, in words.
    """

    model: Callable[[], Any]
    seconds: float
    plane: tuple[int, int]
    window: tuple[float, float]
    lowest: float
    follow: bool
    colors: dict[str, tuple[str, ...]]
    task: Callable[[Task], str]


_CHEETAH = Body(
    model=lambda: load_model("half_cheetah"),
    seconds=0.01 * halfcheetah.FRAME_SKIP,
    plane=(0, 2),
    window=(4.0, 1.7),
    lowest=-0.25,
    follow=True,
    colors={
        "#2c5f8a": ("bthigh", "bshin", "bfoot"),
        "#8ab4d8": ("fthigh", "fshin", "ffoot"),
        "#4a86b8": ("torso", "head"),
    },
    task=lambda task: "",
)

BODIES = {
    "halfcheetah-dir": _CHEETAH._replace(
        task=lambda task: "run forward" if task["direction"] > 0 else "run backward"
    ),
    "halfcheetah-vel": _CHEETAH._replace(
        task=lambda task: f"run at {float(task['velocity']):.2f} m/s"
    ),
    "reacher-goal": Body(
        model=lambda: load_model("reacher", without="target"),
        seconds=0.01 * reacher.FRAME_SKIP,
        plane=(0, 1),
        window=(0.52, 0.52),
        lowest=-0.26,
        follow=False,
        colors={"#2c5f8a": ("link0",), "#4a86b8": ("link1",), "#8ab4d8": ("fingertip",)},
        task=lambda task: "reach the goal",
    ),
}
POINTS = ("gridnav", "point-goal", "point-sparse")

_GOAL = "#d55e00"
_INK = "#333333"
_GREY = "#6b757e"
_HEIGHT, _LINE, _GAP, _WIDEST = 190, 22, 10, 950  # pixels of a panel, a line of text ...
_SUPERSAMPLING = 3
_MOST_FRAMES_PER_SECOND = 25


def render(
    name: str,
    agent: Agent,
    family: TaskFamily,
    meta_params: PyTree[Array],
    key: Key[Array, ""],
    outputs: Sequence[str | Path],
    *,
    tasks: int,
    adaptations: int,
    episodes: int,
) -> None:
    """Draw an agent before and after adaptation on held-out tasks.

    Args:
        name: of the family, as `metajax.make` knows it.
        agent: of the algorithm that trained `meta_params`.
        family: the family.
        meta_params: what was trained.
        key: consumed.
        outputs: the pictures: .html or .gif for a body in motion, .png for points in a plane.
        tasks: how many; of finitely many, each at most once.
        adaptations: adaptation steps between before and after.
        episodes: per adaptation step.

    Raises:
        MetajaxError: there is no such picture of this family, or it cannot be written.
    """
    for output in outputs:
        if Path(output).suffix.lower() not in formats(name):
            raise unknown(f"picture format of {name}", Path(output).suffix, formats(name))
    if family.test.finite is not None:
        tasks = min(tasks, jax.tree.leaves(family.test.finite)[0].shape[0])
    task_key, record_key = jax.random.split(key)
    held_out = sample_batch(family.test, task_key, tasks)
    shown, position = (1, _qpos) if name in BODIES else (5, _observation)

    @jax.jit
    def record_all(meta_params, held_out, keys):
        def one(task, key):
            return record(
                agent,
                family,
                meta_params,
                task,
                key,
                position,
                adaptations=adaptations,
                episodes=episodes,
                shown=shown,
            )

        return jax.vmap(one)(held_out, keys)

    recordings = record_all(meta_params, held_out, jax.random.split(record_key, tasks))
    held_out, recordings = jax.tree.map(np.asarray, (held_out, recordings))
    titles = ("before adaptation", f"after {adaptations} step{'s' * (adaptations != 1)}")
    if name in BODIES:
        body = BODIES[name]
        stride = max(1, math.ceil(1 / (body.seconds * _MOST_FRAMES_PER_SECOND)))
        frames = list(_frames(body, held_out, recordings, titles, stride))
        milliseconds = round(1000 * body.seconds * stride)
        encoders = {".html": _page, ".gif": _gif}
        for output in outputs:
            _write(output, encoders[Path(output).suffix.lower()](frames, milliseconds))
    else:
        picture = _draw_points(held_out, recordings, titles)
        for output in outputs:
            _write(output, picture)


def _write(output: str | Path, content: bytes) -> None:
    try:
        Path(output).write_bytes(content)
    except OSError as error:
        raise MetajaxError(f"cannot write {output}: {error.strerror}.") from None


def _qpos(state: EnvState) -> Float[Array, "nq"]:
    return state.simulator.qpos


def _observation(state: EnvState) -> Float[Array, "2"]:
    return state.observation


def formats(name: str) -> tuple[str, ...]:
    """Return the picture formats there are for a family, the usual one first.

    Raises:
        MetajaxError: there are none.
    """
    if name in BODIES:
        return (".html", ".gif")
    if name in POINTS:
        return (".png",)
    raise MetajaxError(
        f"there is no picture of {name}; there is one of {', '.join([*BODIES, *POINTS])}."
    )


# ---------------------------------------------------------------------------------------------
# Bodies in motion
# ---------------------------------------------------------------------------------------------


def _frames(body: Body, tasks, recordings, titles, stride: int) -> Iterator[Image.Image]:
    """Yield pictures of all tasks, each before on the left and after on the right."""
    model = body.model()
    data = mujoco.MjData(model)
    count, steps = len(recordings[0].returns), recordings[0].valid.shape[-1]
    width = round(_HEIGHT * body.window[0] / body.window[1])
    cell = (2 * (width + _GAP), _HEIGHT + 2 * _LINE + _GAP)
    columns = min(count, max(1, _WIDEST // cell[0]))
    size = (columns * cell[0] + _GAP, math.ceil(count / columns) * cell[1])
    font = ImageFont.load_default(13)
    for time in range(0, steps + 1, stride):
        frame = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(frame)
        for index in range(count):
            task = jax.tree.map(lambda x, index=index: x[index], tasks)
            left, top = index % columns * cell[0] + _GAP, index // columns * cell[1]
            draw.text((left, top + 6), body.task(task), fill=_INK, font=font)
            for recording, title in zip(recordings, titles, strict=True):
                now = min(time, int(recording.valid[index, 0].sum()))
                data.qpos[:] = recording.positions[index, 0, now]
                mujoco.mj_kinematics(model, data)
                words = f"{title}: return {recording.returns[index, 0]:.1f}"
                draw.text((left, top + _LINE + 3), words, fill=_GREY, font=font)
                panel = _panel(body, model, data, task, now * body.seconds, width)
                frame.paste(panel, (left, top + 2 * _LINE))
                left += width + _GAP
        yield frame


def _panel(body: Body, model, data, task, seconds: float, width: int) -> Image.Image:
    scale = _SUPERSAMPLING * _HEIGHT / body.window[1]  # pixels per metre
    size = (_SUPERSAMPLING * width, _SUPERSAMPLING * _HEIGHT)
    left = -body.window[0] / 2 + (data.qpos[0] if body.follow else 0.0)
    panel = Image.new("RGB", size, "#f4f6f8")
    draw = ImageDraw.Draw(panel)

    def pixel(point) -> tuple[float, float]:
        return (point[0] - left) * scale, size[1] - (point[1] - body.lowest) * scale

    def disc(center, radius: float, color: str) -> None:
        x, y = pixel(center)
        r = radius * scale
        draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    if body.follow:
        _draw_ground(draw, pixel, left, body)
    if "goal" in task:
        disc(task["goal"], 0.012, _GOAL)
    axes = list(body.plane)
    for color, names in body.colors.items():
        for geom in range(model.ngeom):
            if model.geom(geom).name not in names:
                continue
            radius, half_length = model.geom_size[geom][:2]
            along = data.geom_xmat[geom].reshape(3, 3)[:, 2] * half_length
            ends = [(data.geom_xpos[geom] + sign * along)[axes] for sign in (-1, 1)]
            draw.line([pixel(end) for end in ends], fill=color, width=round(2 * radius * scale))
            for end in ends:
                disc(end, radius, color)
    font = ImageFont.load_default(12 * _SUPERSAMPLING)
    draw.text((6 * _SUPERSAMPLING, 4 * _SUPERSAMPLING), f"{seconds:.1f} s", fill=_INK, font=font)
    return panel.resize((width, _HEIGHT), Image.Resampling.LANCZOS)


def _draw_ground(draw, pixel, left: float, body: Body) -> None:
    """Draw the ground with a mark per metre, and where the body started."""
    right = left + body.window[0]
    font = ImageFont.load_default(11 * _SUPERSAMPLING)
    draw.rectangle([pixel((left, 0.0)), pixel((right, body.lowest))], fill="#dde3e8")
    for metre in range(math.floor(left), math.ceil(right) + 1):
        color = _GOAL if metre == 0 else "#9aa5ae"
        top = body.window[1] if metre == 0 else 0.0
        draw.line([pixel((metre, top)), pixel((metre, -0.06))], fill=color, width=_SUPERSAMPLING)
        draw.text(pixel((metre, -0.07)), f"{metre} m", fill=_INK, font=font, anchor="mt")


def _gif(frames: list[Image.Image], milliseconds: int) -> bytes:
    palette = frames[0].quantize(64)
    quantized = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    buffer = io.BytesIO()
    quantized[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=quantized[1:],
        duration=milliseconds,
        loop=0,
    )
    return buffer.getvalue()


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>metajax</title><style>
body {{ font: 14px sans-serif; margin: 2em auto; width: max-content; max-width: 95%; }}
img {{ display: block; max-width: 100%; }}
input {{ width: 60%; vertical-align: middle; }}
</style></head><body>
<img id="picture" alt="the agent before and after adaptation" src="{first}">
<p><button id="button">pause</button> <input id="slider" type="range" min="0" max="{last}"
value="0" aria-label="time"> <span id="time">0.0 s</span></p>
<script>
const frames = {frames}, milliseconds = {milliseconds};
const part = (id) => document.getElementById(id);
let now = 0, playing = true;
function show() {{
  part("picture").src = "data:image/png;base64," + frames[now];
  part("slider").value = now;
  part("time").textContent = (now * milliseconds / 1000).toFixed(1) + " s";
}}
setInterval(() => {{ if (playing) {{ now = (now + 1) % frames.length; show(); }} }}, milliseconds);
part("button").onclick = () => {{
  playing = !playing;
  part("button").textContent = playing ? "pause" : "play";
}};
part("slider").oninput = (event) => {{
  playing = false;
  part("button").textContent = "play";
  now = Number(event.target.value);
  show();
}};
</script></body></html>
"""


def _page(frames: list[Image.Image], milliseconds: int) -> bytes:
    """Return an HTML page that holds all frames and plays them."""
    encoded = []
    for frame in frames:
        buffer = io.BytesIO()
        frame.quantize(64).save(buffer, format="PNG", optimize=True)
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    page = _PAGE.format(
        first=f"data:image/png;base64,{encoded[0]}",
        last=len(encoded) - 1,
        frames=json.dumps(encoded),
        milliseconds=milliseconds,
    )
    return page.encode()


# ---------------------------------------------------------------------------------------------
# Points in a plane
# ---------------------------------------------------------------------------------------------


def _draw_points(tasks, recordings, titles) -> bytes:
    """Return a PNG with one panel per task: where the point went before and after."""
    count = len(recordings[0].returns)
    columns = min(4, count)
    rows = math.ceil(count / columns)
    reach = [np.abs(r.positions).max() for r in recordings]
    limit = 1.1 * max(0.55, np.abs(tasks["goal"]).max(), *reach)
    figure = Figure(figsize=(3.2 * columns, 3.5 * rows), layout="constrained")
    with matplotlib.rc_context({"font.size": 9}):
        for row, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            if row >= count:
                axes.set_axis_off()
                continue
            styles = zip(recordings, titles, ("#9aa5ae", "#0072b2"), strict=True)
            for recording, title, color in styles:
                mean = recording.returns[row].mean()
                for index, path in enumerate(recording.positions[row]):
                    path = path[: int(recording.valid[row, index].sum()) + 1]
                    label = f"{title}: {mean:.1f}" if index == 0 else None
                    axes.plot(*path.T, color=color, linewidth=1, alpha=0.8, label=label)
            axes.plot(0, 0, "o", color=_INK, markersize=4)
            axes.plot(*tasks["goal"][row], "*", color=_GOAL, markersize=13, zorder=3)
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            axes.grid(color="#e6e6e6")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
        figure.suptitle("paths and mean returns; the star is the hidden goal", fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
