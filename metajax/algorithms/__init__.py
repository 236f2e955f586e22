"""Meta-learning algorithms, one file per paper."""

from collections.abc import Callable

from metajax.algorithms.maml import maml
from metajax.types import Algorithm

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {"maml": maml}

__all__ = ["ALGORITHMS", "maml"]
