"""A learned optimizer for reinforcement learning: the rule is all that is meta-learned.

Every inner run trains an agent from a random policy through many adaptation steps, and the rule is
trained by persistent evolution strategies (Vicol et al. 2021) on the returns of those runs. Nothing
is differentiated through a run, so it may be as long as one likes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax._checks import checked
from metajax._promotion import on_own_terms
from metajax.adaptation import Adapted, InnerLoop, gradient_steps, policy_gradient
from metajax.envs.rollouts import undiscounted_returns
from metajax.errors import MetajaxError, check_at_least, check_positive
from metajax.losses import returns
from metajax.outer.evolution import (
    init_particles,
    persistent_evolution_strategies,
    restart,
)
from metajax.rules import learned_mlp
from metajax.steps import count_update
from metajax.types import (
    Algorithm,
    Env,
    MetaParams,
    Part,
    Policy,
    Scalar,
    Task,
    TaskBatch,
    TrainState,
    Trial,
    pytree_dataclass,
)


@pytree_dataclass
class InnerRun:
    """An agent that learns one task by the rule, and the adaptation steps it has taken."""

    adapted: Adapted
    task: Task
    steps: Any


@checked
def learned_optimizer(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(
        policy_gradient("clipped"), rule=learned_mlp(0.03), epochs=4
    ),
    episodes: int = 20,
    lifetime: int = 20,
    unroll: int = 4,
    perturbation_std: Scalar = 0.1,
    learning_rate: Scalar = 1e-2,
) -> Algorithm:
    """Return a learned optimizer of PPO agents, trained by persistent evolution strategies.

    An adaptation step is a few epochs of PPO on fresh episodes, made by the rule. The
    agent starts from a random policy, so its adaptation curve is a learning curve; evaluate it
    with as many rounds as matter.

    Each task of the batch is a pair of agents under opposite perturbations of the rule; a task
    lasts a lifetime, and pairs are at different steps of it (the first ones all start together, and
    some end early). In the metrics `return_before` and `return_after` are those of agents in the
    first and in the last `unroll` steps of their lifetime.

    Args:
        env: the environment that all tasks share.
        policy: policy that the rule trains; each inner run starts from other random parameters.
        inner: adaptation by a rule that has parameters, without a critic that is learned.
        episodes: episodes per task and adaptation step.
        lifetime: adaptation steps of an agent.
        unroll: adaptation steps per meta-iteration, a divisor of `lifetime`.
        perturbation_std: standard deviation of the perturbations of the rule's parameters. Returns
            are noisy: ten times the papers'.
        learning_rate: learning rate of Adam on the rule's parameters; gradients are shortened to a
            norm of 1.

    Raises:
        MetajaxError: an option is unknown or out of range, the rule has nothing to learn, or there
            are fewer tasks than ages.
    """
    check_at_least(1, episodes=episodes, lifetime=lifetime, unroll=unroll)
    check_positive(perturbation_std=perturbation_std, learning_rate=learning_rate)
    if lifetime % unroll:
        raise MetajaxError(f"unroll is {unroll}; it must divide the lifetime, {lifetime}.")
    loop = inner.build(env, policy)
    if loop.objective.metrics:
        raise MetajaxError(
            "there is no critic to train here: inner.objective.critic must be 'linear' or none, "
            "and inner.objective.control_variate none."
        )
    if not loop.learns_rule:
        raise MetajaxError(
            "the rule has nothing to learn; take a learned one, such as 'learned-mlp'."
        )
    ages = lifetime // unroll
    optimizer = on_own_terms(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate)))

    def start(rule_params, key) -> Adapted:
        return loop.agent.init(MetaParams(policy.init(key), rule_params, ()), key)

    def init_agent(meta_params: MetaParams, key) -> Adapted:
        return start(meta_params.rule, key)

    def starts(rule_params, tasks: TaskBatch, key):
        count = len(tasks)
        adapted = jax.vmap(lambda key: start(rule_params, key))(jax.random.split(key, count))
        return InnerRun(adapted, tasks.task, jnp.zeros(count, jnp.int32))

    def advance(rule_params, run: InnerRun, key):
        meta_params = MetaParams((), rule_params, ())
        experience, adapted = loop.collect(
            meta_params, run.adapted, run.task, key, unroll, episodes
        )
        achieved = jnp.mean(undiscounted_returns(experience.trajectory))
        return InnerRun(adapted, run.task, run.steps + unroll), -achieved

    @checked
    def init(key, tasks: TaskBatch) -> TrainState:
        count = len(tasks)
        if count < ages:
            raise MetajaxError(
                f"there are {count} tasks; with a lifetime of {lifetime} and an unroll of {unroll} "
                f"it takes at least {ages}, one per age."
            )
        rule_key, run_key = jax.random.split(key)
        rule_params = loop.init(rule_key)[0].rule
        fresh = starts(rule_params, tasks, run_key)
        staggered = unroll * (jnp.arange(count, dtype=jnp.int32) % ages)
        particles = init_particles(rule_params, InnerRun(fresh.adapted, fresh.task, staggered))
        learner = {"outer": optimizer.init(rule_params), "particles": particles}
        return TrainState(MetaParams((), rule_params, ()), learner)

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        rule_params, particles = state.meta_params.rule, state.learner["particles"]
        run_key, step_key = jax.random.split(key)
        over = particles.plus.steps >= lifetime
        particles = restart(particles, over, starts(rule_params, tasks, run_key))
        age = particles.plus.steps
        gradient, particles, losses = persistent_evolution_strategies(
            advance, rule_params, particles, step_key, std=perturbation_std
        )
        updates, outer_state = optimizer.update(gradient, state.learner["outer"])
        metrics = {
            "return_before": returns.masked_mean(-losses, age == 0),
            "return_after": returns.masked_mean(-losses, age == lifetime - unroll),
            "meta_gradient_norm": optax.tree.norm(gradient),
        }
        new_state = dataclasses.replace(
            state,
            meta_params=MetaParams((), optax.apply_updates(rule_params, updates), ()),
            learner={"outer": outer_state, "particles": particles},
            environment_steps=count_update(state.environment_steps, len(tasks), trial, env),
        )
        return new_state, metrics

    agent = loop.agent._replace(init=init_agent)
    trial = Trial(2 * unroll, episodes, None)  # of a pair
    metrics = ("return_before", "return_after", "meta_gradient_norm")
    return Algorithm(init, update, agent, "learned-optimizer", trial, metrics)
