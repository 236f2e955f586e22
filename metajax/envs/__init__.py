"""Task families by name."""

from typing import Any

from metajax._checks import checked
from metajax.envs import bridges, builders, drawings, families, splits
from metajax.envs.bridges import gymnax, xland
from metajax.envs.families import (
    ant,
    bandit,
    classic,
    dynamics,
    grid,
    halfcheetah,
    humanoid,
    point,
    reacher,
    swimmer,
    tabular,
    walker,
)
from metajax.envs.specs import FamilySpec
from metajax.errors import unknown
from metajax.types import TaskFamily

__all__ = [
    "FAMILIES",
    "FamilySpec",
    "bridges",
    "builders",
    "drawings",
    "families",
    "make",
    "splits",
]

_FILES = (
    *(ant, bandit, classic, dynamics, grid, halfcheetah, humanoid, point, reacher, swimmer),
    *(tabular, walker, gymnax, xland),
)

FAMILIES: dict[str, FamilySpec] = {
    spec.name: spec
    for spec in sorted((spec for file in _FILES for spec in file.SPECS), key=lambda spec: spec.name)
}


@checked
def make(name: str, **options: Any) -> TaskFamily:
    """Return the task family called `name`.

    Example:
        >>> import metajax
        >>> family = metajax.make("ant-goal", backend="mujoco", variant="pearl")
        >>> family.name, family.env.observation_size
        ('ant-goal-v1', 113)

    Args:
        name: one of `FAMILIES`.
        **options: of its factory: `backend` and `variant`, for example.

    Raises:
        MetajaxError: no family has this name, or one of its options is wrong.
    """
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    return FAMILIES[name].factory(**options)


def __dir__() -> list[str]:
    return __all__
