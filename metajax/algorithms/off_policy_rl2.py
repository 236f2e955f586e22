"""Off-policy RL² (Ni et al. 2022): a policy with a memory, learned from trials of any policy.

As in RL², a trial is one long episode to the policy and to its critics: what follows the last step
of an episode is the first step of the next one, and nothing counts after the trial, however it
ended. Policy and critics have memories of their own (one for both is what had failed before). Whole
trials are remembered and encoded from their start, so no memory of an earlier policy is kept.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax import outer as learners
from metajax._checks import checked
from metajax.adaptation import Exploration, without_gaps
from metajax.adaptation.exploration import exploring
from metajax.adaptation.memory_agent import memory_agent, policy_input, tracked
from metajax.algorithms.off_policy import needed_at_first, uniform_action
from metajax.envs.rollouts import check_policy, over_tasks, rollout, undiscounted_returns
from metajax.errors import MetajaxError, check_at_least, check_positive
from metajax.losses.returns import last_steps, masked_mean
from metajax.outer import OffPolicyLearner
from metajax.outer.off_policy import Batch, improve_often, learning_from
from metajax.outer.views import has_memory
from metajax.replay import TrialSteps, empty_replay, extend_replay, sample_replay
from metajax.steps import count_update
from metajax.types import (
    Agent,
    Algorithm,
    Env,
    MetaParams,
    Part,
    Policy,
    Scalar,
    TaskBatch,
    TrainState,
    Trajectory,
    Trial,
)


@checked
def off_policy_rl2(
    env: Env,
    policy: Policy,
    *,
    learner: Part[OffPolicyLearner] = learners.sac(hidden=(128, 128, 128)),
    episodes: int = 2,
    updates_per_step: Scalar = 0.02,
    batch: int = 32,
    replay_capacity: int = 10_000,
    random_trials: int = 500,
    exploration: Part[Exploration] | None = None,
) -> Algorithm:
    """Return off-policy RL²: recurrent actor and critics, trained on remembered trials.

    A meta-iteration plays a trial on each task, and then takes `updates_per_step` gradient steps,
    one at least, for each environment step that was played. A gradient step's means are of the
    steps that were played, in all trials of its batch together.

    Args:
        env: the environment that all tasks share.
        policy: policy with a memory and without a critic, such as `metajax.gru`; of continuous
            actions squashed ones for SAC, deterministic ones for TD3.
        learner: losses and rates, `metajax.outer.sac`, `metajax.outer.amago`, `metajax.outer.td3`
            or, of discrete actions, `metajax.outer.double_q`.
        episodes: episodes of a trial.
        updates_per_step: update-to-data ratio, gradient steps per environment step.
        batch: remembered trials in each gradient step.
        replay_capacity: trials that are kept.
        random_trials: trials with uniformly drawn actions, before anything is learned.
        exploration: change of the policy's actions while experience is collected, never in
            evaluation, `metajax.adaptation.bilevel`; None for none.

    Raises:
        MetajaxError: an option is unknown or out of range, or the policy has no memory, has a
            critic, or is not one that the learner can train.
    """
    check_at_least(1, episodes=episodes)
    check_positive(updates_per_step=updates_per_step)
    needed = needed_at_first("trials", batch, replay_capacity, random_trials)
    _check_policy(env, policy)
    learner_of = learner.build(env, policy)
    agent = memory_agent(learner_of.behaviour)
    trial = Trial(1, episodes, None)
    explored = None if exploration is None else exploration.build(env, policy)
    collect = _collection(env, agent, trial, explored)

    @checked
    def init(key, tasks: TaskBatch) -> TrainState:
        policy_key, learner_key = jax.random.split(key)
        params = policy.init(policy_key)
        meta_params = MetaParams(params, mean_square_reward=jnp.zeros(()))

        def kept(meta_params):
            none = jnp.zeros(2, jnp.uint32)
            played = collect(meta_params, tasks.task, key, jnp.ones((), bool), none)
            return jax.vmap(trial_steps)(played)

        return TrainState(
            meta_params,
            learner_of.init(learner_key, params, ()),
            statistics={"iterations": jnp.zeros((), jnp.int32)},
            replay=empty_replay(jax.eval_shape(kept, meta_params), replay_capacity),
        )

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        play_key, learn_key = jax.random.split(key)
        meta_params = state.meta_params
        uniform = state.replay.size < random_trials
        steps = state.environment_steps
        trajectory = collect(meta_params, tasks.task, play_key, uniform, steps)
        reward, valid = trajectory.reward, trajectory.valid
        every = jnp.ones(len(tasks), bool)
        replay = extend_replay(state.replay, jax.vmap(trial_steps)(trajectory), every)
        iterations = state.statistics["iterations"] + 1
        mean_square = tracked(meta_params.mean_square_reward, reward, valid, iterations)
        meta_params = dataclasses.replace(meta_params, mean_square_reward=mean_square)
        played = jnp.sum(valid, dtype=reward.dtype)
        due = jnp.maximum(jnp.floor(updates_per_step * played), 1.0)
        due = jnp.where(replay.size >= needed, due, 0.0)

        draw = lambda key: trial_batch(meta_params, sample_replay(replay, key, batch))
        improve = learning_from(learner_of, draw)
        start = meta_params.policy, state.learner
        params, learned, found = improve_often(improve, start, learner_of.metrics, due, learn_key)
        new_state = dataclasses.replace(
            state,
            meta_params=dataclasses.replace(meta_params, policy=params),
            learner=learned,
            statistics={"iterations": iterations},
            replay=replay,
            environment_steps=count_update(state.environment_steps, len(tasks), trial, env),
        )
        per_episode = jnp.mean(undiscounted_returns(trajectory), axis=0)
        measured = {
            "return_before": per_episode[0],
            "return_after": per_episode[-1],
            "entropy": masked_mean(trajectory.output.distribution.entropy(), valid),
            "updates": due,
            "valid_steps": played,
        }
        return new_state, measured | found

    own = ("return_before", "return_after", "entropy", "updates", "valid_steps")
    metrics = (*own, *learner_of.metrics)
    return Algorithm(init, update, agent, "off-policy-rl2", trial, metrics)


def _collection(
    env: Env, agent: Agent, trial: Trial, exploration: Exploration | None
) -> Callable[..., Trajectory]:
    """Return what plays a trial on each of some tasks.

    It is `(meta_params, tasks, key, uniform, taken) -> Trajectory[task, episode, time]`; `uniform`
    asks for uniformly drawn actions, `taken` are the environment steps before.
    """

    def play(shared, task, key):
        meta_params, uniform, taken = shared

        def by_policy(memory, step_input, key):
            return agent.act(meta_params, memory, step_input, key)

        explore, start = by_policy, agent.initial_memory()
        if exploration is not None:
            key, explore_key = jax.random.split(key)
            of = exploration, by_policy, start, trial.steps(env)
            explore, start = exploring(*of, taken, explore_key)

        def act(memory, step_input, key):
            memory, action, output = explore(memory, step_input, key)
            return memory, jnp.where(uniform, uniform_action(env, key), action), output

        return rollout(key, env, task, act, start, episodes=trial.episodes)

    def collect(meta_params: MetaParams, tasks, key, uniform, taken) -> Trajectory:
        keys = jax.random.split(key, jax.tree.leaves(tasks)[0].shape[0])
        return over_tasks(play, (meta_params, uniform, taken), tasks, keys)

    return collect


def trial_steps(trajectory: Trajectory) -> TrialSteps:
    """Return a trial `[episode, time]` as one sequence `[step]`."""
    kept = trajectory.step_input, trajectory.action, trajectory.reward, trajectory.valid
    step_input, action, reward, valid = without_gaps(kept, trajectory.valid)
    return TrialSteps(step_input, action, reward, last_steps(valid), valid)


def trial_batch(meta_params: MetaParams, trials: TrialSteps) -> Batch:
    """Return what a gradient step learns from trials `[trial, step]`."""
    step_input = policy_input(meta_params, trials.step_input)
    weight = trials.valid.astype(trials.reward.dtype)
    trials = dataclasses.replace(trials, step_input=step_input)
    return Batch(trials, weight=weight / jnp.mean(weight))


def _check_policy(env: Env, policy: Policy) -> None:
    output = check_policy(env, policy)[1]
    if not has_memory(policy):
        raise MetajaxError("off-policy RL² needs a policy with a memory, such as metajax.gru.")
    if output.value is not None:
        raise MetajaxError(
            "off-policy RL² has critics of its own, and would not train the policy's: give it none "
            "(critic='none')."
        )
