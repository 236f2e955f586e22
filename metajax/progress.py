"""Progress as text: one live line on a terminal, lines now and then elsewhere."""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Display

from metajax._tables import course, decimals, held_out_course, plural
from metajax.recorder import Progress, training_returns

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
        SECONDS_OF_SILENCE, lambda text, seconds: say(f"{text}: {duration(seconds)}")
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
                say(f"{text} ...")
            start_clock(text)
        elif is_time():
            stop_clock()  # these lines take its place
            say(f"{text}: {done} of {total}")

    def segment(progress: Progress) -> None:
        stop_clock()
        if is_time() or progress.iteration == progress.iterations:
            say(f"{progress.iteration}/{progress.iterations}: {status(progress)}")
        if progress.returns is not None:
            say(held_out(progress))
        if progress.validation is not None:
            say(validated(progress))

    return Reporter(stage, say, segment, stop_clock)


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
    interval: float, show: Callable[[str, float], None]
) -> tuple[Callable[[str], None], Callable[[], None]]:
    """Return `start(text)`, after which `show(text, seconds)` is called now and then, and `stop`.

    By a thread of its own: compiling holds the one that started it.
    """
    over = threading.Event()

    def run(text: str, over: threading.Event) -> None:
        start = time.monotonic()
        while not over.wait(interval):
            show(text, time.monotonic() - start)

    def start(text: str) -> None:
        nonlocal over
        over.set()
        over = threading.Event()
        threading.Thread(target=run, args=(text, over), daemon=True).start()

    return start, lambda: over.set()


def say(text: str = "") -> None:
    """Print; where the reader is gone, go on in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence()


def silence() -> None:
    """Send what is still printed nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def duration(seconds: float) -> str:
    """Return "1:02:03", or "2:03" of less than an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def count(number: float) -> str:
    """Return a large number with three digits: "4.2M"."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.0f}"


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
    went = held_out_course(progress.returns, joint=len(training_returns(progress.metrics)) == 1)
    return f"held-out tasks after {plural(progress.iteration, 'iteration')}: {went}"


def validated(progress: Progress) -> str:
    """Return the line about a segment's validation: its score, and which agent is the best."""
    best = progress.selection
    digits = decimals(progress.score, best.score)
    after = plural(progress.iteration, "iteration")
    said = f"validation tasks after {after}: {progress.score:.{digits}f}"
    if best.iteration == progress.iteration:
        return f"{said}, the best so far"
    return f"{said}, best {best.score:.{digits}f} after {best.iteration}"
