"""Numbers and nouns as text, and printing where a reader may be gone."""

import os
import sys


def plural(count: int, noun: str) -> str:
    """Return "1 task" or "2 tasks"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def course(*returns: float, digits: int | None = None) -> str:
    """Return numbers that follow one another as "-1.0 -> 2.5", all with the same digits."""
    digits = decimals(*returns) if digits is None else digits
    return " -> ".join(f"{x:.{digits}f}" for x in returns)


def decimals(*returns: float) -> int:
    """Return how many a number of this size needs: the reward of a bandit's arm is 0 or 1."""
    return 1 if any(abs(x) >= 10 for x in returns) else 2


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


def show(text: str = "") -> None:
    """Print; where the reader is gone, go on in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence()


def silence() -> None:
    """Send what is still printed nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
