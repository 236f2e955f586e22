"""Rules that are one small network, the same for every weight."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

PRECISION = 10.0  # p of the preprocessing


def map_weights(
    function: Callable[..., tuple[Array, ...]],
    gradient: PyTree[Array],
    params: PyTree[Array],
    *memory: PyTree[Array],
) -> tuple[PyTree[Array], ...]:
    """Return updates and memories, each a tree like `params`.

    Args:
        function: of one array's (gradient `[weight]`, weights `[weight]`, *memory), to its
            (update `[weight]`, *memory).
        gradient: a tree like `params`.
        params: what is being trained.
        memory: trees like `params` of arrays `[weight, ...]`.
    """

    def of_array(gradient, weights, *memory):
        update, *memory = function(gradient.ravel(), weights.ravel(), *memory)
        return update.reshape(weights.shape), *memory

    parts = jax.tree.map(of_array, gradient, params, *memory)
    inner = jax.tree.structure((0,) * (1 + len(memory)))
    return jax.tree.transpose(jax.tree.structure(gradient), inner, parts)


def zeros(params: PyTree[Array], size: int) -> PyTree[Array]:
    """Return a memory of `size` numbers per weight, `[weight, size]` for each array."""
    return jax.tree.map(lambda x: jnp.zeros((x.size, size), x.dtype), params)


def log_and_sign(x: Float[Array, "*shape"]) -> Float[Array, "*shape 2"]:
    """Return (log|x|/p, sign x) where |x| ≥ e^-p, else (-1, e^p x); p is 10.

    Numbers of any size become two of about 1 (Andrychowicz et al. 2016, appendix A).
    """
    small = jnp.abs(x) < math.exp(-PRECISION)
    size = jnp.log(jnp.where(small, 1.0, jnp.abs(x))) / PRECISION
    direction = jnp.where(small, math.exp(PRECISION) * x, jnp.sign(x))
    return jnp.stack([jnp.where(small, -1.0, size), direction], axis=-1)


def lstm_step(
    weights: dict[str, Array],
    hidden: Float[Array, "weight hidden"],
    cell: Float[Array, "weight hidden"],
    x: Float[Array, "weight input"],
) -> tuple[Float[Array, "weight hidden"], Float[Array, "weight hidden"]]:
    """Return the next (hidden, cell) of an LSTM.

    Args:
        weights: {"kernel": `[input + hidden, 4 hidden]`, "bias": `[4 hidden]`}; the gates are in
            the order input, forget, cell, output.
        hidden: its output at the last step.
        cell: its memory.
        x: what it reads now.
    """
    total = jnp.concatenate([x, hidden], axis=-1) @ weights["kernel"] + weights["bias"][None]
    i, f, g, o = jnp.split(total, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell
