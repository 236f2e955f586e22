"""Learning one task, or several jointly, from remembered steps: what SAC and TD3 share.

A meta-iteration plays whole episodes, remembers their steps, and takes as many gradient steps as
the update-to-data ratio says: the schedule of Fujimoto et al. (2018), who learn after each episode
for as many steps as it had.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax.envs.rollouts import over_tasks, rollout, undiscounted_returns
from metajax.errors import MetajaxError, check_at_least, check_positive
from metajax.losses.returns import masked_mean
from metajax.outer.off_policy import Batch, OffPolicyLearner, State
from metajax.outer.views import has_memory
from metajax.replay import Steps, all_steps, empty_replay, extend_replay, sample_replay
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
    Trial,
)


def off_policy(
    env: Env,
    policy: Policy,
    learner: Part[OffPolicyLearner],
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
        policy: without a memory.
        learner: how it moves on remembered steps.
        name: of the algorithm.
        episodes: per task and meta-iteration.
        updates_per_step: gradient steps per environment step.
        batch: remembered steps in each gradient step.
        replay_capacity: steps that are kept.
        random_steps: steps that are remembered before anything is learned; until then actions are
            drawn uniformly.

    Raises:
        MetajaxError: an option is out of range, or the policy has a memory, or is not for this
            environment.
    """
    check_at_least(1, episodes=episodes, batch=batch, replay_capacity=replay_capacity)
    check_at_least(0, random_steps=random_steps)
    check_positive(updates_per_step=updates_per_step)
    needed = max(random_steps, batch)
    if replay_capacity < needed:
        raise MetajaxError(
            f"replay_capacity is {replay_capacity}; it must hold the {needed} steps (random_steps, "
            "or a batch) that are there before anything is learned."
        )
    if has_memory(policy):
        raise MetajaxError(
            f"{name} trains policies without a memory; off-policy-rl2 trains those with one."
        )
    learner_of = learner.build(env, policy)
    trial = Trial(1, episodes, 0)

    def act(params, memory, step_input, key, uniform):
        _, output = learner_of.behaviour.step(params, (), step_input)
        action = output.distribution.sample(key)
        return memory, jnp.where(uniform, uniform_action(env, key), action), output

    def play(shared, task, key):
        params, uniform = shared
        playing = lambda memory, x, key: act(params, memory, x, key, uniform)
        trajectory = rollout(key, env, task, playing, (), episodes=episodes, parallel=True)
        entropy = masked_mean(trajectory.output.distribution.entropy(), trajectory.valid)
        returns = jnp.mean(undiscounted_returns(trajectory))
        return all_steps(trajectory), {"return": returns, "entropy": entropy}

    def collect(params, tasks: TaskBatch, key, uniform):
        keys = jax.random.split(key, len(tasks))
        steps, found = over_tasks(play, (params, uniform), tasks.task, keys)
        flat = jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), steps)
        return *flat, jax.tree.map(jnp.mean, found)

    @checked
    def init(key, tasks: TaskBatch) -> TrainState:
        policy_key, learner_key = jax.random.split(key)
        params = policy.init(policy_key)
        random = jnp.ones((), bool)
        steps, valid, _ = jax.eval_shape(collect, params, tasks, key, random)
        if len(valid) > replay_capacity:
            raise MetajaxError(
                f"replay_capacity is {replay_capacity}; it must have room for the {len(valid)} "
                "steps of one meta-iteration."
            )
        return TrainState(
            MetaParams(params),
            learner_of.init(learner_key, params, ()),
            replay=empty_replay(steps, replay_capacity),
        )

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        play_key, learn_key = jax.random.split(key)
        params = state.meta_params.policy
        uniform = state.replay.size < random_steps
        steps, valid, measured = collect(params, tasks, play_key, uniform)
        replay = extend_replay(state.replay, steps, valid)
        played = jnp.sum(valid, dtype=steps.reward.dtype)
        due = jnp.floor(updates_per_step * played)
        due = jnp.where(replay.size >= needed, due, 0.0)

        def draw(key) -> Batch:
            steps: Steps = sample_replay(replay, key, batch)
            return Batch(steps)

        params, learner, found = improve_often(
            learner_of, params, state.learner, draw, due, learn_key
        )
        new_state = dataclasses.replace(
            state,
            meta_params=MetaParams(params),
            learner=learner,
            replay=replay,
            environment_steps=count_update(state.environment_steps, len(tasks), trial, env),
        )
        return new_state, measured | found | {"updates": due, "valid_steps": played}

    metrics = ("return", "entropy", "updates", "valid_steps", *learner_of.metrics)
    return Algorithm(init, update, _agent(policy), name, trial, metrics)


def improve_often(
    learner: OffPolicyLearner,
    params: Params,
    state: State,
    draw: Callable[[Key[Array, ""]], Batch],
    updates: Float[Array, ""],
    key: Key[Array, ""],
) -> tuple[Params, State, Metrics]:
    """Return policy and learner after gradient steps, and the means of what these measured.

    Args:
        learner: whose steps they are.
        params: of the policy.
        state: the learner's.
        draw: what a step learns from.
        updates: how many, a whole number.
        key: consumed.
    """

    def learn(index, carry):
        params, state, totals = carry
        batch_key, step_key = jax.random.split(jax.random.fold_in(key, index))
        batch = draw(batch_key)
        params, _, state, found = learner.improve(params, (), state, lambda _: batch, step_key)
        return params, state, jax.tree.map(jnp.add, totals, found)

    totals = dict.fromkeys(learner.metrics, jnp.zeros(()))
    params, state, totals = jax.lax.fori_loop(
        0, updates.astype(jnp.int32), learn, (params, state, totals)
    )
    return params, state, jax.tree.map(lambda total: total / jnp.maximum(updates, 1.0), totals)


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
        of = output.distribution
        return memory, of.mode() if key is None else of.sample(key), output

    return Agent(
        init=lambda meta_params, key: meta_params.policy,
        initial_memory=policy.initial_memory,
        act=act,
        adapt=lambda meta_params, adapted, trajectory, key: adapted,
    )
