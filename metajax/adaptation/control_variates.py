"""The control variate of Q-Prop (Gu et al. 2017): action values, learned off-policy from a replay.

A critic Q(s, a) that all tasks share takes from the advantages what it explains of them, and the
objective gets it back in expectation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from metajax._promotion import on_own_terms
from metajax.errors import MetajaxError, check_at_least, check_positive
from metajax.losses import policy_gradient
from metajax.losses.policy_gradient import ControlVariateKind
from metajax.parts import part
from metajax.policies.layers import check_hidden
from metajax.policies.mlp import value_network
from metajax.replay import (
    Replay,
    Transitions,
    all_transitions,
    empty_replay,
    extend_replay,
    sample_replay,
)
from metajax.types import Continuous, Env, Params, Part, Policy, Scalar, StepInput, Trajectory

BATCH = 64  # steps in each gradient step
TARGET_RATE = 0.005  # how far the target network follows in each


class ControlVariate(NamedTuple):
    """What a control variate takes from advantages, and how its critic is trained.

    - `init(key) -> (params, state, replay)`;
    - `explain(params, trajectory[episode, time], advantage) -> (control, explained)`: what it takes
      per unit of the mean action, `[episode, time, action]`, and in all, `[episode, time]`;
    - `fit(params, state, replay, trajectories, policy_params, discount, key) -> (params, state,
      replay, loss)`: keep the steps of `trajectories`, then learn from kept ones what the policy's
      mean actions are worth.
    """

    init: Callable[[Key[Array, ""]], tuple[Params, Any, Replay]]
    explain: Callable[[Params, Trajectory, Array], tuple[Array, Array]]
    fit: Callable[..., tuple[Params, Any, Replay, Float[Array, ""]]]


@part
def q_prop(
    kind: ControlVariateKind = "conservative",
    *,
    hidden: Sequence[int] = (64, 64),
    learning_rate: Scalar = 1e-3,
    updates: int = 500,
    replay_capacity: int = 100_000,
) -> Part[ControlVariate]:
    """Return Q-Prop's control variate; its critic is trained as DDPG's (section 3.3).

    Args:
        kind: "standard" always subtracts what the critic explains, "conservative" where it agrees
            with the advantages in sign, "aggressive" with that sign. "standard" alone is unbiased.
        hidden: widths of the critic's hidden layers.
        learning_rate: learning rate of Adam on the critic's squared error.
        updates: gradient steps of the critic per meta-iteration, on 64 kept steps each.
        replay_capacity: environment steps that are kept.

    Raises:
        MetajaxError: an option is out of range; later, that the actions are not continuous.
    """
    check_hidden(hidden)
    check_positive(learning_rate=learning_rate)
    check_at_least(1, updates=updates, replay_capacity=replay_capacity)
    optimizer = on_own_terms(optax.adam(learning_rate))

    def build(env: Env, policy: Policy) -> ControlVariate:
        space = env.action_space
        if not isinstance(space, Continuous):
            raise MetajaxError("Q-Prop needs continuous actions; this environment's are discrete.")
        inputs = env.observation_size + space.size
        network = value_network(inputs, hidden=hidden, activation="relu")

        def value(params, step_input: StepInput, action):
            return network.apply(params, jnp.concatenate([step_input.observation, action], axis=-1))

        def explain(params, trajectory: Trajectory, advantage):
            mean = trajectory.output.distribution.mode()
            gradient = jax.grad(lambda a: jnp.sum(value(params, trajectory.step_input, a)))(mean)
            offset = trajectory.action - mean
            estimate = jnp.where(trajectory.valid, jnp.sum(gradient * offset, axis=-1), 0.0)
            weight = policy_gradient.control_variate_weight(advantage, estimate, kind)
            return weight[..., None] * gradient, weight * estimate

        def loss(params, target, policy_params, discount, steps: Transitions):
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

        def fit(params, state, replay, trajectories: Trajectory, policy_params, discount, key):
            steps = all_transitions(trajectories)
            replay = extend_replay(replay, steps, steps.valid)

            def gradient_step(carry, key):
                params, target, adam = carry
                drawn = sample_replay(replay, key, BATCH)
                error, gradient = jax.value_and_grad(loss)(
                    params, target, policy_params, discount, drawn
                )
                change, adam = optimizer.update(gradient, adam, params)
                params = optax.apply_updates(params, change)
                target = optax.incremental_update(params, target, TARGET_RATE)
                return (params, target, adam), error

            carry = (params, state["target"], state["adam"])
            keys = jax.random.split(key, updates)
            (params, target, adam), errors = jax.lax.scan(gradient_step, carry, keys)
            return params, {"adam": adam, "target": target}, replay, jnp.mean(errors)

        return ControlVariate(init, explain, fit)

    return Part(build)


CONTROL_VARIATES: dict[str, Callable[..., Part[ControlVariate]]] = {"q-prop": q_prop}
