"""Meta-SGD (Li et al. 2017): a learned rate for every weight."""

import jax
import jax.numpy as jnp
import optax

from metajax.errors import check_at_least
from metajax.parts import part
from metajax.types import Scalar, UpdateRule


@part
def meta_sgd(learning_rate: Scalar = 0.1) -> UpdateRule:
    """Return θ' = θ - α∘∇L(θ), with α meta-learned like θ (Li et al. 2017, equation 2).

    The rates α have the shape of θ. They may grow, vanish or turn negative: they hold the
    direction of a step as well as its length.

    Args:
        learning_rate: initial rate of every weight; the paper draws each from [0.005, 0.1].

    Raises:
        MetajaxError: the learning rate is below 0.
    """
    check_at_least(0, learning_rate=learning_rate)

    def init(key, params):
        del key
        return jax.tree.map(lambda x: jnp.full(x.shape, learning_rate, x.dtype), params)

    def optimizer(rates):
        return optax.stateless(
            lambda gradient, params: jax.tree.map(lambda a, g: -a * g, rates, gradient)
        )

    return UpdateRule(init, optimizer)
