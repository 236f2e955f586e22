"""Model-agnostic meta-learning for reinforcement learning (Finn et al. 2017).

One meta-iteration: for every task, roll out the meta-parameters θ, take a policy-gradient step,
roll out the adapted parameters θ', and so on for K steps; then improve θ by the gradient of what
θ' achieved, *through* the steps that led from θ to θ'.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metajax.algorithms.trust_region import fisher_vector_product, trust_region_step
from metajax.errors import MetajaxError, check_at_least, check_positive, unknown
from metajax.losses import baselines, policy_gradient, returns
from metajax.policies.mlp import value_network
from metajax.rollout import over_tasks, rollout, undiscounted_returns
from metajax.rules.fixed import decayed_sgd
from metajax.types import (
    Agent,
    Algorithm,
    Env,
    Metrics,
    Params,
    Policy,
    TrainState,
    Trajectory,
    UpdateRule,
    pytree_dataclass,
)

Outer = Literal["trpo", "ppo", "adam"]
Baseline = Literal["linear", "value_network", "none"]


@pytree_dataclass
class MetaParams:
    """What MAML learns: `policy` (θ), `rule` (the inner rule's own), `critic` (() without one)."""

    policy: Params
    rule: Any
    critic: Any


@pytree_dataclass
class Adapted:
    """A policy adapted to one task, and the state of the rule that adapts it."""

    policy: Params
    rule_state: Any


@pytree_dataclass
class Credit:
    """Constants that an inner or outer loss weighs actions with, each `[episode, time]`.

    `advantage + baseline` is the return to go in the advantage's own units; `target` is the return
    to go in the units of reward.
    """

    advantage: Array
    baseline: Array
    target: Array


def maml(
    env: Env,
    policy: Policy,
    *,
    inner_steps: int = 1,
    episodes: int = 20,
    inner_learning_rate: float = 0.1,
    inner_learning_rate_decay: float = 1.0,
    rule: UpdateRule | None = None,
    first_order: bool = False,
    estimator: policy_gradient.Estimator = "likelihood_ratio",
    baseline: Baseline = "linear",
    discount: float = 0.99,
    trace: float = 1.0,
    normalize_advantages: bool = True,
    outer: Outer = "trpo",
    outer_learning_rate: float = 1e-3,
    outer_epochs: int = 5,
    clip: float = 0.3,
    max_kl: float = 0.01,
    cg_iterations: int = 10,
    cg_damping: float = 1e-5,
    critic_hidden: tuple[int, ...] = (64, 64),
    critic_learning_rate: float = 1e-3,
    critic_epochs: int = 10,
    rematerialize: bool = False,
) -> Algorithm:
    """Return MAML with policy gradients inside and TRPO, PPO or Adam outside.

    Defaults are those of the paper's locomotion experiments, but for the inner estimator: the
    paper's own (`naive`) is biased (see `metajax.losses.policy_gradient`).

    Args:
        env: the environment that all tasks share.
        policy: what is adapted; episodes are independent, memory starts afresh in each.
        inner_steps: K, gradient steps of adaptation during meta-training.
        episodes: per task and gradient step.
        inner_learning_rate: α, of plain gradient descent on the mean over time steps.
        inner_learning_rate_decay: factor on α after the first step (0.5 in the paper's tests).
        rule: replaces gradient descent as the inner rule.
        first_order: treat inner gradients as constants.
        estimator: the inner objective, one of `metajax.losses.policy_gradient.ESTIMATORS`.
        baseline: "linear" fits features per task and adaptation step; they know the time, so the
            value is 0 at the horizon. "value_network" shares one network between the tasks, whose
            values also bootstrap truncated episodes. "none" uses plain returns.
        discount: γ per step.
        trace: λ of generalized advantage estimation.
        normalize_advantages: to mean 0 and standard deviation 1, per task and adaptation step.
        outer: "trpo", "ppo" (`outer_epochs` clipped epochs that re-adapt on the stored
            trajectories) or "adam" (one step).
        outer_learning_rate: of Adam (ppo, adam).
        outer_epochs: ppo only.
        clip: ε of PPO, ppo only.
        max_kl: trust region on the adapted policies, trpo only.
        cg_iterations: conjugate-gradient iterations, trpo only.
        cg_damping: added to the Fisher matrix, trpo only.
        critic_hidden: widths of the value network's hidden layers, baseline value_network only.
        critic_learning_rate: of Adam on its squared error.
        critic_epochs: its full-batch steps per meta-iteration.
        rematerialize: recompute inner steps in the backward pass; saves memory when K is large.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """
    _check(estimator, baseline, outer, discount, trace)
    check_at_least(1, inner_steps=inner_steps, episodes=episodes, outer_epochs=outer_epochs)
    check_at_least(1, cg_iterations=cg_iterations, critic_epochs=critic_epochs)
    check_at_least(0, inner_learning_rate=inner_learning_rate, cg_damping=cg_damping)
    check_at_least(0, inner_learning_rate_decay=inner_learning_rate_decay)
    check_positive(outer_learning_rate=outer_learning_rate, clip=clip, max_kl=max_kl)
    check_positive(critic_learning_rate=critic_learning_rate)
    if rule is None:
        rule = decayed_sgd(inner_learning_rate, inner_learning_rate_decay)
    estimate = policy_gradient.ESTIMATORS[estimator]
    optimizer = optax.adam(outer_learning_rate)
    critic_network = value_network(env.observation_size, hidden=critic_hidden)
    critic_optimizer = optax.adam(critic_learning_rate)

    # --- one task -------------------------------------------------------------------------------

    def log_probs(params, trajectory: Trajectory):
        """Return distribution and log-probabilities `[episode, time]` of the actions taken."""
        _, output = jax.vmap(lambda x: policy.unroll(params, policy.initial_memory(), x))(
            trajectory.step_input
        )
        return output.distribution, output.distribution.log_prob(trajectory.action)

    def assign_credit(critic, trajectory: Trajectory) -> Credit:
        observation = trajectory.step_input.observation
        if baseline == "linear":
            features = jax.vmap(baselines.linear_features)(observation)
            target = jax.vmap(lambda r, v: returns.discounted_returns(r, v, discount))(
                trajectory.reward, trajectory.valid
            )
            weights = baselines.fit_linear(
                features.reshape(-1, features.shape[-1]), target.ravel(), trajectory.valid.ravel()
            )
            value, final_value = features @ weights, jnp.zeros(features.shape[0])
        elif baseline == "value_network":
            value = critic_network.apply(critic, observation)
            final_value = critic_network.apply(critic, trajectory.final_input.observation)
        else:
            value = jnp.zeros_like(trajectory.reward)
            final_value = value[:, -1]
        advantage = jax.vmap(
            lambda r, v, f, t, m: returns.generalized_advantages(
                r, v, f, t, m, discount=discount, trace=trace
            )
        )(trajectory.reward, value, final_value, trajectory.terminated, trajectory.valid)
        target = advantage + value
        if normalize_advantages:
            mean, std = returns.masked_moments(advantage, trajectory.valid)
            advantage, value = (advantage - mean) / (std + 1e-8), (value + mean) / (std + 1e-8)
        return jax.lax.stop_gradient(Credit(advantage, value, target))

    def behaviour_log_probs(trajectory: Trajectory):
        return trajectory.output.distribution.log_prob(trajectory.action)

    def inner_loss(params, trajectory: Trajectory, credit: Credit) -> Float[Array, ""]:
        _, log_prob = log_probs(params, trajectory)
        objective = jax.vmap(estimate)(
            log_prob,
            behaviour_log_probs(trajectory),
            credit.advantage,
            credit.baseline,
            trajectory.valid,
        )
        return -jnp.sum(objective) / jnp.sum(trajectory.valid)

    def inner_step(
        rule_params, adapted: Adapted, trajectory: Trajectory, credit: Credit
    ) -> Adapted:
        gradient = jax.grad(inner_loss)(adapted.policy, trajectory, credit)
        if first_order:
            gradient = jax.lax.stop_gradient(gradient)
        updates, rule_state = rule.optimizer(rule_params).update(
            gradient, adapted.rule_state, adapted.policy
        )
        return Adapted(optax.apply_updates(adapted.policy, updates), rule_state)

    def begin(meta_params: MetaParams, key) -> Adapted:
        del key
        rule_state = rule.optimizer(meta_params.rule).init(meta_params.policy)
        return Adapted(meta_params.policy, rule_state)

    def act(adapted: Adapted, memory, step_input, key):
        memory, output = policy.step(adapted.policy, memory, step_input)
        distribution = output.distribution
        action = distribution.mode() if key is None else distribution.sample(key)
        return memory, action, output

    def adapt(meta_params: MetaParams, adapted: Adapted, trajectory: Trajectory, key) -> Adapted:
        del key
        credit = assign_credit(meta_params.critic, trajectory)
        return inner_step(meta_params.rule, adapted, trajectory, credit)

    agent = Agent(begin, policy.initial_memory, act, adapt)

    def collect(meta_params: MetaParams, task, key) -> tuple[Trajectory, Credit]:
        """Return trajectories and credit `[round, episode, time]` of rounds 0 ... K."""

        def round_(adapted, key):
            def act_now(memory, step_input, key):
                return act(adapted, memory, step_input, key)

            memory = policy.initial_memory()
            trajectory = rollout(key, env, task, act_now, memory, episodes=episodes, parallel=True)
            credit = assign_credit(meta_params.critic, trajectory)
            # The step after the last round is not used; one traced rollout for all rounds is
            # worth more than the little it costs.
            return inner_step(meta_params.rule, adapted, trajectory, credit), (trajectory, credit)

        keys = jax.random.split(key, inner_steps + 1)
        adapted = begin(meta_params, key)
        return jax.lax.stop_gradient(jax.lax.scan(round_, adapted, keys)[1])

    def adapt_and_evaluate(theta, data):
        """Re-adapt θ on the stored rounds 0 ... K-1, and return log π_θ' on round K."""
        policy_params, rule_params = theta
        support = jax.tree.map(lambda x: x[:-1], data)
        query, _ = jax.tree.map(lambda x: x[-1], data)

        def step(adapted, stored):
            return inner_step(rule_params, adapted, *stored), None

        if rematerialize:
            step = jax.checkpoint(step)
        adapted = begin(MetaParams(policy_params, rule_params, ()), None)
        adapted, _ = jax.lax.scan(step, adapted, support)
        return log_probs(adapted.policy, query)

    # --- the batch of tasks ---------------------------------------------------------------------

    def distributions(theta, data):
        return jax.vmap(lambda d: adapt_and_evaluate(theta, d)[0])(data)

    def surrogate(theta, data, clip=None):
        """Return the mean surrogate of the adapted policies, and their distributions."""

        def of_task(data):
            distribution, log_prob = adapt_and_evaluate(theta, data)
            query, credit = jax.tree.map(lambda x: x[-1], data)
            gain = policy_gradient.importance_weighted(
                log_prob, behaviour_log_probs(query), credit.advantage, query.valid, clip=clip
            )
            return jnp.sum(gain) / jnp.sum(query.valid), distribution

        gains, distribution = jax.vmap(of_task)(data)
        return jnp.mean(gains), distribution

    def mean_kl(old, new, valid):
        """Return KL(old ‖ new), averaged over the steps of each task, then over tasks."""
        per_task = jnp.sum(jnp.where(valid, old.kl(new), 0.0), axis=(1, 2))
        return jnp.mean(per_task / jnp.sum(valid, axis=(1, 2)))

    def gradient_steps(theta, optimizer_state, data) -> tuple[Any, Any, Metrics]:
        epochs = outer_epochs if outer == "ppo" else 1

        def epoch(carry, _):
            theta, optimizer_state = carry
            loss = lambda theta: -surrogate(theta, data, clip if outer == "ppo" else None)[0]
            gradient = jax.grad(loss)(theta)
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, theta)
            norm = optax.tree.norm(gradient)
            return (optax.apply_updates(theta, updates), optimizer_state), norm

        carry, norms = jax.lax.scan(epoch, (theta, optimizer_state), length=epochs)
        return *carry, {"meta_gradient_norm": norms[0]}

    def trust_region(theta, optimizer_state, data) -> tuple[Any, Any, Metrics]:
        old = data[0].output.distribution
        old = jax.tree.map(lambda x: x[:, -1], old)
        valid = data[0].valid[:, -1]

        def objective(theta):
            gain, new = surrogate(theta, data)
            return gain, mean_kl(old, new, valid)

        gradient = jax.grad(lambda theta: surrogate(theta, data)[0])(theta)
        product = fisher_vector_product(
            lambda theta: distributions(theta, data),
            lambda old, new: mean_kl(old, new, valid),
            theta,
            damping=cg_damping,
        )
        step = trust_region_step(
            objective, gradient, product, theta, max_kl=max_kl, iterations=cg_iterations
        )
        metrics = {
            "meta_gradient_norm": optax.tree.norm(gradient),
            "step_accepted": step.accepted.astype(jnp.float32),
            "kl": step.kl,
        }
        return step.params, optimizer_state, metrics

    def fit_critic(critic, optimizer_state, data):
        """Regress the value network on the return estimates of all tasks and rounds."""
        trajectories, credit = data

        def loss(critic):
            value = critic_network.apply(critic, trajectories.step_input.observation)
            return returns.masked_mean((value - credit.target) ** 2, trajectories.valid)

        def epoch(carry, _):
            critic, optimizer_state = carry
            value, gradient = jax.value_and_grad(loss)(critic)
            updates, optimizer_state = critic_optimizer.update(gradient, optimizer_state)
            return (optax.apply_updates(critic, updates), optimizer_state), value

        (critic, optimizer_state), losses = jax.lax.scan(
            epoch, (critic, optimizer_state), length=critic_epochs
        )
        return critic, optimizer_state, {"critic_loss": losses[0]}

    def init(key, tasks) -> TrainState:
        del tasks
        policy_key, rule_key, critic_key = jax.random.split(key, 3)
        policy_params = policy.init(policy_key)
        rule_params = rule.init(rule_key, policy_params)
        critic, critic_state = (), ()
        if baseline == "value_network":
            critic = critic_network.init(critic_key)
            critic_state = critic_optimizer.init(critic)
        outer_state = () if outer == "trpo" else optimizer.init((policy_params, rule_params))
        return TrainState(
            meta_params=MetaParams(policy_params, rule_params, critic),
            optimizer_state={"outer": outer_state, "critic": critic_state},
        )

    def update(state: TrainState, tasks, key):
        meta_params, optimizer_state = state.meta_params, state.optimizer_state
        task_count = jax.tree.leaves(tasks)[0].shape[0]
        data = over_tasks(
            lambda task, key: collect(meta_params, task, key),
            tasks,
            jax.random.split(key, task_count),
        )
        improve = trust_region if outer == "trpo" else gradient_steps
        theta = (meta_params.policy, meta_params.rule)
        (policy_params, rule_params), outer_state, metrics = improve(
            theta, optimizer_state["outer"], data
        )
        critic, critic_state = meta_params.critic, optimizer_state["critic"]
        if baseline == "value_network":
            critic, critic_state, critic_metrics = fit_critic(critic, critic_state, data)
            metrics |= critic_metrics

        trajectories = data[0]
        per_round = jnp.mean(undiscounted_returns(trajectories), axis=(0, 2))
        adapted = jax.tree.map(lambda x: x[:, -1], trajectories.output.distribution)
        metrics |= {
            "return_before": per_round[0],
            "return_after": per_round[-1],
            "entropy": returns.masked_mean(adapted.entropy(), trajectories.valid[:, -1]),
        }
        new_state = TrainState(
            meta_params=MetaParams(policy_params, rule_params, critic),
            optimizer_state={"outer": outer_state, "critic": critic_state},
        )
        return new_state, metrics

    steps_per_task = (inner_steps + 1) * episodes * env.episode_length
    return Algorithm(init, update, agent, "maml", steps_per_task)


def _check(estimator, baseline, outer, discount, trace):
    if estimator not in policy_gradient.ESTIMATORS:
        raise unknown("estimator", estimator, policy_gradient.ESTIMATORS)
    if baseline not in Baseline.__args__:
        raise unknown("baseline", baseline, Baseline.__args__)
    if outer not in Outer.__args__:
        raise unknown("outer step", outer, Outer.__args__)
    for name, value in (("discount", discount), ("trace", trace)):
        if not 0 <= value <= 1:
            raise MetajaxError(f"{name} is {value}; it must lie in [0, 1].")
