"""Experience kept for later: steps out of their episodes, and a ring of items in the program."""

from metajax.replay.per_task import (
    TaskReplay,
    can_sample,
    empty_task_replay,
    extend_task_replay,
    forget,
    sample_task_replay,
)
from metajax.replay.ring import Replay, empty_replay, extend_replay, sample_replay
from metajax.replay.transitions import (
    Steps,
    Transitions,
    TrialSteps,
    all_steps,
    all_transitions,
    transitions,
)
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
    "TaskReplay",
    "TimedSteps",
    "Transitions",
    "TrialSteps",
    "Windows",
    "all_steps",
    "all_transitions",
    "can_sample",
    "contexts",
    "empty_replay",
    "empty_task_replay",
    "extend_replay",
    "extend_task_replay",
    "forget",
    "no_windows",
    "sample_replay",
    "sample_task_replay",
    "sample_windows",
    "steps_in_context",
    "timed_steps",
    "transitions",
    "windows_at",
]
