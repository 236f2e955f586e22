"""Advantages: how much better an action did than its state was worth."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax.adaptation.control_variates import ControlVariate
from metajax.adaptation.critics import Critic
from metajax.losses import returns
from metajax.types import Env, Metrics, Params, Part, Policy, Scalar, Trajectory, pytree_dataclass


@pytree_dataclass
class Advantages:
    """Constants that an inner or outer loss weighs actions with, each `[episode, time]`.

    `target` is the return to go in the units of reward; `advantage + baseline` is the same over
    `unit`, a number that the advantages were divided by. It is 0 where all advantages are, since
    no episode came to more than another or a critic explains all but rounding; then the sum is
    over the largest return. `control`, `[episode, time, action]`, is what a control variate took
    from the advantages, per unit of the mean action; None without one.
    """

    advantage: Float[Array, "*batch episode time"]
    baseline: Float[Array, "*batch episode time"]
    target: Float[Array, "*batch episode time"]
    unit: Float[Array, "*batch"]
    control: Float[Array, "*batch episode time action"] | None = None


class AdvantageEstimator(NamedTuple):
    """How advantages are estimated, and how the critics behind them are trained.

    - `init(key) -> (critic, critic_state, replay)`: parameters and optimizer states by the critics'
      names, and what a control variate learns from, () without one;
    - `estimate(critic, trajectory[episode, time]) -> Advantages`: of one task and adaptation step;
    - `fit(critic, critic_state, replay, trajectories, advantages, policy_params, key) -> (critic,
      critic_state, replay, metrics)`: on the episodes of all tasks and rounds;
    - `metrics`: the names of those.
    """

    init: Callable[[Key[Array, ""]], tuple[Params, Any, Any]]
    estimate: Callable[[Params, Trajectory], Advantages]
    fit: Callable[..., tuple[Params, Any, Any, Metrics]]
    metrics: tuple[str, ...]


def generalized_advantages(
    env: Env,
    policy: Policy,
    *,
    critic: Part[Critic] | None,
    discount: Scalar,
    gae_lambda: Scalar,
    normalize: bool,
    control_variate: Part[ControlVariate] | None,
) -> AdvantageEstimator:
    """Return generalized advantages over a critic (Schulman et al. 2016), less a control variate.

    Args:
        env: the environment that all tasks share.
        policy: that acts.
        critic: values of states; None for discounted returns as they are.
        discount: γ per step.
        gae_lambda: λ, which is 1 without a critic: there it would be another discount.
        normalize: to mean 0 and standard deviation 1, per task and adaptation step; what differs by
            rounding alone becomes 0.
        control_variate: None for none.
    """
    of_states = None if critic is None else critic.build(env, policy)
    variate = None if control_variate is None else control_variate.build(env, policy)
    learned = of_states is not None and of_states.init is not None

    def values(params, trajectory: Trajectory):
        if of_states is None:
            value = jnp.zeros_like(trajectory.reward)
            return value, value[:, -1]
        return of_states.values(params["value"] if learned else None, trajectory, discount)

    def estimate(params, trajectory: Trajectory) -> Advantages:
        value, final_value = values(params, trajectory)

        def generalized(value, gae_lambda):
            return jax.vmap(
                lambda r, v, f, t, m: returns.generalized_advantages(
                    r, v, f, t, m, discount=discount, gae_lambda=gae_lambda
                )
            )(trajectory.reward, value, final_value, trajectory.terminated, trajectory.valid)

        advantage = generalized(value, 1.0 if of_states is None else gae_lambda)
        target, control, unit = advantage + value, None, jnp.ones(())
        if normalize or of_states is not None:
            alike = returns.alike(generalized(jnp.zeros_like(value), 1.0))
            advantage, value = jnp.where(alike, 0.0, advantage), jnp.where(alike, target, value)
        if variate is not None:
            control, explained = variate.explain(params["q"], trajectory, advantage)
            advantage, value = advantage - explained, value + explained
        if normalize:
            mean, unit = returns.standard_units(advantage, trajectory.valid, target)
            alike, size = unit == 0, returns.largest(target, trajectory.valid)
            mean = jnp.where(alike, advantage, mean)
            over = jnp.where(alike, jnp.where(size > 0, size, 1.0), unit)
            advantage, value = (advantage - mean) / over, (value + mean) / over
            control = None if control is None else control / over
        return jax.lax.stop_gradient(Advantages(advantage, value, target, unit, control))

    def init(key):
        params, state, replay = {}, {}, ()
        if of_states is not None and of_states.init is not None:
            params["value"], state["value"] = of_states.init(key)
        if variate is not None:
            params["q"], state["q"], replay = variate.init(jax.random.fold_in(key, 1))
        return params, state, replay

    def fit(params, state, replay, trajectories, advantages: Advantages, policy_params, key):
        params, state, metrics = dict(params), dict(state), {}
        if of_states is not None and of_states.fit is not None:
            params["value"], state["value"], metrics["critic_loss"] = of_states.fit(
                params["value"], state["value"], trajectories, advantages.target
            )
        if variate is not None:
            params["q"], state["q"], replay, metrics["q_loss"] = variate.fit(
                params["q"], state["q"], replay, trajectories, policy_params, discount, key
            )
        return params, state, replay, metrics

    metrics = ("critic_loss",) * learned + ("q_loss",) * (variate is not None)
    return AdvantageEstimator(init, estimate, fit, metrics)
