"""RL² (Duan et al. 2016): an agent that adapts by remembering its trial.

A trial is several episodes on one task. To the policy it is one long episode: its memory is reset
between trials only, it hears how each episode ended, and what an action is credited with goes on
into the episodes after it. Exploring early, to do better later, is then learned like anything else.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from metajax._checks import checked
from metajax._options import options_of
from metajax.errors import (
    MetajaxError,
    check_at_least,
    check_fraction,
    check_positive,
)
from metajax.losses import policy_gradient, returns
from metajax.outer import Problem, adam, trpo
from metajax.rollout import check_policy, over_tasks, rollout, undiscounted_returns
from metajax.steps import count_update
from metajax.types import (
    Agent,
    Algorithm,
    Env,
    Memory,
    Metrics,
    Params,
    Policy,
    PolicyOutput,
    Scalar,
    StepInput,
    TrainState,
    Trajectory,
    Trial,
    pytree_dataclass,
)

Outer = Literal["ppo", "trpo"]


@pytree_dataclass
class MetaParams:
    """What the agent is made of.

    `policy` is trained. Rewards are its input, and learned from, over the root of their running
    mean square: without it the agent cannot act, so it is part of the agent.
    """

    policy: Params
    mean_square_reward: Float[Array, ""]


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
    """The steps of a trial that were played, the padding behind them, and their credit.

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


class TrialLearner(NamedTuple):
    """How a policy with a memory is trained on whole trials.

    - `init(key) -> TrainState`, whose learner is the state of an optimizer;
    - `collect(meta_params, tasks, key) -> trajectory[task, episode, time]`: play a batch of tasks;
    - `improve(state, trajectory) -> (state, metrics)`: learn from it, and count its steps;
    - `hear(meta_params, step_input) -> step_input`: what the policy is given, rewards in its units;
    - `agent`: acts as it was trained;
    - `trial`: what is played on each task;
    - `metrics`: the names of what `improve` measures.
    """

    init: Callable[[Key[Array, ""]], TrainState]
    collect: Callable[[MetaParams, PyTree, Key[Array, ""]], Trajectory]
    improve: Callable[[TrainState, Trajectory], tuple[TrainState, Metrics]]
    hear: Callable[[MetaParams, StepInput], StepInput]
    agent: Agent
    trial: Trial
    metrics: tuple[str, ...]


