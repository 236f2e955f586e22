"""Deep Q-networks (Mnih et al. 2015; double: van Hasselt et al. 2016), and MAML over them.

MAML (Finn et al. 2017) asks nothing of the inner loss but a gradient. That of Q-learning is right
whoever acted, so trials are kept in a replay and learned from many times, which policy gradients
cannot do.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from metajax._checks import checked
from metajax._options import options_of
from metajax.algorithms.inner_loop import InnerLoop, collect_batch, inner_loop
from metajax.algorithms.objectives import double_q_loss, temporal_difference_objective
from metajax.algorithms.replayed import replayed
from metajax.errors import MetajaxError, check_at_least, check_at_most, check_positive
from metajax.policies import EpsilonGreedy
from metajax.replay import all_transitions, transitions
from metajax.rollout import over_tasks
from metajax.types import Algorithm, Discrete, Env, Policy, PolicyOutput


@checked
def epsilon_greedy(policy: Policy, epsilon: float) -> Policy:
    """Return the policy whose Q-values are the logits of `policy`, over discrete actions.

    Args:
        policy: for its logits.
        epsilon: probability of a uniformly drawn action, in (0, 1].

    Raises:
        MetajaxError: epsilon is out of range.
    """
    check_positive(epsilon=epsilon)
    check_at_most(1, epsilon=epsilon)

    def acting(function):
        def of_values(params, memory, step_input):
            memory, output = function(params, memory, step_input)
            q_values = output.distribution.logits
            chance = jnp.full(q_values.shape[:-1], epsilon, q_values.dtype)
            return memory, PolicyOutput(EpsilonGreedy(q_values, chance), output.value)

        return of_values

    return Policy(policy.init, policy.initial_memory, acting(policy.step), acting(policy.unroll))


@options_of(inner_loop, without=("inner_max_kl",))
def q_learning_loop(
    env: Env,
    policy: Policy,
    *,
    epsilon: float = 0.1,
    discount: float = 0.99,
    error_clip: float | None = 1.0,
    **options: Any,
) -> tuple[InnerLoop, Policy]:
    """Return an inner loop of Q-learning steps, and its policy, which acts ε-greedily.

    A step is the semi-gradient step of Q-learning on a task's episodes: it bootstraps from the
    parameters that it starts at. A meta-gradient differentiates it in full, those values included.

    Args:
        env: with discrete actions.
        policy: its logits are Q-values.
        epsilon: probability of a uniformly drawn action.
        discount: γ per step.
        error_clip: errors beyond it, in units of reward, count for no more than it; None for
            squared errors. Where the returns of a state differ by much more, a bound makes its
            value their median, and what happens seldom, such as a fall, is not heeded.

    Raises:
        MetajaxError: the actions are not discrete, or an option is unknown or out of range.
    """
    if not isinstance(env.action_space, Discrete):
        raise MetajaxError("Q-learning needs discrete actions; this environment's are continuous.")
    behaviour = epsilon_greedy(policy, epsilon)
    objective = temporal_difference_objective(behaviour, discount=discount, error_clip=error_clip)
    return inner_loop(env, behaviour, objective, **options), behaviour


@options_of(q_learning_loop, without=("first_order", "rematerialize", "rule"))
def dqn(
    env: Env,
    policy: Policy,
    *,
    outer_learning_rate: float = 1e-3,
    updates: int = 200,
    batch: int = 64,
    replay_capacity: int = 100_000,
    target_period: int = 500,
    discount: float = 0.99,
    error_clip: float | None = 1.0,
    **options: Any,
) -> Algorithm:
    """Return double DQN: one network for all tasks (from scratch, if there is one).

    A meta-iteration plays the tasks of a batch, then trains on steps of all that were played.
    The agents still adapt when they are tested, by a Q-learning step per round: joint training,
    then fine-tuning.

    Args:
        env: with discrete actions.
        policy: its logits are Q-values.
        outer_learning_rate: of Adam.
        updates: gradient steps per meta-iteration.
        batch: environment steps in each, drawn uniformly from the replay.
        replay_capacity: environment steps that are kept.
        target_period: gradient steps between two copies to the target network.
        discount: γ per step.
        error_clip: errors beyond it, in units of reward, count for no more than it; None for
            squared errors. Where the returns of a state differ by much more, a bound makes its
            value their median, and what happens seldom, such as a fall, is not heeded.
    """
    if options.get("adapts") == "context":
        raise MetajaxError(
            "joint training has no use for a context, which is 0 at the start of every task; "
            "adapts must be 'all' or 'head'."
        )
    of_errors = {"discount": discount, "error_clip": error_clip}
    loop, behaviour = q_learning_loop(env, policy, **of_errors, first_order=True, **options)

    def collect(meta_params, tasks, key):
        data, _ = collect_batch(loop, meta_params, tasks, key, 1)
        steps = all_transitions(data.trajectory)
        return data, steps, steps.valid

    def loss(theta, target, steps):
        return double_q_loss(behaviour, theta[0], target[0], steps, **of_errors)

    return replayed(
        loop,
        collect,
        loss,
        name="dqn",
        rounds=1,
        outer_learning_rate=outer_learning_rate,
        updates=updates,
        batch=batch,
        replay_capacity=replay_capacity,
        target_period=target_period,
    )


@options_of(q_learning_loop)
def maml_dqn(
    env: Env,
    policy: Policy,
    *,
    inner_steps: int = 1,
    outer_learning_rate: float = 1e-3,
    updates: int = 20,
    batch: int = 20,
    replay_capacity: int = 1000,
    target_period: int = 100,
    discount: float = 0.99,
    error_clip: float | None = 1.0,
    **options: Any,
) -> Algorithm:
    """Return MAML over Q-learning.

    An inner step descends the error of Q-learning on the episodes before it, the values of the next
    states held fixed. The outer loss is that of double DQN on the episodes after adaptation. Its
    target network is what a slow copy of θ adapts to on the same episodes: with no adaptation it is
    that of DQN.

    Args:
        env: with discrete actions.
        policy: its logits are Q-values.
        inner_steps: K, adaptation steps during meta-training.
        outer_learning_rate: of Adam.
        updates: outer gradient steps per meta-iteration.
        batch: trials in each, drawn uniformly from the replay.
        replay_capacity: trials that are kept, each the K + 1 rounds of a task.
        target_period: outer gradient steps between two copies to the slow one.
        discount: γ per step.
        error_clip: errors beyond it, in units of reward, count for no more than it; None for
            squared errors. Where the returns of a state differ by much more, a bound makes its
            value their median, and what happens seldom, such as a fall, is not heeded.
    """
    check_at_least(1, inner_steps=inner_steps)
    of_errors = {"discount": discount, "error_clip": error_clip}
    loop, behaviour = q_learning_loop(env, policy, **of_errors, **options)

    def collect(meta_params, tasks, key):
        data, _ = collect_batch(loop, meta_params, tasks, key, inner_steps + 1)
        kept = dataclasses.replace(data.trajectory, output=(), initial_state=())
        every = jnp.ones(kept.reward.shape[0], bool)
        return data, dataclasses.replace(data, trajectory=kept), every

    def loss_of_trial(shared, trial):
        support = jax.tree.map(lambda x: x[:-1], trial)
        query = transitions(jax.tree.map(lambda x: x[-1], trial.trajectory))
        params, target = (loop.readapt(theta[0], theta[1], support)[0].policy for theta in shared)
        return double_q_loss(behaviour, params, target, query, **of_errors)

    def loss(theta, target, trials):
        return jnp.mean(over_tasks(loss_of_trial, (theta, target), trials))

    return replayed(
        loop,
        collect,
        loss,
        name="maml-dqn",
        rounds=inner_steps + 1,
        outer_learning_rate=outer_learning_rate,
        updates=updates,
        batch=batch,
        replay_capacity=replay_capacity,
        target_period=target_period,
    )
