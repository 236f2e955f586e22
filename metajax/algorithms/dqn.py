"""Deep Q-networks (Mnih et al. 2015; double: van Hasselt et al. 2016), and MAML over them.

MAML (Finn et al. 2017) asks nothing of the inner loss but a gradient. That of Q-learning is right
whoever acted, so trials are kept in a replay and learned from many times, which policy gradients
cannot do.
"""

import dataclasses

import jax
import jax.numpy as jnp

from metajax._checks import checked
from metajax.adaptation import InnerLoop, collect_batch, gradient_steps, q_learning
from metajax.algorithms.replayed import replayed
from metajax.envs.rollouts import over_tasks
from metajax.errors import MetajaxError, check_at_least
from metajax.outer import OuterStep, adam
from metajax.parts import made_with
from metajax.policies.epsilon_greedy import epsilon_greedy
from metajax.replay import all_transitions, transitions
from metajax.types import Algorithm, Discrete, Env, Part, Policy, Scalar, Trial


def _q_learning_loop(inner: Part[InnerLoop], env: Env, policy: Policy, epsilon: Scalar):
    """Return an inner loop of Q-learning steps on episodes of an ε-greedy policy.

    A step is the semi-gradient step of Q-learning on a task's episodes: it bootstraps from the
    parameters that it starts at. A meta-gradient differentiates it in full, those values included.
    """
    if not isinstance(env.action_space, Discrete):
        raise MetajaxError("Q-learning needs discrete actions; this environment's are continuous.")
    loop = inner.build(env, epsilon_greedy(policy, epsilon))
    if loop.objective.loss_of_steps is None:
        raise MetajaxError(
            "steps of a replay were taken by other policies: inner.objective must be 'q-learning'."
        )
    return loop, loop.objective.loss_of_steps


@checked
def dqn(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(q_learning()),
    outer: OuterStep = adam(1e-3),
    episodes: int = 20,
    epsilon: Scalar = 0.1,
    updates: int = 200,
    batch: int = 64,
    replay_capacity: int = 100_000,
    target_period: int = 500,
) -> Algorithm:
    """Return double DQN: one network for all tasks (from scratch, if there is one).

    A meta-iteration plays the tasks of a batch, then trains on steps of all that were played.
    The agents still adapt when they are tested, by a Q-learning step per round: joint training,
    then fine-tuning.

    Args:
        env: environment that all tasks share, with discrete actions.
        policy: policy whose logits are taken for Q-values.
        inner: objective of training, and fine-tuning on it when agents are tested.
        outer: outer step, of Adam, of each gradient step.
        episodes: episodes per task and meta-iteration.
        epsilon: probability ε of a uniformly drawn action, in (0, 1].
        updates: gradient steps per meta-iteration.
        batch: environment steps per gradient step, drawn uniformly from the replay.
        replay_capacity: environment steps that are kept.
        target_period: gradient steps between two copies to the target network.

    Raises:
        MetajaxError: the actions are not discrete, or an option is unknown or out of range.
    """
    loop, loss_of_steps = _q_learning_loop(inner, env, policy, epsilon)
    if made_with(inner, "adapts") == "context":
        raise MetajaxError(
            "joint training has no use for a context, which is 0 at the start of every task; "
            "inner.adapts must be 'all' or 'head'."
        )

    def collect(meta_params, tasks, key):
        data, _ = collect_batch(loop, meta_params, tasks, key, rounds=1, episodes=episodes)
        steps = all_transitions(data.trajectory)
        return data, steps, steps.valid

    def loss(theta, target, steps):
        return loss_of_steps(theta[0], target[0], steps)

    return replayed(
        env,
        loop,
        collect,
        loss,
        name="dqn",
        trial=Trial(1, episodes, 0),
        outer=outer,
        updates=updates,
        batch=batch,
        replay_capacity=replay_capacity,
        target_period=target_period,
    )


@checked
def maml_dqn(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(q_learning()),
    outer: OuterStep = adam(1e-3),
    inner_steps: int = 1,
    episodes: int = 20,
    first_order: bool = False,
    rematerialize: bool = False,
    epsilon: Scalar = 0.1,
    updates: int = 20,
    batch: int = 20,
    replay_capacity: int = 1000,
    target_period: int = 100,
) -> Algorithm:
    """Return MAML over Q-learning.

    An inner step descends the error of Q-learning on the episodes before it, the values of the next
    states held fixed. The outer loss is that of double DQN on the episodes after adaptation. Its
    target network is what a slow copy of θ adapts to on the same episodes: with no adaptation it is
    that of DQN.

    Args:
        env: environment that all tasks share, with discrete actions.
        policy: policy whose logits are taken for Q-values.
        inner: adaptation within a task, by Q-learning.
        outer: outer step, of Adam, of each gradient step.
        inner_steps: adaptation steps K during meta-training.
        episodes: episodes per task and adaptation step.
        first_order: whether inner gradients are treated as constants.
        rematerialize: whether inner steps are computed again in the backward pass, which saves
            memory when there are many.
        epsilon: probability ε of a uniformly drawn action, in (0, 1].
        updates: outer gradient steps per meta-iteration.
        batch: trials per gradient step, drawn uniformly from the replay.
        replay_capacity: trials that are kept, each the K + 1 rounds of a task.
        target_period: outer gradient steps between two copies to the slow one.

    Raises:
        MetajaxError: the actions are not discrete, or an option is unknown or out of range.
    """
    check_at_least(1, inner_steps=inner_steps)
    loop, loss_of_steps = _q_learning_loop(inner, env, policy, epsilon)

    def collect(meta_params, tasks, key):
        rounds = inner_steps + 1
        data, _ = collect_batch(loop, meta_params, tasks, key, rounds=rounds, episodes=episodes)
        kept = dataclasses.replace(data.trajectory, output=(), initial_state=())
        every = jnp.ones(kept.reward.shape[0], bool)
        return data, dataclasses.replace(data, trajectory=kept), every

    def loss_of_trial(shared, trial):
        support = jax.tree.map(lambda x: x[:-1], trial)
        query = transitions(jax.tree.map(lambda x: x[-1], trial.trajectory))
        params, target = (
            loop.readapt(policy, rule, support, first_order, rematerialize)[0].policy
            for policy, rule in shared
        )
        return loss_of_steps(params, target, query)

    def loss(theta, target, trials):
        return jnp.mean(over_tasks(loss_of_trial, (theta, target), trials))

    return replayed(
        env,
        loop,
        collect,
        loss,
        name="maml-dqn",
        trial=Trial(inner_steps + 1, episodes, inner_steps),
        outer=outer,
        updates=updates,
        batch=batch,
        replay_capacity=replay_capacity,
        target_period=target_period,
    )
