"""What adaptation steps descend: policy-gradient losses and the temporal-difference loss."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from metajax.adaptation.advantages import Advantages, generalized_advantages
from metajax.adaptation.control_variates import ControlVariate
from metajax.adaptation.critics import Critic, linear
from metajax.adaptation.pathwise import check_pathwise, forward_over_reverse, pathwise_returns
from metajax.envs.rollouts import check_policy
from metajax.errors import MetajaxError, check_at_least, check_fraction, check_positive
from metajax.losses import policy_gradient as losses
from metajax.losses import returns, temporal_difference
from metajax.parts import part
from metajax.replay import Transitions, transitions
from metajax.types import (
    Env,
    Metrics,
    Params,
    Part,
    Policy,
    Scalar,
    StepInput,
    Trajectory,
    pytree_dataclass,
)

# Those of `metajax.losses.policy_gradient.ESTIMATORS`, and one through the simulator.
Estimator = Literal["likelihood_ratio", "dice", "loaded_dice", "naive", "clipped", "pathwise"]


@pytree_dataclass
class Experience:
    """Episodes `[episode, time]` of one adaptation step, and what their loss takes as constants.

    `advantages` is a `metajax.adaptation.advantages.Advantages` for policy gradients, () for
    temporal differences.
    """

    trajectory: Trajectory
    advantages: Any


class Objective(NamedTuple):
    """What an adaptation step descends, and the critics behind it, if there are any.

    - `init(key) -> (critic, critic_state, replay)`: parameters, optimizer states and what they
      learn from, empty without critics;
    - `estimate(critic, trajectory) -> advantages`: constants of the loss of one task and round;
    - `loss(params, fixed, experience) -> loss`: a step descends its derivative by `params`; `fixed`
      are the same parameters again, where a semi-gradient holds them fixed;
    - `fit(critic, critic_state, replay, experience, policy_params, key) -> (critic, critic_state,
      replay, metrics)`: on the episodes of all tasks and rounds; parameters are those before
      adaptation;
    - `metrics`: the names of those;
    - `estimator`: of a policy gradient, else None;
    - `loss_of_steps(params, target_params, transitions) -> loss`: of any steps, whoever took them;
      None where a loss needs the episodes of the policy itself.
    """

    init: Callable[[Key[Array, ""]], tuple[Params, Any, Any]]
    estimate: Callable[[Params, Trajectory], Any]
    loss: Callable[[Params, Params, Experience], Float[Array, ""]]
    fit: Callable[..., tuple[Params, Any, Any, Metrics]]
    metrics: tuple[str, ...]
    estimator: Estimator | None = None
    loss_of_steps: Callable[[Params, Params, Transitions], Float[Array, ""]] | None = None


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


def control(advantages: Advantages, distribution: Any, trajectory: Trajectory) -> Float[Array, ""]:
    """Return what a control variate took from the advantages, in expectation; 0 without one.

    Args:
        advantages: of the episodes.
        distribution: of the policy that is trained.
        trajectory: `[episode, time]`.
    """
    if advantages.control is None:
        return jnp.zeros(())
    return jnp.sum(
        losses.control_variate(
            advantages.control,
            distribution.mode(),
            trajectory.output.distribution.mode(),
            trajectory.valid,
        )
    )


@part
def policy_gradient(
    estimator: Estimator = "likelihood_ratio",
    *,
    critic: Part[Critic] | None = linear(),
    discount: Scalar = 0.99,
    gae_lambda: Scalar = 1.0,
    normalize_advantages: bool = True,
    control_variate: Part[ControlVariate] | None = None,
    truncation: int = 10,
) -> Part[Objective]:
    """Return a loss: minus the mean reward of the time steps played, by its policy gradient.

    Args:
        estimator: estimator of the policy gradient, one of
            `metajax.losses.policy_gradient.ESTIMATORS`, or "pathwise": differentiate through the
            simulator.
        critic: values of states that advantages are over; None for discounted returns as they are.
        discount: discount γ per step.
        gae_lambda: λ of generalized advantage estimation; 1 without a critic.
        normalize_advantages: whether advantages get mean 0 and standard deviation 1, per task and
            adaptation step; what differs by rounding alone becomes 0.
        control_variate: part of the advantages that a critic of actions explains; None for no such
            critic.
        truncation: environment steps that a pathwise gradient reaches back.

    Raises:
        MetajaxError: an option is out of range.
    """
    check_at_least(1, truncation=truncation)
    check_fraction(discount=discount, gae_lambda=gae_lambda)
    if estimator == "loaded_dice" and control_variate is not None:
        raise MetajaxError(
            "loaded_dice weighs advantages by the steps before, which a control variate must not "
            "have; take another estimator."
        )

    def build(env: Env, policy: Policy) -> Objective:
        advantages = generalized_advantages(
            env,
            policy,
            critic=critic,
            discount=discount,
            gae_lambda=gae_lambda,
            normalize=normalize_advantages,
            control_variate=control_variate,
        )
        if estimator == "pathwise":
            loss = _pathwise_loss(env, policy, truncation)
        else:
            loss = _score_function_loss(policy, losses.ESTIMATORS[estimator])

        def fit(critic, critic_state, replay, experience: Experience, policy_params, key):
            data = experience.trajectory, experience.advantages
            return advantages.fit(critic, critic_state, replay, *data, policy_params, key)

        return Objective(
            advantages.init, advantages.estimate, loss, fit, advantages.metrics, estimator
        )

    return Part(build)


def _pathwise_loss(env: Env, policy: Policy, truncation: int):
    check_pathwise(env)

    @forward_over_reverse
    def of_trajectory(params, trajectory: Trajectory):
        replayed = pathwise_returns(env, policy, params, trajectory, truncation=truncation)
        return -jnp.sum(replayed) / jnp.sum(trajectory.valid).astype(replayed.dtype)

    def loss(params, fixed, experience: Experience):
        del fixed
        return of_trajectory(params, experience.trajectory)

    return loss


def _score_function_loss(policy: Policy, estimate: Callable[..., Float[Array, ""]]):
    def loss(params, fixed, experience: Experience):
        del fixed
        trajectory, advantages = experience.trajectory, experience.advantages
        distribution, log_prob = evaluate_actions(policy, params, trajectory)
        objective = jnp.sum(
            jax.vmap(estimate)(
                log_prob,
                behaviour_log_probs(trajectory),
                advantages.advantage,
                advantages.baseline,
                trajectory.valid,
            )
        )
        objective += control(advantages, distribution, trajectory)
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
    discount: Scalar,
    error_clip: Scalar | None = 1.0,
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
    each = optax.losses.huber_loss(errors, delta=error_clip) if clipped else 0.5 * errors**2
    return returns.masked_mean(each, steps.valid)


@part
def q_learning(*, discount: Scalar = 0.99, error_clip: Scalar | None = 1.0) -> Part[Objective]:
    """Return the loss of double Q-learning, whose bootstrapped values a step holds fixed.

    Its policy has Q-values: that of `metajax.algorithms.dqn`, not one of `metajax.policies`.

    Args:
        discount: discount γ per step.
        error_clip: errors beyond it, in units of reward, count for no more than it; None for
            squared errors. Where the returns of a state differ by much more, a bound makes its
            value their median, and what happens seldom, such as a fall, has no weight.

    Raises:
        MetajaxError: the discount or the bound is out of range.
    """
    check_fraction(discount=discount)
    if error_clip is not None:
        check_positive(error_clip=error_clip)

    def build(env: Env, policy: Policy) -> Objective:
        _, output = check_policy(env, policy)
        if not hasattr(output.distribution, "q_values"):
            raise MetajaxError(
                "Q-learning needs a policy of action values, such as metajax.algorithms.dqn and "
                "maml_dqn make of any other."
            )

        def init(key: Key[Array, ""]):
            del key
            return (), (), ()

        def loss_of_steps(params, target_params, steps: Transitions):
            return double_q_loss(policy, params, target_params, steps, discount, error_clip)

        def loss(params, fixed, experience: Experience):
            return loss_of_steps(params, fixed, transitions(experience.trajectory))

        def fit(critic, critic_state, replay, experience: Experience, policy_params, key):
            del experience, policy_params, key
            return critic, critic_state, replay, {}

        estimate = lambda critic, trajectory: ()
        return Objective(init, estimate, loss, fit, (), loss_of_steps=loss_of_steps)

    return Part(build)


OBJECTIVES: dict[str, Callable[..., Part[Objective]]] = {
    "policy-gradient": policy_gradient,
    "q-learning": q_learning,
}
