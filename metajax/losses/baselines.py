"""The linear feature baseline: predict returns from the observation and the time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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

    Features are brought to one scale and the normal equations solved through an
    eigendecomposition, whose eigenvalues are kept above the rounding error of the sums: features
    of different size, collinear or constant ones stay harmless in float32.

    Args:
        features: `[sample, feature]`.
        returns: `[sample]`.
        valid: samples that count.
        ridge: penalty on the weights, more than 0.
    """
    masked = jnp.where(valid[:, None], features, 0.0)
    gram = masked.T @ masked + ridge * jnp.eye(features.shape[1], dtype=features.dtype)
    scale = jax.lax.rsqrt(jnp.diagonal(gram))
    eigenvalues, basis = jnp.linalg.eigh(gram * jnp.outer(scale, scale))
    rounding = jnp.finfo(gram.dtype).eps * gram.shape[0] * eigenvalues[-1]
    projected = basis.T @ (scale * (masked.T @ jnp.where(valid, returns, 0.0)))
    return scale * (basis @ (projected / jnp.maximum(eigenvalues, rounding)))
