"""Update rules: how an inner loop learns."""

from collections.abc import Callable

from metajax.rules.from_optax import decayed, from_optax, sgd, sum_of_rules
from metajax.rules.learned import learned_lstm, learned_mlp
from metajax.rules.lstm import meta_lstm
from metajax.rules.meta_sgd import meta_sgd
from metajax.types import UpdateRule

# Each starts as gradient descent with the learning rate that it is given, or close to it.
RULES: dict[str, Callable[..., UpdateRule]] = {
    "sgd": sgd,
    "meta-sgd": meta_sgd,
    "meta-lstm": meta_lstm,
    "learned-lstm": learned_lstm,
    "learned-mlp": learned_mlp,
}

__all__ = [
    "RULES",
    "decayed",
    "from_optax",
    "learned_lstm",
    "learned_mlp",
    "meta_lstm",
    "meta_sgd",
    "sgd",
    "sum_of_rules",
]


def __dir__() -> list[str]:
    return __all__
