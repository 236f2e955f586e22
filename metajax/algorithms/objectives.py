"""What adaptation steps descend: policy-gradient losses and the temporal-difference loss."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from metajax._options import options_of
from metajax.algorithms.credit import Credit, credit_assignment
from metajax.algorithms.pathwise import check_pathwise, forward_over_reverse, pathwise_returns
from metajax.errors import MetajaxError, check_at_least, check_fraction, check_positive
from metajax.losses import policy_gradient, returns, temporal_difference
from metajax.replay import Transitions, transitions
from metajax.types import Env, Metrics, Params, Policy, StepInput, Trajectory, pytree_dataclass

# Those of `metajax.losses.policy_gradient.ESTIMATORS`, and one through the simulator.
Estimator = Literal["likelihood_ratio", "dice", "loaded_dice", "naive", "clipped", "pathwise"]


@pytree_dataclass
class Experience:
    """Episodes `[episode, time]` of one adaptation step, and what their loss takes as constants.

    `credit` is a `metajax.algorithms.credit.Credit` for policy gradients, () for temporal
    differences.
    """

    trajectory: Trajectory
    credit: Any


class Objective(NamedTuple):
    """What an adaptation step descends, and the critic behind it, if there is one.

    - `init(key) -> (critic, critic_state, replay)`: parameters, optimizer state and what it learns
      from, empty without a critic;
    - `assign(critic, trajectory) -> credit`: constants of the loss of one task and round;
    - `loss(params, fixed, experience) -> loss`: a step descends its derivative by `params`; `fixed`
      are the same parameters again, where a semi-gradient holds them fixed;
    - `fit(critic, critic_state, replay, experience, policy_params, key) -> (critic, critic_state,
      replay, metrics)`: on the episodes of all tasks and rounds; parameters are those before
      adaptation;
    - `metrics`: the names of those.
    """

    init: Callable[[Key[Array, ""]], tuple[Params, Any, Any]]
    assign: Callable[[Params, Trajectory], Any]
    loss: Callable[[Params, Params, Experience], Float[Array, ""]]
    fit: Callable[..., tuple[Params, Any, Any, Metrics]]
    metrics: tuple[str, ...]


def evaluate_actions(policy: Policy, params: Params, trajectory: Trajectory) -> tuple[Any, Array]:
    """Return (distribution, log_prob) `[episode, time]` of the actions that were taken.

    Args:
        policy: without a memory.
        params: of the policy to ask, not necessarily the one that acted.
        trajectory: `[episode, time]`.
    """
    _, output = jax.vmap(lambda x: policy.unroll(params, policy.initial_memory(), x))(
        trajectory.step_input
    )
    return output.distribution, output.distribution.log_prob(trajectory.action)


def behaviour_log_probs(trajectory: Trajectory) -> Float[Array, "*batch time"]:
    """Return the log-probabilities of the actions under the policy that took them."""
    return trajectory.output.distribution.log_prob(trajectory.action)


def control(credit: Credit, distribution: Any, trajectory: Trajectory) -> Float[Array, ""]:
    """Return what a control variate took from the advantages, in expectation; 0 without one.

    Args:
        credit: of the episodes.
        distribution: of the policy that is trained.
        trajectory: `[episode, time]`.
    """
    if credit.control is None:
        return jnp.zeros(())
    return jnp.sum(
        policy_gradient.control_variate(
            credit.control,
            distribution.mode(),
            trajectory.output.distribution.mode(),
            trajectory.valid,
        )
    )


@options_of(credit_assignment)
def policy_gradient_objective(
    env: Env,
    policy: Policy,
    *,
    estimator: Estimator = "likelihood_ratio",
    truncation: int = 10,
    **options: Any,
) -> Objective:
    """Return a loss: minus the mean reward of the time steps played, by its policy gradient.

    Args:
        env: the environment that all tasks share.
        policy: what is adapted.
        estimator: the inner objective, one of `metajax.losses.policy_gradient.ESTIMATORS`, or
            "pathwise": differentiate through the simulator.
        truncation: environment steps that a pathwise gradient reaches back.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """
    check_at_least(1, truncation=truncation)
    if estimator == "loaded_dice" and options.get("control_variate", "none") != "none":
        raise MetajaxError(
            "loaded_dice weighs advantages by the steps before, which a control variate must not "
            "have; take another estimator."
        )
    credit = credit_assignment(env, policy, **options)

    if estimator == "pathwise":
        loss = _pathwise_loss(env, policy, truncation)
    else:
        loss = _score_function_loss(policy, policy_gradient.ESTIMATORS[estimator])

    def fit(critic, critic_state, replay, experience: Experience, policy_params, key):
        data = experience.trajectory, experience.credit
        return credit.fit(critic, critic_state, replay, *data, policy_params, key)

    return Objective(credit.init, credit.assign, loss, fit, credit.metrics)


def _pathwise_loss(env: Env, policy: Policy, truncation: int):
    check_pathwise(env)

    @forward_over_reverse
    def of_trajectory(params, trajectory: Trajectory):
        earned = pathwise_returns(env, policy, params, trajectory, truncation=truncation)
        return -jnp.sum(earned) / jnp.sum(trajectory.valid).astype(earned.dtype)

    def loss(params, fixed, experience: Experience):
        del fixed
        return of_trajectory(params, experience.trajectory)

    return loss


def _score_function_loss(policy: Policy, estimate: Callable[..., Float[Array, ""]]):
    def loss(params, fixed, experience: Experience):
        del fixed
        trajectory, credit = experience.trajectory, experience.credit
        distribution, log_prob = evaluate_actions(policy, params, trajectory)
        objective = jnp.sum(
            jax.vmap(estimate)(
                log_prob,
                behaviour_log_probs(trajectory),
                credit.advantage,
                credit.baseline,
                trajectory.valid,
            )
        )
        objective += control(credit, distribution, trajectory)
        objective /= jnp.sum(trajectory.valid).astype(objective.dtype)
        # A rule may read the loss. A surrogate's own value says nothing of how well it went.
        reward = returns.masked_mean(trajectory.reward, trajectory.valid)
        return jax.lax.stop_gradient(objective - reward) - objective

    return loss


def double_q_loss(
    policy: Policy,
    params: Params,
    target_params: Params,
    steps: Transitions,
    discount: float,
    error_clip: float | None = 1.0,
) -> Float[Array, ""]:
    """Return the mean loss of double Q-learning over the valid steps, half the squared errors.

    The gradient for errors beyond ±`error_clip` is that at the bound: with 1, the error clipping
    of Mnih et al. (2015). Values are then medians, not means, of targets that differ by more.

    Args:
        policy: its distributions have `q_values`; without a memory.
        params: that are trained; they also choose the action whose value is the target's.
        target_params: that value it.
        steps: with any axes.
        discount: γ per step.
        error_clip: in units of reward; None for no bound.
    """

    def q_values(params, step_input: StepInput):
        return policy.step(params, policy.initial_memory(), step_input)[1].distribution.q_values

    errors = temporal_difference.double_q_learning(
        q_values(params, steps.step_input),
        steps.action,
        steps.reward,
        jnp.where(steps.terminated, 0.0, discount),
        q_values(target_params, steps.next_input),
        selector=q_values(params, steps.next_input),
    )
    clipped = error_clip is not None
    losses = optax.losses.huber_loss(errors, delta=error_clip) if clipped else 0.5 * errors**2
    return returns.masked_mean(losses, steps.valid)


def temporal_difference_objective(
    policy: Policy, *, discount: float, error_clip: float | None = 1.0
) -> Objective:
    """Return the loss of Q-learning, whose bootstrapped values a step holds fixed.

    Args:
        policy: see `double_q_loss`.
        discount: γ per step.
        error_clip: see `double_q_loss`.

    Raises:
        MetajaxError: the discount or the bound is out of range.
    """
    check_fraction(discount=discount)
    if error_clip is not None:
        check_positive(error_clip=error_clip)

    def init(key: Key[Array, ""]):
        del key
        return (), (), ()

    def loss(params, fixed, experience: Experience):
        steps = transitions(experience.trajectory)
        return double_q_loss(policy, params, fixed, steps, discount, error_clip)

    def fit(critic, critic_state, replay, experience: Experience, policy_params, key):
        del experience, policy_params, key
        return critic, critic_state, replay, {}

    return Objective(init, lambda critic, trajectory: (), loss, fit, ())
