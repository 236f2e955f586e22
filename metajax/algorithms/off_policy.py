"""Learning one task, or several jointly, from remembered steps: what SAC and TD3 share.

A meta-iteration plays whole episodes, remembers their steps, and takes as many gradient steps as
the update-to-data ratio says: the schedule of Fujimoto et al. (2018), who learn after each episode
for as many steps as it had.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, PyTree

from metajax._checks import checked
from metajax.envs.rollouts import over_tasks, rollout, undiscounted_returns
from metajax.errors import MetajaxError, check_at_least, check_positive
from metajax.losses.returns import masked_mean
from metajax.outer.off_policy import Batch, OffPolicyLearner, improve_often, learning_from
from metajax.outer.views import has_memory
from metajax.policies.distributions import chosen_action
from metajax.replay import all_steps, empty_replay, extend_replay, sample_replay
from metajax.steps import count_update
from metajax.types import (
    Agent,
    Algorithm,
    Continuous,
    Env,
    MetaParams,
    Metrics,
    Params,
    Part,
    Policy,
    Scalar,
    TaskBatch,
    TrainState,
    Trajectory,
    Trial,
)


class Remembering(NamedTuple):
    """What an algorithm remembers, and how it learns from that.

    - `init(key) -> (meta_params, learner)`;
    - `behaviour`: the policy that explores, with the parameters `meta_params.policy`; its memory
      starts anew in every episode;
    - `items(trajectory) -> (items[item], valid[item])`: what is kept of the episodes on a task;
    - `improve(params, learner, replay, key) -> (params, learner, metrics)`: one gradient step;
    - `metrics`: the names of those;
    - `finish(params, learner, meta_params, replay, key) -> meta_params`: those after all of them,
      from those before;
    - `agent`: what is learned.
    """

    init: Callable[[Key[Array, ""]], tuple[MetaParams, PyTree[Array]]]
    behaviour: Policy
    items: Callable[[Trajectory], tuple[PyTree[Array], Bool[Array, "item"]]]
    improve: Callable[..., tuple[Params, PyTree[Array], Metrics]]
    metrics: tuple[str, ...]
    finish: Callable[..., MetaParams]
    agent: Agent


def step_by_step(
    env: Env, policy: Policy, learner: Part[OffPolicyLearner], batch: int
) -> Remembering:
    """Return how a policy without a memory learns: from single steps, all alike.

    Args:
        env: the environment that all tasks share.
        policy: without a memory.
        learner: how it moves on remembered steps.
        batch: remembered steps in each gradient step.

    Raises:
        MetajaxError: the policy has a memory, or is not for this environment or the learner.
    """
    if has_memory(policy):
        raise MetajaxError(
            "single steps train policies without a memory; off-policy-rl2 trains those with one."
        )
    learner_of = learner.build(env, policy)

    def init(key):
        policy_key, learner_key = jax.random.split(key)
        params = policy.init(policy_key)
        return MetaParams(params), learner_of.init(learner_key, params, ())

    def improve(params, state, replay, key):
        draw = lambda key: Batch(sample_replay(replay, key, batch))
        return learning_from(learner_of, draw)(params, state, key)

    def finish(params, state, meta_params, replay, key):
        del state, meta_params, replay, key
        return MetaParams(params)

    behaviour, metrics = learner_of.behaviour, learner_of.metrics
    return Remembering(init, behaviour, all_steps, improve, metrics, finish, _agent(policy))


def off_policy(
    env: Env,
    remembered: Remembering,
    *,
    name: str,
    episodes: int,
    updates_per_step: Scalar,
    batch: int,
    replay_capacity: int,
    random_steps: int,
) -> Algorithm:
    """Return the algorithm that plays, remembers and learns.

    Args:
        env: the environment that all tasks share.
        remembered: what is remembered, and how it is learned from.
        name: of the algorithm.
        episodes: per task and meta-iteration.
        updates_per_step: gradient steps per environment step.
        batch: remembered steps in each gradient step.
        replay_capacity: steps that are kept.
        random_steps: steps that are remembered before anything is learned; until then actions are
            drawn uniformly.

    Raises:
        MetajaxError: an option is out of range.
    """
    check_at_least(1, episodes=episodes)
    check_positive(updates_per_step=updates_per_step)
    needed = needed_at_first("steps", batch, replay_capacity, random_steps)
    trial, behaviour = Trial(1, episodes, 0), remembered.behaviour

    def act(params, memory, step_input, key, uniform):
        memory, output = behaviour.step(params, memory, step_input)
        action = output.distribution.sample(key)
        return memory, jnp.where(uniform, uniform_action(env, key), action), output

    def play(shared, task, key):
        params, uniform = shared
        playing = lambda memory, x, key: act(params, memory, x, key, uniform)
        start = behaviour.initial_memory()
        trajectory = rollout(key, env, task, playing, start, episodes=episodes, parallel=True)
        entropy = masked_mean(trajectory.output.distribution.entropy(), trajectory.valid)
        returns = jnp.mean(undiscounted_returns(trajectory))
        return remembered.items(trajectory), {"return": returns, "entropy": entropy}

    def collect(params, tasks: TaskBatch, key, uniform):
        keys = jax.random.split(key, len(tasks))
        items, found = over_tasks(play, (params, uniform), tasks.task, keys)
        flat = jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), items)
        return *flat, jax.tree.map(jnp.mean, found)

    @checked
    def init(key, tasks: TaskBatch) -> TrainState:
        meta_params, learner = remembered.init(key)
        random = jnp.ones((), bool)
        items, valid, _ = jax.eval_shape(collect, meta_params.policy, tasks, key, random)
        if len(valid) > replay_capacity:
            raise MetajaxError(
                f"replay_capacity is {replay_capacity}; it must have room for the {len(valid)} "
                "steps of one meta-iteration."
            )
        return TrainState(meta_params, learner, replay=empty_replay(items, replay_capacity))

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        play_key, learn_key = jax.random.split(key)
        params = state.meta_params.policy
        uniform = state.replay.size < random_steps
        items, valid, measured = collect(params, tasks, play_key, uniform)
        replay = extend_replay(state.replay, items, valid)
        played = jnp.sum(valid, dtype=measured["return"].dtype)
        due = jnp.floor(updates_per_step * played)
        due = jnp.where(replay.size >= needed, due, 0.0)

        params, learner, found = improve_often(
            lambda params, learner, key: remembered.improve(params, learner, replay, key),
            (params, state.learner),
            remembered.metrics,
            due,
            learn_key,
        )
        finish_key = jax.random.fold_in(learn_key, due.astype(jnp.int32))
        new_state = dataclasses.replace(
            state,
            meta_params=remembered.finish(params, learner, state.meta_params, replay, finish_key),
            learner=learner,
            replay=replay,
            environment_steps=count_update(state.environment_steps, len(tasks), trial, env),
        )
        return new_state, measured | found | {"updates": due, "valid_steps": played}

    metrics = ("return", "entropy", "updates", "valid_steps", *remembered.metrics)
    return Algorithm(init, update, remembered.agent, name, trial, metrics)


def needed_at_first(what: str, batch: int, replay_capacity: int, random: int) -> int:
    """Return how many items are remembered before anything is learned.

    Args:
        what: "steps" or "trials".
        batch: of them in a gradient step.
        replay_capacity: of them in all.
        random: of them with actions drawn uniformly, the option "random_" and `what`.

    Raises:
        MetajaxError: a number is out of range, or there is no room for them.
    """
    check_at_least(1, batch=batch, replay_capacity=replay_capacity)
    check_at_least(0, **{f"random_{what}": random})
    needed = max(random, batch)
    if replay_capacity < needed:
        raise MetajaxError(
            f"replay_capacity is {replay_capacity}; it must hold the {needed} {what} "
            f"(random_{what}, or a batch) that are there before anything is learned."
        )
    return needed


def uniform_action(env: Env, key: Key[Array, ""]) -> Array:
    """Return an action drawn uniformly; `key` is consumed."""
    space = env.action_space
    if isinstance(space, Continuous):
        low, high = space.bounds
        return jax.random.uniform(key, (space.size,), minval=low, maxval=high)
    return jax.random.randint(key, (), 0, space.size, jnp.int32)


def _agent(policy: Policy) -> Agent:
    """Return the agent that acts by the policy as it was trained, whatever it plays."""

    def act(adapted, memory, step_input, key):
        memory, output = policy.step(adapted, memory, step_input)
        return memory, chosen_action(output.distribution, key), output

    return Agent(
        init=lambda meta_params, key: meta_params.policy,
        initial_memory=policy.initial_memory,
        act=act,
        adapt=lambda meta_params, adapted, trajectory, key: adapted,
    )
