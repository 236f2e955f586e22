"""Pictures of runs: learning curves and adaptation curves, drawn to files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from metajax.errors import MetajaxError, unknown
from metajax.evaluation import adaptation_curve, interquartile_mean
from metajax.presets import MEMORY_AGENTS
from metajax.run_directory import open_run, read_metrics

FORMATS = (".png", ".pdf", ".svg")

_MOST_TASKS = 200  # that are drawn one by one
_BEFORE, _AFTER, _HELD_OUT = "#7f7f7f", "#0072b2", "#d55e00"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_RUNS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


class Curves(NamedTuple):
    """What the metrics of a run say.

    Attributes:
        name: of the run, as the user gave it.
        title: what was trained on what.
        trained_steps: adaptation steps during training; None of an agent with a memory.
        environment_steps: per seed, at each iteration `[iteration]`.
        before: mean return over training tasks before adaptation, of a memory in the first episode
            `[iteration, seed]`.
        after: the same after adaptation, of a memory in the last episode.
        held_out_steps: environment steps per seed at each evaluation `[evaluation]`.
        held_out: mean return over episodes `[seed, task, round]`, one array per evaluation.
        final: the last of them was the one at the end of training.
    """

    name: str
    title: str
    trained_steps: int | None
    environment_steps: Float[np.ndarray, "iteration"]
    before: Float[np.ndarray, "iteration seed"]
    after: Float[np.ndarray, "iteration seed"]
    held_out_steps: Float[np.ndarray, "evaluation"]
    held_out: list[Float[np.ndarray, "seed task round"]]
    final: bool


def load_curves(path: str | Path) -> Curves:
    """Return the curves of the run in `path`, also while it trains.

    Raises:
        MetajaxError: there is no run, or it has no metrics yet.
    """
    with open_run(path, lock=False) as run:
        config = run.config
        records = read_metrics(run.metrics) if run.metrics.exists() else []
    training = [record for record in records if "environment_steps" in record]
    if not training:
        raise MetajaxError(f"the run {path} has no metrics yet.")
    steps_per_iteration = training[0]["environment_steps"] / training[0]["iteration"]
    evaluations = [
        (record["iteration"], record[name], name == "final_held_out")
        for record in records
        for name in ("held_out", "final_held_out")
        if name in record
    ]

    def per_seed(name: str) -> np.ndarray:  # null becomes NaN
        return np.array([record[name] for record in training], np.float64)

    before, after = per_seed("return_before"), per_seed("return_after")
    name, family = (config.get(f"{what}_name") for what in ("algorithm", "family"))
    inner_steps = config.get("algorithm", {}).get("inner_steps", 1)
    steps_per_iteration /= after.shape[1]
    return Curves(
        name=str(path),
        title=f"{name} on {family}" if name else str(path),  # trained from Python, it has no names
        trained_steps=None if name in MEMORY_AGENTS else inner_steps,
        environment_steps=steps_per_iteration * np.array([r["iteration"] for r in training]),
        before=before,
        after=after,
        held_out_steps=steps_per_iteration * np.array([e[0] for e in evaluations]),
        held_out=[np.array(e[1], np.float64) for e in evaluations],
        final=bool(evaluations) and evaluations[-1][2],
    )


def plot_run(path: str | Path, output: str | Path) -> None:
    """Draw the learning curve of a run and, if it was evaluated, its last adaptation curve.

    Args:
        path: of the run directory.
        output: the picture; its suffix is one of `FORMATS`.

    Raises:
        MetajaxError: the run cannot be read or the picture cannot be written.
    """
    curves = load_curves(path)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        learning, adaptation = figure.subplots(1, 2, width_ratios=(3, 2))
        memory = curves.trained_steps is None
        early, late = "before adaptation", "after adaptation"
        if memory:
            early, late = "first episode", "last episode"
        _line(learning, curves.environment_steps, curves.before, _BEFORE, early)
        _line(learning, curves.environment_steps, curves.after, _AFTER, late)
        if curves.held_out:
            last = curves.held_out[0].shape[-1] - 1
            steps = last if curves.trained_steps is None else min(curves.trained_steps, last)
            summaries = [interquartile_mean(returns[:, :, steps]) for returns in curves.held_out]
            points = list(zip(curves.held_out_steps, summaries, strict=True))
            when = "in the last round" if memory else f"after {steps} step{'s' * (steps != 1)}"
            label = f"held-out tasks {when}"
            _intervals(learning, points, label, linestyle="none")
        _label_learning(learning, columns=2)
        learning.set_title(curves.title)
        _adaptation(adaptation, curves)
        _write(figure, output)


def plot_comparison(paths: Sequence[str | Path], output: str | Path) -> None:
    """Draw the learning curves of several runs into one picture.

    Args:
        paths: of the run directories.
        output: the picture; its suffix is one of `FORMATS`.

    Raises:
        MetajaxError: a run cannot be read or the picture cannot be written.
    """
    runs = [load_curves(path) for path in paths]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for index, curves in enumerate(runs):
            color = _RUNS[index % len(_RUNS)]
            _line(axes, curves.environment_steps, curves.after, color, curves.name)
            axes.plot(
                curves.environment_steps,
                curves.before.mean(axis=1),
                color=color,
                linestyle=":",
                linewidth=1,
            )
        _label_learning(axes, columns=1)
        when = {curves.trained_steps is None for curves in runs}
        shown = ["after adaptation (dotted: before)"] * (False in when)
        shown += ["last episode (dotted: first)"] * (True in when)
        note = f"{', '.join(shown)}; mean over seeds, band: lowest to highest"
        axes.set_title(note, loc="left", fontsize=9)
        _write(figure, output)


def _line(axes: Axes, x, values: Float[np.ndarray, "x seed"], color: str, label: str) -> None:
    """Draw the mean over seeds, and a band from the lowest to the highest seed."""
    axes.plot(x, values.mean(axis=1), color=color, linewidth=1.2, label=label)
    if values.shape[1] > 1:
        low, high = values.min(axis=1), values.max(axis=1)
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _intervals(axes: Axes, points, label: str, *, linestyle: str) -> None:
    """Draw `(x, Summary)` points as interquartile means with their intervals."""
    means = np.array([summary.mean for _, summary in points])
    below = [summary.mean - summary.low for _, summary in points]
    above = [summary.high - summary.mean for _, summary in points]
    axes.errorbar(
        [x for x, _ in points],
        means,
        yerr=np.maximum([below, above], 0),  # rounding
        color=_HELD_OUT,
        marker="o",
        markersize=4,
        linestyle=linestyle,
        linewidth=1.2,
        capsize=3,
        label=label,
    )


def _label_learning(axes: Axes, columns: int) -> None:
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps per seed")
    axes.set_ylabel("return per episode")
    _legend_below(axes, columns)


def _adaptation(axes: Axes, curves: Curves) -> None:
    axes.set_title("held-out tasks" + (", end of training" if curves.final else ""))
    axes.set_xlabel("rounds heard" if curves.trained_steps is None else "adaptation steps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not curves.held_out:
        axes.text(0.5, 0.5, "not evaluated yet", ha="center", transform=axes.transAxes)
        return
    returns = curves.held_out[-1]
    tasks = returns.reshape(-1, returns.shape[-1])
    rounds = np.arange(tasks.shape[1])
    shown = tasks[:: math.ceil(len(tasks) / _MOST_TASKS)]
    axes.plot(rounds, shown.T, color=_BEFORE, linewidth=0.5, alpha=min(0.5, 10 / len(shown)))
    summaries = adaptation_curve(returns[..., None])
    label = "interquartile mean and 95 % interval"
    _intervals(axes, list(enumerate(summaries)), label, linestyle="-")
    each = "each task" if len(shown) == len(tasks) else f"each of {len(shown)} tasks"
    axes.plot([], [], color=_BEFORE, linewidth=0.5, label=each)
    _legend_below(axes, columns=1)


def _legend_below(axes: Axes, columns: int) -> None:
    """Explain what is drawn where no curve can pass."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
    axes.legend(**place, ncols=columns, columnspacing=1.2)


def _write(figure: Figure, output: str | Path) -> None:
    if Path(output).suffix.lower() not in FORMATS:
        raise unknown("picture format", Path(output).suffix, FORMATS)
    try:
        figure.savefig(output, dpi=150)
    except OSError as error:
        raise MetajaxError(f"cannot write {output}: {error.strerror}.") from None
