"""Meta-Q-Learning (Fakoor et al. 2020): off-policy learning with a context, twice.

Meta-training is TD3 on steps of all tasks together. Nothing tells it the task but the context, a
recurrent summary of the last steps of the episode, which policy and critics see beside the
observation. A new task is learned by the same losses: from its own steps, and from those steps of
meta-training that could be of it (`metajax.adaptation.two_phases`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from metajax._checks import checked
from metajax.adaptation import ReplayAdaptation, two_phases
from metajax.adaptation.propensity import networks
from metajax.algorithms.off_policy import Remembering, off_policy
from metajax.errors import MetajaxError, check_at_least
from metajax.outer import OffPolicyLearner, td3
from metajax.outer.off_policy import Batch
from metajax.policies.conditioned import latent_size, with_latent, without_memory
from metajax.policies.distributions import chosen_action
from metajax.policies.history import HistoryEncoder, history_encoder
from metajax.replay import (
    no_windows,
    sample_windows,
    steps_in_context,
    timed_steps,
)
from metajax.types import (
    Agent,
    Algorithm,
    Discrete,
    Env,
    MetaParams,
    Part,
    Policy,
    Scalar,
    StepInput,
)


@checked
def mql(
    env: Env,
    policy: Policy,
    *,
    learner: Part[OffPolicyLearner] = td3(),
    adaptation: Part[ReplayAdaptation] = two_phases(),
    history: int = 20,
    episodes: int = 1,
    updates_per_step: Scalar = 1.0,
    batch: int = 256,
    replay_capacity: int = 1_000_000,
    random_steps: int = 25_000,
) -> Algorithm:
    """Return Meta-Q-Learning: TD3 with a context; of discrete actions, double Q-learning.

    The context z_t is the state of gated recurrent units after the observations, actions and
    rewards of the steps t - `history` ... t of the episode, whether the agent acts or learns. One
    network infers it for the policy and the critics (the paper leaves open whether they share it),
    and learns from the critics' loss alone; in targets contexts are those of its newest parameters.
    Neither context nor history go beyond an episode: what is known of a task outlives it only by
    adaptation.

    Example:
        >>> import metajax
        >>> env = metajax.make("point-goal").env
        >>> policy = metajax.conditioned(
        ...     env.observation_size, env.action_space, latent=15, actions="deterministic"
        ... )
        >>> metajax.mql(env, policy).trial
        Trial(rounds=1, episodes=1, adaptations=0)

    Args:
        env: the environment that all tasks share.
        policy: `conditioned`, whose latent variable is the context, with deterministic actions; of
            discrete ones its logits are values.
        learner: losses and rates, `metajax.outer.td3`; of discrete actions
            `metajax.outer.double_q`.
        adaptation: adaptation to a new task, on its own steps and on remembered ones.
        history: steps before the newest one that the context is of.
        episodes: episodes per task and meta-iteration.
        updates_per_step: update-to-data ratio, gradient steps per environment step.
        batch: remembered steps, of all tasks, in each gradient step.
        replay_capacity: environment steps that are kept.
        random_steps: environment steps with uniformly drawn actions, before anything is learned.

    Raises:
        MetajaxError: an option is unknown or out of range, the learner is none of the paper's for
            such actions, or the policy is given no latent variable.
    """
    _check_history(env, history, replay_capacity)
    _check_learner(env, learner)
    context = latent_size(policy)
    encoder = history_encoder(
        env.observation_size, env.action_space, width=context, history=history
    )
    in_context = env._replace(observation_size=env.observation_size + context)
    learner_of = learner.build(in_context, without_memory(policy, env.observation_size))
    adapts = adaptation.build(env, policy)

    def init(key):
        policy_key, encoder_key, learner_key = jax.random.split(key, 3)
        params = {"encoder": encoder.init(encoder_key), "policy": policy.init(policy_key)}
        state = learner_of.init(learner_key, params["policy"], params["encoder"])
        nothing = no_windows(encoder, adapts.kept_steps)
        return MetaParams(params, critic=networks(state), experience=nothing), state

    def improve(params, state, replay, key):
        batch_key, step_key = jax.random.split(key)
        windows = sample_windows(replay, batch_key, batch, history=history)
        moved, of_encoder, state, found = learner_of.improve(
            params["policy"],
            params["encoder"],
            state,
            lambda params: Batch(steps_in_context(encoder, params, windows)),
            step_key,
        )
        return {"encoder": of_encoder, "policy": moved}, state, found

    def finish(params, state, meta_params, replay, key):
        drawn = sample_windows(replay, key, adapts.kept_steps, history=history)
        old, there = meta_params.experience, replay.size > 0
        kept = jax.tree.map(lambda new, old: jnp.where(there, new, old), drawn, old)
        return MetaParams(params, critic=networks(state), experience=kept)

    def adapt(meta_params, adapted, trajectory, key):
        return adapts.adapt(
            learner_of, encoder, meta_params, adapted, *timed_steps(trajectory), key
        )

    behaviour = _in_context(encoder, learner_of.behaviour, init)
    metrics = learner_of.metrics
    remembered = Remembering(
        init, behaviour, timed_steps, improve, metrics, finish, _agent(behaviour, adapt)
    )
    return off_policy(
        env,
        remembered,
        name="mql",
        episodes=episodes,
        updates_per_step=updates_per_step,
        batch=batch,
        replay_capacity=replay_capacity,
        random_steps=random_steps,
    )


def _in_context(encoder: HistoryEncoder, policy: Policy, init) -> Policy:
    """Return the policy whose memory is what the context is of."""

    def step(params, memory, step_input: StepInput):
        memory = encoder.remember(memory, step_input)
        context = encoder.encode(params["encoder"], memory)
        seen = with_latent(step_input, context)
        return memory, policy.step(params["policy"], (), seen)[1]

    def unroll(params, memory, inputs: StepInput):
        return jax.lax.scan(lambda memory, x: step(params, memory, x), memory, inputs)

    return Policy(lambda key: init(key)[0].policy, encoder.initial_memory, step, unroll)


def _agent(policy: Policy, adapt) -> Agent:
    def act(adapted: MetaParams, memory, step_input, key):
        memory, output = policy.step(adapted.policy, memory, step_input)
        return memory, chosen_action(output.distribution, key), output

    return Agent(
        init=lambda meta_params, key: dataclasses.replace(meta_params, experience=()),
        initial_memory=policy.initial_memory,
        act=act,
        adapt=adapt,
        episodic=True,
    )


def _check_history(env: Env, history: int, replay_capacity: int) -> None:
    check_at_least(0, history=history)
    if history >= env.episode_length:
        raise MetajaxError(
            f"history is {history}; it must be below the {env.episode_length} steps of an episode."
        )
    if replay_capacity <= history + 1:
        raise MetajaxError(
            f"replay_capacity is {replay_capacity}; it must be above {history + 1}, a step and its "
            "history."
        )


def _check_learner(env: Env, learner: Part[OffPolicyLearner]) -> None:
    discrete = isinstance(env.action_space, Discrete)
    wanted = "double_q" if discrete else "td3"
    found = wanted if learner.made is None else learner.made.factory.__name__
    if found != wanted:
        kind = "discrete" if discrete else "continuous"
        raise MetajaxError(
            f"learner is {found!r}; in MQL it must be {wanted!r} where actions are {kind}."
        )
