"""How families are drawn: data alone, for `metajax.rendering` and whoever else draws."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from metajax.types import EnvState, Task

DARK, MIDDLE, LIGHT = "#2c5f8a", "#4a86b8", "#8ab4d8"


class View(NamedTuple):
    """A direction of sight, from infinitely far.

    Attributes:
        right: the direction in space that is to the right in the picture.
        up: the direction that is up.
    """

    right: tuple[float, float, float]
    up: tuple[float, float, float]

    @property
    def towards(self) -> np.ndarray:
        """The direction towards the eye: the higher along it, the nearer."""
        return np.cross(self.right, self.up)


SIDE = View((1, 0, 0), (0, 0, 1))
TOP = View((1, 0, 0), (0, 1, 0))
_TURN, _SLANT = np.radians(25), np.radians(35)
SLANTED = View(
    (np.cos(_TURN), -np.sin(_TURN), 0),
    (np.sin(_TURN) * np.sin(_SLANT), np.cos(_TURN) * np.sin(_SLANT), np.cos(_SLANT)),
)


class Body(NamedTuple):
    """A robot in motion; the family's simulator has its positions as `qpos`.

    Attributes:
        model: returns its MuJoCo model; positions of every engine are this model's `qpos`.
        seconds: per environment step.
        view: the direction of sight.
        window: metres shown, to the right and up.
        below: metres of the window below the point that is followed.
        follow: how many of the first coordinates of `qpos` the window moves with.
        colors: of geoms, or of their bodies where they have no name, by patterns; the first ones
            are drawn first where none is nearer. Other geoms are not drawn.
        task: what a task asks for, in words.
    """

    model: Callable[[], Any]
    seconds: float
    view: View
    window: tuple[float, float]
    below: float
    follow: int
    colors: dict[str, tuple[str, ...]]
    task: Callable[[Task], str]


class Plot(NamedTuple):
    """A plot of each task.

    Attributes:
        kind: "paths" in the plane, with the task's places; "time" for one number over the steps;
            "arms" for how often each is pulled; "rewards" summed up over episodes.
        position: what to record of a state, an array with one axis.
        caption: of the whole picture.
        shown: episodes per task.
        label: of the number over the steps.
    """

    kind: Literal["paths", "time", "arms", "rewards"]
    position: Callable[[EnvState], Float[Array, "position"]]
    caption: str
    shown: int = 5
    label: str = ""


Drawing = Body | Plot


def observed(state: EnvState) -> Float[Array, "observation"]:
    """Return the observation, where that is what a plot shows."""
    return state.observation


REWARDS = Plot("rewards", observed, "rewards summed up over episodes, and mean returns")
GOALS = Plot("paths", observed, "paths and mean returns; the star is the hidden goal")


def run_at(task: Task) -> str:
    """Say at which velocity to run."""
    return f"run at {float(task['velocity']):.2f} m/s"


def forward_or_backward(task: Task) -> str:
    """Say in which of two directions to run."""
    return "run forward" if np.ravel(task["direction"])[0] > 0 else "run backward"


def towards(task: Task) -> str:
    """Say in which direction of the plane to run."""
    x, y = np.asarray(task["direction"])
    return f"run towards {math.degrees(math.atan2(y, x)) % 360:.0f}°"


def torso_weight(task: Task) -> str:
    """Say how heavy the torso is."""
    return f"torso {float(task['mass'][1]):.2f} times as heavy"
