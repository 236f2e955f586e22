"""Training on what was kept: play, remember, and take many gradient steps on remembered items."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from metajax._checks import checked
from metajax.adaptation import Experience, InnerLoop, measured, metric_names
from metajax.errors import MetajaxError, check_at_least
from metajax.outer import OuterStep, Problem
from metajax.replay import empty_replay, extend_replay, sample_replay
from metajax.steps import count_update
from metajax.types import Algorithm, Env, MetaParams, Task, TaskBatch, TrainState, Trial

# `(meta_params, tasks, key) -> (data[task, round], items[item], valid[item])`
Collect = Callable[
    [MetaParams, Task, Key[Array, ""]], tuple[Experience, PyTree[Array], Bool[Array, "item"]]
]
# `(theta, target, items[batch]) -> loss`, of (policy, rule) parameters and of their slow copy
Loss = Callable[[Any, Any, PyTree[Array]], Float[Array, ""]]


def replayed(
    env: Env,
    loop: InnerLoop,
    collect: Collect,
    loss: Loss,
    *,
    name: str,
    trial: Trial,
    outer: OuterStep,
    updates: int,
    batch: int,
    replay_capacity: int,
    target_period: int,
) -> Algorithm:
    """Return the algorithm whose outer steps descend `loss` on items of a replay.

    Args:
        env: the environment that all tasks share.
        loop: the inner loop.
        collect: play a batch of tasks; which items to keep.
        loss: of a batch of items; the slow copy is a constant.
        name: of the algorithm.
        trial: what `collect` plays on each task.
        outer: that descends a loss.
        updates: gradient steps per meta-iteration.
        batch: items in each, drawn uniformly.
        replay_capacity: items that are kept.
        target_period: gradient steps between two copies to the slow one.

    Raises:
        MetajaxError: an option is out of range, the outer step is a trust region, or a
            meta-iteration has more items than are kept.
    """
    check_at_least(1, updates=updates, batch=batch, target_period=target_period)
    check_at_least(1, replay_capacity=replay_capacity, episodes=trial.episodes)
    if not outer.trains_critics:
        raise MetajaxError(f"{name} descends a loss of values; take the outer step 'adam'.")

    def problem(target) -> Problem:
        """Return what an outer step descends, given the slow copy."""

        def of_items(theta, items, clip):
            del clip  # there are no ratios
            value = loss(theta, target, items)
            return value, {"q_loss": value}

        return Problem(of_items, *[_no_policies] * 3)

    @checked
    def init(key, tasks: TaskBatch) -> TrainState:
        meta_params, *_ = loop.init(key)
        theta = (meta_params.policy, meta_params.rule)
        items = jax.eval_shape(collect, meta_params, tasks.task, key)[1]
        replay = empty_replay(items, replay_capacity)
        learner = {
            "outer": outer.init(theta),
            "updates": jnp.zeros((), jnp.int32),
            "target": theta,
        }
        return TrainState(meta_params, learner, replay=replay)

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        collect_key, batch_key = jax.random.split(key)
        meta_params, learner = state.meta_params, state.learner
        data, items, valid = collect(meta_params, tasks.task, collect_key)
        replay = extend_replay(state.replay, items, valid)

        def gradient_step(carry, key):
            theta, target, outer_state, count = carry
            drawn = sample_replay(replay, key, batch)
            theta, outer_state, found = outer.improve(problem(target), theta, outer_state, drawn)
            count = count + 1
            target = optax.periodic_update(theta, target, count, target_period)
            return (theta, target, outer_state, count), found

        theta: Any = (meta_params.policy, meta_params.rule)
        start = (theta, learner["target"], learner["outer"], learner["updates"])
        end, found = jax.lax.scan(gradient_step, start, jax.random.split(batch_key, updates))
        theta, target, outer_state, count = end
        metrics = measured(loop, meta_params, data.trajectory) | jax.tree.map(jnp.mean, found)
        new_state = dataclasses.replace(
            state,
            meta_params=MetaParams(theta[0], theta[1], meta_params.critic),
            learner={"outer": outer_state, "updates": count, "target": target},
            replay=replay,
            environment_steps=count_update(state.environment_steps, len(tasks), trial, env),
        )
        return new_state, metrics

    metrics = (*metric_names(loop, trial.rounds), "q_loss", *outer.metrics)
    return Algorithm(init, update, loop.agent, name, trial, metrics)


def _no_policies(*_: Any) -> Any:
    raise MetajaxError("there are no policies to compare; take an outer step that descends a loss.")
