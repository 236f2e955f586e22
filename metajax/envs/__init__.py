"""Task families by name."""

from collections.abc import Callable
from typing import Any

from metajax.envs.locomotion import halfcheetah_dir, halfcheetah_vel
from metajax.envs.point import point_goal
from metajax.envs.reacher import reacher_goal
from metajax.envs.tabular import tabular
from metajax.errors import unknown
from metajax.types import TaskFamily

FAMILIES: dict[str, Callable[..., TaskFamily]] = {
    "halfcheetah-dir": halfcheetah_dir,
    "halfcheetah-vel": halfcheetah_vel,
    "point-goal": point_goal,
    "reacher-goal": reacher_goal,
    "tabular": tabular,
}


def make(name: str, **options: Any) -> TaskFamily:
    """Return the task family called `name`.

    Args:
        name: one of `FAMILIES`.
        **options: of its factory: `backend` and `variant`, for example.

    Raises:
        MetajaxError: no family has this name, or one of its options is wrong.
    """
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    return FAMILIES[name](**options)
