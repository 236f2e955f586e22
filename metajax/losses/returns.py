"""Returns and advantages of one episode.

All take `[time]` arrays and `valid`, which is False on the padding after an early end; padded
entries neither count nor matter, and results are 0 there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metajax.types import Scalar

# Units in the last place: twice what a linear baseline was seen to leave of constants.
ROUNDING = 64


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
    gae_lambda: Scalar,
) -> Float[Array, "time"]:
    """Return GAE(discount, λ) advantages (Schulman et al. 2016, equation 16).

    Args:
        reward: `[time]`.
        value: estimated value of the state before each step, `[time]`.
        final_value: estimated value of the state after the last valid step; it counts unless that
            step terminated. Pass 0 for a value function of a finite horizon that knows the time.
        terminated: the step ended the task: nothing follows.
        valid: the step was played.
        discount: per step.
        gae_lambda: λ; 1 gives discounted returns minus values, 0 one-step residuals.
    """
    last = last_steps(valid)
    next_value = jnp.where(last, final_value, jnp.append(value[1:], 0.0))
    next_value = jnp.where(terminated, 0.0, next_value)
    residual = reward + discount * next_value - value
    return discounted_returns(residual, valid, discount * gae_lambda)


def last_steps(valid: Bool[Array, "*batch time"]) -> Bool[Array, "*batch time"]:
    """Return which step is the last valid one of each episode."""
    return valid & ~jnp.concatenate([valid[..., 1:], jnp.zeros_like(valid[..., :1])], axis=-1)


def normalize(
    x: Float[Array, "*shape"],
    valid: Bool[Array, "*shape"],
    total: Float[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """Return `x` shifted and scaled to mean 0 and standard deviation 1 over the valid entries.

    All 0 where the entries differ by rounding alone, see `standard_units`.

    Args:
        x: `[*shape]`.
        valid: entries that count.
        total: what `x` was before something was subtracted from it, whose rounding it has; None
            for `x` itself.
    """
    mean, unit = standard_units(x, valid, total)
    alike = unit == 0
    return jnp.where(valid & ~alike, (x - mean) / jnp.where(alike, 1.0, unit), 0.0)


def standard_units(
    x: Float[Array, "*shape"],
    valid: Bool[Array, "*shape"],
    total: Float[Array, "*shape"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the mean and the standard deviation of `x`, or 0 if it is nothing but rounding.

    That is when no two valid entries differ by more than the rounding of the largest of `x` and
    `total`. A standard deviation has 1e-8 added, or 1e-8 of that largest number if it is below 1:
    less than its rounding in single precision, so that no unit of reward is a special one.

    Args:
        x: `[*shape]`.
        valid: entries that count.
        total: see `normalize`.
    """
    size = largest(x, valid)
    if total is not None:
        size = jnp.maximum(size, largest(total, valid))
    highest = jnp.max(jnp.where(valid, x, -jnp.inf), initial=-jnp.inf)
    lowest = jnp.min(jnp.where(valid, x, jnp.inf), initial=jnp.inf)
    mean, std = masked_moments(x, valid)
    unit = std + 1e-8 * jnp.minimum(size, 1.0)
    return mean, jnp.where(within_rounding(highest - lowest, size), 0.0, unit)


def alike(total: Float[Array, "episode time"]) -> Bool[Array, ""]:
    """Return whether no episode came to more than another from any time on, but for rounding.

    Then nothing is known of one action that is not known of the others, and what a baseline leaves
    of their returns is its own error. One episode is like no other.

    Args:
        total: returns to go, 0 after an early end.
    """
    if total.shape[0] < 2:
        return jnp.zeros((), bool)
    difference = jnp.max(total, axis=0) - jnp.min(total, axis=0)
    return jnp.all(within_rounding(difference, jnp.max(jnp.abs(total), axis=0)))


def largest(x: Float[Array, "*shape"], valid: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Return the largest absolute value of the valid entries, 0 if there are none."""
    return jnp.max(jnp.where(valid, jnp.abs(x), 0.0), initial=0.0)


def within_rounding(
    difference: Float[Array, "*shape"], size: Float[Array, "*shape"]
) -> Bool[Array, "*shape"]:
    """Return whether differences of numbers of a size are nothing but rounding.

    Args:
        difference: at least 0.
        size: largest absolute value of the numbers. What is not finite differs.
    """
    tolerance = ROUNDING * jnp.finfo(size.dtype).eps * size
    return (difference <= tolerance) & jnp.isfinite(size)


def masked_moments(
    x: Float[Array, "*shape"], valid: Bool[Array, "*shape"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return mean and (population) standard deviation over the valid entries."""
    mean = masked_mean(x, valid)
    return mean, jnp.sqrt(masked_mean((x - mean) ** 2, valid))


def masked_mean(x: Float[Array, "*shape"], valid: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Return the mean over the valid entries, 0 if there are none."""
    return jnp.sum(jnp.where(valid, x, 0.0)) / jnp.maximum(jnp.sum(valid), 1).astype(x.dtype)