@checked
def trial_learner(
    env: Env,
    policy: Policy,
    *,
    episodes: int = 2,
    outer: Outer = "ppo",
    outer_learning_rate: float = 1e-3,
    outer_half_life: float | None = None,
    outer_epochs: int = 4,
    minibatches: int = 4,
    clip: float = 0.2,
    entropy_weight: float = 0.01,
    value_weight: float = 0.5,
    max_gradient_norm: float = 1.0,
    max_kl: float = 0.01,
    cg_iterations: int = 10,
    cg_damping: float = 1e-5,
    discount: float = 0.99,
    trace: float = 0.95,
    chunk: int | None = None,
    burn_in: int = 0,
) -> TrialLearner:
    """Return what RL² and its relatives share.

    Args:
        env: the environment that all tasks share.
        policy: with a memory and a critic, such as `metajax.policies.gru`.
        episodes: of a trial.
        outer: "ppo" (clipped epochs in minibatches of trials) or "trpo", as in the paper (one
            natural-gradient step on all trials, then epochs of the critic, which has to be
            separate).
        outer_learning_rate: of Adam; trpo: of the critic alone.
        outer_half_life: meta-iterations in which that rate halves; None for a constant one.
        outer_epochs: passes over the trials.
        minibatches: gradient steps per pass; their number divides that of the tasks.
        clip: ε of PPO, ppo only.
        entropy_weight: of the entropy beside the surrogate, ppo only.
        value_weight: of half the critic's squared error beside the surrogate.
        max_gradient_norm: longer gradients are shortened to it.
        max_kl: trust region, trpo only.
        cg_iterations: conjugate-gradient iterations, trpo only.
        cg_damping: added to the Fisher matrix, trpo only.
        discount: γ per step.
        trace: λ of generalized advantage estimation, across the ends of episodes. Nothing counts
            after the trial.
        chunk: environment steps that a gradient reaches back; they divide the trial's. Memories at
            a chunk's start are those of the policy that played. None for the whole trial.
        burn_in: steps before a chunk that bring its first memory up to date, without gradient.

    Raises:
        MetajaxError: an option is unknown or out of range, the policy was made for another
            environment, or it has no critic of the kind that is needed.
    """
    check_at_least(1, episodes=episodes, outer_epochs=outer_epochs, minibatches=minibatches)
    check_at_least(0, entropy_weight=entropy_weight, cg_damping=cg_damping, burn_in=burn_in)
    check_at_least(1, cg_iterations=cg_iterations)
    check_positive(outer_learning_rate=outer_learning_rate, clip=clip, max_kl=max_kl)
    check_positive(value_weight=value_weight, max_gradient_norm=max_gradient_norm)
    if outer_half_life is not None:
        check_positive(outer_half_life=outer_half_life)
    check_fraction(discount=discount, trace=trace)
    length = episodes * env.episode_length
    chunk = length if chunk is None else chunk
    if chunk < 1 or length % chunk:
        raise MetajaxError(f"chunk is {chunk}; it must divide the {length} steps of a trial.")
    if burn_in > chunk:
        raise MetajaxError(f"burn_in is {burn_in}; it must be at most the chunk, {chunk}.")
    _check_critic(env, policy, outer)
    natural = trpo(max_kl, cg_iterations=cg_iterations, cg_damping=cg_damping)
    steps = adam(
        outer_learning_rate,
        epochs=outer_epochs,
        minibatches=minibatches,
        clip=clip if outer == "ppo" else None,
        max_gradient_norm=max_gradient_norm,
        half_life=outer_half_life,
    )

    def root(mean_square: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.where(mean_square > 0, jnp.sqrt(mean_square), 1.0)

    def hear(meta_params: MetaParams, x: StepInput) -> StepInput:
        scale = root(meta_params.mean_square_reward)
        return dataclasses.replace(x, previous_reward=x.previous_reward / scale)

    def act(adapted: MetaParams, memory, step_input: StepInput, key):
        memory, output = policy.step(adapted.policy, memory, hear(adapted, step_input))
        distribution = output.distribution
        action = distribution.mode() if key is None else distribution.sample(key)
        return memory, action, output

    def adapt(meta_params: MetaParams, adapted: MetaParams, trajectory: Trajectory, key):
        del meta_params, trajectory, key
        return adapted

    def collect(meta_params: MetaParams, tasks, key) -> Trajectory:
        def trial(meta_params, task, key):
            def act_now(memory, step_input, key):
                return act(meta_params, memory, step_input, key)

            memory = policy.initial_memory()
            return rollout(key, env, task, act_now, memory, episodes=episodes)

        keys = jax.random.split(key, jax.tree.leaves(tasks)[0].shape[0])
        return over_tasks(trial, meta_params, tasks, keys)

    def with_credit(known, trajectory: Trajectory) -> tuple[Played, Array]:
        """Return a trial as one sequence without gaps, and the discounted returns `[step]`."""
        meta_params, mean_square_return = known
        step_input, action, output, reward, valid = without_gaps(
            (
                hear(meta_params, trajectory.step_input),
                trajectory.action,
                trajectory.output,
                trajectory.reward,
                trajectory.valid,
            ),
            trajectory.valid,
        )
        scale = root(mean_square_return)
        value, nothing_ends = scale * output.value, jnp.zeros(length, bool)
        advantage = returns.generalized_advantages(
            reward,
            value,
            jnp.zeros(()),
            nothing_ends,
            valid,
            discount=discount,
            trace=trace,
        )
        target = (advantage + value) / scale
        played = Played(step_input, action, output.distribution, advantage, target, valid)
        return played, returns.discounted_returns(reward, valid, discount)

    def cut(params: Params, played: Played) -> Chunk:
        """Return the chunks `[chunk]` of a trial."""
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

    def outputs(params: Params, chunks: Chunk) -> PolicyOutput:
        """Return what the policy says at the steps of some chunks `[task, chunk]`."""

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

    def init(key) -> TrainState:
        params = policy.init(key)
        meta_params = MetaParams(params, jnp.zeros(()))
        statistics = Statistics(jnp.zeros(()), jnp.zeros((), jnp.int32))
        return TrainState(meta_params, steps.init(params), statistics)

    def improve(state: TrainState, trajectory: Trajectory):
        meta_params, statistics = state.meta_params, state.statistics
        known = (meta_params, statistics.mean_square_return)
        played, to_come = over_tasks(with_credit, known, trajectory)
        advantage = jnp.where(returns.alike(to_come), 0.0, played.advantage)
        total = root(statistics.mean_square_return) * played.target
        normal = returns.normalize(advantage, played.valid, total)
        played = dataclasses.replace(played, advantage=normal)
        chunks = jax.vmap(lambda played: cut(meta_params.policy, played))(played)

        params, metrics = meta_params.policy, {}
        if outer == "trpo":
            params, _, metrics = natural.improve(problem, params, (), chunks)
        rest = problem._replace(loss=value_loss) if outer == "trpo" else problem
        params, optimizer_state, found = steps.improve(rest, params, state.learner, chunks)
        # Those of the policy's step, where the critic has steps of its own.
        metrics = jax.tree.map(lambda x: x[-1], found | metrics)

        iterations = statistics.iterations + 1

        def tracked(mean_square, x, valid):
            difference = returns.masked_mean(x**2, valid) - mean_square
            return mean_square + difference / iterations.astype(difference.dtype)

        new_state = dataclasses.replace(
            state,
            meta_params=MetaParams(
                params,
                tracked(meta_params.mean_square_reward, trajectory.reward, trajectory.valid),
            ),
            learner=optimizer_state,
            statistics=Statistics(
                tracked(statistics.mean_square_return, to_come, played.valid), iterations
            ),
            environment_steps=count_update(state.environment_steps, trajectory.valid, trial, env),
        )
        entropy = returns.masked_mean(trajectory.output.distribution.entropy(), trajectory.valid)
        per_episode = jnp.mean(undiscounted_returns(trajectory), axis=0)
        metrics |= {
            "return_before": per_episode[0],
            "return_after": per_episode[-1],
            "entropy": entropy,
        }
        return new_state, metrics

    agent = Agent(lambda meta_params, key: meta_params, policy.initial_memory, act, adapt)
    trial = Trial(1, episodes, None)
    metrics = ("return_before", "return_after", "entropy", "critic_loss", "kl")
    metrics += ("meta_gradient_norm",) + ("step_accepted",) * (outer == "trpo")
    return TrialLearner(init, collect, improve, hear, agent, trial, metrics)


def without_gaps(tree: PyTree, valid: Bool[Array, "episode time"]) -> PyTree:
    """Return `tree[episode, time, ...]` as one sequence `[step, ...]`, what is not valid last."""
    order = jnp.argsort(~valid.ravel(), stable=True)
    return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2)[order], tree)


