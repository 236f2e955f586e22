"""All trajectories of a small tabular process, with their probabilities: nothing is sampled.

What the estimators should estimate is computed here by dynamic programming, which shares nothing
with them but the policy.
"""

import itertools
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from trials import batch_of

from metajax.adaptation import gradient_steps, policy_gradient
from metajax.envs.families.tabular import tabular
from metajax.losses import returns
from metajax.policies import mlp
from metajax.rules import sgd
from metajax.types import (
    Discrete,
    Env,
    MetaParams,
    Policy,
    PolicyOutput,
    StepInput,
    TrainState,
    Trajectory,
)

# Where tests put their own in place of `rollout`; the module's name is that of a function.
INNER_LOOP = sys.modules["metajax.adaptation.gradient_steps"]


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


# --- what the tests of the gradient family share -------------------------------------------------


class Problem:
    """A tabular family, a policy, its parameters as one vector, and two random tasks."""

    def __init__(self, states=3, actions=2, length=3, context=0):
        self.states, self.length = states, length
        self.everything = enumerate_trajectories(states, actions, length)
        self.count = len(self.everything.states)
        self.family = tabular(states=states, actions=actions, episode_length=length, reward_std=0.0)
        self.policy = mlp(states, Discrete(actions), hidden=(3,), context=context)
        params = self.policy.init(jax.random.key(1))
        # Far from uniform, so that no symmetry hides a missing term.
        flat, self.unravel = ravel_pytree(params)
        self.flat = flat + 0.3 * jax.random.normal(jax.random.key(2), flat.shape)
        self.params = self.unravel(self.flat)
        self.elsewhere = self.flat + 0.3 * jax.random.normal(jax.random.key(10), flat.shape)
        self.tasks = jax.vmap(self.family.train.sample)(jax.random.split(jax.random.key(8), 2))
        self.task = jax.tree.map(lambda x: x[0], self.tasks)

    def log_probs(self, flat):
        return log_probs(self.policy, self.unravel(flat), self.everything, self.states)

    def expected_return(self, flat, task=None, discount=1.0):
        task = self.task if task is None else task
        return expected_return(self.policy, self.unravel(flat), task, self.length, discount)

    def probability(self, flat, task=None):
        total = jnp.sum(self.log_probs(flat), axis=-1)
        task = self.task if task is None else task
        return jnp.exp(total + log_transition(task, self.everything))

    def missing_terms(self, flat, discount=1.0, task=None):
        """Return E[Σ_t discount^t ∇log π(a_t|s_t) ∇Q_t(s_t,a_t)ᵀ], by dynamic programming."""

        task = self.task if task is None else task

        def log_pi(flat):
            return jnp.log(action_probabilities(self.policy, self.unravel(flat), self.states))

        def q_values(flat):
            return action_values(jnp.exp(log_pi(flat)), task, self.length, discount)

        pi = jnp.exp(log_pi(flat))
        visits = occupancy(pi, task, self.length) * discount ** jnp.arange(self.length)[:, None]
        weight = visits[:, :, None] * pi[None]
        return jnp.einsum(
            "tsa,sai,tsaj->ij", weight, jax.jacobian(log_pi)(flat), jax.jacobian(q_values)(flat)
        )

    def advantages(self, discount, with_baseline, enter_discount=True):
        """Return advantage and baseline `[trajectory, time]`, for the discounted return."""
        reward = self.task["reward"][self.everything.states, self.everything.actions]
        valid = jnp.ones(reward.shape, bool)
        to_go = jax.vmap(lambda r, v: returns.discounted_returns(r, v, discount))(reward, valid)
        baseline = jnp.zeros_like(to_go)
        if with_baseline:  # of state and time, and no good: it must not matter
            baseline = jax.random.normal(jax.random.key(4), (self.length, self.states))
            baseline = baseline[jnp.arange(self.length), self.everything.states]
        weight = discount ** jnp.arange(self.length) if enter_discount else jnp.ones(self.length)
        weight = jnp.broadcast_to(weight, to_go.shape)
        return weight * (to_go - baseline), weight * baseline


def relative_error(found, exact):
    return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))


def meta_gradient_of(algorithm, state: TrainState, tasks, *, rule=False) -> jax.Array:
    """Return the meta-gradient of one `update` with Adam outside, read from Adam's first moment.

    With `rule` that of the rule's parameters, else that of the policy's.
    """
    new, metrics = jax.jit(algorithm.update)(state, batch_of(tasks), jax.random.key(0))
    first_moments = new.learner["outer"][0].mu  # (1 - 0.9) of the loss's gradient
    both = [-10 * ravel_pytree(x)[0] for x in first_moments]
    norm = jnp.linalg.norm(jnp.concatenate(both))
    np.testing.assert_allclose(norm, metrics["meta_gradient_norm"], rtol=1e-9)
    return both[rule]


def start(algorithm, params) -> TrainState:
    """Return the state in which the policy's parameters are `params`, in their precision."""
    state = jax.tree.map(
        lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        algorithm.init(jax.random.key(0), None),
    )
    found = state.meta_params
    return TrainState(MetaParams(params, found.rule, found.critic), state.learner)


# Returns as they are.
PLAIN = {"critic": None, "discount": 1.0, "normalize_advantages": False}


def plain_steps(estimator="likelihood_ratio", rule=None, *, of_objective=None, **options):
    """Return gradient steps on returns as they are; `of_objective` are options other than that."""
    objective = policy_gradient(estimator, **PLAIN | (of_objective or {}))
    return gradient_steps(objective, rule=sgd(0.1) if rule is None else rule, **options)
