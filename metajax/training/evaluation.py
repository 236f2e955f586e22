"""The adaptation curve of any agent on held-out tasks."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from metajax._checks import checked
from metajax._memory import check_memory, experience_bytes
from metajax.envs.rollouts import (
    first_previous,
    over_tasks,
    play_on,
    rollout,
    undiscounted_returns,
)
from metajax.envs.splits import even_count, sample_tasks
from metajax.errors import check_at_least
from metajax.losses.returns import last_steps
from metajax.types import Agent, Env, Metrics, Task, TaskDistribution, TaskFamily, Trajectory


class Evaluated(NamedTuple):
    """What an evaluation measured.

    Attributes:
        returns: undiscounted, of every episode.
        metrics: what the environment measures after the last step of the same episodes, by name
            (see `EnvState.metrics`); {} where it measures nothing.
    """

    returns: Float[Array, "*batch task round episode"]
    metrics: dict[str, Float[Array, "*batch task round episode"]]


@checked
def evaluate(
    agent: Agent,
    family: TaskFamily,
    meta_params: PyTree[Array],
    key: Key[Array, ""],
    *,
    tasks: int,
    rounds: int,
    episodes: int,
    deterministic: bool = False,
) -> Float[Array, "task round episode"]:
    """Return the undiscounted returns of every episode on fresh held-out tasks.

    A round is `episodes` episodes with what the agent has learnt so far, then one `adapt`. So for
    a gradient-based agent round k holds the returns after k gradient steps, each from a fresh
    batch of `episodes` episodes. A memory is kept through the whole trial, all rounds of a task.

    Of finitely many tasks each is played equally often, and they come in their own order: tasks
    are rounded up to a multiple of their number (see `even_count`).

    Example:
        >>> import jax
        >>> import metajax
        >>> from metajax.reference_agents import bandit_agent, thompson
        >>> family = metajax.make("bernoulli-bandit", arms=2)
        >>> returns = metajax.evaluate(
        ...     bandit_agent(2, thompson),
        ...     family,
        ...     (),
        ...     jax.random.key(0),
        ...     tasks=3,
        ...     rounds=1,
        ...     episodes=10,
        ... )
        >>> returns.shape
        (3, 1, 10)

    Args:
        agent: of the algorithm that trained `meta_params`.
        family: tasks are drawn from `family.test`.
        meta_params: what was trained.
        key: consumed.
        tasks: how many held-out tasks, at least.
        rounds: how many rounds, adaptation steps + 1.
        episodes: episodes per round.
        deterministic: whether separate episodes of deterministic actions (the distribution's mode)
            are scored, with a memory of their own; agents always learn from sampled actions.

    Raises:
        MetajaxError: a number is below 1, or the episodes do not fit into memory.
    """
    sizes = {"tasks": tasks, "rounds": rounds, "episodes": episodes}
    return evaluate_with_metrics(
        agent, family, meta_params, key, **sizes, deterministic=deterministic
    ).returns


@checked
def evaluate_with_metrics(
    agent: Agent,
    family: TaskFamily,
    meta_params: PyTree[Array],
    key: Key[Array, ""],
    *,
    tasks: int,
    rounds: int,
    episodes: int,
    deterministic: bool = False,
) -> Evaluated:
    """Return what `evaluate` does, and the environment's metrics of the same episodes."""
    check_at_least(1, tasks=tasks, rounds=rounds, episodes=episodes)
    tasks = even_count(family.test, tasks)
    # Before tasks are drawn, which may not fit either.
    _check_episodes(family.env, tasks * episodes)
    trials = draw_trials(family.test, key, tasks)
    plan = {"rounds": rounds, "episodes": episodes, "deterministic": deterministic}
    return evaluate_on(trials, agent, family.env, meta_params, **plan)


def draw_trials(
    distribution: TaskDistribution, key: Key[Array, ""], count: int
) -> tuple[Task, Key[Array, "task"]]:
    """Return tasks and the keys of their trials, `[task]`; of finitely many, in their own order.

    Args:
        distribution: of tasks.
        key: consumed.
        count: how many.
    """
    task_key, trial_key = jax.random.split(key)
    tasks = sample_tasks(distribution, task_key, count)
    trials = tasks.task, jax.random.split(trial_key, count)
    if not tasks.slots:
        return trials
    order = jnp.argsort(tasks.slot)
    return jax.tree.map(lambda x: x[order], trials)


def evaluate_on(
    trials: tuple[Task, Key[Array, "task"]],
    agent: Agent,
    env: Env,
    meta_params: PyTree[Array],
    *,
    rounds: int,
    episodes: int,
    deterministic: bool = False,
) -> Evaluated:
    """Return what `evaluate_with_metrics` does, on these tasks, with these keys `[task]`."""
    tasks, keys = trials
    _check_episodes(env, len(keys) * episodes)

    def trial(meta_params, task, key):
        return _trial(agent, env, meta_params, task, key, rounds, episodes, deterministic)

    return Evaluated(*over_tasks(trial, meta_params, tasks, keys))


def _check_episodes(env: Env, episodes: int) -> None:
    steps = episodes * env.episode_length
    check_memory(the_episodes_of_an_evaluation=experience_bytes(env, steps))


def has_memory(agent: Agent) -> bool:
    """Return whether an agent adapts inside a memory, which is kept through a trial."""
    kept = jax.tree.leaves(jax.eval_shape(agent.initial_memory))
    return bool(kept) and not agent.episodic


def _trial(agent: Agent, env: Env, meta_params, task: Task, key, rounds, episodes, deterministic):
    init_key, rounds_key = jax.random.split(key)
    start = (agent.initial_memory(), first_previous(env))
    parallel = not has_memory(agent)  # nothing connects the episodes of a round

    def play(adapted, carried, key, sampled):
        def act(memory, step_input, key):
            return agent.act(adapted, memory, step_input, key if sampled else None)

        if parallel:
            trajectory = rollout(key, env, task, act, carried[0], episodes=episodes, parallel=True)
            return carried, trajectory
        return play_on(key, env, task, act, carried, episodes=episodes)

    def round_(carry, key):
        adapted, carried, separate = carry
        sample_key, adapt_key, score_key = jax.random.split(key, 3)
        carried, trajectory = play(adapted, carried, sample_key, sampled=True)
        scored = trajectory
        if deterministic:
            separate, scored = play(adapted, separate, score_key, sampled=False)
        new_adapted = agent.adapt(meta_params, adapted, trajectory, adapt_key)
        return (new_adapted, carried, separate), (undiscounted_returns(scored), _at_the_end(scored))

    carry = (agent.init(meta_params, init_key), start, start if deterministic else ())
    return jax.lax.scan(round_, carry, jax.random.split(rounds_key, rounds))[1]


def _at_the_end(trajectory: Trajectory) -> Metrics:
    """Return the metrics after the last step of each episode `[episode]`."""
    last = last_steps(trajectory.valid)
    return {n: jnp.sum(jnp.where(last, x, 0.0), axis=-1) for n, x in trajectory.metrics.items()}


RESAMPLES = 2000


class Summary(NamedTuple):
    """What the returns of many tasks come to.

    Attributes:
        iqm: interquartile mean, the mean of the middle half.
        mean: the mean.
        low: lower end of the 95 % bootstrap interval of `iqm`.
        high: its upper end.
        not_finite: how many tasks had a return that is not finite; all else is of the others, and
            NaN if there are none.
    """

    iqm: float
    mean: float
    low: float
    high: float
    not_finite: int = 0


def iqm(values: Float[np.ndarray, "..."]) -> float:
    """Return the mean of the middle half of what is finite in `values`; NaN if nothing is.

    A quarter of the values, rounded down, is left out at either end, as `scipy.stats.trim_mean`
    does. A value that is not finite is no largest one: it would be left out there as if it were
    the best.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return math.nan
    cut = len(values) // 4
    return float(np.partition(values, (cut, len(values) - cut - 1))[cut : len(values) - cut].mean())


def finite_mean(values: Float[np.ndarray, "sample part"]) -> Float[np.ndarray, "part"]:
    """Return the mean over the first axis of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0.0).sum(axis=0)
    return np.where(finite.any(axis=0), total / np.maximum(finite.sum(axis=0), 1), np.nan)


