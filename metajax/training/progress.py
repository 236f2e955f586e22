"""Progress as text: one live line on a terminal, lines now and then elsewhere."""

import threading
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Display

from metajax._text import count, course, decimals, duration, plural, show
from metajax.runs.recorder import Progress, training_returns
from metajax.training.evaluation import finite_mean, iqm

Report = Callable[[Progress], None] | Literal["print"] | None

SECONDS_BETWEEN_LINES = 5.0  # of progress, where stdout is no terminal
SECONDS_OF_SILENCE = 10.0  # in a stage, there


class Reporter(NamedTuple):
    """What is called while something takes its time.

    - `stage(text, done=0, total=0, quiet=False)`: what is going on from now on, and how much
      of it is over; `quiet` where a refusal may be all that is to be read: no line before it has
      taken long;
    - `note(text)`: a line that stays;
    - `segment(progress)`: a segment of training is over;
    - `close()`: everything is over, and the terminal is to be as before; may be called twice.
    """

    stage: Callable[..., None]
    note: Callable[[str], None]
    segment: Callable[[Progress], None]
    close: Callable[[], None]


def reporter(report: Report) -> Reporter:
    """Return the reporter that `train`'s argument of that name asks for.

    Args:
        report: "print" for text on stdout; a function that is called after every segment, and
            nothing else; None for silence.
    """
    if report == "print":
        console = Console(highlight=False)
        return _live(console) if console.is_terminal else _lines()
    nothing = lambda *_, **__: None
    return Reporter(nothing, nothing, report or nothing, nothing)


def _lines() -> Reporter:
    start_clock, stop_clock = _clock(
        SECONDS_OF_SILENCE, lambda text, seconds: show(f"{text}: {duration(seconds)}")
    )
    current, last_line = "", 0.0

    def is_time() -> bool:
        nonlocal last_line
        now = time.monotonic()
        if now - last_line < SECONDS_BETWEEN_LINES:
            return False
        last_line = now
        return True

    def stage(text: str, done: int = 0, total: int = 0, quiet: bool = False) -> None:
        nonlocal current
        if text != current:
            current = text
            if not quiet:
                show(f"{text} ...")
            start_clock(text)
        elif is_time():
            stop_clock()  # these lines take its place
            show(f"{text}: {done} of {total}")

    def segment(progress: Progress) -> None:
        stop_clock()
        if is_time() or progress.iteration == progress.iterations:
            show(f"{progress.iteration}/{progress.iterations}: {status(progress)}")
        if progress.returns is not None:
            show(held_out(progress))
        if progress.validation is not None:
            show(validated(progress))

    return Reporter(stage, show, segment, stop_clock)


def _live(console: Console) -> Reporter:
    columns = TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[status]}")
    display = Display(*columns, console=console)
    line = display.add_task("", total=None, status="")
    start_clock, stop_clock = _clock(
        1.0, lambda _, seconds: display.update(line, status=duration(seconds))
    )
    current = ""

    def stage(text: str, done: int = 0, total: int = 0, quiet: bool = False) -> None:
        nonlocal current
        display.live.transient = quiet
        display.start()
        if text != current:
            current = text
            display.update(line, status="")
            start_clock(text)
        display.update(line, description=text, total=total or None, completed=done)

    def segment(progress: Progress) -> None:
        stop_clock()
        display.start()
        display.update(
            line,
            description=f"{progress.iteration}/{progress.iterations}",
            total=progress.iterations,
            completed=progress.iteration,
            status=status(progress),
        )
        if progress.returns is not None:
            console.print(held_out(progress))
        if progress.validation is not None:
            console.print(validated(progress))

    def close() -> None:
        stop_clock()
        display.stop()

    return Reporter(stage, console.print, segment, close)


def _clock(
    interval: float, display: Callable[[str, float], None]
) -> tuple[Callable[[str], None], Callable[[], None]]:
    """Return `start(text)`, whose thread calls `display(text, seconds)` now and then, and `stop`.

    A thread of its own: compiling holds the one that started it.
    """
    over = threading.Event()

    def run(text: str, over: threading.Event) -> None:
        start = time.monotonic()
        while not over.wait(interval):
            display(text, time.monotonic() - start)

    def start(text: str) -> None:
        nonlocal over
        over.set()
        over = threading.Event()
        threading.Thread(target=run, args=(text, over), daemon=True).start()

    return start, lambda: over.set()


def status(progress: Progress) -> str:
    """Return the numbers of a progress line."""
    parts = [
        f"{count(progress.environment_steps)} steps",
        f"{count(progress.steps_per_second)}/s",
    ]
    # An algorithm from elsewhere may measure other things.
    if returns := [values.mean() for values in training_returns(progress.metrics)]:
        parts.append(f"return {course(*returns)}")
    parts.append(f"{duration(progress.seconds_left)} left")
    if discarded := int(progress.discarded.sum()):
        why = f" (first {progress.not_finite})" if progress.not_finite else ""
        parts.append(f"{plural(discarded, 'update')} discarded{why}")
    return ", ".join(parts)


def held_out(progress: Progress) -> str:
    """Return the line about a segment's evaluation."""
    assert progress.returns is not None
    returns = held_out_course(progress.returns, joint=len(training_returns(progress.metrics)) == 1)
    return f"held-out tasks after {plural(progress.iteration, 'iteration')}: {returns}"


def validated(progress: Progress) -> str:
    """Return the line about a segment's validation: its score, and which agent is the best."""
    best = progress.selection
    digits = decimals(progress.score, best.score)
    after = plural(progress.iteration, "iteration")
    text = f"validation tasks after {after}: {progress.score:.{digits}f}"
    if best.iteration == progress.iteration:
        return f"{text}, the best so far"
    return f"{text}, best {best.score:.{digits}f} after {best.iteration}"


def held_out_course(returns: Float[np.ndarray, "seed task round episode"], *, joint: bool) -> str:
    """Return the returns on held-out tasks: interquartile means, and means where those hide them.

    Args:
        returns: of an evaluation.
        joint: nothing adapted in training: what follows the first round is fine-tuning.
    """
    per_task = np.asarray(returns, np.float64).mean(axis=3)
    rounds = np.moveaxis(per_task, 2, 0).reshape(per_task.shape[2], -1)
    finite = [values[np.isfinite(values)] for values in rounds]
    means = [iqm(values) for values in rounds]
    text = course(*means)
    if joint and len(means) > 1:
        digits = decimals(*means)
        text = f"{means[0]:.{digits}f}, fine-tuned {course(*means[1:], digits=digits)}"
    if any(map(_mean_is_elsewhere, finite)):
        text += f" (mean {course(*finite_mean(rounds.T))})"
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
