"""What the command line shows: what runs on what, tables of returns, the commands that follow."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import rich.box
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from metajax import presets
from metajax._alarms import without_alarms
from metajax._text import decimals, plural
from metajax._version import __version__
from metajax.envs.splits import Split, number_of_tasks
from metajax.shutdown import graceful_shutdown
from metajax.training.evaluation import (
    adaptation_curve,
    finite_mean,
    has_memory,
    hurtful_steps,
    resampled_over,
    trial_total,
)
from metajax.training.progress import reporter
from metajax.types import Algorithm, TaskDistribution, TaskFamily

SAMPLED, DETERMINISTIC = "sampled", "deterministic"  # actions
FEW_TASKS = 6  # that have a row each
FEW_ROUNDS = 8  # that have a column each

_TASKS: dict[Split, str] = {
    "train": "training task",
    "test": "held-out task",
    "validation": "validation task",
    "extrapolate": "extrapolation task",
}

Returns = Float[np.ndarray, "seed task round episode"]


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
    curve = adaptation_curve(returns)
    learned, labels = _labels(algorithm, len(curve), episodes)
    digits = decimals(*(summary.mean for summary in curve))
    paragraphs = [
        f"Return with {acting} actions ({plural(seeds, 'seed')} x "
        f"{plural(tasks, _TASKS[split])}{each} x {plural(episodes, 'episode')})"
    ]
    table = _table(learned, "interquartile mean", f"95 % interval\n{resampled_over(seeds)}", "mean")
    for label, summary in zip(labels, curve, strict=True):
        low, high = (f"{x:.{digits}f}" for x in (summary.low, summary.high))
        iqm, mean = (f"{x:.{digits}f}" for x in (summary.iqm, summary.mean))
        table.add_row(label, iqm, f"{low} ... {high}", mean)
    paragraphs.append(_drawn(table))
    if parts := _parts(returns, family):
        paragraphs.append(_parts_text(parts, f"mean by {learned}", labels, digits))
    for label, summary in zip(labels, curve, strict=True):
        if summary.not_finite:
            paragraphs.append(
                f"{learned} {label}: the return of {summary.not_finite} of "
                f"{plural(seeds * tasks, 'task')} is not finite; all numbers are of the others."
            )
    if memory:
        paragraphs.append(_trial_total_text(returns, digits))
    # One task's interval is a point, that proves nothing.
    if tasks > 1 and (hurtful := hurtful_steps(curve)):
        paragraphs.append(_hurt(returns, hurtful, algorithm))
    return "\n".join(paragraphs)


def metrics_text(metrics: dict[str, Returns], algorithm: Algorithm) -> str:
    """Return the means of what the environment measures after the last step of an episode.

    Args:
        metrics: by name, `[seed, task, round, episode]`.
        algorithm: whose agents they are.
    """
    _, _, rounds, episodes = next(iter(metrics.values())).shape
    learned, labels = _labels(algorithm, rounds, episodes)
    parts = [
        (name, finite_mean(values.mean(axis=3).reshape(-1, rounds)))
        for name, values in metrics.items()
    ]
    return _parts_text(parts, f"mean at an episode's end by {learned}", labels, digits=3)


def _labels(algorithm: Algorithm, rounds: int, episodes: int) -> tuple[str, list[str]]:
    """Return what the rounds of an evaluation count, and the label of each.

    Agents with a memory adapt in every episode of a trial, others between rounds.
    """
    if has_memory(algorithm.agent):
        firsts = range(1, rounds * episodes + 1, episodes)
        span = lambda first: f"{first}" if episodes == 1 else f"{first}-{first + episodes - 1}"
        return "episode of the trial", [span(first) for first in firsts]
    return f"{'fine-tuning' if algorithm.joint else 'adaptation'} steps", [*map(str, range(rounds))]


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


def _parts_text(
    parts: Sequence[tuple[str, np.ndarray]], title: str, labels: Sequence[str], digits: int
) -> str:
    rounds = len(labels)
    shown: list[int] = np.unique(
        np.linspace(0, rounds - 1, min(rounds, FEW_ROUNDS)).round().astype(int)
    ).tolist()
    table = _table(title, *(labels[k] for k in shown))
    for name, means in parts:
        table.add_row(name, *(f"{means[k]:.{digits}f}" for k in shown))
    return _drawn(table)


def _parts(returns: Returns, family: TaskFamily) -> list[tuple[str, np.ndarray]]:
    """Return the means `[round]` of each of several seeds, and of each of few tasks, with names."""
    per_task = np.asarray(returns, np.float64).mean(axis=3)
    parts = []
    if len(returns) > 1:
        parts += [(f"seed {i}", finite_mean(of_seed)) for i, of_seed in enumerate(per_task)]
    names = task_names(family.test)
    if names and per_task.shape[1] % len(names) == 0:  # tasks come in their order
        for name, of_task in zip(names, np.split(per_task, len(names), axis=1), strict=True):
            parts.append((name, finite_mean(of_task.reshape(-1, of_task.shape[2]))))
    return parts


def task_names(distribution: TaskDistribution) -> list[str]:
    """Return names of a few tasks, made of their own parameters if these are short.

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
        if np.issubdtype(values.dtype, np.number)
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
    """Return the line about the total reward of a trial, which agents with a memory maximize."""
    seeds, _, rounds, episodes = returns.shape
    total = trial_total(returns)
    text = (
        f"Total reward of a trial ({plural(rounds * episodes, 'episode')}): mean "
        f"{total.mean:.{digits}f}, interquartile mean {total.iqm:.{digits}f}, 95 % interval "
        f"{total.low:.{digits}f} ... {total.high:.{digits}f} {resampled_over(seeds)}"
    )
    if seeds > 1:
        of_seeds = finite_mean(returns.sum(axis=(2, 3)).T)
        text += "; means of the seeds " + ", ".join(f"{x:.{digits}f}" for x in of_seeds)
    return text


