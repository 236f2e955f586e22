"""The critic of Q-Prop (Gu et al. 2017): action values, learned off-policy from a replay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from metajax._promotion import on_own_terms
from metajax.errors import MetajaxError
from metajax.policies.mlp import value_network
from metajax.replay import (
    Replay,
    Transitions,
    all_transitions,
    empty_replay,
    extend_replay,
    sample_replay,
)
from metajax.types import Continuous, Env, Params, Policy, StepInput, Trajectory

BATCH = 64  # steps in each gradient step
TARGET_RATE = 0.005  # how far the target network follows in each


class ActionValues(NamedTuple):
    """An action-value function Q(s, a) and its training.

    - `init(key) -> (params, state, replay)`;
    - `gradient(params, trajectory[*batch, time]) -> [*batch, time, action]`: ∇_a Q at the mean
      actions of the policy that acted;
    - `fit(params, state, replay, trajectories, policy_params, key) -> (params, state, replay,
      loss)`: keep the steps of `trajectories`, then learn from kept ones what the policy's mean
      actions are worth.
    """

    init: Callable[[Key[Array, ""]], tuple[Params, Any, Replay]]
    gradient: Callable[[Params, Trajectory], Float[Array, "*batch time action"]]
    fit: Callable[..., tuple[Params, Any, Replay, Float[Array, ""]]]


def action_values(
    env: Env,
    policy: Policy,
    *,
    discount: float,
    hidden: tuple[int, ...],
    learning_rate: float,
    updates: int,
    replay_capacity: int,
) -> ActionValues:
    """Return a perceptron of observation and action, trained as DDPG's critic (section 3.3).

    Args:
        env: with continuous actions.
        policy: without a memory.
        discount: γ per step.
        hidden: widths of the hidden layers.
        learning_rate: of Adam.
        updates: gradient steps per meta-iteration, on 64 kept steps each.
        replay_capacity: environment steps that are kept.

    Raises:
        MetajaxError: the actions are not continuous.
    """
    space = env.action_space
    if not isinstance(space, Continuous):
        raise MetajaxError("Q-Prop needs continuous actions; this environment's are discrete.")
    network = value_network(env.observation_size + space.size, hidden=hidden, activation="relu")
    optimizer = on_own_terms(optax.adam(learning_rate))

    def value(params, step_input: StepInput, action):
        return network.apply(params, jnp.concatenate([step_input.observation, action], axis=-1))

    def gradient(params, trajectory: Trajectory):
        mean = trajectory.output.distribution.mode()
        return jax.grad(lambda a: jnp.sum(value(params, trajectory.step_input, a)))(mean)

    def loss(params, target, policy_params, steps: Transitions):
        _, output = policy.step(policy_params, policy.initial_memory(), steps.next_input)
        following = value(target, steps.next_input, output.distribution.mode())
        goal = steps.reward + jnp.where(steps.terminated, 0.0, discount * following)
        return jnp.mean((value(params, steps.step_input, steps.action) - goal) ** 2)

    def init(key):
        params = network.init(key)
        number, flag = jnp.zeros(1), jnp.zeros(1, bool)
        action = jnp.zeros((1, space.size))
        step_input = StepInput(jnp.zeros((1, env.observation_size)), action, number, flag)
        step = Transitions(step_input, action, number, flag, step_input, flag)
        replay = empty_replay(step, replay_capacity)
        return params, {"adam": optimizer.init(params), "target": params}, replay

    def fit(params, state, replay: Replay, trajectories: Trajectory, policy_params, key):
        steps = all_transitions(trajectories)
        replay = extend_replay(replay, steps, steps.valid)

        def gradient_step(carry, key):
            params, target, adam = carry
            drawn = sample_replay(replay, key, BATCH)
            error, gradient = jax.value_and_grad(loss)(params, target, policy_params, drawn)
            updates, adam = optimizer.update(gradient, adam, params)
            params = optax.apply_updates(params, updates)
            target = optax.incremental_update(params, target, TARGET_RATE)
            return (params, target, adam), error

        carry = (params, state["target"], state["adam"])
        keys = jax.random.split(key, updates)
        (params, target, adam), errors = jax.lax.scan(gradient_step, carry, keys)
        return params, {"adam": adam, "target": target}, replay, jnp.mean(errors)

    return ActionValues(init, gradient, fit)
