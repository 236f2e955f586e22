"""Distributions over actions, as pytrees of their parameters.

Each has `sample(key)`, `mode()`, `log_prob(action)`, `entropy()` and `kl(other)`. All act on one
action and broadcast over leading axes; log-probabilities, entropies and divergences (in nats) are
summed over the action's own axis, never averaged.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from metajax.types import ActionSpace, Continuous, Params, pytree_dataclass


@pytree_dataclass
class DiagonalNormal:
    """Independent normal distributions, one per action dimension.

    Attributes:
        mean: `[*batch, action]`.
        log_std: natural logarithm of the standard deviation, `[*batch, action]`.
    """

    mean: Float[Array, "*batch action"]
    log_std: Float[Array, "*batch action"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*batch action"]:
        """Draw an action; `key` is consumed."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> Float[Array, "*batch action"]:
        """Return the mean."""
        return self.mean

    def log_prob(self, action: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        """Return the log-density of `action`."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the differential entropy."""
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl(self, other: "DiagonalNormal") -> Float[Array, "*batch"]:
        """Return KL(self ‖ other)."""
        scaled_variance = jnp.exp(2 * (self.log_std - other.log_std))
        scaled_offset = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return jnp.sum(
            other.log_std - self.log_std + 0.5 * (scaled_variance + scaled_offset**2 - 1), axis=-1
        )


@pytree_dataclass
class Categorical:
    """A distribution over `logits.shape[-1]` discrete actions.

    Attributes:
        logits: unnormalised log-probabilities, `[*batch, action]`; -inf for an action that is
            impossible: it adds nothing to entropy, divergence and their derivatives.
    """

    logits: Float[Array, "*batch action"]

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch"]:
        """Draw an action; `key` is consumed."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> Int[Array, "*batch"]:
        """Return the most probable action."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return the log-probability of `action`."""
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the entropy."""
        log_probs = jax.nn.log_softmax(self.logits)
        possible = log_probs != -jnp.inf
        return -jnp.sum(jnp.exp(log_probs) * jnp.where(possible, log_probs, 0.0), axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """Return KL(self ‖ other), infinite if `other` makes impossible what `self` may do."""
        log_probs, others = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        possible = log_probs != -jnp.inf
        # Both before the difference: -inf less itself has no derivative, whatever selects it.
        log_ratio = jnp.where(possible, log_probs, 0.0) - jnp.where(possible, others, 0.0)
        return jnp.sum(jnp.exp(log_probs) * log_ratio, axis=-1)


@pytree_dataclass
class EpsilonGreedy:
    """The most valuable action, or with probability `epsilon` any of them.

    Attributes:
        q_values: of the actions, `[*batch, action]`; -inf for an action that is impossible.
        epsilon: probability in (0, 1] of a uniformly drawn possible action, `[*batch]`.
    """

    q_values: Float[Array, "*batch action"]
    epsilon: Float[Array, "*batch"]

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch"]:
        """Draw an action; `key` is consumed."""
        return self._categorical().sample(key)

    def mode(self) -> Int[Array, "*batch"]:
        """Return the most valuable action."""
        return jnp.argmax(self.q_values, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return the log-probability of `action`."""
        return self._categorical().log_prob(action)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the entropy."""
        return self._categorical().entropy()

    def kl(self, other: "EpsilonGreedy") -> Float[Array, "*batch"]:
        """Return KL(self ‖ other)."""
        return self._categorical().kl(other._categorical())

    def _categorical(self) -> Categorical:
        possible = self.q_values != -jnp.inf
        count = jnp.sum(possible, axis=-1, keepdims=True).astype(self.q_values.dtype)
        greedy = jax.nn.one_hot(self.mode(), possible.shape[-1], dtype=self.q_values.dtype)
        epsilon = self.epsilon[..., None]
        return Categorical(
            jnp.where(possible, jnp.log(epsilon / count + (1 - epsilon) * greedy), -jnp.inf)
        )


def chosen_action(distribution: Any, key: Key[Array, ""] | None) -> Array:
    """Return an action that is drawn, or without a key the distribution's mode."""
    return distribution.mode() if key is None else distribution.sample(key)


def initial_spread(action_space: ActionSpace, initial_std: float) -> dict[str, Array]:
    """Return the parameter "log_std" `[action]` of continuous actions; discrete ones have none."""
    if not isinstance(action_space, Continuous):
        return {}
    return {"log_std": jnp.full(action_space.size, math.log(initial_std), float)}


def action_distribution(
    outputs: Float[Array, "*batch action"], params: Params, minimum_std: float
) -> Categorical | DiagonalNormal:
    """Return what a network's outputs say: means, if there is a "log_std", else logits.

    Args:
        outputs: of the network.
        params: of the policy, with those of `initial_spread`.
        minimum_std: the standard deviation is never below this.
    """
    if "log_std" not in params:
        return Categorical(outputs)
    log_std = jnp.maximum(params["log_std"], jnp.log(minimum_std))
    return DiagonalNormal(outputs, jnp.broadcast_to(log_std, outputs.shape))
