"""Policies and the distributions they return."""

from metajax.policies.distributions import Categorical, DiagonalNormal, EpsilonGreedy
from metajax.policies.mlp import mlp

__all__ = ["Categorical", "DiagonalNormal", "EpsilonGreedy", "mlp"]
