"""Adaptation in a memory: policies trained on whole trials.

A trial is several episodes on one task. To the policy it is one long episode: its memory is reset
between trials only, its input says how each episode ended, and advantages go on into the episodes
after it. Exploring early, to do better later, is then learned like anything else.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from metajax.adaptation.memory_agent import memory_agent, policy_input, root, tracked
from metajax.envs.rollouts import check_policy, over_tasks, rollout, undiscounted_returns
from metajax.errors import MetajaxError, check_at_least, check_fraction, check_positive
from metajax.losses import policy_gradient, returns
from metajax.outer import OuterStep, Problem, adam
from metajax.parts import part
from metajax.steps import count_update
from metajax.types import (
    Agent,
    Env,
    Memory,
    MetaParams,
    Metrics,
    Params,
    Part,
    Policy,
    PolicyOutput,
    Scalar,
    StepInput,
    TrainState,
    Trajectory,
    Trial,
    pytree_dataclass,
)


@pytree_dataclass
class Statistics:
    """What training alone needs of the returns so far.

    The critic predicts discounted returns over the root of their running mean square;
    `iterations` are those that this, and the agent's own, are means of.
    """

    mean_square_return: Float[Array, ""]
    iterations: Int[Array, ""]


@pytree_dataclass
class Played:
    """The steps of a trial that were played, the padding behind them, and their advantages.

    `target` is the critic's, in its units.
    """

    step_input: StepInput
    action: Shaped[Array, "..."]
    behaviour: Any
    advantage: Float[Array, "*batch step"]
    target: Float[Array, "*batch step"]
    valid: Bool[Array, "*batch step"]


@pytree_dataclass
class Chunk:
    """Steps that a gradient reaches back over, and how the memory at their start is found.

    It is the initial one if they are the `first` of a trial. Otherwise it is `memory`, after the
    steps `before`, if there are any.
    """

    played: Played
    memory: Memory
    before: StepInput
    first: Bool[Array, "*batch"]


class TrialObjective(NamedTuple):
    """What training on whole trials improves.

    - `estimate(meta_params, mean_square_return, trajectory) -> (played, returns)`: a trial as one
      sequence without gaps, and its discounted returns `[step]`;
    - `cut(params, played) -> chunks[chunk]`;
    - `problem`: of policy and critic together, on `chunks[task, chunk]`;
    - `of_critic`: the critic's alone, for outer steps that train none;
    - `critic`: the outer step that the critic then has;
    - `check(length)`: raise an error if trials of so many steps cannot be cut.
    """

    estimate: Callable[[MetaParams, Array, Trajectory], tuple[Played, Array]]
    cut: Callable[[Params, Played], Chunk]
    problem: Problem
    of_critic: Problem
    critic: OuterStep
    check: Callable[[int], None]


class TrialLearner(NamedTuple):
    """How a policy with a memory is trained on whole trials.

    - `init(key) -> TrainState`, whose learner is the state of an outer step;
    - `collect(meta_params, tasks, key) -> trajectory[task, episode, time]`: play a batch of tasks;
    - `improve(state, trajectory) -> (state, metrics)`: learn from it, and count its steps;
    - `agent`: acts as it was trained;
    - `trial`: what is played on each task;
    - `metrics`: the names of what `improve` measures.
    """

    init: Callable[[Key[Array, ""]], TrainState]
    collect: Callable[[MetaParams, PyTree, Key[Array, ""]], Trajectory]
    improve: Callable[[TrainState, Trajectory], tuple[TrainState, Metrics]]
    agent: Agent
    trial: Trial
    metrics: tuple[str, ...]


@part
def whole_trials(
    *,
    discount: Scalar = 0.99,
    gae_lambda: Scalar = 0.95,
    entropy_weight: Scalar = 0.01,
    value_weight: Scalar = 0.5,
    chunk: int | None = None,
    burn_in: int = 0,
    critic: OuterStep = adam(1e-3, epochs=4, minibatches=4, max_gradient_norm=1.0),
) -> Part[TrialObjective]:
    """Return the surrogate of a policy and the error of its critic, on trials as one sequence.

    Args:
        discount: discount γ per step.
        gae_lambda: λ of generalized advantage estimation, across the ends of episodes. Nothing
            counts after the trial.
        entropy_weight: weight of the policy's entropy in the loss; unused by a trust region.
        value_weight: weight of half the critic's squared error in the loss.
        chunk: environment steps that a gradient reaches back; they divide the trial's. Memories at
            a chunk's start are those of the policy that played. None for the whole trial.
        burn_in: steps before a chunk that bring its first memory up to date, without gradient.
        critic: steps of the critic, where the outer step is a trust region, which trains none.

    Raises:
        MetajaxError: an option is out of range.
    """
    check_at_least(0, entropy_weight=entropy_weight, burn_in=burn_in)
    check_positive(value_weight=value_weight)
    check_fraction(discount=discount, gae_lambda=gae_lambda)
    if chunk is not None:
        check_at_least(1, chunk=chunk)
    if not critic.trains_critics:
        raise MetajaxError("a trust region trains no critic; take the outer step 'adam' for it.")

    def check(length: int) -> None:
        steps = length if chunk is None else chunk
        if length % steps:
            raise MetajaxError(f"chunk is {chunk}; it must divide the {length} steps of a trial.")
        if burn_in > steps:
            raise MetajaxError(f"burn_in is {burn_in}; it must be at most the chunk, {steps}.")

    def build(env: Env, policy: Policy) -> TrialObjective:
        del env
        problem, of_critic = _problems(policy, burn_in, entropy_weight, value_weight)
        return TrialObjective(
            estimate=_estimating(discount, gae_lambda),
            cut=lambda params, played: _cut(policy, params, played, chunk, burn_in),
            problem=problem,
            of_critic=of_critic,
            critic=critic,
            check=check,
        )

    return Part(build)


def _estimating(discount: Scalar, gae_lambda: Scalar):
    def estimate(meta_params: MetaParams, mean_square_return, trajectory: Trajectory):
        step_input, action, output, reward, valid = without_gaps(
            (
                policy_input(meta_params, trajectory.step_input),
                trajectory.action,
                trajectory.output,
                trajectory.reward,
                trajectory.valid,
            ),
            trajectory.valid,
        )
        scale = root(mean_square_return)
        value, nothing_ends = scale * output.value, jnp.zeros(len(reward), bool)
        advantage = returns.generalized_advantages(
            reward,
            value,
            jnp.zeros(()),
            nothing_ends,
            valid,
            discount=discount,
            gae_lambda=gae_lambda,
        )
        target = (advantage + value) / scale
        played = Played(step_input, action, output.distribution, advantage, target, valid)
        return played, returns.discounted_returns(reward, valid, discount)

    return estimate


def _cut(policy: Policy, params: Params, played: Played, chunk: int | None, burn_in: int) -> Chunk:
    """Return the chunks `[chunk]` of a trial."""
    length = len(played.valid)
    chunk = length if chunk is None else chunk
    count = length // chunk
    played = jax.tree.map(lambda x: x.reshape(count, chunk, *x.shape[1:]), played)
    x = played.step_input
    early = jax.tree.map(lambda x: x[:, : chunk - burn_in], x)
    late = jax.tree.map(lambda x: x[:, chunk - burn_in :], x)
    memories = jax.tree.map(lambda x: x[None], policy.initial_memory())
    if count > 1:

        def advance(memory, inputs):
            early, late = inputs
            if burn_in < chunk:
                memory, _ = policy.unroll(params, memory, early)
            return policy.unroll(params, memory, late)[0] if burn_in else memory, memory

        memories = jax.lax.scan(advance, policy.initial_memory(), (early, late))[1]
    before = lambda tree: jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), tree)
    return Chunk(played, before(memories), before(late), jnp.arange(count) == 0)


def _problems(
    policy: Policy, burn_in: int, entropy_weight: Scalar, value_weight: Scalar
) -> tuple[Problem, Problem]:
    """Return what improves the policy and its critic, and the critic alone."""

    def outputs(params: Params, chunks: Chunk) -> PolicyOutput:
        """Return the policy's output at the steps of some chunks `[task, chunk]`."""

        def of_chunk(chunk: Chunk):
            memory = chunk.memory
            if burn_in:
                memory = jax.lax.stop_gradient(policy.unroll(params, memory, chunk.before)[0])
            start = policy.initial_memory()
            memory = jax.tree.map(lambda a, b: jnp.where(chunk.first, a, b), start, memory)
            return policy.unroll(params, memory, chunk.played.step_input)[1]

        return jax.vmap(jax.vmap(of_chunk))(chunks)

    def surrogate(output: PolicyOutput, played: Played, clip: Scalar | None = None):
        """Return the mean surrogate and KL(behaviour ‖ policy) of the steps played."""
        old, new = played.behaviour, output.distribution
        gain = policy_gradient.importance_weighted(
            new.log_prob(played.action),
            old.log_prob(played.action),
            played.advantage,
            played.valid,
            clip=clip,
        )
        mean = lambda x: returns.masked_mean(x, played.valid)
        return mean(gain), mean(old.kl(new))

    def critic_loss(output: PolicyOutput, played: Played):
        assert output.value is not None
        return returns.masked_mean((output.value - played.target) ** 2, played.valid) / 2

    def mean_kl(old, new, chunks: Chunk):
        return returns.masked_mean(old.kl(new), chunks.played.valid)

    def loss(params: Params, chunks: Chunk, clip):
        output, played = outputs(params, chunks), chunks.played
        gain, kl = surrogate(output, played, clip)
        entropy = returns.masked_mean(output.distribution.entropy(), played.valid)
        critic = critic_loss(output, played)
        loss = value_weight * critic - gain - entropy_weight * entropy
        return loss, {"kl": kl, "critic_loss": critic}

    def value_loss(params: Params, chunks: Chunk, clip):
        del clip
        loss = critic_loss(outputs(params, chunks), chunks.played)
        return value_weight * loss, {"critic_loss": loss}

    problem = Problem(
        loss=loss,
        surrogate=lambda params, chunks: surrogate(outputs(params, chunks), chunks.played),
        distributions=lambda params, chunks: outputs(params, chunks).distribution,
        mean_kl=mean_kl,
    )
    return problem, problem._replace(loss=value_loss)


