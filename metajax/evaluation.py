"""The adaptation curve of any agent on held-out tasks."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from metajax._checks import checked
from metajax._memory import check_memory, experience_bytes
from metajax.envs.splits import sample_batch
from metajax.errors import check_at_least
from metajax.rollout import first_previous, over_tasks, play_on, rollout, undiscounted_returns
from metajax.types import Agent, Task, TaskFamily


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
    mode: bool = False,
) -> Float[Array, "task round episode"]:
    """Return the undiscounted returns of every episode on fresh held-out tasks.

    A round is `episodes` episodes with what the agent has learnt so far, then one `adapt`. So for
    a gradient-based agent round k holds the returns after k gradient steps, each from a fresh
    batch of `episodes` episodes. A memory lives through the whole trial, all rounds of a task.

    Args:
        agent: of the algorithm that trained `meta_params`.
        family: tasks are drawn from `family.test`.
        meta_params: what was trained.
        key: consumed.
        tasks: how many held-out tasks.
        rounds: how many rounds, adaptation steps + 1.
        episodes: episodes per round.
        mode: score separate episodes that take the distribution's mode, and a memory of their
            own; agents always learn from sampled actions.

    Raises:
        MetajaxError: a number is below 1, or the episodes do not fit into memory.
    """
    check_at_least(1, tasks=tasks, rounds=rounds, episodes=episodes)
    steps = tasks * episodes * family.env.episode_length
    check_memory(the_episodes_of_an_evaluation=experience_bytes(family.env, steps))
    task_key, trial_key = jax.random.split(key)
    held_out = sample_batch(family.test, task_key, tasks)
    trial_keys = jax.random.split(trial_key, tasks)

    def trial(meta_params, task, key):
        return _trial(agent, family, meta_params, task, key, rounds, episodes, mode)

    return over_tasks(trial, meta_params, held_out, trial_keys)


def has_memory(agent: Agent) -> bool:
    """Return whether an agent adapts inside a memory, which lives through a trial."""
    return bool(jax.tree.leaves(jax.eval_shape(agent.initial_memory)))


def _trial(agent: Agent, family, meta_params, task: Task, key, rounds, episodes, mode):
    begin_key, rounds_key = jax.random.split(key)
    start = (agent.initial_memory(), first_previous(family.env))
    parallel = not has_memory(agent)  # nothing connects the episodes of a round

    def play(adapted, carried, key, sampled):
        def act(memory, step_input, key):
            return agent.act(adapted, memory, step_input, key if sampled else None)

        if parallel:
            trajectory = rollout(
                key, family.env, task, act, carried[0], episodes=episodes, parallel=True
            )
            return carried, trajectory
        return play_on(key, family.env, task, act, carried, episodes=episodes)

    def round_(carry, key):
        adapted, carried, of_modes = carry
        sample_key, adapt_key, score_key = jax.random.split(key, 3)
        carried, trajectory = play(adapted, carried, sample_key, sampled=True)
        scored = trajectory
        if mode:
            of_modes, scored = play(adapted, of_modes, score_key, sampled=False)
        new_adapted = agent.adapt(meta_params, adapted, trajectory, adapt_key)
        return (new_adapted, carried, of_modes), undiscounted_returns(scored)

    carry = (agent.begin(meta_params, begin_key), start, start if mode else ())
    return jax.lax.scan(round_, carry, jax.random.split(rounds_key, rounds))[1]


_RESAMPLED = 10**7  # returns at a time: some 300 MB


class Summary(NamedTuple):
    """An interquartile mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def middle_mean(returns: Float[np.ndarray, "..."], axis: int = -1) -> Any:
    """Return the means of the middle halves along an axis."""
    import scipy.stats  # half a second, which a mistyped command should not wait for

    return scipy.stats.trim_mean(np.asarray(returns, np.float64), 0.25, axis=axis)


def interquartile_mean(
    returns: Float[np.ndarray, "seed task"], *, resamples: int = 2000
) -> Summary:
    """Return the mean of the middle half of `returns`, with a stratified bootstrap interval.

    The statistic is that of Agarwal et al. (2021). The interval is of tasks, resampled within each
    seed (the strata): how far the seeds at hand would be from it on other tasks. Of other seeds it
    says nothing.

    Args:
        returns: `[seed, task]`, each the mean over the task's episodes.
        resamples: bootstrap resamples.
    """
    import scipy.stats

    returns = np.asarray(returns, np.float64)

    def statistic(*strata, axis=-1):
        return middle_mean(np.concatenate(strata, axis=axis), axis)

    mean = float(middle_mean(returns.ravel()))
    if returns.shape[1] < 2 or np.ptp(returns, axis=1).max() == 0:
        return Summary(mean, mean, mean)
    interval = scipy.stats.bootstrap(
        tuple(returns),
        statistic,
        n_resamples=resamples,
        method="percentile",
        vectorized=True,
        batch=max(1, _RESAMPLED // returns.size),
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Summary(mean, float(interval.low), float(interval.high))


def adaptation_curve(returns: Float[np.ndarray, "seed task round episode"]) -> list[Summary]:
    """Return the interquartile mean over tasks, with its interval, of every round."""
    per_task = np.asarray(returns, np.float64).mean(axis=-1)
    return [interquartile_mean(per_task[:, :, k]) for k in range(per_task.shape[2])]


def hurtful_steps(curve: list[Summary]) -> list[int]:
    """Return the numbers of adaptation steps after which agents do worse than without any.

    Worse beyond doubt: the interval lies below that before adaptation.

    Args:
        curve: from `adaptation_curve`.
    """
    return [k for k, after in enumerate(curve) if after.high < curve[0].low]
