"""Returns and advantages of one episode.

All take `[time]` arrays and `valid`, which is False on the padding after an early end; padded
entries neither count nor matter, and results are 0 there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Scalar = float | Float[Array, ""]


def discounted_returns(
    reward: Float[Array, "time"], valid: Bool[Array, "time"], discount: Scalar
) -> Float[Array, "time"]:
    """Return G_t = Σ_{s≥t} discount^(s-t) reward_s over the valid steps."""

    def backward(following, step):
        reward_t, valid_t = step
        total = jnp.where(valid_t, reward_t + discount * following, 0.0)
        return total, total

    _, returns = jax.lax.scan(backward, jnp.zeros((), reward.dtype), (reward, valid), reverse=True)
    return returns


def generalized_advantages(
    reward: Float[Array, "time"],
    value: Float[Array, "time"],
    final_value: Float[Array, ""],
    terminated: Bool[Array, "time"],
    valid: Bool[Array, "time"],
    *,
    discount: Scalar,
    trace: Scalar,
) -> Float[Array, "time"]:
    """Return GAE(discount, trace) advantages (Schulman et al. 2016, equation 16).

    Args:
        reward: `[time]`.
        value: estimated value of the state before each step, `[time]`.
        final_value: estimated value of the state after the last valid step; it counts unless that
            step terminated. Pass 0 for a value function of a finite horizon that knows the time.
        terminated: the step ended the task: nothing follows.
        valid: the step was played.
        discount: per step.
        trace: the paper's λ; 1 gives discounted returns minus values, 0 one-step residuals.
    """
    last = last_steps(valid)
    next_value = jnp.where(last, final_value, jnp.append(value[1:], 0.0))
    next_value = jnp.where(terminated, 0.0, next_value)
    residual = reward + discount * next_value - value
    return discounted_returns(residual, valid, discount * trace)


def last_steps(valid: Bool[Array, "*batch time"]) -> Bool[Array, "*batch time"]:
    """Return which step is the last valid one of each episode."""
    return valid & ~jnp.concatenate([valid[..., 1:], jnp.zeros_like(valid[..., :1])], axis=-1)


def normalize(
    x: Float[Array, "*shape"], valid: Bool[Array, "*shape"], epsilon: float = 1e-8
) -> Float[Array, "*shape"]:
    """Return `x` shifted and scaled to mean 0 and standard deviation 1 over the valid entries."""
    mean, std = masked_moments(x, valid)
    return jnp.where(valid, (x - mean) / (std + epsilon), 0.0)


def masked_moments(
    x: Float[Array, "*shape"], valid: Bool[Array, "*shape"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return mean and (population) standard deviation over the valid entries."""
    mean = masked_mean(x, valid)
    return mean, jnp.sqrt(masked_mean((x - mean) ** 2, valid))


def masked_mean(x: Float[Array, "*shape"], valid: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Return the mean over the valid entries, 0 if there are none."""
    return jnp.sum(jnp.where(valid, x, 0.0)) / jnp.maximum(jnp.sum(valid), 1)
