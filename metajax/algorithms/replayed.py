"""Training on what was kept: play, remember, and take many gradient steps on remembered items."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from metajax._promotion import on_own_terms
from metajax.algorithms.inner_loop import Experience, InnerLoop, MetaParams, metric_names
from metajax.errors import check_at_least, check_positive
from metajax.replay import empty_replay, extend_replay, sample_replay
from metajax.steps import count_update
from metajax.types import Algorithm, Env, Task, TrainState, Trial

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
    rounds: int,
    outer_learning_rate: float,
    updates: int,
    batch: int,
    replay_capacity: int,
    target_period: int,
) -> Algorithm:
    """Return the algorithm whose outer steps, of Adam, descend `loss` on items of a replay.

    Args:
        env: the environment that all tasks share.
        loop: the inner loop.
        collect: play a batch of tasks; which items to keep.
        loss: of a batch of items; the slow copy is a constant.
        name: of the algorithm.
        rounds: that `collect` plays per task.
        outer_learning_rate: of Adam.
        updates: gradient steps per meta-iteration.
        batch: items in each, drawn uniformly.
        replay_capacity: items that are kept.
        target_period: gradient steps between two copies to the slow one.

    Raises:
        MetajaxError: an option is out of range, or a meta-iteration has more items than are kept.
    """
    check_at_least(1, updates=updates, batch=batch, target_period=target_period)
    check_at_least(1, replay_capacity=replay_capacity)
    check_positive(outer_learning_rate=outer_learning_rate)
    optimizer = on_own_terms(optax.adam(outer_learning_rate))

    def init(key, tasks) -> TrainState:
        meta_params, *_ = loop.init(key)
        theta = (meta_params.policy, meta_params.rule)
        items = jax.eval_shape(collect, meta_params, tasks, key)[1]
        replay = empty_replay(items, replay_capacity)
        learner = {
            "outer": optimizer.init(theta),
            "updates": jnp.zeros((), jnp.int32),
            "target": theta,
        }
        return TrainState(meta_params, learner, replay=replay)

    def update(state: TrainState, tasks, key):
        collect_key, batch_key = jax.random.split(key)
        meta_params, learner = state.meta_params, state.learner
        data, items, valid = collect(meta_params, tasks, collect_key)
        replay = extend_replay(state.replay, items, valid)

        def gradient_step(carry, key):
            theta, target, adam, count = carry
            drawn = sample_replay(replay, key, batch)
            value, gradient = jax.value_and_grad(loss)(theta, target, drawn)
            change, adam = optimizer.update(gradient, adam, theta)
            theta, count = optax.apply_updates(theta, change), count + 1
            target = optax.periodic_update(theta, target, count, target_period)
            return (theta, target, adam, count), (value, optax.tree.norm(gradient))

        theta: Any = (meta_params.policy, meta_params.rule)
        start = (theta, learner["target"], learner["outer"], learner["updates"])
        end, (losses, norms) = jax.lax.scan(
            gradient_step, start, jax.random.split(batch_key, updates)
        )
        theta, target, adam, count = end
        metrics = loop.metrics(meta_params, data.trajectory)
        metrics |= {"q_loss": jnp.mean(losses), "meta_gradient_norm": jnp.mean(norms)}
        new_state = dataclasses.replace(
            state,
            meta_params=MetaParams(theta[0], theta[1], meta_params.critic),
            learner={"outer": adam, "updates": count, "target": target},
            replay=replay,
            environment_steps=count_update(state.environment_steps, tasks, trial, env),
        )
        return new_state, metrics

    trial = Trial(rounds, loop.episodes, rounds - 1)
    metrics = (*metric_names(loop, rounds), "q_loss", "meta_gradient_norm")
    return Algorithm(init, update, loop.agent, name, trial, metrics)
