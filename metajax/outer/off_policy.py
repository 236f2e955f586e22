"""Off-policy learners: how a policy and its critics move on steps that other policies took.

Policies without a memory learn from single steps. Where they are given more than an observation,
such as a belief about the task, whoever uses the learner makes the steps from the parameters of
what infers it, and the critics' loss trains these too. Policies with a memory learn from whole
trials, by the same equations at every step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from metajax.envs.rollouts import check_policy
from metajax.errors import MetajaxError, check_at_most, check_positive
from metajax.outer.views import Remembered, has_memory
from metajax.types import Env, Metrics, Params, Policy, Scalar

State = dict[str, PyTree[Array]]
Mean = Callable[[Float[Array, "*batch"]], Float[Array, ""]]


class Batch(NamedTuple):
    """What a gradient step learns from.

    Attributes:
        steps: `Steps[*batch]`, or `TrialSteps[trial, step]` of a policy with a memory.
        penalty: of the encoder, what is added to the critics' loss.
        weight: of each step in all means, of mean 1, and 0 of padding; None where all weigh the
            same.
    """

    steps: Remembered
    penalty: Float[Array, ""] | float = 0.0
    weight: Float[Array, "*batch"] | None = None


BatchOf = Callable[[Params], Batch]  # of the encoder


class OffPolicyLearner(NamedTuple):
    """How a policy moves on remembered steps.

    - `init(key, policy_params, encoder) -> state`;
    - `improve(policy_params, encoder, state, batch_of, key) -> (policy_params, encoder, state,
      metrics)`: one gradient step of the critics, then one of the policy; `encoder` are the
      parameters that steps are made from, () where there are none;
    - `metrics`: their names;
    - `behaviour`: the policy that explores, with the parameters that are learned.
    """

    init: Callable[[Key[Array, ""], Params, Params], State]
    improve: Callable[
        [Params, Params, State, BatchOf, Key[Array, ""]], tuple[Params, Params, State, Metrics]
    ]
    metrics: tuple[str, ...]
    behaviour: Policy


def check_distribution(
    name: str, env: Env, policy: Policy, kind: type, which: str, actions: str = "unbounded"
) -> None:
    """Check that a policy is one that a learner can train.

    Args:
        name: of the learner.
        env: that the policy acts in.
        policy: to be checked.
        kind: of its distribution.
        which: policies without a memory have it.
        actions: policies with a memory have it with this option.

    Raises:
        MetajaxError: it was made for another environment, or its distribution is another one.
    """
    found = check_policy(env, policy)[1].distribution
    if not isinstance(found, kind):
        which = f"one with actions={actions!r}" if has_memory(policy) else which
        raise MetajaxError(
            f"{name} cannot train a policy whose distribution is {type(found).__name__}; take "
            f"{which}."
        )


def bellman_target(
    reward: Float[Array, "*batch"],
    terminated: Bool[Array, "*batch"],
    next_value: Float[Array, "*batch"],
    discount: Scalar,
) -> Float[Array, "*batch"]:
    """Return r + γ(1 - d)V(s'), a constant; at the end of a task, d = 1, nothing follows."""
    return jax.lax.stop_gradient(reward + discount * jnp.where(terminated, 0.0, next_value))


def mean_of(weight: Float[Array, "*batch"] | None) -> Mean:
    """Return the mean over a batch whose steps have weights, see `Batch`."""
    return lambda x: jnp.mean(x if weight is None else weight * x)


def of_taken(
    q_values: Float[Array, "critic *batch action"], action: Int[Array, "*batch"]
) -> Float[Array, "critic *batch"]:
    """Return the values of the actions that were taken."""
    taken = lambda q: jnp.take_along_axis(q, action[..., None], -1)[..., 0]
    return jax.vmap(taken)(q_values)


def some_of(
    values: Float[Array, "critic *batch"], subset: int, key: Key[Array, ""]
) -> Float[Array, "one *batch"]:
    """Return the values by some critics, drawn at random, the same ones at every step."""
    return values[jax.random.choice(key, len(values), (subset,), replace=False)]


def soft_update(target: PyTree[Array], online: PyTree[Array], tau: Scalar) -> PyTree[Array]:
    """Return (1 - τ)·target + τ·online."""
    return jax.tree.map(lambda old, new: old + tau * (new - old), target, online)


def descend(
    optimizer: optax.GradientTransformationExtraArgs, gradient: Any, params: Any, state: Any
) -> tuple[Any, PyTree[Array]]:
    """Return parameters and the optimizer's state after a step."""
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def critic_step(
    q_of: Callable[[Params, Remembered], Float[Array, "critic *batch"]],
    target_of: Callable[[Remembered], Float[Array, "*batch"]],
    batch_of: BatchOf,
    trained: tuple[Params, Params],
    optimizer: optax.GradientTransformationExtraArgs,
    optimizer_state: PyTree[Array],
) -> tuple[tuple[Params, Params], PyTree[Array], Metrics]:
    """Return critics, encoder and optimizer after a step down the critics' squared errors.

    Args:
        q_of: values of the actions that were taken, by each critic.
        target_of: what they should be.
        batch_of: what is learned from, given the encoder.
        trained: (critics, encoder).
        optimizer: of both.
        optimizer_state: its state.
    """

    def loss(trained):
        critic, encoder = trained
        batch = batch_of(encoder)
        mean = jax.vmap(mean_of(batch.weight))
        q = q_of(critic, batch.steps)
        loss = jnp.sum(mean((q - target_of(batch.steps)[None]) ** 2))
        return loss + batch.penalty, {"q_loss": loss, "q_value": jnp.mean(mean(q))}

    gradient, metrics = jax.grad(loss, has_aux=True)(trained)
    trained, optimizer_state = descend(optimizer, gradient, trained, optimizer_state)
    return trained, optimizer_state, metrics | {"meta_gradient_norm": optax.tree.norm(gradient)}


def improve_often(
    improve: Callable[[Params, State, Key[Array, ""]], tuple[Params, State, Metrics]],
    learned: tuple[Params, State],
    metrics: tuple[str, ...],
    updates: Float[Array, ""],
    key: Key[Array, ""],
) -> tuple[Params, State, Metrics]:
    """Return parameters and learner after gradient steps, and the means of what these measured.

    Args:
        improve: one of them.
        learned: parameters and the learner's state.
        metrics: names of what a step measures.
        updates: how many there are, a whole number.
        key: consumed.
    """

    def step(index, carry):
        params, state, totals = carry
        params, state, found = improve(params, state, jax.random.fold_in(key, index))
        return params, state, jax.tree.map(jnp.add, totals, found)

    totals = dict.fromkeys(metrics, jnp.zeros(()))
    params, state, totals = jax.lax.fori_loop(
        0, updates.astype(jnp.int32), step, (*learned, totals)
    )
    return params, state, jax.tree.map(lambda total: total / jnp.maximum(updates, 1.0), totals)


def learning_from(
    learner: OffPolicyLearner, draw: Callable[[Key[Array, ""]], Batch]
) -> Callable[[Params, State, Key[Array, ""]], tuple[Params, State, Metrics]]:
    """Return one gradient step of a policy on what is drawn, for `improve_often`."""

    def improve(params, state, key):
        batch_key, step_key = jax.random.split(key)
        batch = draw(batch_key)
        params, _, state, found = learner.improve(params, (), state, lambda _: batch, step_key)
        return params, state, found

    return improve


METRICS = ("q_loss", "q_value", "meta_gradient_norm")


def check_rates(
    learning_rate: Scalar, critic_learning_rate: Scalar, discount: Scalar, tau: Scalar
) -> None:
    """Check options that all learners have.

    Raises:
        MetajaxError: one is out of range.
    """
    check_positive(learning_rate=learning_rate, critic_learning_rate=critic_learning_rate)
    check_positive(discount=discount, tau=tau)
    check_at_most(1, discount=discount, tau=tau)
