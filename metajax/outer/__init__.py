"""Outer steps: how meta-parameters move on a batch of experience."""

from metajax.outer.steps import OuterStep, Problem, adam, ppo, trpo

__all__ = ["OuterStep", "Problem", "adam", "ppo", "trpo"]


def __dir__() -> list[str]:
    return __all__