@options_of(trial_learner)
def rl2(env: Env, policy: Policy, **options: Any) -> Algorithm:
    """Return RL²: a policy with a memory, trained on whole trials.

    Example:
        >>> import jax
        >>> import metajax
        >>> family = metajax.make("bernoulli-bandit", arms=5)
        >>> policy = metajax.gru(family.env.observation_size, family.env.action_space)
        >>> algorithm = metajax.rl2(family.env, policy, episodes=10)
        >>> jax.tree.map(lambda x: x.shape, algorithm.agent.initial_memory())
        [(64,)]

    Args:
        env: the environment that all tasks share.
        policy: with a memory and a critic, such as `metajax.policies.gru`.
    """
    learner = trial_learner(env, policy, **options)

    def init(key, tasks) -> TrainState:
        del tasks
        return learner.init(key)

    def update(state: TrainState, tasks, key):
        return learner.improve(state, learner.collect(state.meta_params, tasks, key))

    return Algorithm(init, update, learner.agent, "rl2", learner.trial, learner.metrics)


@options_of(rl2)
def snail(env: Env, policy: Policy, *, outer: Outer = "trpo", **options: Any) -> Algorithm:
    """Return SNAIL (Mishra et al. 2018, section 5.2): RL² whose memory looks back at its trial.

    Args:
        policy: with a memory and a critic, such as `metajax.policies.snail`.
        outer: "trpo", as in the paper, or "ppo".
    """
    return rl2(env, policy, outer=outer, **options)._replace(name="snail")


def _check_critic(env: Env, policy: Policy, outer: Outer) -> None:
    params, output = check_policy(env, policy)
    if output.value is None:
        raise MetajaxError(
            "RL² needs a policy with a critic, as metajax.policies.gru has with critic='shared' or "
            "'separate'."
        )
    if outer == "trpo" and "critic" not in params:
        raise MetajaxError(
            "the trust region would not hold what a shared critic changes; give the policy one of "
            "its own: critic='separate'."
        )
