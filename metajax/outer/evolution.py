"""Meta-gradients of inner problems too long to be unrolled at once.

Both ways take a few steps of every inner problem per meta-iteration, and leave it where it then
is. Truncated backpropagation differentiates those steps, and is blind to what they do to later
ones. Persistent evolution strategies (Vicol et al. 2021) only evaluate, with perturbed parameters;
the sum of the perturbations that an inner problem has met makes the estimate unbiased.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from metajax.envs.rollouts import over_tasks
from metajax.losses import returns
from metajax.types import Scalar, pytree_dataclass

# `(meta_params, state, key) -> (state, loss)`: some steps of an inner problem, and their mean loss.
Advance = Callable[[Any, Any, Key[Array, ""]], tuple[Any, Float[Array, ""]]]


def truncated_gradient(
    advance: Advance, meta_params: PyTree[Array], states: Any, key: Key[Array, ""]
) -> tuple[PyTree[Array], Any, Float[Array, "problem"]]:
    """Return the gradient of the mean loss of the next steps, the new states, and the losses.

    Args:
        advance: of one inner problem.
        meta_params: what the gradient is with respect to.
        states: of the inner problems, `[problem, ...]`.
        key: consumed.
    """
    keys = jax.random.split(key, _count(states))

    def mean_loss(meta_params):
        new_states, losses = jax.vmap(advance, in_axes=(None, 0, 0))(meta_params, states, keys)
        return jnp.mean(losses), (new_states, losses)

    gradient, (new_states, losses) = jax.grad(mean_loss, has_aux=True)(meta_params)
    return gradient, new_states, losses


@pytree_dataclass
class Particles:
    """Pairs of inner problems with opposite perturbations of the meta-parameters.

    Attributes:
        plus: states with the perturbations added, `[pair, ...]`.
        minus: states with them subtracted.
        accumulated: sum of the perturbations since each problem started, like the meta-parameters,
            `[pair, ...]`.
    """

    plus: Any
    minus: Any
    accumulated: Any


def init_particles(meta_params: PyTree[Array], states: Any) -> Particles:
    """Return pairs that both start at `states[pair]`."""
    pairs = _count(states)
    nothing = jax.tree.map(lambda x: jnp.zeros((pairs, *x.shape), x.dtype), meta_params)
    return Particles(states, states, nothing)


def restart(particles: Particles, over: Bool[Array, "pair"], states: Any) -> Particles:
    """Return the particles, where a problem is `over` at the start of a new one.

    Args:
        particles: as they are.
        over: whose inner problems have ended.
        states: starts, `[pair, ...]`.
    """

    def where_over(new, old):
        return jax.vmap(lambda over, new, old: jnp.where(over, new, old))(over, new, old)

    choose = lambda new, old: jax.tree.map(where_over, new, old)
    nothing = jax.tree.map(jnp.zeros_like, particles.accumulated)
    return Particles(
        choose(states, particles.plus),
        choose(states, particles.minus),
        choose(nothing, particles.accumulated),
    )


def persistent_evolution_strategies(
    advance: Advance,
    meta_params: PyTree[Array],
    particles: Particles,
    key: Key[Array, ""],
    *,
    std: Scalar,
) -> tuple[PyTree[Array], Particles, Float[Array, "pair"]]:
    """Return an estimate of the meta-gradient, the particles moved on, and their mean losses.

    The mean over pairs of ξ (L⁺ - L⁻) / (2 std²), with ξ the sum of all perturbations that the
    pair has met (Vicol et al. 2021, equation 7, antithetic). Losses of a pair that differ by
    rounding alone count as equal: an optimizer like Adam would make whole steps of it.

    Args:
        advance: of one inner problem; both of a pair get the same key.
        meta_params: what the gradient is with respect to.
        particles: the inner problems.
        key: consumed.
        std: of the perturbations.
    """
    pairs = _count(particles.plus)
    noise_key, advance_key = jax.random.split(key)
    leaves, structure = jax.tree.flatten(meta_params)
    noise = jax.tree.unflatten(
        structure,
        [
            std * jax.random.normal(k, (pairs, *x.shape), x.dtype)
            for k, x in zip(jax.random.split(noise_key, len(leaves)), leaves, strict=True)
        ],
    )
    accumulated = jax.tree.map(jnp.add, particles.accumulated, noise)

    def of_pair(meta_params, noise, plus, minus, key):
        up = jax.tree.map(jnp.add, meta_params, noise)
        down = jax.tree.map(jnp.subtract, meta_params, noise)
        return advance(up, plus, key), advance(down, minus, key)

    (plus, above), (minus, below) = over_tasks(
        of_pair,
        meta_params,
        noise,
        particles.plus,
        particles.minus,
        jax.random.split(advance_key, pairs),
    )
    size = jnp.maximum(jnp.abs(above), jnp.abs(below))
    alike = returns.within_rounding(jnp.abs(above - below), size)
    weight = jnp.where(alike, 0.0, above - below) / (2 * std**2)
    gradient = jax.tree.map(lambda x: jnp.tensordot(weight, x, 1) / pairs, accumulated)
    return gradient, Particles(plus, minus, accumulated), (above + below) / 2


def _count(states: Any) -> int:
    return jax.tree.leaves(states)[0].shape[0]
