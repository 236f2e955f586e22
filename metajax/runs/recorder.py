"""What a run leaves behind: metrics, TensorBoard events and checkpoints."""

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from tensorboardX import SummaryWriter

from metajax.errors import MetajaxError
from metajax.runs.checkpoint import Checkpointer, restore
from metajax.runs.directory import MetricsLog, RunDirectory, create_run, open_run, read_metrics
from metajax.runs.selection import Selection, ranked, scores

State = TypeVar("State")


class Progress(NamedTuple):
    """What `report` is given after every segment.

    Attributes:
        iteration: meta-iterations done, of `iterations`.
        iterations: in all.
        environment_steps: taken by all seeds so far, training only, padding included.
        steps_after: the same after each of this segment's iterations, `[iteration]`.
        steps_per_second: environment steps of this segment over its wall time, evaluation out.
        metrics: of this segment's iterations, `[iteration, seed]` each.
        discarded: updates discarded so far, per seed.
        returns: held-out returns `[seed, task, round, episode]` if this segment evaluated.
        environment_metrics: what the environment measured at the end of these episodes, by name
            (see `EnvState.metrics`), `[seed, task, round, episode]`.
        seconds_left: estimated.
        not_finite: what was not finite in the first update that this training discarded, by name,
            iteration and seed; None without any.
        validation: returns `[seed, task, round, episode]` on validation tasks, if this segment was
            scored by them.
        score: of these.
        selection: what the scores have come to.
    """

    iteration: int
    iterations: int
    environment_steps: int
    steps_after: np.ndarray
    steps_per_second: float
    metrics: dict[str, np.ndarray]
    discarded: np.ndarray
    returns: np.ndarray | None
    environment_metrics: Mapping[str, np.ndarray]
    seconds_left: float
    not_finite: str | None = None
    validation: np.ndarray | None = None
    score: float = -math.inf
    selection: Selection = Selection()


_RETURNS = (("return",), ("return_before", "return_after"))


def training_returns(metrics: Mapping[str, Any]) -> list[Any]:
    """Return the returns in training metrics: before and after adaptation, if it adapts.

    Args:
        metrics: of an update, or a record of them.

    Returns:
        One value or two; none of an algorithm that measures no returns.
    """
    names = next((names for names in _RETURNS if metrics.keys() >= {*names}), ())
    return [metrics[name] for name in names]


class Recorder(Protocol):
    """Where training reports to."""

    def restore(self, template: State) -> State | None:
        """Return the newest good checkpoint, as the template has it, or None if there is none."""
        ...

    def restore_best(self, template: State) -> tuple[Selection, State | None]:
        """Return what the scores up to there have come to, and the best agent's checkpoint.

        Call it after `restore`. If that checkpoint is lost, it is the best of those that are not.
        Nothing is read of it but what the template asks for.
        """
        ...

    def record(self, progress: Progress) -> None:
        """Write down a segment."""
        ...

    def is_rested(self) -> bool:
        """Return whether saving has taken little of the time since the last save began."""
        ...

    def save(self, iteration: int, state: Any, best: int | None) -> None:
        """Start saving `state`, and keep that of `best`; it is safe to donate it at once."""
        ...

    def record_final(
        self,
        iteration: int,
        returns: np.ndarray,
        environment_metrics: Mapping[str, np.ndarray],
        of_iteration: int,
    ) -> None:
        """Write down the final evaluation `[seed, task, round, episode]`, and whose it is."""
        ...


class _Nowhere:
    """Keeps nothing."""

    def restore(self, template):
        return None

    def restore_best(self, template):
        del template
        return Selection(), None

    def record(self, progress):
        pass

    def is_rested(self):
        return False

    def save(self, iteration, state, best):
        pass

    def record_final(self, iteration, returns, environment_metrics, of_iteration):
        pass