def trial_learner(
    env: Env, policy: Policy, *, objective: TrialObjective, outer: OuterStep, episodes: int
) -> TrialLearner:
    """Return what RL² and its relatives share.

    Args:
        env: the environment that all tasks share.
        policy: with a memory and a critic, such as `metajax.policies.gru`.
        objective: what is improved.
        outer: how; of a trust region, the critic has steps of its own and is separate.
        episodes: of a trial.

    Raises:
        MetajaxError: an option is out of range, the policy was made for another environment, or it
            has no critic of the kind that is needed.
    """
    check_at_least(1, episodes=episodes)
    objective.check(episodes * env.episode_length)
    _check_critic(env, policy, outer)
    separately = not outer.trains_critics
    of_learner = objective.critic if separately else outer

    agent = memory_agent(policy)

    def collect(meta_params: MetaParams, tasks, key) -> Trajectory:
        def trial(meta_params, task, key):
            def act_now(memory, step_input, key):
                return agent.act(meta_params, memory, step_input, key)

            memory = policy.initial_memory()
            return rollout(key, env, task, act_now, memory, episodes=episodes)

        keys = jax.random.split(key, jax.tree.leaves(tasks)[0].shape[0])
        return over_tasks(trial, meta_params, tasks, keys)

    def init(key) -> TrainState:
        params = policy.init(key)
        meta_params = MetaParams(params, mean_square_reward=jnp.zeros(()))
        statistics = Statistics(jnp.zeros(()), jnp.zeros((), jnp.int32))
        return TrainState(meta_params, of_learner.init(params), statistics)

    def improve(state: TrainState, trajectory: Trajectory):
        meta_params, statistics = state.meta_params, state.statistics
        mean_square = statistics.mean_square_return
        played, to_come = over_tasks(
            lambda known, trajectory: objective.estimate(known, mean_square, trajectory),
            meta_params,
            trajectory,
        )
        advantage = jnp.where(returns.alike(to_come), 0.0, played.advantage)
        total = root(statistics.mean_square_return) * played.target
        normal = returns.normalize(advantage, played.valid, total)
        played = dataclasses.replace(played, advantage=normal)
        chunks = jax.vmap(lambda played: objective.cut(meta_params.policy, played))(played)

        params, metrics = meta_params.policy, {}
        if separately:
            params, _, metrics = outer.improve(
                objective.problem, params, outer.init(params), chunks
            )
        problem = objective.of_critic if separately else objective.problem
        params, learner, found = of_learner.improve(problem, params, state.learner, chunks)
        # Those of the policy's step, where the critic has steps of its own.
        metrics = jax.tree.map(lambda x: x[-1], found | metrics)

        iterations = statistics.iterations + 1

        new_state = dataclasses.replace(
            state,
            meta_params=dataclasses.replace(
                meta_params,
                policy=params,
                mean_square_reward=tracked(
                    meta_params.mean_square_reward, trajectory.reward, trajectory.valid, iterations
                ),
            ),
            learner=learner,
            statistics=Statistics(
                tracked(statistics.mean_square_return, to_come, played.valid, iterations),
                iterations,
            ),
            environment_steps=count_update(
                state.environment_steps, len(trajectory.valid), trial, env
            ),
        )
        entropy = returns.masked_mean(trajectory.output.distribution.entropy(), trajectory.valid)
        per_episode = jnp.mean(undiscounted_returns(trajectory), axis=0)
        metrics |= {
            "return_before": per_episode[0],
            "return_after": per_episode[-1],
            "entropy": entropy,
        }
        return new_state, metrics

    trial = Trial(1, episodes, None)
    metrics = dict.fromkeys(("return_before", "return_after", "entropy", "critic_loss", "kl"))
    metrics |= dict.fromkeys((*of_learner.metrics, *outer.metrics))
    return TrialLearner(init, collect, improve, agent, trial, tuple(metrics))


def without_gaps(tree: PyTree, valid: Bool[Array, "episode time"]) -> PyTree:
    """Return `tree[episode, time, ...]` as one sequence `[step, ...]`, what is not valid last."""
    order = jnp.argsort(~valid.ravel(), stable=True)
    return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2)[order], tree)


def _check_critic(env: Env, policy: Policy, outer: OuterStep) -> None:
    params, output = check_policy(env, policy)
    if output.value is None:
        raise MetajaxError(
            "RL² needs a policy with a critic, as metajax.policies.gru has with critic='shared' or "
            "'separate'."
        )
    if not outer.trains_critics and "critic" not in params:
        raise MetajaxError(
            "the trust region would not hold what a shared critic changes; give the policy one of "
            "its own: critic='separate'."
        )


TRIAL_OBJECTIVES: dict[str, Callable[..., Part[TrialObjective]]] = {"whole-trials": whole_trials}
