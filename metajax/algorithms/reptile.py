"""Reptile (Nichol et al. 2018) for reinforcement learning.

The paper has no experiments with reinforcement learning, and reports elsewhere that they did not
work: plain joint training is a strong baseline for this method.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax._options import options_of
from metajax.algorithms.inner_loop import (
    MetaParams,
    collect_batch,
    fit_critic,
    learns_rule,
    metric_names,
    policy_gradient_loop,
)
from metajax.errors import MetajaxError, check_at_least, check_fraction, check_positive
from metajax.steps import count_update
from metajax.types import Algorithm, Env, Policy, TrainState, Trial


# What does not adapt in a task, Reptile does not learn.
@options_of(policy_gradient_loop, without=("first_order", "rematerialize", "adapts"))
def reptile(
    env: Env,
    policy: Policy,
    *,
    inner_steps: int = 5,
    outer_learning_rate: float = 0.1,
    **options: Any,
) -> Algorithm:
    """Return Reptile: θ ← θ + ε (mean over tasks of θ'_K - θ), with no meta-gradient at all.

    An update plays K rounds per task, one before each inner step; `return_after` in its metrics is
    that of the last round, after K - 1 steps.

    Args:
        env: the environment that all tasks share.
        policy: what is adapted, without a memory.
        inner_steps: K. With 1, Reptile is joint training.
        outer_learning_rate: ε in (0, 1].

    Raises:
        MetajaxError: an option is out of range, or the rule has parameters, which Reptile cannot
            learn.
    """
    check_at_least(1, inner_steps=inner_steps)
    check_positive(outer_learning_rate=outer_learning_rate)
    check_fraction(outer_learning_rate=outer_learning_rate)
    loop = policy_gradient_loop(env, policy, first_order=True, **options)
    if learns_rule(loop):
        raise MetajaxError("reptile has no gradient to learn a rule with; take the rule 'sgd'.")

    def init(key, tasks) -> TrainState:
        del tasks
        meta_params, critic_state, replay = loop.init(key)
        return TrainState(meta_params, {"critic": critic_state}, replay=replay)

    def update(state: TrainState, tasks, key):
        meta_params = state.meta_params
        data, adapted = collect_batch(loop, meta_params, tasks, key, inner_steps)
        change = jax.tree.map(
            lambda adapted, old: jnp.mean(adapted, axis=0) - old, adapted.policy, meta_params.policy
        )
        policy_params = jax.tree.map(
            lambda old, step: old + outer_learning_rate * step, meta_params.policy, change
        )
        critic, critic_state, replay, metrics = fit_critic(loop, state, data, key)
        metrics |= loop.metrics(meta_params, data.trajectory)
        metrics["meta_gradient_norm"] = optax.tree.norm(change)
        new_state = dataclasses.replace(
            state,
            meta_params=MetaParams(policy_params, meta_params.rule, critic),
            learner={"critic": critic_state},
            replay=replay,
            environment_steps=count_update(state.environment_steps, tasks, trial, env),
        )
        return new_state, metrics

    trial = Trial(inner_steps, loop.episodes, 0 if inner_steps == 1 else inner_steps)
    metrics = (*metric_names(loop, trial.rounds), "meta_gradient_norm")
    return Algorithm(init, update, loop.agent, "reptile", trial, metrics)
