"""Outer steps: how meta-parameters move on a batch of experience."""

from collections.abc import Callable

from metajax.outer.off_policy import OFF_POLICY_LEARNERS, OffPolicyLearner, sac, td3
from metajax.outer.steps import OuterStep, Problem, adam, ppo, trpo

OUTER_STEPS: dict[str, Callable[..., OuterStep]] = {"adam": adam, "ppo": ppo, "trpo": trpo}

__all__ = [
    "OFF_POLICY_LEARNERS",
    "OUTER_STEPS",
    "OffPolicyLearner",
    "OuterStep",
    "Problem",
    "adam",
    "ppo",
    "sac",
    "td3",
    "trpo",
]


def __dir__() -> list[str]:
    return __all__
