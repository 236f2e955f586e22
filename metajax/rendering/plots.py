"""Families without a body, and anyone's own, as plots."""

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metajax.envs.drawings import Plot
from metajax.rendering.bodies import GOAL, INK
from metajax.rendering.recording import Recording
from metajax.types import Task

COLORS = ("#9aa5ae", "#0072b2")  # before and after adaptation


def draw_plots(plot: Plot, tasks, recordings, titles) -> bytes:
    """Return a PNG with one panel per task.

    Args:
        plot: what to draw.
        tasks: `[task]`.
        recordings: of the plot's positions, before and after adaptation, `[task, episode]`.
        titles: of the two.
    """
    count = len(recordings[0].returns)
    columns = min(4, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.2 * columns, 3.5 * rows), layout="constrained")
    with matplotlib.rc_context({"font.size": 9}):
        for row, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            if row >= count:
                axes.set_axis_off()
                continue
            task, *shown = jax.tree.map(lambda x, row=row: x[row], (tasks, *recordings))
            axes.grid(color="#e6e6e6")
            draw_plot(plot, axes, task, shown, titles)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
        figure.suptitle(plot.caption, fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def draw_plot(
    plot: Plot, axes: Axes, task: Task, recordings: Sequence[Recording], titles: Sequence[str]
) -> None:
    """Draw one task.

    Args:
        plot: what to draw.
        axes: to draw on.
        task: one task.
        recordings: of the plot's positions, `[episode, time]`, at most two.
        titles: of the recordings.
    """
    KINDS[plot.kind](plot, axes, task, recordings, titles)


def _paths(plot: Plot, axes: Axes, task: Task, recordings, titles) -> None:
    episodes = list(_episodes(recordings, titles))
    on_grid = all(np.array_equal(path, np.round(path)) for path, _, _ in episodes)
    for index, (path, _, style) in enumerate(episodes):
        offset = 0.04 * (index - (len(episodes) - 1) / 2) if on_grid else 0.0  # not over each other
        axes.plot(*(path + offset).T, **style)
    axes.plot(*recordings[0].positions[0, 0], "o", color=INK, markersize=4)
    places = {"goal": "*", "key": "P", "door": "s"}
    marked = [(np.asarray(task[name]), sign) for name, sign in places.items() if name in task]
    for place, sign in marked:
        axes.plot(*place, sign, color=GOAL, markersize=13 if sign == "*" else 9, zorder=3)
    axes.set_aspect("equal")
    ends = np.concatenate(
        [r.positions.reshape(-1, 2) for r in recordings] + [[p] for p, _ in marked]
    )
    low, high = ends.min(axis=0), ends.max(axis=0)
    reach = 0.55 * max(*(high - low), 0.5)
    middle = (low + high) / 2
    axes.set(
        xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach)
    )


def _over_time(plot: Plot, axes: Axes, task: Task, recordings, titles) -> None:
    for path, _, style in _episodes(recordings, titles):
        axes.plot(path[:, 0], **style)
    axes.set(xlabel="step", ylabel=plot.label, title=_numbers(task))
    axes.title.set_fontsize(8)


def _rewards(plot: Plot, axes: Axes, task: Task, recordings, titles) -> None:
    for _, reward, style in _episodes(recordings, titles):
        axes.plot(np.append(0.0, np.cumsum(reward)), **style)
    axes.set(xlabel="step", ylabel="reward so far")


def _arms(plot: Plot, axes: Axes, task: Task, recordings, titles) -> None:
    (mean,) = (task[name] for name in ("probability", "mean") if name in task)
    arms = np.arange(len(mean))
    axes.bar(arms, mean, width=0.9, color="#f6d7c3", label="mean reward")
    for shift, recording, title, color in zip(
        (-0.2, 0.2), recordings, titles, COLORS, strict=False
    ):
        pulled = np.bincount(recording.action[recording.valid].ravel(), minlength=len(arms))
        label = f"{title}: {recording.returns.mean():.2f}"
        axes.bar(arms + shift, pulled / pulled.sum(), width=0.35, color=color, label=label)
    axes.set(xlabel="arm", ylabel="share of pulls", xticks=arms)


def _episodes(recordings, titles) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """Yield (positions, rewards, style) of every episode; the first of each kind has the label."""
    for recording, title, color in zip(recordings, titles, COLORS, strict=False):
        style: dict[str, Any] = {"color": color, "linewidth": 1, "alpha": 0.8}
        label = f"{title}: {recording.returns.mean():.1f}"
        for path, reward, valid in zip(
            recording.positions, recording.reward, recording.valid, strict=True
        ):
            yield path[: int(valid.sum()) + 1], reward[valid], style | {"label": label}
            label = None


def _numbers(task: Task) -> str:
    return ", ".join(f"{name} {float(value):.2f}" for name, value in task.items())


KINDS = {"paths": _paths, "time": _over_time, "arms": _arms, "rewards": _rewards}
