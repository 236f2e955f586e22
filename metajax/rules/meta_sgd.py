"""Meta-SGD (Li et al. 2017): a learned rate for every weight."""

import jax
import jax.numpy as jnp
import optax

from metajax._checks import checked
from metajax.types import Scalar, UpdateRule


@checked
def meta_sgd(learning_rate: Scalar) -> UpdateRule:
    """Return θ' = θ - α∘∇L(θ), with α meta-learned like θ (Li et al. 2017, equation 2).

    The rates α have the shape of θ. They may grow, vanish or turn negative: they hold the
    direction of a step as well as its length.

    Args:
        learning_rate: all rates at the start; the paper draws each from [0.005, 0.1].
    """

    def init(key, params):
        del key
        return jax.tree.map(lambda x: jnp.full(x.shape, learning_rate, x.dtype), params)

    def optimizer(rates):
        return optax.stateless(
            lambda gradient, params: jax.tree.map(lambda a, g: -a * g, rates, gradient)
        )

    return UpdateRule(init, optimizer)
