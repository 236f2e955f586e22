"""VariBAD (Zintgraf et al. 2020): act on a belief about the task, learned by predicting the trial.

A recurrent network outputs, at every step, a normal distribution of a latent variable: its belief
about the task. It is trained as the encoder of a variational autoencoder: from a sample of
the belief at any step, decoders predict rewards and transitions of the *whole* trial, those to come
with them. The policy acts on belief and observation, and is trained as in RL²; its gradients do not
reach the belief.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax._checks import checked
from metajax._memory import check_memory
from metajax._promotion import on_own_terms
from metajax.adaptation import (
    BeliefModel,
    TrialObjective,
    evidence_lower_bound,
    trial_learner,
    whole_trials,
    without_gaps,
)
from metajax.adaptation.memory_agent import policy_input
from metajax.envs.rollouts import over_tasks
from metajax.errors import check_at_least, check_positive
from metajax.outer import OuterStep, ppo
from metajax.replay import Transitions, empty_replay, extend_replay, sample_replay, transitions
from metajax.types import (
    Algorithm,
    Env,
    MetaParams,
    Metrics,
    Part,
    Policy,
    Scalar,
    TaskBatch,
    TrainState,
)


@checked
def varibad(
    env: Env,
    policy: Policy,
    *,
    objective: Part[TrialObjective] = whole_trials(),
    outer: OuterStep = ppo(1e-3, epochs=4, minibatches=4, clip=0.2, max_gradient_norm=1.0),
    model: Part[BeliefModel] = evidence_lower_bound(),
    episodes: int = 2,
    vae_learning_rate: Scalar = 1e-3,
    vae_updates: int = 3,
    vae_batch: int = 20,
    replay_capacity: int = 1000,
) -> Algorithm:
    """Return VariBAD: RL² on beliefs that are learned by predicting.

    Args:
        env: the environment that all tasks share.
        policy: `metajax.policies.variational`.
        objective: objective on a trial.
        outer: outer step on all trials; no trust region, since the policy shares its critic.
        model: objective that the belief is learned by.
        episodes: episodes of a trial.
        vae_learning_rate: learning rate of Adam for the belief and the decoders.
        vae_updates: gradient steps of the belief and the decoders per meta-iteration.
        vae_batch: trials per such step, drawn uniformly from the replay.
        replay_capacity: trials that are kept.

    Raises:
        MetajaxError: an option is unknown or out of range, the predictions of a batch do not fit
            into memory, or the policy has no belief.
    """
    check_positive(vae_learning_rate=vae_learning_rate)
    check_at_least(1, vae_updates=vae_updates, vae_batch=vae_batch)
    check_at_least(1, replay_capacity=replay_capacity)
    beliefs = model.build(env, policy)
    check_memory(the_predictions_of_a_batch=4 * vae_batch * beliefs.predictions)
    learner = trial_learner(
        env, policy, objective=objective.build(env, policy), outer=outer, episodes=episodes
    )
    optimizer = on_own_terms(optax.adam(vae_learning_rate))

    @checked
    def init(key, tasks: TaskBatch) -> TrainState:
        keys = jax.random.split(key, 3)
        state = learner.init(keys[0])
        meta_params = state.meta_params

        def played(meta_params):
            return jax.vmap(_kept)(learner.collect(meta_params, tasks.task, key))

        replay = empty_replay(jax.eval_shape(played, meta_params), replay_capacity)
        decoders = beliefs.init(keys[1:])
        vae = optimizer.init((meta_params.policy, decoders))
        of_all = {"policy": state.learner, "vae": vae, "decoders": decoders}
        return dataclasses.replace(state, learner=of_all, replay=replay)

    def loss(learned, trials, keys):
        bounds, found = over_tasks(beliefs.bound, learned, trials, keys)
        return -jnp.mean(bounds), jax.tree.map(jnp.mean, found)

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        learner_key, vae_key = jax.random.split(key)
        trajectory = learner.collect(state.meta_params, tasks.task, learner_key)
        improved, metrics = learner.improve(
            dataclasses.replace(state, learner=state.learner["policy"]), trajectory
        )
        meta_params = improved.meta_params
        trials = jax.vmap(_kept)(trajectory)
        every = jnp.ones(len(trials.reward), bool)
        replay = extend_replay(state.replay, trials, every)

        def step(carry, key) -> tuple[Any, Metrics]:
            learned, vae_state = carry
            replay_key, bound_key = jax.random.split(key)
            trials = _scaled(meta_params, sample_replay(replay, replay_key, vae_batch))
            keys = jax.random.split(bound_key, vae_batch)
            gradient, found = jax.grad(loss, has_aux=True)(learned, trials, keys)
            change, vae_state = optimizer.update(gradient, vae_state)
            return (optax.apply_updates(learned, change), vae_state), found

        start = (meta_params.policy, state.learner["decoders"]), state.learner["vae"]
        end, found = jax.lax.scan(step, start, jax.random.split(vae_key, vae_updates))
        (params, decoders), vae_state = end
        new_state = dataclasses.replace(
            improved,
            meta_params=dataclasses.replace(meta_params, policy=params),
            learner={"policy": improved.learner, "vae": vae_state, "decoders": decoders},
            replay=replay,
        )
        return new_state, metrics | {name: jnp.mean(x) for name, x in found.items()}

    metrics = (*learner.metrics, *beliefs.metrics)
    return Algorithm(init, update, learner.agent, "varibad", learner.trial, metrics)


def _kept(trajectory) -> Transitions:
    """Return a trial as one sequence of steps `[step]`."""
    return without_gaps(transitions(trajectory), trajectory.valid)


def _scaled(meta_params: MetaParams, steps: Transitions) -> Transitions:
    """Return steps as the policy's inputs, rewards in its units."""
    rewarded = policy_input(
        meta_params, dataclasses.replace(steps.step_input, previous_reward=steps.reward)
    )
    return dataclasses.replace(
        steps,
        step_input=policy_input(meta_params, steps.step_input),
        reward=rewarded.previous_reward,
    )
