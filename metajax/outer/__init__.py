"""Outer steps: how meta-parameters move on a batch of experience."""

from collections.abc import Callable

from metajax.outer.steps import OuterStep, Problem, adam, ppo, trpo

OUTER_STEPS: dict[str, Callable[..., OuterStep]] = {"adam": adam, "ppo": ppo, "trpo": trpo}

__all__ = ["OUTER_STEPS", "OuterStep", "Problem", "adam", "ppo", "trpo"]


def __dir__() -> list[str]:
    return __all__