class _Directory:
    """Keeps everything in a run directory."""

    _log: MetricsLog
    _events: SummaryWriter

    def __init__(self, run: RunDirectory, checkpointer: Checkpointer, *, resume: bool):
        self._run, self._checkpointer, self._resume = run, checkpointer, resume
        self._opened = contextlib.ExitStack()

    def restore(self, template):
        iteration, state = -1, None
        if self._resume and self._checkpointer.latest_step() is not None:
            iteration, state = self._checkpointer.restore(template)
        elif self._resume and self._run.metrics.exists() and self._run.metrics.stat().st_size:
            superseded = self._run.metrics.with_name("metrics-before.jsonl")
            self._run.metrics.replace(superseded)
            print(
                f"{self._run.path} has no good checkpoint: starting over; what it had recorded is "
                f"kept in {superseded.name}.",
                file=sys.stderr,
            )
        self._log = self._opened.enter_context(MetricsLog(self._run.metrics, iteration=iteration))
        self._events = SummaryWriter(
            str(self._run.path / "tensorboard"), purge_step=iteration + 1 if self._resume else None
        )
        self._opened.callback(self._events.close)
        return state

    def restore_best(self, template):
        found = scores(read_metrics(self._run.metrics))
        with contextlib.suppress(MetajaxError):  # none is left: the best is yet to come
            order = ranked(found)
            best, state = restore(self._run.checkpoints, template, step=order, part=True)
            since = sum(iteration > best for iteration in found)
            return Selection(best, found[best], since), state
        return Selection(), None

    def record(self, progress):
        first = progress.iteration - len(progress.steps_after) + 1
        for iteration, steps in enumerate(progress.steps_after.tolist(), first):
            values = {name: m[iteration - first] for name, m in progress.metrics.items()}
            self._log.write(iteration, {"environment_steps": steps} | values)
            for name, value in values.items():
                self._events.add_scalar(f"train/{name}", np.mean(value), iteration)
        self._events.add_scalar(
            "train/steps_per_second", progress.steps_per_second, progress.iteration
        )
        if progress.returns is not None:
            measured = progress.environment_metrics
            self._record_evaluation(progress.iteration, progress.returns, measured, "held_out")
        if progress.validation is not None:
            score = {"score": progress.score}
            self._record_evaluation(
                progress.iteration, progress.validation, {}, "validation", **score
            )
            self._events.add_scalar("validation/score", progress.score, progress.iteration)

    def is_rested(self):
        return self._checkpointer.is_rested()

    def save(self, iteration, state, best):
        self._checkpointer.save(iteration, state, protect=() if best is None else (best,))

    def record_final(self, iteration, returns, environment_metrics, of_iteration):
        self._record_evaluation(
            iteration, returns, environment_metrics, "final_held_out", of_iteration=of_iteration
        )

    def _record_evaluation(self, iteration, returns, environment_metrics, name, **more):
        """Write the means per `[seed, task, round]`, of the return and of each metric."""
        per_task = {m: x.mean(axis=-1) for m, x in environment_metrics.items()}
        measured = {f"{name}/{metric}": values for metric, values in per_task.items()}
        self._log.write(iteration, {name: returns.mean(axis=-1), **measured, **more})
        for metric, values in {"return": returns.mean(axis=-1), **per_task}.items():
            for k, value in enumerate(values.mean(axis=(0, 1))):
                self._events.add_scalar(f"{name}/{metric}_after_{k}_steps", value, iteration)

    def close(self):
        self._opened.close()


@contextlib.contextmanager
def open_recorder(
    path: str | Path | None, config: Mapping[str, Any] | None, *, resume: bool
) -> Iterator[Recorder]:
    """Open a new run directory, or an old one to resume; leaving waits for the last save.

    Args:
        path: of the run directory; None keeps nothing.
        config: kept with a new run.
        resume: the directory holds a run to go on with.

    Raises:
        MetajaxError: the directory cannot be used.
    """
    if path is None:
        if resume:
            raise MetajaxError("there is no run directory to resume from.")
        yield _Nowhere()
        return
    with open_run(path, lock=True) if resume else create_run(path, config or {}) as run:
        checkpointer = Checkpointer(run.checkpoints)
        recorder = _Directory(run, checkpointer, resume=resume)
        with contextlib.closing(checkpointer), contextlib.closing(recorder):
            yield recorder
