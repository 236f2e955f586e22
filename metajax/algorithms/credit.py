"""Credit for actions: advantages over a baseline that is fitted, learned or absent."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax._promotion import on_own_terms
from metajax.algorithms.control_variates import action_values
from metajax.errors import check_at_least, check_fraction, check_positive
from metajax.losses import baselines, policy_gradient, returns
from metajax.losses.policy_gradient import ControlVariate
from metajax.policies.mlp import value_network
from metajax.types import Env, Metrics, Params, Policy, Trajectory, pytree_dataclass

Baseline = Literal["linear", "value_network", "none"]


@pytree_dataclass
class Credit:
    """Constants that an inner or outer loss weighs actions with, each `[episode, time]`.

    `target` is the return to go in the units of reward; `advantage + baseline` is the same over
    `unit`, a number that the advantages were divided by. It is 0 where all advantages are, since
    no episode came to more than another or a baseline explains all but rounding; then the sum is
    over the largest return. `control`, `[episode, time, action]`, is what a control variate took
    from the advantages, per unit of the mean action; None without one.
    """

    advantage: Float[Array, "*batch episode time"]
    baseline: Float[Array, "*batch episode time"]
    target: Float[Array, "*batch episode time"]
    unit: Float[Array, "*batch"]
    control: Float[Array, "*batch episode time action"] | None = None


class CreditAssignment(NamedTuple):
    """How actions are given credit, and how the critic behind it is trained, if there is one.

    - `init(key) -> (critic, critic_state, replay)`: parameters and optimizer state, by the critic's
      name, and what a control variate learns from, () without one;
    - `assign(critic, trajectory[episode, time]) -> Credit`: of one task and adaptation step;
    - `fit(critic, critic_state, replay, trajectories, credit, policy_params, key) -> (critic,
      critic_state, replay, metrics)`: on the episodes of all tasks and rounds;
    - `metrics`: the names of those.
    """

    init: Callable[[Key[Array, ""]], tuple[Params, Any, Any]]
    assign: Callable[[Params, Trajectory], Credit]
    fit: Callable[..., tuple[Params, Any, Any, Metrics]]
    metrics: tuple[str, ...]


@checked
def credit_assignment(
    env: Env,
    policy: Policy,
    *,
    baseline: Baseline = "linear",
    discount: float = 0.99,
    trace: float = 1.0,
    normalize_advantages: bool = True,
    critic_hidden: tuple[int, ...] = (64, 64),
    critic_learning_rate: float = 1e-3,
    critic_epochs: int = 10,
    control_variate: ControlVariate = "none",
    q_updates: int = 500,
    replay_capacity: int = 100_000,
) -> CreditAssignment:
    """Return generalized advantages over a baseline, less a control variate.

    Args:
        env: the environment that all tasks share.
        policy: that acts.
        baseline: "linear" fits features per task and adaptation step; they know the time, so the
            value is 0 at the horizon. "value_network" shares one network between the tasks, whose
            values also bootstrap truncated episodes. "none" uses plain discounted returns.
        discount: γ per step.
        trace: λ of generalized advantage estimation, which is 1 without a baseline.
        normalize_advantages: to mean 0 and standard deviation 1, per task and adaptation step;
            what differs by rounding alone becomes 0.
        critic_hidden: widths of the hidden layers of a value network or control variate.
        critic_learning_rate: of Adam on their squared error.
        critic_epochs: full-batch steps of the value network per meta-iteration.
        control_variate: Q-Prop: a critic Q(s, a), shared by the tasks and trained off-policy, takes
            from the advantages what it explains of them, and the objective gets it back in
            expectation; "standard" always, "conservative" where they agree in sign, "aggressive"
            with that sign. "none" for none.
        q_updates: gradient steps of that critic per meta-iteration.
        replay_capacity: environment steps that it learns from.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """
    check_fraction(discount=discount, trace=trace)
    check_at_least(1, critic_epochs=critic_epochs, q_updates=q_updates)
    check_at_least(1, replay_capacity=replay_capacity)
    check_positive(critic_learning_rate=critic_learning_rate)
    trace = 1.0 if baseline == "none" else trace  # else it would be another discount
    network = value_network(env.observation_size, hidden=critic_hidden)
    optimizer = on_own_terms(optax.adam(critic_learning_rate))
    q = None
    if control_variate != "none":
        q = action_values(
            env,
            policy,
            discount=discount,
            hidden=critic_hidden,
            learning_rate=critic_learning_rate,
            updates=q_updates,
            replay_capacity=replay_capacity,
        )

    def values(critic, trajectory: Trajectory):
        """Return values `[episode, time]` and of the observations after the last steps."""
        observation = trajectory.step_input.observation
        if baseline == "value_network":
            final = network.apply(critic["value"], trajectory.final_input.observation)
            return network.apply(critic["value"], observation), final
        if baseline == "none":
            value = jnp.zeros_like(trajectory.reward)
            return value, value[:, -1]
        features = jax.vmap(baselines.linear_features)(observation)
        target = jax.vmap(lambda r, v: returns.discounted_returns(r, v, discount))(
            trajectory.reward, trajectory.valid
        )
        weights = baselines.fit_linear(
            features.reshape(-1, features.shape[-1]), target.ravel(), trajectory.valid.ravel()
        )
        return features @ weights, jnp.zeros(features.shape[0])

    def assign(critic, trajectory: Trajectory) -> Credit:
        value, final_value = values(critic, trajectory)

        def generalized(value, trace):
            return jax.vmap(
                lambda r, v, f, t, m: returns.generalized_advantages(
                    r, v, f, t, m, discount=discount, trace=trace
                )
            )(trajectory.reward, value, final_value, trajectory.terminated, trajectory.valid)

        advantage = generalized(value, trace)
        target, control, unit = advantage + value, None, jnp.ones(())
        if normalize_advantages or baseline != "none":
            alike = returns.alike(generalized(jnp.zeros_like(value), 1.0))
            advantage, value = jnp.where(alike, 0.0, advantage), jnp.where(alike, target, value)
        if q is not None:
            control, explained = controlled(critic["q"], trajectory, advantage)
            advantage, value = advantage - explained, value + explained
        if normalize_advantages:
            mean, unit = returns.standard_units(advantage, trajectory.valid, target)
            alike, size = unit == 0, returns.largest(target, trajectory.valid)
            mean = jnp.where(alike, advantage, mean)
            over = jnp.where(alike, jnp.where(size > 0, size, 1.0), unit)
            advantage, value = (advantage - mean) / over, (value + mean) / over
            control = None if control is None else control / over
        return jax.lax.stop_gradient(Credit(advantage, value, target, unit, control))

    def controlled(q_params, trajectory: Trajectory, advantage):
        """Return η ∇_a Q and η Ā."""
        assert q is not None and control_variate != "none"
        gradient = q.gradient(q_params, trajectory)
        offset = trajectory.action - trajectory.output.distribution.mode()
        estimate = jnp.where(trajectory.valid, jnp.sum(gradient * offset, axis=-1), 0.0)
        weight = policy_gradient.control_variate_weight(advantage, estimate, control_variate)
        return weight[..., None] * gradient, weight * estimate

    def init(key):
        critic, state, replay = {}, {}, ()
        if baseline == "value_network":
            critic["value"] = network.init(key)
            state["value"] = optimizer.init(critic["value"])
        if q is not None:
            critic["q"], state["q"], replay = q.init(jax.random.fold_in(key, 1))
        return critic, state, replay

    def fit_value(value_params, state, trajectories: Trajectory, credit: Credit):
        def loss(params):
            value = network.apply(params, trajectories.step_input.observation)
            return returns.masked_mean((value - credit.target) ** 2, trajectories.valid)

        def epoch(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        carry, losses = jax.lax.scan(epoch, (value_params, state), length=critic_epochs)
        return *carry, losses[0]

    def fit(critic, critic_state, replay, trajectories, credit: Credit, policy_params, key):
        critic, critic_state, metrics = dict(critic), dict(critic_state), {}
        if baseline == "value_network":
            critic["value"], critic_state["value"], metrics["critic_loss"] = fit_value(
                critic["value"], critic_state["value"], trajectories, credit
            )
        if q is not None:
            critic["q"], critic_state["q"], replay, metrics["q_loss"] = q.fit(
                critic["q"], critic_state["q"], replay, trajectories, policy_params, key
            )
        return critic, critic_state, replay, metrics

    metrics = ("critic_loss",) * (baseline == "value_network") + ("q_loss",) * (q is not None)
    return CreditAssignment(init, assign, fit, metrics)
