"""PEARL (Rakelly et al. 2019): soft actor-critic on a belief about the task.

An encoder makes a normal distribution of a latent variable z out of steps of a task, in any order.
Policy and critics are given a sample of it beside the observation. Critics learn from all that is
remembered of a task; the encoder learns from their loss alone, and infers from steps of the latest
visit to the task, which are like those that it will have of a new one. An agent that knows nothing
draws z from the prior and keeps it for an episode: it tries one hypothesis at a time.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import outer as learners
from metajax._checks import checked
from metajax.adaptation import ContextEncoder, nothing, product_of_gaussians
from metajax.envs.rollouts import over_tasks, rollout, undiscounted_returns
from metajax.errors import MetajaxError, check_at_least, unknown
from metajax.losses.returns import masked_mean
from metajax.outer import OffPolicyLearner
from metajax.outer.off_policy import Batch, improve_often
from metajax.policies.conditioned import with_latent, without_memory
from metajax.replay import (
    Steps,
    TaskReplay,
    all_steps,
    can_sample,
    empty_task_replay,
    extend_task_replay,
    forget,
    sample_task_replay,
)
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
    Trial,
)

# Soft actor-critic as the authors have it: of the first paper, its temperature by the rewards'.
_AUTHORS_SAC = {
    "temperature": 1.0,
    "reward_scale": 5.0,
    "value_network": True,
    "output_penalty": 1e-3,
    "hidden": (300, 300, 300),
}


class Visit(NamedTuple):
    """How many episodes are played where a task is visited.

    Attributes:
        initial: by samples of the prior, before anything is learned.
        prior: by samples of the prior.
        posterior: by samples of the posterior of what this visit has seen, the first of the prior.
        extra: likewise; they are no context for the encoder.
    """

    initial: int
    prior: int
    posterior: int
    extra: int

    @property
    def episodes(self) -> int:
        """Those of a visit after the first ones."""
        return self.prior + self.posterior + self.extra

    def by_posterior(self) -> np.ndarray:
        """Return which of them are played by a sample of the posterior."""
        later = [np.arange(count) > 0 for count in (self.posterior, self.extra)]
        return np.concatenate([np.zeros(self.prior, bool), *later])

    def is_context(self) -> np.ndarray:
        """Return which of them the encoder infers from."""
        return np.arange(self.episodes) < self.prior + self.posterior


@checked
def pearl(
    env: Env,
    policy: Policy,
    *,
    encoder: Part[ContextEncoder] = product_of_gaussians(),
    learner: Part[OffPolicyLearner] = learners.sac(**_AUTHORS_SAC),
    initial_episodes: int = 10,
    prior_episodes: int = 2,
    posterior_episodes: int = 0,
    extra_episodes: int = 3,
    updates: int = 2000,
    meta_batch: int = 16,
    batch: int = 256,
    context: int = 100,
    kl_weight: Scalar = 0.1,
    kl_reduction: Literal["sum", "mean"] = "sum",
    replay_capacity: int = 50_000,
    exploration_episodes: int = 2,
    distance_metric: str | None = None,
) -> Algorithm:
    """Return PEARL, whose published settings for `halfcheetah-vel` are the defaults.

    A meta-iteration visits the tasks of its batch, then takes gradient steps on tasks drawn from
    all. The first meta-iterations visit every training task in turn and learn nothing.

    Agents act by the mode of their policy; what they explore by is z. It is drawn anew after each
    round: from the prior until `exploration_episodes` episodes are over, then from the posterior of
    all steps of the trial. For a sample in each episode, rounds have one episode.

    Args:
        env: the environment that all tasks share.
        policy: `conditioned`.
        encoder: encoder of steps into a belief about the task.
        learner: losses and rates, `metajax.outer.sac`; of discrete actions `double_q` too.
        initial_episodes: episodes per task by samples of the prior, before anything is learned.
        prior_episodes: episodes of a visit that are played by samples of the prior.
        posterior_episodes: episodes of a visit that are then played by samples of the posterior,
            but for the first, which has one of the prior.
        extra_episodes: episodes of a visit that follow likewise, and are no context.
        updates: gradient steps per meta-iteration.
        meta_batch: training tasks in a gradient step, drawn with replacement.
        batch: remembered steps of each of them, for the learner.
        context: steps of the latest visit to each of them, for the encoder, drawn with replacement;
            at most twice as many as a visit plays.
        kl_weight: weight λ of the posterior's divergence from the prior.
        kl_reduction: "sum" or "mean" of the divergences over the tasks of a gradient step; the
            authors' code has the sum.
        replay_capacity: environment steps that are kept of each training task.
        exploration_episodes: episodes of a trial that are played by samples of the prior.
        distance_metric: name of the environment's metric whose negative critics learn from, in the
            place of a sparse reward; the encoder is given the reward. None for the reward.

    Raises:
        MetajaxError: an option is unknown or out of range, no episode would be played by the
            posterior, the context is larger than visits can fill, or the policy is given no latent
            variable.
    """
    check_at_least(1, initial_episodes=initial_episodes, prior_episodes=prior_episodes)
    check_at_least(0, posterior_episodes=posterior_episodes, extra_episodes=extra_episodes)
    check_at_least(1, updates=updates, meta_batch=meta_batch, batch=batch, context=context)
    check_at_least(1, replay_capacity=replay_capacity, exploration_episodes=exploration_episodes)
    check_at_least(0, kl_weight=kl_weight)
    visit = Visit(initial_episodes, prior_episodes, posterior_episodes, extra_episodes)
    if not visit.by_posterior().any():
        raise MetajaxError(
            f"posterior_episodes is {posterior_episodes} and extra_episodes is {extra_episodes}; "
            "one of them must be at least 2, for the first of each is played by the prior."
        )
    encoding = encoder.build(env, policy)
    _check_context(env, visit, context)
    given = env._replace(observation_size=env.observation_size + encoding.latent)
    learner_of = learner.build(given, without_memory(policy, env.observation_size))
    trial = Trial(visit.episodes, 1, exploration_episodes)
    play = _play(env, learner_of.behaviour, distance_metric)
    collect = _collect(play, encoding, visit, context)
    draw = _draw(encoding, meta_batch, batch, context, kl_weight, kl_reduction)
    learn = _learn(draw, learner_of, updates)

    @checked
    def init(key, tasks: TaskBatch) -> TrainState:
        policy_key, encoder_key, learner_key, play_key = jax.random.split(key, 4)
        params = {"policy": policy.init(policy_key), "encoder": encoding.init(encoder_key)}
        latent = jnp.zeros((len(tasks), encoding.latent))
        keys = jax.random.split(play_key, len(tasks))
        played = jax.eval_shape(lambda: over_tasks(play, params, tasks.task, latent, keys))[0]
        most = -(-len(tasks) // max(tasks.slots, 1))  # visits to one task in an iteration
        latest = most * max(visit.initial, visit.prior + visit.posterior) * env.episode_length
        capacity = {"context": latest, "steps": replay_capacity}
        replay = {
            name: empty_task_replay(played[name], tasks.slots, count)
            for name, count in capacity.items()
        }
        of_learner = learner_of.init(learner_key, params["policy"], params["encoder"])
        state = {"learner": of_learner, "iterations": jnp.zeros((), jnp.int32)}
        return TrainState(MetaParams(params), state, replay=replay)

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        play_key, learn_key = jax.random.split(key)
        params, iterations = state.meta_params.policy, state.learner["iterations"]
        replay, warm, measured = collect(params, state.replay, tasks, iterations, play_key)
        params, learner, found = learn(
            params, state.learner["learner"], replay, tasks.slots, warm, learn_key
        )
        new_state = dataclasses.replace(
            state,
            meta_params=MetaParams(params),
            learner={"learner": learner, "iterations": iterations + 1},
            replay=replay,
            environment_steps=count_update(state.environment_steps, len(tasks), trial, env),
        )
        return new_state, measured | found

    metrics = ("return_before", "return_after", "entropy", "updates", "belief_kl")
    agent = _agent(policy, encoding, exploration_episodes)
    return Algorithm(init, update, agent, "pearl", trial, (*metrics, *learner_of.metrics))


def _check_context(env: Env, visit: Visit, context: int) -> None:
    # A step drawn again is evidence again, and an agent sees each step once. The published setting
    # of sparse goals draws 1024 of 1000.
    seen = (visit.prior + visit.posterior) * env.episode_length
    if context > 2 * seen:
        raise MetajaxError(
            f"context is {context} steps; it must be at most {2 * seen}, twice the {seen} that the "
            "encoder has of a visit to a task: prior_episodes + posterior_episodes, of "
            f"{env.episode_length} steps."
        )


def _play(env: Env, behaviour: Policy, distance_metric: str | None):
    """Return `(params, task, latent, key) -> (items, valid, measured)` of one episode `[time]`.

    Items are the steps that the encoder infers from, "context", and those that the learner gets,
    "steps". What is measured are the return and the mean entropy.
    """

    def play(params, task, latent, key):
        def act(memory, step_input, key):
            step_input = with_latent(step_input, latent)
            _, output = behaviour.step(params["policy"], (), step_input)
            return memory, output.distribution.sample(key), output

        trajectory = rollout(key, env, task, act, (), episodes=1, parallel=True)
        steps, valid = all_steps(trajectory)
        learned = steps
        if distance_metric is not None:
            if distance_metric not in trajectory.metrics:
                raise unknown("distance_metric", distance_metric, trajectory.metrics)
            learned = dataclasses.replace(steps, reward=-trajectory.metrics[distance_metric][0])
        items = {"context": steps, "steps": learned}
        entropy = masked_mean(trajectory.output.distribution.entropy(), trajectory.valid)
        return items, valid, (undiscounted_returns(trajectory)[0], entropy)

    return play


def _collect(play, encoding: ContextEncoder, visit: Visit, context: int):
    """Return how a meta-iteration plays: `(params, replay, tasks, iterations, key) -> ...`.

    It returns the replay, whether these were first visits, and metrics.
    """
    by_posterior, is_context = visit.by_posterior(), visit.is_context()

    def collect(params, replay: dict[str, TaskReplay], tasks: TaskBatch, iterations, key):
        count, slots = len(tasks), tasks.slots
        groups = -(-slots // count)
        warm = iterations < -(-groups * visit.initial // visit.episodes)

        def episode(replay, index):
            draw_key, latent_key, play_key = jax.random.split(jax.random.fold_in(key, index), 3)
            group = (iterations * visit.episodes + index) // visit.initial
            turn = (group * count + jnp.arange(count)) % slots
            slot = jnp.where(warm, turn, tasks.slot)
            task = jax.tree.map(lambda x: x[slot], tasks.finite)
            infers = jnp.asarray(by_posterior)[index] & ~warm & can_sample(replay["context"], slot)
            steps: Steps = sample_task_replay(replay["context"], slot, draw_key, context)
            belief = encoding.evidence(params["encoder"], steps).where(infers).posterior()
            keys = jax.random.split(play_key, count)
            items, valid, found = over_tasks(play, params, task, belief.sample(latent_key), keys)
            kept = {"context": valid & (warm | jnp.asarray(is_context)[index]), "steps": valid}
            replay = {
                name: extend_task_replay(ring, slot, items[name], kept[name])
                for name, ring in replay.items()
            }
            return replay, jax.tree.map(jnp.mean, found)

        # What was known of a task is of policies that are gone.
        forgotten = forget(replay["context"], tasks.slot)
        emptied = dataclasses.replace(
            forgotten,
            next=jnp.where(warm, replay["context"].next, forgotten.next),
            size=jnp.where(warm, replay["context"].size, forgotten.size),
        )
        replay, (returns, entropy) = jax.lax.scan(
            episode, replay | {"context": emptied}, jnp.arange(visit.episodes)
        )
        return (
            replay,
            warm,
            {
                "return_before": jnp.mean(returns[~by_posterior]),
                "return_after": jnp.mean(returns[by_posterior]),
                "entropy": jnp.mean(entropy),
            },
        )

    return collect


def _draw(encoding: ContextEncoder, tasks: int, batch: int, context: int, kl_weight, reduction):
    """Return `(replay, slots, key) -> (encoder) -> (batch, divergence)` of a gradient step."""
    reduce = {"sum": jnp.sum, "mean": jnp.mean}[reduction]

    def draw(replay: dict[str, TaskReplay], slots: int, key):
        slot_key, context_key, steps_key, latent_key = jax.random.split(key, 4)
        slot = jax.random.randint(slot_key, (tasks,), 0, slots)
        seen: Steps = sample_task_replay(replay["context"], slot, context_key, context)
        steps: Steps = sample_task_replay(replay["steps"], slot, steps_key, batch)

        def batch_of(encoder):
            belief = encoding.evidence(encoder, seen).posterior()
            latent = jnp.broadcast_to(
                belief.sample(latent_key)[:, None], (tasks, batch, encoding.latent)
            )
            beside = lambda x: jnp.concatenate([x, latent], axis=-1)
            given = dataclasses.replace(
                steps,
                observation=beside(steps.observation),
                next_observation=beside(steps.next_observation),
            )
            given = jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), given)
            divergence = belief.kl(jax.tree.map(jnp.zeros_like, belief))
            return Batch(given, kl_weight * reduce(divergence)), jnp.mean(divergence)

        return batch_of

    return draw


def _learn(draw, learner_of: OffPolicyLearner, updates: int):
    """Return `(params, learner, replay, slots, warm, key) -> (params, learner, metrics)`.

    It takes `updates` gradient steps, none while tasks are visited for the first time.
    """

    def learn(params, learner, replay, slots: int, warm, key):
        def step(params, learner, key):
            batch_key, step_key = jax.random.split(key)
            batch_of = draw(replay, slots, batch_key)
            divergence = batch_of(params["encoder"])[1]
            of_policy, of_encoder, learner, found = learner_of.improve(
                params["policy"],
                params["encoder"],
                learner,
                lambda encoder: batch_of(encoder)[0],
                step_key,
            )
            params = {"policy": of_policy, "encoder": of_encoder}
            return params, learner, found | {"belief_kl": divergence}

        due = jnp.where(warm, 0.0, float(updates))
        names = (*learner_of.metrics, "belief_kl")
        params, learner, found = improve_often(step, (params, learner), names, due, key)
        return params, learner, found | {"updates": due}

    return learn


def _agent(policy: Policy, encoding: ContextEncoder, exploration_episodes: int) -> Agent:
    """Return the agent that acts on a sample of its belief, which it draws anew as it adapts."""

    def init(meta_params, key) -> dict[str, Any]:
        return {
            "params": meta_params.policy,
            "evidence": nothing(encoding.latent),
            "episodes": jnp.zeros((), jnp.int32),
            "latent": jax.random.normal(key, (encoding.latent,)),
        }

    def act(adapted, memory, step_input, key):
        del key  # what is left to chance is the latent variable
        _, output = policy.step(adapted["params"]["policy"], adapted["latent"], step_input)
        return memory, output.distribution.mode(), output

    def adapt(meta_params, adapted, trajectory, key):
        del meta_params
        steps, valid = all_steps(trajectory)
        evidence = adapted["evidence"] + encoding.evidence(
            adapted["params"]["encoder"], steps, valid
        )
        episodes = adapted["episodes"] + jnp.sum(
            jnp.any(trajectory.valid, axis=-1), dtype=jnp.int32
        )
        belief = evidence.where(episodes >= exploration_episodes).posterior()
        return adapted | {
            "evidence": evidence,
            "episodes": episodes,
            "latent": belief.sample(key),
        }

    return Agent(init, lambda: (), act, adapt)
