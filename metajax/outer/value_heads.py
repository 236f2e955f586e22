"""What the outputs of a critic say: a number in the unit of its targets, or a distribution of it.

Returns under several discounts, and of several tasks, differ by orders of magnitude. PopArt (van
Hasselt et al. 2016) keeps the first two moments of the targets under each discount and lets critics
learn (target - mean)/standard deviation; whenever these move, their last layer is rescaled so that
no value does. A classification (Imani & White 2018; two-hot as of Hafner et al. 2023) learns the
probabilities of bins of symlog y = sign(y)·log(1 + |y|), whose gradients have no unit at all.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metajax.policies.squashed import like
from metajax.types import Scalar, pytree_dataclass

RATE = 5e-4  # of a batch in the moments, once there have been many
_EARLIER_VARIANCE = 100.0  # of a batch before the first one, against standard deviations near 0
_LOWEST_STD, _HIGHEST_STD = 1e-4, 1e6


@pytree_dataclass
class Moments:
    """Moments of targets, by discount.

    Attributes:
        mean: μ, `[discount]`.
        variance: σ², `[discount]`; the paper's ν - μ², of which nothing cancels here.
        count: batches so far.
    """

    mean: Float[Array, "discount"]
    variance: Float[Array, "discount"]
    count: Int[Array, ""]

    @property
    def std(self) -> Float[Array, "discount"]:
        """The standard deviation σ, from 1e-4 to 1e6."""
        return jnp.sqrt(jnp.clip(self.variance, _LOWEST_STD**2, _HIGHEST_STD**2))


def unit_moments(discounts: int) -> Moments:
    """Return a mean of 0 and a standard deviation of 1, in whose unit numbers are themselves."""
    return Moments(jnp.zeros(discounts), jnp.ones(discounts), jnp.zeros((), jnp.int32))


def first_moments(discounts: int) -> Moments:
    """Return those of a batch before the first one: a mean of 0 and a variance of 100."""
    variance = jnp.full(discounts, _EARLIER_VARIANCE, float)
    return Moments(jnp.zeros(discounts), variance, jnp.ones((), jnp.int32))


def moments_after(
    moments: Moments, mean: Float[Array, "discount"], variance: Float[Array, "discount"]
) -> Moments:
    """Return the moments after another batch; (1 - β)^i is the weight of the one i before it.

    Args:
        moments: before.
        mean: of the batch.
        variance: of the batch.
    """
    count = moments.count + 1
    # 1 - (1 - β)^n, exact where it is small
    total = -jnp.expm1(count.astype(mean.dtype) * math.log1p(-RATE))
    share, apart = RATE / total, mean - moments.mean
    within = moments.variance + share * (variance - moments.variance)
    between = share * (1 - share) * apart**2
    return Moments(moments.mean + share * apart, within + between, count)


def rescaling(old: Moments, new: Moments) -> tuple[Float[Array, "discount"], ...]:
    """Return factor and shift of outputs that say by new moments what they said by old ones."""
    return old.std / new.std, (old.mean - new.mean) / new.std


class ValueHead(NamedTuple):
    """How numbers say values, in the unit of some moments.

    - `numbers`: that say a value;
    - `value(moments, outputs[*batch, discount, number]) -> values[*batch, discount]`;
    - `error(moments, outputs, targets[*batch, discount]) -> errors[*batch, discount]`.
    """

    numbers: int
    value: Callable[
        [Moments, Float[Array, "*batch discount number"]], Float[Array, "*batch discount"]
    ]
    error: Callable[
        [Moments, Float[Array, "*batch discount number"], Float[Array, "*batch discount"]],
        Float[Array, "*batch discount"],
    ]


def scalar() -> ValueHead:
    """Return the head of one number q, the value μ + σq; its error is squared, in units of σ²."""

    def value(moments, outputs):
        q = outputs[..., 0]
        return like(q, moments.mean) + like(q, moments.std) * q

    def error(moments, outputs, targets):
        unit = (targets - like(targets, moments.mean)) / like(targets, moments.std)
        return (outputs[..., 0] - unit) ** 2

    return ValueHead(1, value, error)


def two_hot(bins: int, highest: Scalar) -> ValueHead:
    """Return the head of logits, whose softmax p has bins at equal distances of symlog values.

    The value is symexp(Σ p·bin), the error the cross-entropy with `two_hot_weights`. Moments say
    nothing here.

    Args:
        bins: number of bins.
        highest: value of the last bin; the first one is the same below 0.
    """

    def value(moments, outputs):
        del moments
        edge = symlog(jnp.asarray(highest, outputs.dtype))
        centers = edge * jnp.linspace(-1, 1, bins, dtype=outputs.dtype)
        return symexp(jnp.sum(jax.nn.softmax(outputs) * like(outputs, centers), axis=-1))

    def error(moments, outputs, targets):
        del moments
        weights = two_hot_weights(targets, bins, highest)
        return -jnp.sum(weights * jax.nn.log_softmax(outputs), axis=-1)

    return ValueHead(bins, value, error)


def two_hot_weights(
    values: Float[Array, "*batch"], bins: int, highest: Scalar
) -> Float[Array, "*batch bin"]:
    """Return weights of the two bins nearest to values, whose mean by these is symlog of them.

    Values beyond the first or the last bin are in that bin.
    """
    edge = symlog(jnp.asarray(highest, values.dtype))
    place = (jnp.clip(symlog(values) / edge, -1, 1) + 1) / 2 * (bins - 1)
    place = jnp.broadcast_to(place[..., None], (*values.shape, bins))
    return jnp.maximum(0, 1 - jnp.abs(place - like(place, np.arange(bins))))


def symlog(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return sign(x)·log(1 + |x|)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return sign(x)·(exp|x| - 1), whose derivative at 0 is 1."""
    return jnp.where(x < 0, -jnp.expm1(-x), jnp.expm1(x))
