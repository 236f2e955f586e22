"""How good a meta-gradient is: bias, variance, and agreement between estimators."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Key, PyTree

from metajax.errors import MetajaxError
from metajax.types import Algorithm, TaskBatch, TrainState

_ADAM_MEMORY = 0.9  # of the first moment, optax's default


def meta_gradient(
    algorithm: Algorithm, state: TrainState, tasks: TaskBatch, key: Key[Array, ""]
) -> tuple[PyTree[Array], PyTree[Array]]:
    """Return the meta-gradient of one `update`, of policy and rule parameters, uphill.

    It is read from the first moment of the outer optimizer, so the algorithm must take one step of
    Adam: `maml(..., outer=metajax.outer.adam())` and its relatives.

    Args:
        algorithm: with an outer step of Adam.
        state: from which the update starts.
        tasks: of the update.
        key: of the episodes; consumed.

    Raises:
        MetajaxError: the algorithm's outer step is not one of Adam. Where it is several, which
            under `jax.jit` nobody knows in time, the gradients are NaN.
    """
    before = _adam(algorithm, state)
    after = _adam(algorithm, algorithm.update(state, tasks, key)[0])
    steps = jnp.asarray(after.count) - jnp.asarray(before.count)
    if not isinstance(steps, Tracer) and steps != 1:
        raise MetajaxError(
            f"an update of {algorithm.name} takes {steps} steps of Adam; it must take one, as with "
            "outer=adam(epochs=1) or updates=1."
        )
    gradient = lambda new, old: (_ADAM_MEMORY * old - new) / (1 - _ADAM_MEMORY)
    return jax.tree.map(
        lambda new, old: jnp.where(steps == 1, gradient(new, old), jnp.nan), after.mu, before.mu
    )


def _adam(algorithm: Algorithm, state: TrainState):
    try:
        adam = state.learner["outer"][0]
    except (TypeError, KeyError, IndexError, AttributeError):
        adam = None
    if not isinstance(adam, optax.ScaleByAdamState):
        raise MetajaxError(
            f"{algorithm.name} has no outer step of Adam, whose memory holds the meta-gradient, as "
            "maml(..., outer=adam()) has."
        )
    return adam


class EstimatorError(NamedTuple):
    """Error of an estimator of a gradient, relative to the norm of the true one.

    Attributes:
        bias: ‖mean - exact‖ / ‖exact‖; of n samples it holds noise of about std / √n.
        std: √(trace of the covariance) / ‖exact‖, of a single estimate.
        cosine: mean cosine similarity of a single estimate and the exact gradient.
    """

    bias: Float[Array, ""]
    std: Float[Array, ""]
    cosine: Float[Array, ""]


def estimator_error(
    estimates: Float[Array, "sample parameter"], exact: Float[Array, "parameter"]
) -> EstimatorError:
    """Return bias, standard deviation and direction of independent estimates of a gradient.

    Args:
        estimates: one per row, at least 2.
        exact: what they estimate.
    """
    norm, mean = jnp.linalg.norm(exact), jnp.mean(estimates, axis=0)
    deviations = jnp.sum((estimates - mean[None]) ** 2, axis=1)
    std = jnp.sqrt(jnp.sum(deviations) / (len(estimates) - 1)) / norm
    cosines = jax.vmap(lambda estimate: cosine_similarity(estimate, exact))(estimates)
    return EstimatorError(jnp.linalg.norm(mean - exact) / norm, std, jnp.mean(cosines))


def cosine_similarity(a: PyTree[Array], b: PyTree[Array]) -> Float[Array, ""]:
    """Return the cosine of the angle between two gradients of the same structure."""

    def dot(x, y):
        return sum(jnp.vdot(p, q) for p, q in zip(*map(jax.tree.leaves, (x, y)), strict=True))

    return jnp.asarray(dot(a, b) / jnp.sqrt(dot(a, a) * dot(b, b)))
