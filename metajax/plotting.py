"""Pictures of runs: learning curves and adaptation curves, drawn to files."""

import math
import textwrap
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
from metajax.presets import MEMORY_AGENTS
from metajax.runs.directory import open_run, read_metrics
from metajax.runs.recorder import training_returns
from metajax.training.evaluation import adaptation_curve, interquartile_mean, resampled_over

FORMATS = (".png", ".pdf", ".svg")

_MOST_TASKS = 200  # that are drawn one by one
_MOST_COLUMNS = 3  # of panels
_BEFORE, _AFTER, _HELD_OUT = "#7f7f7f", "#0072b2", "#d55e00"
# Okabe and Ito's colours, which colour-blind readers can distinguish.
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
        family: that it was trained on; None of a run from Python, which has no names.
        title: what was trained on what.
        joint: nothing adapted in training; `before` and `after` are the same.
        trained_steps: adaptation steps during training; None of an agent with a memory.
        environment_steps: per seed, at each iteration `[iteration]`.
        before: mean return over training tasks before adaptation, of a memory in the first episode
            `[iteration, seed]`.
        after: the same after adaptation, of a memory in the last episode.
        held_out_steps: environment steps per seed at each evaluation `[evaluation]`.
        held_out: mean return over episodes `[seed, task, round]`, one array per evaluation.
        measured: the same of each of the environment's metrics, by name.
        final: the last of them was the one at the end of training.
        best: it was of an earlier agent, the best.
    """

    name: str
    family: str | None
    title: str
    joint: bool
    trained_steps: int | None
    environment_steps: Float[np.ndarray, "iteration"]
    before: Float[np.ndarray, "iteration seed"]
    after: Float[np.ndarray, "iteration seed"]
    held_out_steps: Float[np.ndarray, "evaluation"]
    held_out: list[Float[np.ndarray, "seed task round"]]
    measured: dict[str, list[Float[np.ndarray, "seed task round"]]]
    final: bool
    best: bool = False


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
    evaluations = [
        (record, name)
        for record in records
        for name in ("held_out", "final_held_out")
        if name in record
    ]
    iterations_of = [r.get("of_iteration", r["iteration"]) for r, _ in evaluations]
    # A run that an earlier version began may lack them in its first evaluations.
    names = [{key.partition("/")[2] for key in r if "/" in key} for r, _ in evaluations]
    metrics = sorted(set.intersection(*names)) if names else []

    returns = [training_returns(record) for record in training]  # null becomes NaN
    if not all(returns):
        raise MetajaxError(
            f'the run {path} has no curve to draw: its algorithm measures no "return", nor '
            '"return_before" and "return_after".'
        )
    before, after = (np.array([found[when] for found in returns], np.float64) for when in (0, -1))
    # Runs from before joint training had a metric of its own wrote the same number twice.
    joint = all(len(found) == 1 or found[0] == found[1] for found in returns)
    name, family = (config.get(f"{what}_name") for what in ("algorithm", "family"))
    options = config.get("algorithm", {})
    # PEARL's agents draw on their posterior from this episode on.
    trained = options.get("inner_steps", options.get("exploration_episodes", 1))
    inner_steps = 0 if joint else trained
    iterations = [record["iteration"] for record in training]
    steps = np.array([record["environment_steps"] for record in training]) / after.shape[1]
    steps_at = lambda at: np.interp(at, [0, *iterations], [0.0, *steps])
    return Curves(
        name=str(path),
        family=family,
        title=f"{name} on {family}" if name else str(path),  # trained from Python, it has no names
        joint=joint,
        trained_steps=None if name in MEMORY_AGENTS else inner_steps,
        environment_steps=steps,
        before=before,
        after=after,
        held_out_steps=steps_at(iterations_of),
        held_out=[np.array(record[name], np.float64) for record, name in evaluations],
        measured={
            metric: [
                np.array(record[f"{name}/{metric}"], np.float64) for record, name in evaluations
            ]
            for metric in metrics
        },
        final=bool(evaluations) and evaluations[-1][1] == "final_held_out",
        best=bool(evaluations) and iterations_of[-1] < training[-1]["iteration"],
    )


def plot_run(path: str | Path, output: str | Path) -> None:
    """Draw the learning curve of a run and, if it was evaluated, its last adaptation curve.

    What the environment measures has a row of its own, of held-out tasks alone.

    Args:
        path: of the run directory.
        output: the picture; its suffix is one of `FORMATS`.

    Raises:
        MetajaxError: the run cannot be read or the picture cannot be written.
    """
    curves = load_curves(path)
    with matplotlib.rc_context(_STYLE):
        rows = 1 + len(curves.measured)
        figure = Figure(figsize=(9, 4 * rows), layout="constrained")
        panels = figure.subplots(rows, 2, width_ratios=(3, 2), squeeze=False)
        learning, adaptation = panels[0]
        early, late = _names_of(curves)
        if not curves.joint:
            _line(learning, curves.environment_steps, curves.before, _BEFORE, early)
        _line(learning, curves.environment_steps, curves.after, _AFTER, late)
        _held_out(learning, curves, curves.held_out)
        _label_learning(learning, "return per episode", columns=2)
        learning.set_title(_wrapped(curves.title, 60))
        _adaptation(adaptation, curves, curves.held_out)
        for (course, adaptation), (name, values) in zip(
            panels[1:], curves.measured.items(), strict=True
        ):
            _held_out(course, curves, values)
            _label_learning(course, f"{name} at an episode's end", columns=2)
            _adaptation(adaptation, curves, values)
        _write(figure, output)


def _held_out(
    axes: Axes, curves: Curves, values: Sequence[Float[np.ndarray, "seed task round"]]
) -> None:
    """Draw what agents come to on held-out tasks after as many steps as they are trained for."""
    if not values:
        return
    last = values[0].shape[-1] - 1
    steps = last if curves.trained_steps is None else min(curves.trained_steps, last)
    summaries = [interquartile_mean(each[:, :, steps]) for each in values]
    points = list(zip(curves.held_out_steps, summaries, strict=True))
    when = f" after {steps} step{'s' * (steps != 1)}"
    if curves.joint or curves.trained_steps is None:
        when = "" if curves.joint else " in the last round"
    _intervals(axes, points, f"held-out tasks{when}", linestyle="none")


def _names_of(curves: Curves) -> tuple[str, str]:
    """Return what `before` and `after` are the returns of."""
    if curves.joint:
        return "return without adaptation", "return without adaptation"
    if curves.trained_steps is None:
        return "first episode", "last episode"
    return "before adaptation", "after adaptation"


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width)


def plot_comparison(paths: Sequence[str | Path], output: str | Path) -> None:
    """Draw the learning curves of several runs into one picture, with a panel for each family.

    Args:
        paths: of the run directories; one that is named twice is drawn once.
        output: the picture; its suffix is one of `FORMATS`.

    Raises:
        MetajaxError: a run cannot be read or the picture cannot be written.
    """
    once: dict[Path, str | Path] = {}
    for path in paths:
        once.setdefault(Path(path).resolve(), path)
    runs = [load_curves(path) for path in once.values()]
    families = list(dict.fromkeys(curves.family for curves in runs))
    columns = min(len(families), _MOST_COLUMNS)
    rows = math.ceil(len(families) / columns)
    with matplotlib.rc_context(_STYLE):
        width = 7 if columns == 1 else 5 * columns
        figure = Figure(figsize=(width, 4 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, family in zip(panels, families, strict=False):
            _compare(axes, [curves for curves in runs if curves.family == family])
            if family is not None:
                axes.set_title(family)
        for axes in panels[len(families) :]:
            axes.remove()
        lines = dict.fromkeys(map(_names_of, runs))
        shown = [f"{late} (dotted: {early})" if early != late else late for early, late in lines]
        note = f"{', '.join(shown)}; mean over seeds, band: lowest to highest"
        figure.suptitle(_wrapped(note, round(13 * width)), fontsize=9)
        _write(figure, output)


def _compare(axes: Axes, runs: Sequence[Curves]) -> None:
    """Draw the learning curves of runs on one family."""
    for index, curves in enumerate(runs):
        color = _RUNS[index % len(_RUNS)]
        _line(axes, curves.environment_steps, curves.after, color, _wrapped(curves.name, 60))
        if not curves.joint:
            before = curves.before.mean(axis=1)
            style: Any = {"color": color, "linestyle": ":", "linewidth": 1}
            axes.plot(curves.environment_steps, before, **style)
    _label_learning(axes, "return per episode", columns=1)


def _line(axes: Axes, x, values: Float[np.ndarray, "x seed"], color: str, label: str) -> None:
    """Draw the mean over seeds, and a band from the lowest to the highest seed."""
    axes.plot(x, values.mean(axis=1), color=color, linewidth=1.2, label=label)
    if values.shape[1] > 1:
        low, high = values.min(axis=1), values.max(axis=1)
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _intervals(axes: Axes, points, label: str, *, linestyle: str) -> None:
    """Draw `(x, Summary)` points as interquartile means with their intervals."""
    means = np.array([summary.iqm for _, summary in points])
    below = [summary.iqm - summary.low for _, summary in points]
    above = [summary.high - summary.iqm for _, summary in points]
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


def _label_learning(axes: Axes, what: str, columns: int) -> None:
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps per seed")
    axes.set_ylabel(what)
    _legend_below(axes, columns)


def _adaptation(
    axes: Axes, curves: Curves, values: Sequence[Float[np.ndarray, "seed task round"]]
) -> None:
    """Draw the last evaluation's adaptation curve."""
    whose = ", best agent" if curves.best else ", end of training"
    axes.set_title("held-out tasks" + (whose if curves.final else ""))
    learned = "fine-tuning steps" if curves.joint else "adaptation steps"
    axes.set_xlabel("round of the trial" if curves.trained_steps is None else learned)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not values:
        axes.text(0.5, 0.5, "not evaluated yet", ha="center", transform=axes.transAxes)
        return
    returns = values[-1]
    tasks = returns.reshape(-1, returns.shape[-1])
    rounds = np.arange(tasks.shape[1])
    shown = tasks[:: math.ceil(len(tasks) / _MOST_TASKS)]
    points: Any = {} if len(rounds) > 1 else {"marker": "."}  # a line of one point is nothing
    style: Any = {"color": _BEFORE, "linewidth": 0.5} | points
    axes.plot(rounds, shown.T, alpha=min(0.5, 10 / len(shown)), **style)
    summaries = adaptation_curve(returns[..., None])
    label = f"interquartile mean,\n95 % interval {resampled_over(len(returns))}"
    if missing := max(summary.not_finite for summary in summaries):
        label += f"\n({missing} of {len(tasks)} tasks not finite, left out)"
    _intervals(axes, list(enumerate(summaries)), label, linestyle="-")
    margin = 0.05 * rounds[-1] + (0.05 if len(rounds) > 1 else 0.5)
    axes.set_xlim(-margin, rounds[-1] + margin)  # also where nothing is finite
    each = "each task" if len(shown) == len(tasks) else f"each of {len(shown)} tasks"
    axes.plot([], [], label=each, **style)
    _legend_below(axes, columns=1)


def _legend_below(axes: Axes, columns: int) -> None:
    """Explain what is drawn where no curve can pass."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
    axes.legend(**place, ncols=columns, columnspacing=1.2)


def _write(figure: Figure, output: str | Path) -> None:
    if Path(output).suffix.lower() not in FORMATS:
        raise unknown("picture format", Path(output).suffix, FORMATS)
    output = Path(output)
    partial = output.with_name(f".{output.name}")  # an interruption leaves no half a picture
    try:
        figure.savefig(partial, dpi=150, format=output.suffix[1:].lower())
        partial.replace(output)
    except OSError as error:
        raise MetajaxError(f"cannot write {output}: {error.strerror}.") from None
