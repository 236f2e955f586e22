"""Credit for actions: advantages over a baseline that is fitted, learned or absent."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from metajax.errors import check_at_least, check_fraction, check_positive, unknown
from metajax.losses import baselines, returns
from metajax.policies.mlp import value_network
from metajax.types import Env, Metrics, Params, Trajectory, pytree_dataclass

Baseline = Literal["linear", "value_network", "none"]


@pytree_dataclass
class Credit:
    """Constants that an inner or outer loss weighs actions with, each `[episode, time]`.

    `advantage + baseline` is the return to go in the advantage's own units; `target` is the return
    to go in the units of reward.
    """

    advantage: Float[Array, "*batch episode time"]
    baseline: Float[Array, "*batch episode time"]
    target: Float[Array, "*batch episode time"]


class CreditAssignment(NamedTuple):
    """How actions are given credit, and how the critic behind it is trained, if there is one.

    - `init(key) -> (critic, critic_state)`: parameters and optimizer state, () without a critic;
    - `assign(critic, trajectory[episode, time]) -> Credit`: of one task and adaptation step;
    - `fit(critic, critic_state, trajectories, credit) -> (critic, critic_state, metrics)`: on the
      episodes of all tasks and rounds.
    """

    init: Callable[[Key[Array, ""]], tuple[Params, Any]]
    assign: Callable[[Params, Trajectory], Credit]
    fit: Callable[[Params, Any, Trajectory, Credit], tuple[Params, Any, Metrics]]


def credit_assignment(
    env: Env,
    *,
    baseline: Baseline = "linear",
    discount: float = 0.99,
    trace: float = 1.0,
    normalize_advantages: bool = True,
    critic_hidden: tuple[int, ...] = (64, 64),
    critic_learning_rate: float = 1e-3,
    critic_epochs: int = 10,
) -> CreditAssignment:
    """Return generalized advantages over a baseline.

    Args:
        env: the environment that all tasks share.
        baseline: "linear" fits features per task and adaptation step; they know the time, so the
            value is 0 at the horizon. "value_network" shares one network between the tasks, whose
            values also bootstrap truncated episodes. "none" uses plain returns.
        discount: γ per step.
        trace: λ of generalized advantage estimation.
        normalize_advantages: to mean 0 and standard deviation 1, per task and adaptation step.
        critic_hidden: widths of the value network's hidden layers, baseline value_network only.
        critic_learning_rate: of Adam on its squared error.
        critic_epochs: its full-batch steps per meta-iteration.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """
    if baseline not in Baseline.__args__:
        raise unknown("baseline", baseline, Baseline.__args__)
    check_fraction(discount=discount, trace=trace)
    check_at_least(1, critic_epochs=critic_epochs)
    check_positive(critic_learning_rate=critic_learning_rate)
    network = value_network(env.observation_size, hidden=critic_hidden)
    optimizer = optax.adam(critic_learning_rate)

    def values(critic, trajectory: Trajectory):
        """Return values `[episode, time]` and of the observations after the last steps."""
        observation = trajectory.step_input.observation
        if baseline == "value_network":
            final = network.apply(critic, trajectory.final_input.observation)
            return network.apply(critic, observation), final
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
        advantage = jax.vmap(
            lambda r, v, f, t, m: returns.generalized_advantages(
                r, v, f, t, m, discount=discount, trace=trace
            )
        )(trajectory.reward, value, final_value, trajectory.terminated, trajectory.valid)
        target = advantage + value
        if normalize_advantages:
            mean, std = returns.masked_moments(advantage, trajectory.valid)
            advantage, value = (advantage - mean) / (std + 1e-8), (value + mean) / (std + 1e-8)
        return jax.lax.stop_gradient(Credit(advantage, value, target))

    def init(key):
        if baseline != "value_network":
            return (), ()
        critic = network.init(key)
        return critic, optimizer.init(critic)

    def fit(critic, critic_state, trajectories: Trajectory, credit: Credit):
        if baseline != "value_network":
            return critic, critic_state, {}

        def loss(critic):
            value = network.apply(critic, trajectories.step_input.observation)
            return returns.masked_mean((value - credit.target) ** 2, trajectories.valid)

        def epoch(carry, _):
            critic, critic_state = carry
            value, gradient = jax.value_and_grad(loss)(critic)
            updates, critic_state = optimizer.update(gradient, critic_state)
            return (optax.apply_updates(critic, updates), critic_state), value

        carry, losses = jax.lax.scan(epoch, (critic, critic_state), length=critic_epochs)
        return *carry, {"critic_loss": losses[0]}

    return CreditAssignment(init, assign, fit)