def interquartile_mean(
    returns: Float[np.ndarray, "seed task"], *, resamples: int = RESAMPLES
) -> Summary:
    """Return the interquartile mean of `returns`, with a bootstrap interval, and the mean.

    The statistic is that of Agarwal et al. (2021), who resample runs. So with several seeds the
    interval is of seeds and tasks: as many seeds are drawn, with replacement, as there are, and
    within each of these as many of its tasks. With one seed it is of tasks alone, and holds
    for no other. Tasks that are not finite are left out and counted, see `Summary`.

    Args:
        returns: `[seed, task]`, each the mean over the task's episodes.
        resamples: bootstrap resamples.
    """
    returns = np.asarray(returns, np.float64)
    finite = np.isfinite(returns)
    seeds = [row[good] for row, good in zip(returns, finite, strict=True) if good.any()]
    not_finite = int(np.sum(~finite))
    if not seeds:
        return Summary(math.nan, math.nan, math.nan, math.nan, not_finite)
    rng = np.random.default_rng(0)

    def resampled() -> float:
        drawn = [seeds[index] for index in rng.integers(len(seeds), size=len(seeds))]
        drawn = [tasks[rng.integers(len(tasks), size=len(tasks))] for tasks in drawn]
        return iqm(np.concatenate(drawn))

    low, high = np.quantile([resampled() for _ in range(resamples)], [0.025, 0.975])
    every = np.concatenate(seeds)
    return Summary(iqm(every), float(every.mean()), float(low), float(high), not_finite)


def resampled_over(seeds: int) -> str:
    """Return what the intervals of `interquartile_mean` are of, as text."""
    return "over seeds and tasks" if seeds > 1 else "over tasks"


def adaptation_curve(returns: Float[np.ndarray, "seed task round episode"]) -> list[Summary]:
    """Return the summary over tasks, see `interquartile_mean`, of every round."""
    per_task = np.asarray(returns, np.float64).mean(axis=-1)
    return [interquartile_mean(per_task[:, :, k]) for k in range(per_task.shape[2])]


def trial_total(returns: Float[np.ndarray, "seed task round episode"]) -> Summary:
    """Return the summary over tasks of the total reward of a trial, all its episodes together."""
    return interquartile_mean(np.asarray(returns, np.float64).sum(axis=(2, 3)))


def hurtful_steps(curve: list[Summary]) -> list[int]:
    """Return the numbers of adaptation steps after which agents do worse than without any.

    Worse beyond doubt: the interval lies below that before adaptation.

    Args:
        curve: from `adaptation_curve`.
    """
    return [k for k, after in enumerate(curve) if after.high < curve[0].low]
