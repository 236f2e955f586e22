"""Losses and targets: pure functions of one sequence, masked."""

from metajax.losses import baselines, policy_gradient, returns, temporal_difference

__all__ = ["baselines", "policy_gradient", "returns", "temporal_difference"]


def __dir__() -> list[str]:
    return __all__
