"""Policies within a box, as off-policy methods train them, and the values that teach them.

A squashed policy draws u from a normal distribution and acts by its hyperbolic tangent, stretched
to the bounds of the action: every action that it takes is one that the environment applies
(Haarnoja et al. 2018, appendix C). A deterministic one acts by the tangent of what its network
says, and explores by noise (Fujimoto et al. 2018).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax._kinks import within
from metajax.errors import MetajaxError, check_at_least, check_at_most, check_positive
from metajax.policies.distributions import DiagonalNormal
from metajax.policies.layers import affine, check_hidden, init_affine
from metajax.policies.mlp import ACTIVATIONS, Activation, ValueNetwork
from metajax.types import (
    ActionSpace,
    Continuous,
    Discrete,
    Params,
    Policy,
    PolicyOutput,
    pytree_dataclass,
)

LOWEST_LOG_STD, HIGHEST_LOG_STD = -20.0, 2.0
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_WEIGHTS = _WEIGHTS / np.sqrt(2 * np.pi)


@pytree_dataclass
class SquashedNormal:
    """The distribution of center + half·tanh(u), with u from independent normal distributions.

    Attributes:
        normal: of u, before it is squashed.
        center: middle of the bounds, `[*batch, action]`.
        half: half of the distance between them, `[*batch, action]`.
    """

    normal: DiagonalNormal
    center: Float[Array, "*batch action"]
    half: Float[Array, "*batch action"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*batch action"]:
        """Draw an action; `key` is consumed."""
        return self._squashed(self.normal.sample(key))

    def sample_with_log_prob(
        self, key: Key[Array, ""]
    ) -> tuple[Float[Array, "*batch action"], Float[Array, "*batch"]]:
        """Draw an action and return its log-density, exact at the bounds too; `key` is consumed.

        There an action says nothing of its u any more, which is known here.
        """
        u = self.normal.sample(key)
        return self._squashed(u), self.normal.log_prob(u) - self._log_slope(u)

    def mode(self) -> Float[Array, "*batch action"]:
        """Return the action of the mean, by which such policies act when they do not explore."""
        return self._squashed(self.normal.mean)

    def log_prob(self, action: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        """Return the log-density of `action`; at a bound, that of the number next to it."""
        most = 1 - jnp.finfo(action.dtype).epsneg
        u = jnp.arctanh(jnp.clip((action - self.center) / self.half, -most, most))
        return self.normal.log_prob(u) - self._log_slope(u)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the differential entropy, by Gauss-Hermite quadrature."""
        normal = self.normal
        nodes, weights = (jnp.asarray(x, normal.mean.dtype) for x in (_NODES, _WEIGHTS))
        slope_at = lambda node: self._log_slope(normal.mean + node * jnp.exp(normal.log_std))
        return normal.entropy() + jnp.tensordot(weights, jax.vmap(slope_at)(nodes), axes=1)

    def kl(self, other: "SquashedNormal") -> Float[Array, "*batch"]:
        """Return KL(self ‖ other) within the same bounds: that of what is squashed."""
        return self.normal.kl(other.normal)

    def _squashed(self, u):
        return self.center + self.half * jnp.tanh(u)

    def _log_slope(self, u: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        """Return log |d action / d u|, without 1 - tanh²(u), which is 0 where u is large."""
        log_slope = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
        return jnp.sum(log_slope + jnp.log(self.half), axis=-1)


@pytree_dataclass
class NoisyAction:
    """An action with independent normal noise, clipped to bounds.

    Attributes:
        normal: before actions are clipped, its mean within the bounds.
        low: smallest action, `[*batch, action]`.
        high: largest action, `[*batch, action]`.
    """

    normal: DiagonalNormal
    low: Float[Array, "*batch action"]
    high: Float[Array, "*batch action"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*batch action"]:
        """Draw an action; `key` is consumed."""
        return jnp.clip(self.normal.sample(key), self.low, self.high)

    def mode(self) -> Float[Array, "*batch action"]:
        """Return the action without noise."""
        return self.normal.mean

    def log_prob(self, action: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        """Return the log-density of `action` before anything is clipped."""
        return self.normal.log_prob(action)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the differential entropy before anything is clipped."""
        return self.normal.entropy()

    def kl(self, other: "NoisyAction") -> Float[Array, "*batch"]:
        """Return KL(self ‖ other) before anything is clipped."""
        return self.normal.kl(other.normal)


def box_of(name: str, action_space: ActionSpace) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of the bounds of actions and half of their distance, `[action]` each.

    Args:
        name: of who needs them.
        action_space: with finite bounds.

    Raises:
        MetajaxError: actions are discrete, or have no bounds.
    """
    if not isinstance(action_space, Continuous):
        raise MetajaxError(f"{name} needs continuous actions; this environment's are discrete.")
    low, high = action_space.bounds
    if not np.all(np.isfinite([low, high])):
        raise MetajaxError(
            f"{name} needs bounds of each action; this environment has {action_space}."
        )
    return (low + high) / 2, (high - low) / 2


def like(
    x: Float[Array, "*batch action"], bound: np.ndarray | Array
) -> Float[Array, "*batch action"]:
    """Return a bound `[action]` with the shape and type of `x`."""
    return jnp.broadcast_to(jnp.asarray(bound, x.dtype), x.shape)


def _init_network(key: Key[Array, ""], inputs: int, hidden: Sequence[int], outputs: int) -> Params:
    """Return hidden layers ("body") and the last one ("head"), of a thousandth at the start.

    So a policy starts in the middle of its actions, and all values near 0.
    """
    *body_keys, head_key = jax.random.split(key, len(hidden) + 1)
    sizes = [inputs, *hidden]
    body = [init_affine(*layer) for layer in zip(body_keys, sizes[:-1], hidden, strict=True)]
    head = init_affine(head_key, sizes[-1], outputs, jax.nn.initializers.uniform(2e-3))
    head = head | {"kernel": head["kernel"] - 1e-3}
    return {"body": body, "head": head}


def _apply_network(params: Params, x: Float[Array, "*batch input"], activation: Activation):
    for layer in params["body"]:
        x = ACTIVATIONS[activation](affine(layer, x))
    return affine(params["head"], x)


def squashed_normal(
    outputs: Float[Array, "*batch output"], center: np.ndarray, half: np.ndarray
) -> SquashedNormal:
    """Return the distribution whose means, then log standard deviations are a network's outputs.

    Args:
        outputs: two for each dimension of the action; the latter are clipped to [-20, 2].
        center: middle of the bounds of actions, `[action]`.
        half: half of the distance between them, `[action]`.
    """
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    normal = DiagonalNormal(mean, within(log_std, LOWEST_LOG_STD, HIGHEST_LOG_STD))
    return SquashedNormal(normal, like(mean, center), like(mean, half))


def noisy_action(
    outputs: Float[Array, "*batch action"], center: np.ndarray, half: np.ndarray, noise: float
) -> NoisyAction:
    """Return the action that is tanh of a network's outputs within the bounds, with noise.

    Args:
        outputs: one for each dimension of the action.
        center: middle of the bounds of actions, `[action]`.
        half: half of the distance between them, `[action]`.
        noise: standard deviation of the noise, in halves of that distance.
    """
    middle, reach = like(outputs, center), like(outputs, half)
    normal = DiagonalNormal(middle + reach * jnp.tanh(outputs), jnp.log(noise * reach))
    return NoisyAction(normal, middle - reach, middle + reach)


@checked
def squashed(
    observation_size: int,
    action_space: ActionSpace,
    *,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
) -> Policy:
    """Return a memoryless policy with a tanh-squashed normal distribution (Haarnoja et al. 2018).

    Mean and logarithm of the standard deviation are outputs of one network; the latter is clipped
    to [-20, 2].

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's; continuous, with finite bounds.
        hidden: widths of the hidden layers.
        activation: activation function after each hidden layer.

    Raises:
        MetajaxError: an option is unknown or out of range, or actions have no bounds.
    """
    check_at_least(1, observation_size=observation_size)
    check_hidden(hidden)
    center, half = box_of("squashed", action_space)

    def init(key: Key[Array, ""]) -> Params:
        return _init_network(key, observation_size, hidden, 2 * len(half))

    def step(params, memory, step_input):
        outputs = _apply_network(params, step_input.observation, activation)
        return memory, PolicyOutput(squashed_normal(outputs, center, half))

    return Policy(init, lambda: (), step, unroll=step)


@checked
def deterministic(
    observation_size: int,
    action_space: ActionSpace,
    *,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    noise: float = 0.1,
) -> Policy:
    """Return a memoryless policy that acts by tanh of its network, with normal noise to explore.

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's; continuous, with finite bounds.
        hidden: widths of the hidden layers.
        activation: activation function after each hidden layer.
        noise: standard deviation of the noise that explores, in halves of the distance between an
            action's bounds; actions are clipped to these.

    Raises:
        MetajaxError: an option is unknown or out of range, or actions have no bounds.
    """
    check_at_least(1, observation_size=observation_size)
    check_hidden(hidden)
    check_positive(noise=noise)
    center, half = box_of("deterministic", action_space)

    def init(key: Key[Array, ""]) -> Params:
        return _init_network(key, observation_size, hidden, len(half))

    def step(params, memory, step_input):
        outputs = _apply_network(params, step_input.observation, activation)
        return memory, PolicyOutput(noisy_action(outputs, center, half, noise))

    return Policy(init, lambda: (), step, unroll=step)


class QNetworks(NamedTuple):
    """Several action-value functions, that differ in where they start.

    - `init(key) -> params`, `[critic, ...]`;
    - `apply(params, observation, action) -> values[critic, *batch]` of continuous actions;
      `apply(params, observation) -> values[critic, *batch, action]` of discrete ones; where a value
      is said by several numbers, these are the last axis;
    - `rescaled(params, factor, shift) -> params`: whose outputs are factor·output + shift, with one
      `[output]` for each of the numbers that say a value.
    """

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[..., Float[Array, "critic *batch"]]
    rescaled: Callable[[Params, Float[Array, "output"], Float[Array, "output"]], Params]


@checked
def q_networks(
    observation_size: int,
    action_space: ActionSpace,
    *,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    count: int = 2,
    outputs: int | None = None,
) -> QNetworks:
    """Return `count` perceptrons from an observation and an action to a discounted return.

    Each is drawn from a key of its own: copies of one network, trained on the same targets, would
    stay copies.

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's; continuous with finite bounds, or discrete.
        hidden: widths of the hidden layers.
        activation: activation function after each hidden layer.
        count: number of networks.
        outputs: numbers that say a value; None for one, without an axis of its own.

    Raises:
        MetajaxError: an option is unknown or out of range, or actions have no bounds.
    """
    numbers = 1 if outputs is None else outputs
    check_at_least(1, observation_size=observation_size, count=count, outputs=numbers)
    check_at_most(1000, count=count)
    check_hidden(hidden)
    discrete = isinstance(action_space, Discrete)
    actions = action_space.size if discrete else 1
    inputs = observation_size + (0 if discrete else action_space.size)
    center, half = (np.zeros(1),) * 2 if discrete else box_of("q_networks", action_space)

    def init(key: Key[Array, ""]) -> Params:
        one = lambda key: _init_network(key, inputs, hidden, actions * numbers)
        return jax.vmap(one)(jax.random.split(key, count))

    def of_all(params, x):
        found = jax.vmap(lambda params: _apply_network(params, x, activation))(params)
        return found if outputs is None else found.reshape(*found.shape[:-1], actions, numbers)

    def of_continuous(params, observation, action):
        unit = (action - like(action, center)) / like(action, half)
        x = jnp.concatenate([observation, unit], axis=-1)
        return jnp.squeeze(of_all(params, x), -1 if outputs is None else -2)

    def rescaled(params, factor, shift):
        head, of_each = params["head"], lambda x: jnp.tile(x, actions)
        kernel = head["kernel"] * like(head["kernel"], of_each(factor))
        bias = head["bias"] * like(head["bias"], of_each(factor))
        bias += like(bias, of_each(shift))
        return params | {"head": {"kernel": kernel, "bias": bias}}

    return QNetworks(init, of_all if discrete else of_continuous, rescaled)


@checked
def value_of_states(
    observation_size: int, *, hidden: Sequence[int] = (256, 256), activation: Activation = "relu"
) -> ValueNetwork:
    """Return a `value_network` that starts near 0, as the critics here do.

    Args:
        observation_size: numbers in an observation.
        hidden: widths of the hidden layers.
        activation: activation function after each hidden layer.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """
    check_at_least(1, observation_size=observation_size)
    check_hidden(hidden)
    return ValueNetwork(
        lambda key: _init_network(key, observation_size, hidden, 1),
        lambda params, x: jnp.squeeze(_apply_network(params, x, activation), -1),
    )
