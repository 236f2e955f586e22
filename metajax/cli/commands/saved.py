"""What `evaluate` and `render` have in common: which agent, which keys, where it is written."""

import errno
import os
from pathlib import Path
from typing import Literal

import jax

from metajax import presets
from metajax.errors import MetajaxError
from metajax.runs.load import Step


def step_of(word: str | None) -> Step:
    """Return which checkpoint is asked for."""
    if word is None or word == "best":
        return word
    if not word.isdecimal():
        raise MetajaxError(f"--step is {word!r}; it must be a saved iteration or 'best'.")
    return int(word)


def which_of(word: str | None) -> str:
    """Return in a word which checkpoint is asked for."""
    return {None: "newest", "best": "best"}.get(word, "saved")


def key_of(experiment: presets.Experiment, use: Literal["evaluate", "render"]) -> jax.Array:
    """Return the key of a command on a run, another one than any that training uses."""
    # The trainer splits the same key and takes the first three.
    keys = jax.random.split(jax.random.key(experiment.training["seed"]), 5)
    return keys[3 if use == "evaluate" else 4]


def check_writable(output: Path) -> None:
    """Check what can be before there is something to write."""
    if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
        reason = errno.EISDIR if output.is_dir() else errno.EACCES
        raise MetajaxError(f"cannot write {output}: {os.strerror(reason)}.")


def check_positive(name: str, value: int) -> None:
    """Check that the value of an option is at least 1."""
    if value < 1:
        raise MetajaxError(f"--{name} is {value}; it must be at least 1.")