def _hurt(returns: Returns, hurtful: Sequence[int], algorithm: Algorithm) -> str:
    """Return the warning that adaptation hurts beyond doubt after the steps `hurtful`."""
    steps = ", ".join(map(str, hurtful)) + (" step" if hurtful == [1] else " steps")
    before, after = (returns[:, :, k].mean(-1) for k in (0, hurtful[0]))
    worse = np.mean(~(after >= before))  # what is not finite is no better
    return (
        f"{'Fine-tuning' if algorithm.joint else 'Adaptation'} hurts: the return after {steps} is "
        f"below that before; after {hurtful[0]} on {worse:.0%} of the tasks."
        + ("" if has_memory(algorithm.agent) else " A smaller inner learning rate may help.")
    )


_ENGINES = {
    "jax": "pure JAX",
    "mjx": "MJX, MuJoCo in JAX",
    "warp": "MuJoCo Warp",
    "spring": "Brax spring",
    "positional": "Brax positional",
    "generalized": "Brax generalized",
}


def what_runs(
    config: presets.Config, experiment: presets.Experiment, *, resume: bool
) -> tuple[str, str]:
    """Return what is about to run on what, and why there."""
    backend = experiment.family.backend
    devices = jax.devices()
    used = config["training"]["devices"]
    kind = "CPU" if devices[0].platform == "cpu" else devices[0].device_kind
    program = (
        f"metajax {__version__}: {config['algorithm_name']} on {experiment.family.name}, "
        f"JAX {jax.__version__} on {plural(used, f'{kind} device')}"
        + (f" of {len(devices)}" if len(devices) > used else "")
    )
    engine = _ENGINES.get(backend, backend)
    if backend == "mujoco":
        engine = f"C MuJoCo on {plural(os.cpu_count() or 1, 'thread')}"
    if backend == "warp" and devices[0].platform == "cpu":
        engine += ", slow on a CPU"
    if backend == "jax":
        return program, f"physics: none ({engine})"
    found = "no accelerator" if devices[0].platform == "cpu" else devices[0].device_kind
    asked = config["family"].get("backend", backend) != "auto"  # where a family has but one engine
    why = "as before" if resume else "as asked for" if asked else f"{found} found"
    return program, f'physics: {engine} (backend "{backend}": {why})'


def command(*words: object) -> str:
    """Return a command as it is typed."""
    return shlex.join(["metajax", *map(str, words)])


def on_run(name: str, directory: Path, config: presets.Config, *words: object) -> str:
    """Return a command on a run, with permission to import what the run is made of."""
    modules = presets.modules_of(config)
    permission = ["--allow-import", ",".join(modules)] if modules else []
    return command(name, directory, *words, *permission)


@contextlib.contextmanager
def at_work(what: str) -> Iterator[None]:
    """Show what is going on and for how long; a signal ends the process at once."""
    progress = reporter("print")

    def farewell(name: str) -> None:
        progress.close()
        print(f"{name}: stopped.", file=sys.stderr, flush=True)

    with without_alarms(), graceful_shutdown() as shutdown, shutdown.at_once(farewell):
        progress.stage(what)
        try:
            yield
        finally:
            progress.close()
