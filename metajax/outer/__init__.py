"""Outer steps: how meta-parameters move on a batch of experience."""

from collections.abc import Callable

from metajax.outer.amago import amago
from metajax.outer.double_q import double_q
from metajax.outer.off_policy import OffPolicyLearner
from metajax.outer.soft_actor_critic import sac
from metajax.outer.steps import OuterStep, Problem, adam, ppo, trpo
from metajax.outer.twin_delayed import td3
from metajax.types import Part

OFF_POLICY_LEARNERS: dict[str, Callable[..., Part[OffPolicyLearner]]] = {
    "sac": sac,
    "td3": td3,
    "double-q": double_q,
    "amago": amago,
}
OUTER_STEPS: dict[str, Callable[..., OuterStep]] = {"adam": adam, "ppo": ppo, "trpo": trpo}

__all__ = [
    "OFF_POLICY_LEARNERS",
    "OUTER_STEPS",
    "OffPolicyLearner",
    "OuterStep",
    "Problem",
    "adam",
    "amago",
    "double_q",
    "ppo",
    "sac",
    "td3",
    "trpo",
]


def __dir__() -> list[str]:
    return __all__
