"""The linear feature baseline: predict returns from the observation and the time."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

REFINEMENTS = 3


def linear_features(observation: Float[Array, "time observation"]) -> Float[Array, "time feature"]:
    """Return the features of Duan et al. (2016): o, o², t/100, (t/100)², (t/100)³, 1.

    Observations are clipped to ±10; `t` is the step within the episode.
    """
    clipped = jnp.clip(observation, -10.0, 10.0)
    t = jnp.arange(observation.shape[0], dtype=observation.dtype)[:, None] / 100.0
    return jnp.concatenate([clipped, clipped**2, t, t**2, t**3, jnp.ones_like(t)], axis=-1)


def fit_linear(
    features: Float[Array, "sample feature"],
    returns: Float[Array, "sample"],
    valid: Bool[Array, "sample"],
    *,
    ridge: float = 1e-5,
) -> Float[Array, "feature"]:
    """Return the weights w that minimise Σ_valid (features·w - returns)² + ridge ‖w‖².

    Features are brought to one scale and the normal equations damped above their rounding error,
    which keeps features of different size, collinear or constant ones harmless in float32;
    refinement on the residuals takes the damping out again wherever the samples say anything.

    Args:
        features: `[sample, feature]`.
        returns: `[sample]`.
        valid: samples that count.
        ridge: penalty on the weights, more than 0.
    """
    count, dot = features.shape[1], functools.partial(jnp.matmul, precision="highest")
    masked = jnp.where(valid[:, None], features, 0.0)
    targets = jnp.where(valid, returns, 0.0)
    gram = dot(masked.T, masked) + ridge * jnp.eye(count, dtype=features.dtype)
    scale = jax.lax.rsqrt(jnp.diagonal(gram))
    damping = jnp.finfo(gram.dtype).eps * count**2  # no eigenvalue is more than `count`
    inverse = _inverse(gram * jnp.outer(scale, scale) + damping * jnp.eye(count, dtype=gram.dtype))
    weights = jnp.zeros(count, gram.dtype)
    for _ in range(1 + REFINEMENTS):
        gradient = dot(masked.T, targets - dot(masked, weights)) - ridge * weights
        weights += scale * dot(inverse, scale * gradient)
    return weights


def _inverse(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return the inverse of a positive definite matrix, by sweeping one row after the other.

    Not by LAPACK: on a CPU its batched kernels wait on XLA's threads for others of them, and wait
    for ever where as many devices as there are cores call it at once.
    """

    def sweep(k, a):
        row, pivot = a[k], a[k, k]
        swept = a - jnp.outer(row, row / pivot)  # symmetric throughout
        return swept.at[k].set(row / pivot).at[:, k].set(row / pivot).at[k, k].set(-1 / pivot)

    return -jax.lax.fori_loop(0, matrix.shape[0], sweep, matrix)
