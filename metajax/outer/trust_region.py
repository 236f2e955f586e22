"""The natural-gradient step of TRPO (Schulman et al. 2015), for any objective of any parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from metajax._memory import bytes_of, check_memory
from metajax.types import Scalar


class TrustRegionStep(NamedTuple):
    """What a trust-region step did."""

    params: PyTree[Array]
    accepted: Bool[Array, ""]
    kl: Float[Array, ""]


def fisher_vector_product(
    distribution_of: Callable[[PyTree[Array]], Any],
    mean_kl: Callable[[Any, Any], Float[Array, ""]],
    params: PyTree[Array],
    *,
    damping: Scalar = 0.0,
) -> Callable[[Float[Array, "parameter"]], Float[Array, "parameter"]]:
    """Return v ↦ (JᵀFJ + damping) v, the Hessian of the mean divergence at `params`.

    J is the derivative of the distributions' parameters, through whatever `distribution_of` does,
    an inner loop included, and F the Hessian of the divergence in those few numbers. At `params`
    the divergence's own gradient vanishes, so this is the whole Hessian, at a fraction of the cost
    of differentiating twice.

    Args:
        distribution_of: parameters to a distribution, batched in any way.
        mean_kl: `(old, new) ->` scalar mean divergence.
        params: where.
        damping: added to the diagonal.
    """
    flat, unravel = ravel_pytree(params)

    def of_flat(flat):
        return distribution_of(unravel(flat))

    old, push_forward = jax.linearize(of_flat, flat)
    _, pull_back = jax.vjp(of_flat, flat)

    def product(v):
        tangent = push_forward(v)
        fisher_tangent = jax.jvp(jax.grad(lambda new: mean_kl(old, new)), (old,), (tangent,))[1]
        return pull_back(fisher_tangent)[0] + damping * v

    return product


def conjugate_gradient(
    product: Callable[[Float[Array, "n"]], Float[Array, "n"]],
    b: Float[Array, "n"],
    *,
    iterations: int,
) -> Float[Array, "n"]:
    """Return x with `product(x)` ≈ b, from conjugate-gradient iterations that start at 0.

    Every residual is made orthogonal to all those before it, which in exact arithmetic it is. The
    plain recurrence loses that within a few iterations: it then converges late, and enlarges
    rounding errors until a sum over four devices gives another step than the sum on one.

    The scale of b does not matter: iterations do nothing once the residual is within rounding.

    Args:
        product: a symmetric, positive semi-definite matrix times a vector.
        b: right-hand side.
        iterations: at most this many; all residuals are kept.

    Raises:
        MetajaxError: they do not fit into memory.
    """
    kept = (iterations + 1) * bytes_of(b)
    check_memory(the_directions_of_conjugate_gradients=kept)
    norm = jnp.vdot(b, b)
    solved = jnp.finfo(b.dtype).eps ** 2 * norm

    def unit(vector, squared):
        return jnp.where(squared > solved, vector / jnp.sqrt(squared), 0.0)

    def iterate(i, carry):
        x, residual, direction, squared, basis = carry
        image = product(direction)
        going = squared > solved  # else there is nothing left to divide by
        step = jnp.where(going, squared / jnp.vdot(direction, image), 0.0)
        residual = residual - step * image
        for _ in range(2):  # the second time for what rounding left of the first
            residual = residual - basis.T @ (basis @ residual)
        new_squared = jnp.vdot(residual, residual)
        ratio = jnp.where(going, new_squared / squared, 0.0)
        basis = basis.at[i + 1].set(unit(residual, new_squared))
        return x + step * direction, residual, residual + ratio * direction, new_squared, basis

    basis = jnp.zeros((iterations + 1, b.size), b.dtype).at[0].set(unit(b, norm))
    start = (jnp.zeros_like(b), b, b, norm, basis)
    return jax.lax.fori_loop(0, iterations, iterate, start)[0]


def natural_step(
    product: Callable[[Float[Array, "parameter"]], Float[Array, "parameter"]],
    gradient: Float[Array, "parameter"],
    *,
    max_kl: Scalar,
    iterations: int = 10,
) -> Float[Array, "parameter"]:
    """Return the step uphill along F⁻¹g whose divergence is `max_kl` to second order.

    Its derivatives are those of the exact solution, approximated by conjugate gradients as well.

    Args:
        product: v ↦ Fv, see `fisher_vector_product`.
        gradient: g.
        max_kl: nats.
        iterations: of conjugate gradient.
    """

    def solve(product, b):
        return conjugate_gradient(product, b, iterations=iterations)

    direction = jax.lax.custom_linear_solve(product, gradient, solve, symmetric=True)
    curvature = jnp.vdot(direction, product(direction))
    uphill = curvature > 0
    length = jnp.sqrt(2 * max_kl / jnp.where(uphill, curvature, 1.0))
    return direction * jnp.where(uphill, length, 0.0)


def trust_region_step(
    objective: Callable[[PyTree[Array]], tuple[Float[Array, ""], Float[Array, ""]]],
    gradient: PyTree[Array],
    product: Callable[[Float[Array, "parameter"]], Float[Array, "parameter"]],
    params: PyTree[Array],
    *,
    max_kl: Scalar,
    iterations: int = 10,
    backtrack: float = 0.8,
    backtracks: int = 15,
) -> TrustRegionStep:
    """Return the longest natural-gradient step that raises the objective within the trust region.

    Args:
        objective: parameters to (surrogate to maximise, mean divergence from the old policy).
        gradient: of the surrogate at `params`.
        product: Fisher-vector product at `params`.
        params: the old parameters.
        max_kl: the trust region, in nats.
        iterations: of conjugate gradient.
        backtrack: factor between one length tried and the next.
        backtracks: lengths tried; if none will do, the parameters stay as they are.
    """
    flat, unravel = ravel_pytree(params)
    flat_gradient = ravel_pytree(gradient)[0]
    full = natural_step(product, flat_gradient, max_kl=max_kl, iterations=iterations)
    before, _ = objective(params)
    moves = jnp.any(full != 0)  # the same objective, compiled twice, may seem to rise by rounding

    def attempt(count):
        candidate = flat + backtrack ** count.astype(flat.dtype) * full
        surrogate, kl = objective(unravel(candidate))
        return moves & (surrogate > before) & (kl <= max_kl), kl

    def searching(carry):
        count, accepted, _ = carry
        return ~accepted & (count < backtracks)

    def search(carry):
        count = carry[0]
        accepted, kl = attempt(count)
        return jnp.where(accepted, count, count + 1), accepted, kl

    start = (jnp.zeros((), jnp.int32), jnp.zeros((), bool), jnp.zeros_like(before))
    count, accepted, kl = jax.lax.while_loop(searching, search, start)
    new = jnp.where(accepted, flat + backtrack ** count.astype(flat.dtype) * full, flat)
    return TrustRegionStep(unravel(new), accepted, jnp.where(accepted, kl, 0.0))
