"""Returns as the command line shows them: a progress line's course, an evaluation's tables."""

from collections.abc import Sequence

import numpy as np
import rich.box
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from metajax.envs.splits import Split, number_of_tasks
from metajax.evaluation import (
    adaptation_curve,
    has_memory,
    hurtful_steps,
    iqm,
    resampled_over,
    trial_total,
)
from metajax.types import Algorithm, TaskDistribution, TaskFamily

FEW_TASKS = 6  # that have a row each
FEW_ROUNDS = 8  # that have a column each

_TASKS: dict[Split, str] = {
    "train": "training task",
    "test": "held-out task",
    "validation": "validation task",
    "extrapolate": "extrapolation task",
}

Returns = Float[np.ndarray, "seed task round episode"]


def plural(count: int, noun: str) -> str:
    """Return "1 task" or "2 tasks"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def course(*returns: float, digits: int | None = None) -> str:
    """Return numbers that follow one another as "-1.0 -> 2.5", all with the same digits."""
    digits = decimals(*returns) if digits is None else digits
    return " -> ".join(f"{x:.{digits}f}" for x in returns)


def decimals(*returns: float) -> int:
    """Return how many tell numbers of this size apart: a pull of an arm pays 0 or 1."""
    return 1 if any(abs(x) >= 10 for x in returns) else 2


def held_out_course(returns: Returns, *, joint: bool) -> str:
    """Return how held-out tasks went: interquartile means, and means where those hide them.

    Args:
        returns: of an evaluation.
        joint: nothing adapted in training: what follows the first round is fine-tuning.
    """
    per_task = np.asarray(returns, np.float64).mean(axis=3)
    rounds = np.moveaxis(per_task, 2, 0).reshape(per_task.shape[2], -1)
    finite = [values[np.isfinite(values)] for values in rounds]
    middles = [iqm(values) for values in rounds]
    text = course(*middles)
    if joint and len(middles) > 1:
        digits = decimals(*middles)
        text = f"{middles[0]:.{digits}f}, fine-tuned {course(*middles[1:], digits=digits)}"
    if any(map(_mean_is_elsewhere, finite)):
        text += f" (mean {course(*_finite_mean(rounds.T))})"
    if missing := rounds.shape[1] - min(map(len, finite)):
        text += f", {missing} of {plural(rounds.shape[1], 'task')} not finite"
    return text


def _mean_is_elsewhere(values: Float[np.ndarray, "task"]) -> bool:
    """Return whether the mean lies outside of the middle half, of which the other one is."""
    if not values.size:
        return False
    low, high = np.quantile(values, (0.25, 0.75))
    slack = 1e-9 * np.abs(values).max()  # rounding, where all are equal
    return not low - slack <= values.mean() <= high + slack


def curve_text(
    returns: Returns, acting: str, algorithm: Algorithm, family: TaskFamily, split: Split
) -> str:
    """Return an evaluation as text: the adaptation curve, means of seeds and tasks, and warnings.

    Args:
        returns: from `evaluate`, of every seed.
        acting: how actions were chosen.
        algorithm: that trained the agents.
        family: its `test` are the tasks of `returns`.
        split: which these are.
    """
    seeds, tasks, _, episodes = returns.shape
    different = number_of_tasks(family.test)
    each = f" ({tasks // different} of each)" if 0 < different <= tasks else ""
    memory = has_memory(algorithm.agent)
    learned = "adaptation steps"
    if memory or algorithm.joint:
        learned = "rounds heard" if memory else "fine-tuning steps"
    curve = adaptation_curve(returns)
    digits = decimals(*(summary.mean for summary in curve))
    paragraphs = [
        f"Return with {acting} actions ({plural(seeds, 'seed')} x "
        f"{plural(tasks, _TASKS[split])}{each} x {plural(episodes, 'episode')})"
    ]
    table = _table(learned, "interquartile mean", f"95 % interval\n{resampled_over(seeds)}", "mean")
    for k, summary in enumerate(curve):
        low, high = (f"{x:.{digits}f}" for x in (summary.low, summary.high))
        middle, mean = (f"{x:.{digits}f}" for x in (summary.iqm, summary.mean))
        table.add_row(str(k), middle, f"{low} ... {high}", mean)
    paragraphs.append(_drawn(table))
    if parts := _parts(returns, family):
        paragraphs.append(_parts_text(parts, f"mean by {learned}", digits))
    for k, summary in enumerate(curve):
        if summary.not_finite:
            paragraphs.append(
                f"{learned} {k}: the return of {summary.not_finite} of "
                f"{plural(seeds * tasks, 'task')} is not finite; all numbers are of the others."
            )
    if memory:
        paragraphs.append(_trial_total_text(returns, digits))
    # One task's interval is a point, that proves nothing.
    if tasks > 1 and (hurtful := hurtful_steps(curve)):
        paragraphs.append(_hurt(returns, hurtful, algorithm))
    return "\n".join(paragraphs)


def _table(*columns: str) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _drawn(table: Table) -> str:
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def _parts_text(parts: Sequence[tuple[str, np.ndarray]], title: str, digits: int) -> str:
    rounds = len(parts[0][1])
    shown = np.unique(np.linspace(0, rounds - 1, min(rounds, FEW_ROUNDS)).round().astype(int))
    table = _table(title, *map(str, shown))
    for name, means in parts:
        table.add_row(name, *(f"{means[k]:.{digits}f}" for k in shown))
    return _drawn(table)


def _parts(returns: Returns, family: TaskFamily) -> list[tuple[str, np.ndarray]]:
    """Return the means `[round]` of each of several seeds, and of each of few tasks, with names."""
    per_task = np.asarray(returns, np.float64).mean(axis=3)
    parts = []
    if len(returns) > 1:
        parts += [(f"seed {i}", _finite_mean(of_seed)) for i, of_seed in enumerate(per_task)]
    names = task_names(family.test)
    if names and per_task.shape[1] % len(names) == 0:  # tasks come in their order
        for name, of_task in zip(names, np.split(per_task, len(names), axis=1), strict=True):
            parts.append((name, _finite_mean(of_task.reshape(-1, of_task.shape[2]))))
    return parts


def _finite_mean(values: Float[np.ndarray, "sample part"]) -> Float[np.ndarray, "part"]:
    """Return the mean over the first axis of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0.0).sum(axis=0)
    return np.where(finite.any(axis=0), total / np.maximum(finite.sum(axis=0), 1), np.nan)


