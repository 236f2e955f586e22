"""Factors and solutions of the small matrices of an engine, as the platform likes them.

On a CPU in plain JAX. The batched LAPACK kernels of jaxlib 0.10 split their batch over XLA's
thread pool and wait for it on a thread of that pool: as many of them at once as there are cores
wait for ever. (jaxlib 0.11.2 does not split.) For matrices this small plain JAX is as fast.
Elsewhere they are JAX's own. The platform is the one that the program is lowered for.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cho_factor(matrix: Float[Array, "n n"], lower: bool = False):
    """Return what `jax.scipy.linalg.cho_factor` returns, for one small matrix."""
    factor = jax.lax.platform_dependent(
        matrix,
        cpu=functools.partial(_factor, lower=lower),
        default=lambda matrix: jax.scipy.linalg.cho_factor(matrix, lower)[0],
    )
    return factor, lower


def cho_solve(factor_and_lower, right: Float[Array, "n *k"]):
    """Return what `jax.scipy.linalg.cho_solve` returns, for one small matrix."""
    factor, lower = factor_and_lower
    return jax.lax.platform_dependent(
        factor,
        right,
        cpu=functools.partial(_substitute, lower=lower),
        default=lambda factor, right: jax.scipy.linalg.cho_solve((factor, lower), right),
    )


def solve(matrix: Float[Array, "n n"], right: Float[Array, "n *k"], *, assume_a: str):
    """Return what `jax.scipy.linalg.solve` returns, for one small positive definite matrix."""
    assert assume_a == "pos"
    return jax.lax.platform_dependent(
        matrix,
        right,
        cpu=lambda matrix, right: _substitute(_factor(matrix, lower=False), right, lower=False),
        default=functools.partial(jax.scipy.linalg.solve, assume_a=assume_a),
    )


def _factor(matrix: Float[Array, "n n"], *, lower: bool) -> Float[Array, "n n"]:
    columns = []
    rest = matrix
    for index in range(matrix.shape[-1]):
        column = rest[:, 0] / jnp.sqrt(rest[0, 0])
        columns.append(jnp.concatenate([jnp.zeros(index, matrix.dtype), column]))
        rest = rest[1:, 1:] - column[1:, None] * column[None, 1:]
    factor = jnp.stack(columns, axis=1)
    return factor if lower else factor.T


def _substitute(
    factor: Float[Array, "n n"], right: Float[Array, "n *k"], *, lower: bool
) -> Float[Array, "n *k"]:
    factor = factor if lower else factor.T
    solved = list(right)
    for row in range(len(solved)):
        for column in range(row):
            solved[row] -= factor[row, column] * solved[column]
        solved[row] /= factor[row, row]
    for row in reversed(range(len(solved))):
        for column in range(row + 1, len(solved)):
            solved[row] -= factor[column, row] * solved[column]
        solved[row] /= factor[row, row]
    return jnp.stack(solved)
