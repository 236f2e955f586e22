"""All trajectories of a small tabular process, with their probabilities: nothing is sampled.

What the estimators should estimate is computed here by dynamic programming, which shares nothing
with them but the policy.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.types import Env, Policy, PolicyOutput, StepInput, Trajectory


class Enumerated(NamedTuple):
    """Indices `[trajectory, time]` of every trajectory that starts in state 0."""

    states: np.ndarray
    actions: np.ndarray
    next_states: np.ndarray  # the last step's is state 0: where it leads to earns nothing


def enumerate_trajectories(states: int, actions: int, length: int) -> Enumerated:
    paths = [
        ((0, *later), chosen)
        for later in itertools.product(range(states), repeat=length - 1)
        for chosen in itertools.product(range(actions), repeat=length)
    ]
    visited = np.array([p[0] for p in paths])
    following = np.concatenate([visited[:, 1:], np.zeros((len(paths), 1), int)], axis=1)
    return Enumerated(visited, np.array([p[1] for p in paths]), following)


def log_transition(task, enumerated: Enumerated) -> jax.Array:
    """Return the log-probability `[trajectory]` of the states, given the actions."""
    steps = jnp.log(task["transition"][enumerated.states, enumerated.actions])
    chosen = jnp.take_along_axis(steps, enumerated.next_states[..., None], axis=-1)[..., 0]
    return jnp.sum(chosen[:, :-1], axis=-1)


def step_input(states, size: int) -> StepInput:
    """Return one-hot observations of `states`, and no previous step."""
    nothing = jnp.zeros(np.shape(states))
    return StepInput(
        jax.nn.one_hot(states, size), nothing.astype(jnp.int32), nothing, nothing.astype(bool)
    )


def log_probs(policy: Policy, params, enumerated: Enumerated, states: int) -> jax.Array:
    """Return the log-probabilities `[trajectory, time]` of the actions."""
    output = policy.step(params, (), step_input(enumerated.states, states))[1]
    return output.distribution.log_prob(jnp.asarray(enumerated.actions))


def rollout_of_everything(env: Env, enumerated: Enumerated) -> Callable[..., Trajectory]:
    """Return a stand-in for `metajax.rollout` that plays every trajectory once.

    Rewards are multiplied by the trajectory's probability under the acting policy times the number
    of trajectories, so sums over episodes that are linear in the rewards are expectations.
    """
    count, length = enumerated.states.shape

    def rollout(key, env_, task, act, memory, *, episodes, parallel):
        assert env_ is env and episodes == count and memory == () and parallel
        seen = step_input(enumerated.states, env.observation_size)
        output: PolicyOutput = act(memory, seen, None)[2]
        actions = jnp.asarray(enumerated.actions, jnp.int32)
        log_prob = jnp.sum(output.distribution.log_prob(actions), axis=-1)
        probability = jnp.exp(log_prob + log_transition(task, enumerated))
        reward = task["reward"][enumerated.states, enumerated.actions]
        last = jnp.zeros((count, length), bool).at[:, -1].set(True)
        return Trajectory(
            step_input=seen,
            action=actions,
            output=output,
            reward=count * probability[:, None] * reward,
            terminated=jnp.zeros_like(last),
            truncated=last,
            valid=jnp.ones_like(last),
            final_input=jax.tree.map(lambda x: x[:, -1], seen),
        )

    return rollout


# --- dynamic programming -------------------------------------------------------------------------


def action_probabilities(policy: Policy, params, states: int) -> jax.Array:
    """Return π(a|s) `[state, action]`."""
    output = policy.step(params, (), step_input(np.arange(states), states))[1]
    return jax.nn.softmax(output.distribution.logits)


def action_values(pi, task, length: int, discount: float) -> jax.Array:
    """Return Q_t(s, a) `[time, state, action]`: reward now, then discounted reward to come."""
    values, following = [], jnp.zeros(pi.shape[0])
    for _ in range(length):
        q = task["reward"] + discount * task["transition"] @ following
        values.append(q)
        following = jnp.sum(pi * q, axis=-1)
    return jnp.stack(values[::-1])


def occupancy(pi, task, length: int) -> jax.Array:
    """Return the probability `[time, state]` of being in each state."""
    here = jnp.zeros(pi.shape[0]).at[0].set(1.0)
    visited = []
    for _ in range(length):
        visited.append(here)
        here = jnp.einsum("s,sa,saz->z", here, pi, task["transition"])
    return jnp.stack(visited)


def expected_return(policy: Policy, params, task, length: int, discount: float = 1.0) -> jax.Array:
    """Return the expected discounted return from state 0."""
    pi = action_probabilities(policy, params, task["reward"].shape[0])
    return jnp.sum(pi[0] * action_values(pi, task, length, discount)[0, 0])
