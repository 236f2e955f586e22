"""Meta-learning algorithms, one file per paper."""

from metajax.algorithms.maml import maml

__all__ = ["maml"]
