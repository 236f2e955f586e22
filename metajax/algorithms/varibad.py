"""VariBAD (Zintgraf et al. 2020): act on a belief about the task, learned by predicting the trial.

A recurrent network outputs, at every step, a normal distribution of a latent variable: its belief
about the task. It is trained as the encoder of a variational autoencoder: from a sample of
the belief at any step, decoders predict rewards and transitions of the *whole* trial, those to come
with them. The policy acts on belief and observation, and is trained as in RL²; its gradients do not
reach the belief.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax._checks import checked
from metajax._memory import check_memory
from metajax._promotion import on_own_terms
from metajax.adaptation import TrialObjective, trial_learner, whole_trials, without_gaps
from metajax.adaptation.trials import policy_input
from metajax.errors import MetajaxError, check_at_least, check_positive, is_off
from metajax.outer import OuterStep, ppo
from metajax.policies.distributions import DiagonalNormal
from metajax.policies.layers import affine, check_hidden, init_affine, init_perceptron, perceptron
from metajax.policies.variational import belief, standard_normal
from metajax.replay import Transitions, empty_replay, extend_replay, sample_replay, transitions
from metajax.rollout import over_tasks
from metajax.types import (
    Algorithm,
    Discrete,
    Env,
    MetaParams,
    Metrics,
    Part,
    Policy,
    Scalar,
    TrainState,
)


@checked
def varibad(
    env: Env,
    policy: Policy,
    *,
    objective: Part[TrialObjective] = whole_trials(),
    outer: OuterStep = ppo(1e-3, epochs=4, minibatches=4, clip=0.2, max_gradient_norm=1.0),
    episodes: int = 2,
    vae_learning_rate: Scalar = 1e-3,
    vae_updates: int = 3,
    vae_batch: int = 20,
    replay_capacity: int = 1000,
    beliefs: int = 50,
    predictions: int = 50,
    kl_weight: Scalar = 0.1,
    state_weight: Scalar = 0.0,
    decoder_hidden: Sequence[int] = (64, 32),
) -> Algorithm:
    """Return VariBAD: RL² on beliefs that are learned by predicting.

    Args:
        env: the environment that all tasks share.
        policy: `metajax.policies.variational`.
        objective: what is improved on a trial.
        outer: outer step on all trials; no trust region, since the policy shares its critic.
        episodes: episodes of a trial.
        vae_learning_rate: learning rate of Adam for the belief and the decoders.
        vae_updates: gradient steps of the belief and the decoders per meta-iteration.
        vae_batch: trials per such step, drawn uniformly from the replay.
        replay_capacity: trials that are kept.
        beliefs: steps of a trial whose evidence lower bound counts in an update, drawn uniformly.
        predictions: steps of a trial that each of them is to predict, drawn uniformly.
        kl_weight: weight of the divergence from the belief a step before.
        state_weight: weight of the log-likelihood of observations, that of rewards being 1; 0 where
            tasks differ in rewards alone.
        decoder_hidden: widths of the decoders' layers, tanh after each.

    Raises:
        MetajaxError: an option is unknown or out of range, the predictions of a batch do not fit
            into memory, or the policy has no belief.
    """
    check_positive(vae_learning_rate=vae_learning_rate)
    check_at_least(1, vae_updates=vae_updates, vae_batch=vae_batch, beliefs=beliefs)
    check_at_least(1, replay_capacity=replay_capacity, predictions=predictions)
    check_at_least(0, kl_weight=kl_weight, state_weight=state_weight)
    check_hidden(decoder_hidden)
    check_memory(the_predictions_of_a_batch=4 * vae_batch * beliefs * predictions)
    weighs_state = not is_off(state_weight)
    latent = _latent_size(policy)
    learner = trial_learner(
        env, policy, objective=objective.build(env, policy), outer=outer, episodes=episodes
    )
    optimizer = on_own_terms(optax.adam(vae_learning_rate))

    def init_decoder(key, inputs: int, outputs: int):
        body_key, head_key = jax.random.split(key)
        sizes = [latent + inputs, *decoder_hidden]
        return {
            "body": init_perceptron(body_key, sizes),
            "head": init_affine(head_key, sizes[-1], outputs),
        }

    def decode(decoder, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        return affine(decoder["head"], perceptron(decoder["body"], x))

    def log_likelihood(decoders, latent, step: Transitions):
        """Return that of what followed a step, of variance 1, weighted and up to a constant."""
        here, there = step.step_input.observation, step.next_input.observation
        action = step.action
        if isinstance(env.action_space, Discrete):
            action = jax.nn.one_hot(action, env.action_space.size)
        reward = decode(decoders["reward"], latent, here, action, there)[0]
        likelihood = -((reward - step.reward) ** 2) / 2
        if weighs_state:
            state = decode(decoders["state"], latent, here, action)
            likelihood -= state_weight * jnp.sum((state - there) ** 2) / 2
        return likelihood

    def believe(params, steps: Transitions) -> DiagonalNormal:
        """Return the belief at every step of a trial, and the one before the first."""

        def encode(memory, step_input):
            memory, _ = policy.step(params, memory, step_input)
            return memory, belief(memory)

        _, encoded = jax.lax.scan(encode, policy.initial_memory(), steps.step_input)
        return jax.tree.map(
            lambda first, x: jnp.concatenate([first[None], x]), standard_normal(latent), encoded
        )

    def bound(learned, steps: Transitions, key):
        """Return what estimates the mean evidence lower bound of the beliefs of a trial.

        Equation 7 of the paper, with the belief before as the prior (section 3.1): reconstruction
        of all steps, less the divergence.
        """
        params, decoders = learned
        belief_key, step_key, latent_key = jax.random.split(key, 3)
        played = jnp.sum(steps.valid)
        believed = believe(params, steps)
        when = jax.random.randint(belief_key, (beliefs,), 0, played)
        what = jax.random.randint(step_key, (predictions,), 0, played)
        before, now = (jax.tree.map(lambda x, t=t: x[t], believed) for t in (when, when + 1))
        latents, predicted = now.sample(latent_key), jax.tree.map(lambda x: x[what], steps)
        of_all = jax.vmap(
            jax.vmap(log_likelihood, in_axes=(None, None, 0)), in_axes=(None, 0, None)
        )
        likelihood = jnp.mean(of_all(decoders, latents, predicted))
        reconstruction = played.astype(likelihood.dtype) * likelihood
        divergence = jnp.mean(now.kl(before))
        found = {"log_likelihood": likelihood, "belief_kl": divergence}
        return reconstruction - kl_weight * divergence, found

    def scaled(meta_params: MetaParams, steps: Transitions) -> Transitions:
        """Return steps as the policy's inputs, rewards in its units."""
        rewarded = policy_input(
            meta_params, dataclasses.replace(steps.step_input, previous_reward=steps.reward)
        )
        return dataclasses.replace(
            steps,
            step_input=policy_input(meta_params, steps.step_input),
            reward=rewarded.previous_reward,
        )

    def kept(trajectory) -> Transitions:
        """Return a trial as one sequence of steps `[step]`."""
        return without_gaps(transitions(trajectory), trajectory.valid)

    def init(key, tasks) -> TrainState:
        policy_key, reward_key, state_key = jax.random.split(key, 3)
        state = learner.init(policy_key)
        meta_params = state.meta_params
        action = env.action_space.size
        decoders = {"reward": init_decoder(reward_key, 2 * env.observation_size + action, 1)}
        if weighs_state:
            inputs = env.observation_size + action
            decoders["state"] = init_decoder(state_key, inputs, env.observation_size)

        def played(meta_params):
            return jax.vmap(kept)(learner.collect(meta_params, tasks, key))

        replay = empty_replay(jax.eval_shape(played, meta_params), replay_capacity)
        vae = optimizer.init((meta_params.policy, decoders))
        of_all = {"policy": state.learner, "vae": vae, "decoders": decoders}
        return dataclasses.replace(state, learner=of_all, replay=replay)

    def update(state: TrainState, tasks, key):
        learner_key, vae_key = jax.random.split(key)
        trajectory = learner.collect(state.meta_params, tasks, learner_key)
        improved, metrics = learner.improve(
            dataclasses.replace(state, learner=state.learner["policy"]), trajectory
        )
        meta_params = improved.meta_params
        trials = jax.vmap(kept)(trajectory)
        every = jnp.ones(len(trials.reward), bool)
        replay = extend_replay(state.replay, trials, every)

        def loss(learned, trials, keys):
            bounds, found = over_tasks(bound, learned, trials, keys)
            return -jnp.mean(bounds), jax.tree.map(jnp.mean, found)

        def step(carry, key) -> tuple[Any, Metrics]:
            learned, vae_state = carry
            replay_key, bound_key = jax.random.split(key)
            trials = scaled(meta_params, sample_replay(replay, replay_key, vae_batch))
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

    metrics = (*learner.metrics, "log_likelihood", "belief_kl")
    return Algorithm(init, update, learner.agent, "varibad", learner.trial, metrics)


def _latent_size(policy: Policy) -> int:
    memory = jax.eval_shape(policy.initial_memory)
    try:
        return belief(memory).mean.size
    except (TypeError, KeyError, IndexError):
        raise MetajaxError(
            "VariBAD needs a policy with a belief: metajax.policies.variational."
        ) from None