def task_names(distribution: TaskDistribution) -> list[str]:
    """Return what tells few tasks apart, by their own parameters if these are short.

    Args:
        distribution: of tasks.

    Returns:
        Names in the order of the tasks; none if there are more than `FEW_TASKS`, or only one.
    """
    count = number_of_tasks(distribution)
    if not 1 < count <= FEW_TASKS:
        return []
    tasks = distribution.finite if isinstance(distribution.finite, dict) else {}
    known = {
        name: np.asarray(values)
        for name, values in tasks.items()
        if name != "index" and np.issubdtype(values.dtype, np.number)
    }

    def named(index: int) -> str:
        texts = []
        for name, values in known.items():
            numbers = ", ".join(f"{x:g}" for x in np.ravel(values[index]))
            texts.append(f"{name}=({numbers})" if "," in numbers else f"{name}={numbers}")
        return ", ".join(texts)

    names = [named(index) for index in range(count)]
    if len(set(names)) == count and max(map(len, names)) <= 30:
        return names
    return [f"task {index}" for index in range(count)]


def _trial_total_text(returns: Returns, digits: int) -> str:
    """Return what is said of the total reward of a trial, in which agents with a memory live."""
    seeds, _, rounds, episodes = returns.shape
    total = trial_total(returns)
    text = (
        f"Total reward of a trial ({plural(rounds * episodes, 'episode')}): mean "
        f"{total.mean:.{digits}f}, interquartile mean {total.iqm:.{digits}f}, 95 % interval "
        f"{total.low:.{digits}f} ... {total.high:.{digits}f} {resampled_over(seeds)}"
    )
    if seeds > 1:
        of_seeds = _finite_mean(returns.sum(axis=(2, 3)).T)
        text += "; means of the seeds " + ", ".join(f"{x:.{digits}f}" for x in of_seeds)
    return text


def _hurt(returns: Returns, hurtful: Sequence[int], algorithm: Algorithm) -> str:
    """Return what is said where adaptation hurts beyond doubt after the steps `hurtful`."""
    steps = ", ".join(map(str, hurtful)) + (" step" if hurtful == [1] else " steps")
    before, after = (returns[:, :, k].mean(-1) for k in (0, hurtful[0]))
    worse = np.mean(~(after >= before))  # what is not finite is no better
    return (
        f"{'Fine-tuning' if algorithm.joint else 'Adaptation'} hurts: the return after {steps} is "
        f"below that before; after {hurtful[0]} on {worse:.0%} of the tasks."
        + ("" if has_memory(algorithm.agent) else " A smaller inner learning rate may help.")
    )
