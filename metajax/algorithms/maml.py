"""Model-agnostic meta-learning for reinforcement learning (Finn et al. 2017).

One meta-iteration: for every task, roll out the meta-parameters θ, take a policy-gradient step,
roll out the adapted parameters θ', and so on for K steps; then improve θ by the gradient of what
θ' achieved, *through* the steps that led from θ to θ'.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metajax._checks import checked
from metajax.adaptation import (
    Experience,
    InnerLoop,
    behaviour_log_probs,
    collect_batch,
    control,
    fit_critics,
    gradient_steps,
    measured,
    metric_names,
)
from metajax.errors import MetajaxError, check_at_least, check_positive, is_off
from metajax.losses import policy_gradient, returns
from metajax.outer import OuterStep, Problem, trpo
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
def maml(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(),
    outer: OuterStep = trpo(),
    inner_steps: int = 1,
    episodes: int = 20,
    first_order: bool = False,
    rematerialize: bool = False,
    credit_exploration: bool = False,
    kl_penalty: Scalar = 0.0,
    target_kl: Scalar | None = 0.01,
) -> Algorithm:
    """Return MAML with policy gradients inside and TRPO, PPO or Adam outside.

    Defaults are those of the paper's locomotion experiments, but for the inner estimator: the
    paper's own (`naive`) is biased (see `metajax.losses.policy_gradient`).

    Example:
        >>> import jax
        >>> import metajax
        >>> from metajax.adaptation import gradient_steps, linear, policy_gradient
        >>> family = metajax.make("point-goal")
        >>> policy = metajax.mlp(family.env.observation_size, family.env.action_space)
        >>> objective = policy_gradient("likelihood_ratio", critic=linear())
        >>> algorithm = metajax.maml(
        ...     family.env,
        ...     policy,
        ...     inner=gradient_steps(objective, rule=metajax.sgd(0.1)),
        ...     outer=metajax.outer.ppo(1e-3, epochs=5, clip=0.3),
        ... )
        >>> tasks = metajax.envs.splits.sample_tasks(family.train, jax.random.key(0), 20)
        >>> state = algorithm.init(jax.random.key(1), tasks)
        >>> sorted(state.meta_params.policy)
        ['body', 'head', 'log_std']

    Args:
        env: the environment that all tasks share.
        policy: policy that is adapted, without a memory.
        inner: adaptation within a task.
        outer: outer step on the adapted policies' surrogate. Steps of Adam and PPO re-adapt on the
            stored trajectories; a trust region holds the adapted policies.
        inner_steps: adaptation steps K during meta-training. With 0 the tasks are trained jointly,
            by the outer step alone.
        episodes: episodes per task and adaptation step.
        first_order: whether inner gradients are treated as constants.
        rematerialize: whether inner steps are computed again in the backward pass, which saves
            memory when there are many.
        credit_exploration: whether the gradient of what adaptation achieves includes how θ chose
            the episodes before it, as in E-MAML. The inner estimator must not do so too: it is
            "naive", or `first_order`.
        kl_penalty: weight of how far the policies that played the episodes before adaptation move
            in an outer step, in nats, as in ProMP; 0 for none.
        target_kl: nats per step that the penalty is doubled or halved towards, up to a thousand
            times more or less than it was; None to leave it as it is.

    Raises:
        MetajaxError: an option is unknown or out of range, or a rule would have to be learned
            without inner steps.
    """
    check_at_least(0, kl_penalty=kl_penalty)
    check_at_least(1, episodes=episodes)
    penalized = not is_off(kl_penalty)
    check_at_least(1 if penalized or credit_exploration else 0, inner_steps=inner_steps)
    if target_kl is not None:
        check_positive(target_kl=target_kl)
    loop = inner.build(env, policy)
    _check_loop(loop, outer, inner_steps, credit_exploration and not first_order)

    problem, moved = _meta_problem(
        loop,
        first_order=first_order,
        rematerialize=rematerialize,
        credit_exploration=credit_exploration,
        penalized=penalized,
    )

    def init(key, tasks) -> TrainState:
        del tasks
        meta_params, critic_state, replay = loop.init(key)
        learner = {
            "outer": outer.init((meta_params.policy, meta_params.rule)),
            "critic": critic_state,
            "kl_penalty": jnp.full(inner_steps, kl_penalty, float) if penalized else (),
        }
        return TrainState(meta_params, learner, replay=replay)

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        meta_params, learner = state.meta_params, state.learner
        data, _ = collect_batch(
            loop, meta_params, tasks.task, key, rounds=inner_steps + 1, episodes=episodes
        )
        theta, penalty = (meta_params.policy, meta_params.rule), learner["kl_penalty"]
        theta, outer_state, metrics = outer.improve(problem(penalty), theta, learner["outer"], data)
        metrics = jax.tree.map(lambda x: x[0], metrics)  # at θ itself
        if penalized:
            kl = moved(theta, data, penalty)
            metrics["inner_kl"] = jnp.mean(kl)
            if target_kl is not None:
                penalty *= jnp.where(kl < target_kl / 1.5, 0.5, 1.0)
                penalty *= jnp.where(kl > target_kl * 1.5, 2.0, 1.0)
                # At 0, or at infinity, it would stay.
                penalty = jnp.clip(penalty, kl_penalty / 1024, kl_penalty * 1024)
                metrics["kl_penalty"] = jnp.mean(penalty)
        critic, critic_state, replay, critic_metrics = fit_critics(loop, state, data, key)
        metrics |= critic_metrics | measured(loop, meta_params, data.trajectory)
        new_state = dataclasses.replace(
            state,
            meta_params=MetaParams(policy=theta[0], rule=theta[1], critic=critic),
            learner={"outer": outer_state, "critic": critic_state, "kl_penalty": penalty},
            replay=replay,
            environment_steps=count_update(state.environment_steps, len(tasks), trial, env),
        )
        return new_state, metrics

    trial = Trial(inner_steps + 1, episodes, inner_steps)
    metrics = (*metric_names(loop, trial.rounds), *outer.metrics)
    if penalized:
        metrics += ("inner_kl",) if target_kl is None else ("inner_kl", "kl_penalty")
    return Algorithm(init, update, loop.agent, "maml", trial, metrics)


def _meta_problem(
    loop: InnerLoop,
    *,
    first_order: bool,
    rematerialize: bool,
    credit_exploration: bool,
    penalized: bool,
) -> tuple[Callable[[Any], Problem], Callable[..., Array]]:
    """Return the meta-objective: what is improved at θ' by moving θ = (policy, rule).

    Of experience `[task, round]`: `problem(penalty)`, given the weights of the KL penalty
    `[adaptation step]`, and `moved(theta, data, penalty)`, the nats that it weighs.
    """

    def support_and_query(data: Experience) -> tuple[Experience, Experience]:
        """Return rounds 0 ... K-1 and round K of a task."""
        return jax.tree.map(lambda x: x[:-1], data), jax.tree.map(lambda x: x[-1], data)

    def readapt(theta, data: Experience):
        """Re-adapt θ on the stored rounds 0 ... K-1 of a task.

        Returns (distribution, log_prob) of θ' on round K, and of the policies before it on theirs.
        """
        support, query = support_and_query(data)
        policy_params, rule_params = theta
        adapted, before = loop.readapt(
            policy_params, rule_params, support, first_order, rematerialize
        )
        return loop.evaluate(adapted.policy, query.trajectory), before

    def gain_of(log_prob, trajectory, advantage, clip=None):
        behaviour = behaviour_log_probs(trajectory)
        return jnp.sum(
            policy_gradient.importance_weighted(
                log_prob, behaviour, advantage, trajectory.valid, clip=clip
            )
        )

    def surrogate(theta, data: Experience, penalty, clip=None):
        """Return the mean surrogate of the adapted policies, their distributions, and KLs."""

        def of_task(data: Experience, outcome):
            (distribution, log_prob), before = readapt(theta, data)
            support, query = support_and_query(data)
            steps = jnp.sum(query.trajectory.valid)
            gain = gain_of(log_prob, query.trajectory, query.advantages.advantage, clip)
            gain += control(query.advantages, distribution, query.trajectory)
            if credit_exploration:
                advantage = jnp.broadcast_to(outcome, before[1].shape)
                episodes = query.trajectory.valid.shape[0]
                gain += episodes * gain_of(before[1], support.trajectory, advantage, clip)
            kl = jnp.zeros(data.trajectory.valid.shape[0] - 1)
            if penalized:
                played = support.trajectory.output.distribution
                kl = jax.vmap(returns.masked_mean)(played.kl(before[0]), support.trajectory.valid)
            return gain / steps.astype(gain.dtype), distribution, kl

        gains, distribution, kls = jax.vmap(of_task)(data, outcomes(data))
        gain, kl = jnp.mean(gains), jnp.mean(kls, axis=0)
        if penalized:
            gain -= jnp.mean(penalty * kl)
        return gain, (distribution, kl)

    def mean_kl(old, new, data: Experience):
        """Return KL(old ‖ new), averaged over the steps of each task, then over tasks."""
        valid = data.trajectory.valid[:, -1]
        return jnp.mean(jax.vmap(returns.masked_mean)(old.kl(new), valid))

    def problem(penalty) -> Problem:
        """Return what an outer step improves θ on, given the penalty of each adaptation step."""

        def gain_and_kl(theta, data: Experience):
            gain, (new, _) = surrogate(theta, data, penalty)
            old = jax.tree.map(lambda x: x[:, -1], data.trajectory.output.distribution)
            return gain, mean_kl(old, new, data)

        return Problem(
            loss=lambda theta, data, clip: (-surrogate(theta, data, penalty, clip)[0], {}),
            surrogate=gain_and_kl,
            distributions=jax.vmap(lambda theta, data: readapt(theta, data)[0][0], (None, 0)),
            mean_kl=mean_kl,
        )

    def moved(theta, data: Experience, penalty):
        return surrogate(theta, data, penalty)[1][1]

    return problem, moved


def outcomes(data: Experience) -> Float[Array, "task"]:
    """Return what adaptation led to in each task, less what it did in the others on average.

    In the unit of advantages, that of the whole batch, so that tasks are compared by their returns.
    Where no task has any, in that of the outcomes themselves.
    """
    advantages = jax.tree.map(lambda x: x[:, -1], data.advantages)
    achieved = jnp.mean(advantages.target[:, :, 0], axis=-1)
    others = (jnp.sum(achieved) - achieved) / max(len(achieved) - 1, 1)
    unit = jnp.sqrt(jnp.mean(advantages.unit**2))
    own_unit = returns.standard_units(achieved, jnp.ones(achieved.shape, bool))[1]
    unit = jnp.where(unit == 0, own_unit, unit)
    differences = achieved - others
    if len(achieved) > 1:
        differences = jnp.where(own_unit == 0, 0.0, differences)
    return differences / jnp.where(unit == 0, 1.0, unit)


def _check_loop(loop: InnerLoop, outer: OuterStep, inner_steps: int, credits_twice: bool) -> None:
    estimator = loop.objective.estimator
    if estimator is None:
        raise MetajaxError(
            "an outer step on policies needs the advantages of a policy gradient; for Q-learning "
            "there is metajax.algorithms.maml_dqn."
        )
    if not outer.trains_critics and estimator == "pathwise":
        raise MetajaxError(
            "a trust region differentiates adaptation in forward mode, which pathwise adaptation "
            "has not; take another estimator, or an outer step of another kind."
        )
    if credits_twice and estimator != "naive":
        raise MetajaxError(
            f"credit_exploration counts what the inner estimator {estimator!r} counts "
            "already; take the estimator 'naive', or first_order."
        )
    if not inner_steps and loop.learns_rule:
        raise MetajaxError(
            "inner_steps is 0, and joint training has no gradient to learn a rule with; it must be "
            "at least 1."
        )
