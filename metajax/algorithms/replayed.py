"""Training on what was kept: play, remember, and take many gradient steps on remembered items."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from metajax._promotion import on_own_terms
from metajax.algorithms.inner_loop import Experience, InnerLoop, MetaParams
from metajax.errors import check_at_least, check_positive
from metajax.replay import empty_replay, extend_replay, sample_replay
from metajax.types import Algorithm, Task, TrainState

# `(meta_params, tasks, key) -> (data[task, round], items[item], valid[item])`
Collect = Callable[
    [MetaParams, Task, Key[Array, ""]], tuple[Experience, PyTree[Array], Bool[Array, "item"]]
]
# `(theta, target, items[batch]) -> loss`, of (policy, rule) parameters and of their slow copy
Loss = Callable[[Any, Any, PyTree[Array]], Float[Array, ""]]


def replayed(
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
        meta_params, _ = loop.init(key)
        theta = (meta_params.policy, meta_params.rule)
        items = jax.eval_shape(collect, meta_params, tasks, key)[1]
        replay = empty_replay(items, replay_capacity)
        optimizer_state = {"outer": optimizer.init(theta), "updates": jnp.zeros((), jnp.int32)}
        return TrainState(meta_params, optimizer_state, {"replay": replay, "target": theta})

    def update(state: TrainState, tasks, key):
        collect_key, batch_key = jax.random.split(key)
        meta_params, optimizer_state = state.meta_params, state.optimizer_state
        data, items, valid = collect(meta_params, tasks, collect_key)
        replay = extend_replay(state.auxiliary["replay"], items, valid)

        def gradient_step(carry, key):
            theta, target, adam, count = carry
            drawn = sample_replay(replay, key, batch)
            value, gradient = jax.value_and_grad(loss)(theta, target, drawn)
            change, adam = optimizer.update(gradient, adam, theta)
            theta, count = optax.apply_updates(theta, change), count + 1
            target = optax.periodic_update(theta, target, count, target_period)
            return (theta, target, adam, count), (value, optax.tree.norm(gradient))

        theta: Any = (meta_params.policy, meta_params.rule)
        adam, count = optimizer_state["outer"], optimizer_state["updates"]
        begin = (theta, state.auxiliary["target"], adam, count)
        end, (losses, norms) = jax.lax.scan(
            gradient_step, begin, jax.random.split(batch_key, updates)
        )
        theta, target, adam, count = end
        metrics = loop.metrics(meta_params, data.trajectory)
        metrics |= {"q_loss": jnp.mean(losses), "meta_gradient_norm": jnp.mean(norms)}
        new_params = MetaParams(theta[0], theta[1], meta_params.critic)
        new_optimizer_state = {"outer": adam, "updates": count}
        auxiliary = {"replay": replay, "target": target}
        return TrainState(new_params, new_optimizer_state, auxiliary), metrics

    return Algorithm(
        init,
        update,
        loop.agent,
        name,
        rounds * loop.steps_per_round,
        joint=rounds == 1,
        adaptations=rounds - 1,
    )
