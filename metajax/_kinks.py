"""Minima and bounds that keep their derivative, however often a compiler computes them.

The derivative of `jnp.minimum`, `jnp.clip` and `jnp.min` asks which operand equals the result. XLA
may compute an operand again for it, and round otherwise: then none does, and the derivative is 0,
or 0/0. These ask which operand is the smaller one.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float


def smaller(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the smaller of two, and of equal ones the second."""
    return jnp.where(a < b, a, b)


def smallest(x: Float[Array, "one *shape"]) -> Float[Array, "*shape"]:
    """Return the smallest over the first axis, which is short."""
    return functools.reduce(smaller, x)


def within(
    x: Float[Array, "*shape"], low: float | Array, high: float | Array
) -> Float[Array, "*shape"]:
    """Return `x` between two bounds; at a bound the derivative is that of `x`."""
    x = jnp.asarray(x)
    low, high = (jnp.broadcast_to(jnp.asarray(bound, x.dtype), x.shape) for bound in (low, high))
    return jnp.where(x < low, low, jnp.where(x > high, high, x))
