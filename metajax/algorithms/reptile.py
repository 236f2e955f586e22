"""Reptile (Nichol et al. 2018) for reinforcement learning.

The paper has no experiments with reinforcement learning, and reports elsewhere that they did not
work: plain joint training is a strong baseline for this method.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from metajax._checks import checked
from metajax.adaptation import (
    InnerLoop,
    collect_batch,
    fit_critics,
    gradient_steps,
    measured,
    metric_names,
)
from metajax.errors import MetajaxError, check_at_least, check_fraction, check_positive
from metajax.parts import check_made
from metajax.steps import count_update
from metajax.types import (
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


@checked
def reptile(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(),
    inner_steps: int = 5,
    episodes: int = 20,
    step_size: Scalar = 0.1,
) -> Algorithm:
    """Return Reptile: θ ← θ + ε (mean over tasks of θ'_K - θ), with no meta-gradient at all.

    An update plays K rounds per task, one before each inner step; `return_after` in its metrics is
    that of the last round, after K - 1 steps.

    Args:
        env: the environment that all tasks share.
        policy: policy that is adapted, without a memory.
        inner: adaptation within a task, of the whole policy: what does not adapt in a task, Reptile
            does not learn.
        inner_steps: adaptation steps K. With 1, Reptile is joint training.
        episodes: episodes per task and adaptation step.
        step_size: outer step size ε in (0, 1].

    Raises:
        MetajaxError: an option is out of range, or the rule has parameters, which Reptile cannot
            learn.
    """
    check_at_least(1, inner_steps=inner_steps, episodes=episodes)
    check_positive(step_size=step_size)
    check_fraction(step_size=step_size)
    check_made("Reptile", inner, "inner", "adapts", be="all")
    loop = inner.build(env, policy)
    if loop.learns_rule:
        raise MetajaxError("reptile has no gradient to learn a rule with; take the rule 'sgd'.")

    def init(key, tasks) -> TrainState:
        del tasks
        meta_params, critic_state, replay = loop.init(key)
        return TrainState(meta_params, {"critic": critic_state}, replay=replay)

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        meta_params = state.meta_params
        data, adapted = collect_batch(
            loop, meta_params, tasks.task, key, rounds=inner_steps, episodes=episodes
        )
        change = jax.tree.map(
            lambda adapted, old: jnp.mean(adapted, axis=0) - old, adapted.policy, meta_params.policy
        )
        policy_params = jax.tree.map(
            lambda old, step: old + step_size * step, meta_params.policy, change
        )
        critic, critic_state, replay, metrics = fit_critics(loop, state, data, key)
        metrics |= measured(loop, meta_params, data.trajectory)
        metrics["meta_gradient_norm"] = optax.tree.norm(change)
        new_state = dataclasses.replace(
            state,
            meta_params=MetaParams(policy_params, meta_params.rule, critic),
            learner={"critic": critic_state},
            replay=replay,
            environment_steps=count_update(state.environment_steps, len(tasks), trial, env),
        )
        return new_state, metrics

    trial = Trial(inner_steps, episodes, 0 if inner_steps == 1 else inner_steps)
    metrics = (*metric_names(loop, trial.rounds), "meta_gradient_norm")
    return Algorithm(init, update, loop.agent, "reptile", trial, metrics)
