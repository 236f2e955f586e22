"""Policies and the distributions they return."""

from metajax.policies.distributions import Categorical, DiagonalNormal
from metajax.policies.mlp import mlp

__all__ = ["Categorical", "DiagonalNormal", "mlp"]
