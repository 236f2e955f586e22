"""Experience kept for later: steps out of their episodes, and a ring of items in the program."""

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
    "Transitions",
    "TrialSteps",
    "all_steps",
    "all_transitions",
    "empty_replay",
    "extend_replay",
    "sample_replay",
    "transitions",
]
