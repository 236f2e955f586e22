"""Affine maps, for the networks that are written here by hand."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax._checks import MOST_LAYERS
from metajax.errors import check_at_least, check_at_most
from metajax.types import ActionSpace, Discrete

Affine = dict[str, Array]

_LECUN = nn.initializers.lecun_normal()


def init_affine(
    key: Key[Array, ""], inputs: int, outputs: int, initializer: Callable[..., Array] = _LECUN
) -> Affine:
    """Return a kernel `[input, output]` drawn by `initializer`, and a bias of zeros."""
    kernel = initializer(key, (inputs, outputs), jnp.result_type(float))
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def affine(
    params: Affine, x: Float[Array, "*batch input"], *, bfloat16: bool = False
) -> Float[Array, "*batch output"]:
    """Return x·kernel + bias.

    Args:
        params: from `init_affine`.
        x: any leading axes.
        bfloat16: multiply in bfloat16; sums are of full precision.
    """
    kernel = params["kernel"]
    if bfloat16:
        x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    product = jnp.dot(x, kernel, preferred_element_type=params["bias"].dtype)
    return product + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def action_input(action_space: ActionSpace, action: Array) -> Float[Array, "*batch number"]:
    """Return actions as networks are given them: one-hot vectors of discrete ones."""
    if isinstance(action_space, Discrete):
        return jax.nn.one_hot(action, action_space.size)
    return action


def orthogonal(key: Key[Array, ""], shape: tuple[int, int], dtype) -> Float[Array, "n n"]:
    """Return a uniformly random orthogonal matrix, by Gram and Schmidt.

    The same as `jax.nn.initializers.orthogonal`, whose LAPACK kernel, on a CPU, can wait for ever
    for XLA's threads when several devices call it at once.

    Args:
        key: consumed.
        shape: a square.
        dtype: of the matrix.
    """
    columns = jax.random.normal(key, shape, dtype).T

    def add(basis, at):
        index, column = at
        for _ in range(2):  # once more for what rounding left
            column -= (basis @ column) @ basis
        return basis.at[index].set(column / jnp.linalg.norm(column)), None

    nothing = jnp.zeros(shape, dtype)
    return jax.lax.scan(add, nothing, (jnp.arange(len(columns)), columns))[0].T


def init_perceptron(key: Key[Array, ""], sizes: Sequence[int]) -> list[Affine]:
    """Return the layers between `sizes`, the number of inputs first."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [init_affine(*layer) for layer in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def perceptron(layers: list[Affine], x: Float[Array, "*batch input"]) -> Float[Array, "..."]:
    """Return what the last of `layers` says, tanh after each."""
    for layer in layers:
        x = jnp.tanh(affine(layer, x))
    return x


def check_hidden(hidden: Sequence[int]) -> None:
    """Check the widths of hidden layers.

    Raises:
        MetajaxError: one is below 1, or there are too many.
    """
    check_at_most(MOST_LAYERS, **{"the number of widths in hidden": len(hidden)})
    for width in hidden:
        check_at_least(1, **{"a width in hidden": width})
