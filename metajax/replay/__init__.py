"""Experience kept for later: steps out of their episodes, and a ring of items in the program."""

from metajax.replay.ring import Replay, empty_replay, extend_replay, sample_replay
from metajax.replay.transitions import Steps, Transitions, all_steps, all_transitions, transitions
from metajax.replay.windows import (
    TimedSteps,
    Windows,
    contexts,
    no_windows,
    sample_windows,
    steps_in_context,
    timed_steps,
    windows_at,
)

__all__ = [
    "Replay",
    "Steps",
    "TimedSteps",
    "Transitions",
    "Windows",
    "all_steps",
    "all_transitions",
    "contexts",
    "empty_replay",
    "extend_replay",
    "no_windows",
    "sample_replay",
    "sample_windows",
    "steps_in_context",
    "timed_steps",
    "transitions",
    "windows_at",
]
