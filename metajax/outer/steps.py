"""Outer steps: how meta-parameters move on what a batch of tasks was played with.

Whoever meta-learns says what is to improve (a `Problem`); how is the outer step's own business.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from metajax._promotion import on_own_terms
from metajax.errors import MetajaxError, check_at_least, check_positive
from metajax.outer.trust_region import fisher_vector_product, trust_region_step
from metajax.parts import part
from metajax.types import Made, Metrics, Params, Scalar

Batch = PyTree[Array]


class Problem(NamedTuple):
    """What an outer step improves parameters on, each of a batch of experience.

    - `loss(params, batch, clip) -> (loss, metrics)`: what gradient steps descend; ratios of
      probabilities count up to 1 ± `clip`, all of them where it is None;
    - `surrogate(params, batch) -> (gain, kl)`: what a trust region raises, and the mean divergence
      from the policies that acted, in nats, which it bounds;
    - `distributions(params, batch)`: of the policies, batched in any way;
    - `mean_kl(old, new, batch) -> kl`: of two of these.
    """

    loss: Callable[[Params, Batch, Scalar | None], tuple[Float[Array, ""], Metrics]]
    surrogate: Callable[[Params, Batch], tuple[Float[Array, ""], Float[Array, ""]]]
    distributions: Callable[[Params, Batch], Any]
    mean_kl: Callable[[Any, Any, Batch], Float[Array, ""]]


class OuterStep(NamedTuple):
    """How parameters move.

    - `init(params) -> state`;
    - `improve(problem, params, state, batch) -> (params, state, metrics)`; metrics are those of
      each gradient step, `[step]`;
    - `metrics`: their names, besides those that `problem.loss` returns;
    - `trains_critics`: whether it descends `problem.loss`, which a critic's error may be part of;
      a trust region raises the surrogate alone;
    - `made`: as in `metajax.types.Part`.
    """

    init: Callable[[Params], PyTree[Array]]
    improve: Callable[
        [Problem, Params, PyTree[Array], Batch], tuple[Params, PyTree[Array], Metrics]
    ]
    metrics: tuple[str, ...]
    trains_critics: bool = True
    made: Made | None = None

    def __repr__(self) -> str:
        """Return how the step was made."""
        return repr(self.made or self.improve)


@part
def adam(
    learning_rate: Scalar = 1e-3,
    *,
    epochs: int = 1,
    minibatches: int = 1,
    clip: Scalar | None = None,
    max_gradient_norm: Scalar | None = None,
    half_life: Scalar | None = None,
) -> OuterStep:
    """Return steps of Adam (Kingma & Ba 2015); one of the whole batch, if nothing else is asked.

    Args:
        learning_rate: learning rate of Adam.
        epochs: passes over the batch.
        minibatches: gradient steps per pass; their number divides the size of the batch.
        clip: ε of PPO's clipped ratio; None for unclipped ratios.
        max_gradient_norm: norm that longer gradients are shortened to; None for no bound.
        half_life: meta-iterations in which the learning rate halves; None for a constant one.

    Raises:
        MetajaxError: an option is out of range; later, that a batch is not divided.
    """
    check_at_least(1, epochs=epochs, minibatches=minibatches)
    numbers = {"clip": clip, "max_gradient_norm": max_gradient_norm, "half_life": half_life}
    check_positive(learning_rate=learning_rate)
    check_positive(**{name: value for name, value in numbers.items() if value is not None})
    rate: Scalar | optax.Schedule = learning_rate
    if half_life is not None:
        per_iteration, steps = 0.5 ** (1 / half_life), epochs * minibatches
        rate = lambda count: learning_rate * jnp.power(per_iteration, count / steps)
    optimizer = optax.adam(rate)
    if max_gradient_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(max_gradient_norm), optimizer)
    optimizer = on_own_terms(optimizer)

    def improve(problem: Problem, params: Params, state, batch: Batch):
        def step(carry, batch: Batch):
            params, state = carry
            gradient, metrics = jax.grad(problem.loss, has_aux=True)(params, batch, clip)
            updates, state = optimizer.update(gradient, state, params)
            metrics = metrics | {"meta_gradient_norm": optax.tree.norm(gradient)}
            return (optax.apply_updates(params, updates), state), metrics

        def epoch(carry, _):
            if minibatches > 1:
                return jax.lax.scan(step, carry, _in_turn(batch, minibatches))
            carry, metrics = step(carry, batch)
            return carry, jax.tree.map(lambda x: x[None], metrics)

        (params, state), metrics = jax.lax.scan(epoch, (params, state), length=epochs)
        return params, state, jax.tree.map(jnp.ravel, metrics)

    return OuterStep(optimizer.init, improve, ("meta_gradient_norm",))


@part
def ppo(
    learning_rate: Scalar = 1e-3,
    *,
    epochs: int = 5,
    minibatches: int = 1,
    clip: Scalar = 0.3,
    max_gradient_norm: Scalar | None = None,
    half_life: Scalar | None = None,
) -> OuterStep:
    """Return clipped epochs on the same experience (Schulman et al. 2017); see `adam`.

    Args:
        learning_rate: learning rate of Adam.
        epochs: passes over the batch.
        minibatches: gradient steps per pass; their number divides the size of the batch.
        clip: ε of the clipped ratio.
        max_gradient_norm: norm that longer gradients are shortened to; None for no bound.
        half_life: meta-iterations in which the learning rate halves; None for a constant one.

    Raises:
        MetajaxError: an option is out of range; later, that a batch is not divided.
    """
    return adam(
        learning_rate,
        epochs=epochs,
        minibatches=minibatches,
        clip=clip,
        max_gradient_norm=max_gradient_norm,
        half_life=half_life,
    )


@part
def trpo(max_kl: Scalar = 0.01, *, cg_iterations: int = 10, cg_damping: Scalar = 1e-5) -> OuterStep:
    """Return a natural-gradient step within a trust region (Schulman et al. 2015).

    It raises the surrogate alone: a critic is trained elsewhere.

    Args:
        max_kl: trust region, nats of the mean divergence from the old policies.
        cg_iterations: conjugate-gradient iterations.
        cg_damping: number that is added to the diagonal of the Fisher matrix.

    Raises:
        MetajaxError: an option is out of range.
    """
    check_positive(max_kl=max_kl)
    check_at_least(1, cg_iterations=cg_iterations)
    check_at_least(0, cg_damping=cg_damping)

    def improve(problem: Problem, params: Params, state, batch: Batch):
        gradient = jax.grad(lambda params: problem.surrogate(params, batch)[0])(params)
        product = fisher_vector_product(
            lambda params: problem.distributions(params, batch),
            lambda old, new: problem.mean_kl(old, new, batch),
            params,
            damping=cg_damping,
        )
        step = trust_region_step(
            lambda params: problem.surrogate(params, batch),
            gradient,
            product,
            params,
            max_kl=max_kl,
            iterations=cg_iterations,
        )
        metrics = {
            "meta_gradient_norm": optax.tree.norm(gradient),
            "step_accepted": step.accepted.astype(jnp.float32),
            "kl": step.kl,
        }
        return step.params, state, jax.tree.map(lambda x: x[None], metrics)

    names = ("meta_gradient_norm", "step_accepted", "kl")
    return OuterStep(lambda params: (), improve, names, trains_critics=False)


def _in_turn(batch: Batch, minibatches: int) -> Batch:
    """Return minibatches `[minibatch, item, ...]`, each with its share of every device's items."""
    count = len(jax.tree.leaves(batch)[0])
    if count % minibatches:
        raise MetajaxError(
            f"{count} tasks cannot be split into {minibatches} minibatches; their number must "
            "divide that of the tasks."
        )
    return jax.tree.map(
        lambda x: x.reshape(count // minibatches, minibatches, *x.shape[1:]).swapaxes(0, 1), batch
    )
