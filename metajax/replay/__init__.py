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

__all__ = [
    "Replay",
    "Steps",
    "TaskReplay",
    "Transitions",
    "TrialSteps",
    "all_steps",
    "all_transitions",
    "can_sample",
    "empty_replay",
    "empty_task_replay",
    "extend_replay",
    "extend_task_replay",
    "forget",
    "sample_replay",
    "sample_task_replay",
    "transitions",
]
