"""Policies and the distributions they return."""

from metajax.policies.attention import snail, transformer, window
from metajax.policies.conditioned import conditioned
from metajax.policies.distributions import Categorical, DiagonalNormal, EpsilonGreedy
from metajax.policies.mlp import mlp
from metajax.policies.recurrent import gru, lstm
from metajax.policies.squashed import NoisyAction, SquashedNormal, deterministic, squashed
from metajax.policies.variational import variational

__all__ = [
    "Categorical",
    "DiagonalNormal",
    "EpsilonGreedy",
    "NoisyAction",
    "SquashedNormal",
    "conditioned",
    "deterministic",
    "gru",
    "lstm",
    "mlp",
    "snail",
    "squashed",
    "transformer",
    "variational",
    "window",
]


def __dir__() -> list[str]:
    return __all__
