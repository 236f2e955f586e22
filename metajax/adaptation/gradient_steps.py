"""Adaptation by gradients: play, take a step of a rule down an objective, play again.

All that an agent which adapts by gradients does within one task. Meta-learners differ in what they
make of it.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key

from metajax._promotion import on_own_terms
from metajax.adaptation.objectives import (
    Experience,
    Objective,
    evaluate_actions,
    policy_gradient,
)
from metajax.envs.rollouts import check_policy, over_tasks, rollout, undiscounted_returns
from metajax.errors import MetajaxError, check_at_least, is_off
from metajax.losses import returns
from metajax.outer.trust_region import fisher_vector_product, natural_step
from metajax.outer.views import has_memory
from metajax.parts import part
from metajax.policies.distributions import chosen_action
from metajax.rules import decayed, sgd
from metajax.types import (
    Agent,
    Env,
    MetaParams,
    Metrics,
    Params,
    Part,
    Policy,
    Scalar,
    Task,
    TrainState,
    Trajectory,
    UpdateRule,
    pytree_dataclass,
)

Adapts = Literal["all", "head", "context"]
DAMPING = 1e-2  # of the Fisher matrix of natural adaptation steps; these are differentiated
_JOINT_METRICS = ("return", "entropy")
_METRICS = (
    *("return_before", "return_after", "tasks_hurt"),
    *("adaptation_kl", "adaptation_kl_max", "entropy"),
)
_PARTS = {"head": ("head", "log_std"), "context": ("context",)}


@pytree_dataclass
class Adapted:
    """A policy adapted to one task, and the state of the rule that adapts it."""

    policy: Params
    rule_state: Any


class InnerLoop(NamedTuple):
    """Adaptation to one task.

    - `init(key) -> (meta_params, critic_state, replay)`: the latter two are the critics';
    - `agent`: what evaluation sees; its `adapt` is one adaptation step;
    - `collect(meta_params, adapted, task, key, rounds, episodes) -> (experience[round], adapted)`:
      adapt `rounds` times, each time on fresh episodes; nothing in the result has a gradient;
    - `readapt(policy_params, rule_params, experience[round], first_order, rematerialize) ->
      (adapted, before)`: the same steps on stored episodes, to be differentiated; `before` is what
      the policy before each step says of its episodes, as `evaluate` returns it, `[round, ...]`;
    - `evaluate(policy_params, trajectory) -> (distribution, log_prob)`: see `evaluate_actions`;
    - `objective`: what the steps descend;
    - `learns_rule`: whether the rule has parameters.
    """

    init: Callable[[Key[Array, ""]], tuple[MetaParams, Any, Any]]
    agent: Agent
    collect: Callable[..., tuple[Experience, Adapted]]
    readapt: Callable[[Params, Any, Experience, bool, bool], tuple[Adapted, Any]]
    evaluate: Callable[[Params, Trajectory], tuple[Any, Array]]
    objective: Objective
    learns_rule: bool


@part
def gradient_steps(
    objective: Part[Objective] = policy_gradient(),
    *,
    rule: UpdateRule = sgd(0.1),
    learning_rate_decay: Scalar = 1.0,
    adapts: Adapts = "all",
    epochs: int = 1,
    max_kl: Scalar = 0.0,
) -> Part[InnerLoop]:
    """Return adaptation by gradient steps, for policies without a memory.

    Args:
        objective: loss that the steps descend.
        rule: update rule that makes a step of a gradient.
        learning_rate_decay: factor on the steps after the first (0.5 in MAML's own tests).
        adapts: parameters that a step changes: "all" of the policy's, those of its "head" (the last
            layer and the standard deviation) or its "context" (inputs of its own, 0 at the start of
            every task).
        epochs: gradient steps on the same episodes in one adaptation step.
        max_kl: length of natural gradients that the rule gets instead of plain ones, in nats that
            they move the policy by: with the rule `sgd(1.0)` a step is that of TRPO, without its
            line search. 0 for plain gradients.

    Raises:
        MetajaxError: an option is out of range; later, that the policy was made for another
            environment, has a memory or lacks the part to adapt.
    """
    check_at_least(1, epochs=epochs)
    check_at_least(0, learning_rate_decay=learning_rate_decay, max_kl=max_kl)
    if isinstance(learning_rate_decay, Tracer) or learning_rate_decay != 1:
        rule = decayed(rule, learning_rate_decay)

    def build(env: Env, policy: Policy) -> InnerLoop:
        _check_parts(env, policy, adapts)
        return _inner_loop(
            env,
            policy,
            objective.build(env, policy),
            rule=rule,
            adapts=adapts,
            epochs=epochs,
            max_kl=max_kl,
        )

    return Part(build)


def _inner_loop(
    env: Env,
    policy: Policy,
    objective: Objective,
    *,
    rule: UpdateRule,
    adapts: Adapts,
    epochs: int,
    max_kl: Scalar,
) -> InnerLoop:
    """Return the loop; see `gradient_steps`."""

    def split(params):
        """Return what an inner step changes, and how to put it back."""
        if adapts == "all":
            return params, lambda part: part
        return {name: params[name] for name in _PARTS[adapts] if name in params}, (
            lambda part: params | part
        )

    def evaluate(params, trajectory: Trajectory):
        return evaluate_actions(policy, params, trajectory)

    def natural(gradient, part, whole, trajectory: Trajectory):
        """Return the gradient in the metric of the policy, scaled to `max_kl`."""
        flat, unravel = ravel_pytree(gradient)
        product = fisher_vector_product(
            lambda part: evaluate(whole(part), trajectory)[0],
            lambda old, new: returns.masked_mean(old.kl(new), trajectory.valid),
            part,
            damping=DAMPING,
        )
        return unravel(natural_step(product, flat, max_kl=max_kl))

    def step(rule_params, adapted: Adapted, experience: Experience, first_order=False) -> Adapted:
        optimizer = on_own_terms(rule.optimizer(rule_params))

        def epoch(adapted: Adapted, _):
            part, whole = split(adapted.policy)
            loss = lambda part: objective.loss(whole(part), adapted.policy, experience)
            value, gradient = jax.value_and_grad(loss)(part)
            if not is_off(max_kl):
                gradient = natural(gradient, part, whole, experience.trajectory)
            if first_order:
                value, gradient = jax.lax.stop_gradient((value, gradient))
            updates, rule_state = optimizer.update(gradient, adapted.rule_state, part, value=value)
            return Adapted(whole(optax.apply_updates(part, updates)), rule_state), None

        if epochs == 1:
            return epoch(adapted, None)[0]
        return jax.lax.scan(epoch, adapted, length=epochs)[0]

    def start(policy_params, rule_params) -> Adapted:
        if adapts == "context":
            zero = jnp.zeros_like(policy_params["context"])
            policy_params = policy_params | {"context": zero}
        part, _ = split(policy_params)
        return Adapted(policy_params, on_own_terms(rule.optimizer(rule_params)).init(part))

    def init_agent(meta_params: MetaParams, key) -> Adapted:
        del key
        return start(meta_params.policy, meta_params.rule)

    def experienced(meta_params: MetaParams, trajectory: Trajectory) -> Experience:
        return Experience(trajectory, objective.estimate(meta_params.critic, trajectory))

    def act(adapted: Adapted, memory, step_input, key):
        memory, output = policy.step(adapted.policy, memory, step_input)
        return memory, chosen_action(output.distribution, key), output

    def adapt(meta_params: MetaParams, adapted: Adapted, trajectory: Trajectory, key) -> Adapted:
        del key
        return step(meta_params.rule, adapted, experienced(meta_params, trajectory))

    def collect(
        meta_params: MetaParams, adapted: Adapted, task, key, rounds: int, episodes: int
    ) -> tuple[Experience, Adapted]:
        def round_(adapted, key):
            def act_now(memory, step_input, key):
                return act(adapted, memory, step_input, key)

            memory = policy.initial_memory()
            trajectory = rollout(key, env, task, act_now, memory, episodes=episodes, parallel=True)
            experience = experienced(meta_params, trajectory)
            return step(meta_params.rule, adapted, experience), experience

        adapted, experience = jax.lax.scan(round_, adapted, jax.random.split(key, rounds))
        return jax.lax.stop_gradient((experience, adapted))

    def readapt(policy_params, rule_params, experience, first_order, rematerialize):
        def again(adapted: Adapted, stored: Experience):
            before = evaluate(adapted.policy, stored.trajectory)
            return step(rule_params, adapted, stored, first_order), before

        if rematerialize:
            again = jax.checkpoint(again)
        return jax.lax.scan(again, start(policy_params, rule_params), experience)

    def init(key):
        policy_key, rule_key, critic_key = jax.random.split(key, 3)
        policy_params = policy.init(policy_key)
        rule_params = rule.init(rule_key, split(policy_params)[0])
        critic, critic_state, replay = objective.init(critic_key)
        return MetaParams(policy_params, rule_params, critic), critic_state, replay

    learns_rule = bool(jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))[0].rule))
    agent = Agent(init_agent, policy.initial_memory, act, adapt)
    return InnerLoop(init, agent, collect, readapt, evaluate, objective, learns_rule)


def collect_batch(
    loop: InnerLoop,
    meta_params: MetaParams,
    tasks: Task,
    key: Key[Array, ""],
    *,
    rounds: int,
    episodes: int,
) -> tuple[Experience, Adapted]:
    """Return what `loop.collect` does from the start of each task: `[task, round, ...]`.

    Args:
        loop: the inner loop.
        meta_params: where adaptation starts.
        tasks: `[task, ...]`.
        key: consumed.
        rounds: adaptation steps.
        episodes: per task and round.
    """

    def of_task(meta_params, task, key):
        adapted = loop.agent.init(meta_params, key)
        return loop.collect(meta_params, adapted, task, key, rounds, episodes)

    keys = jax.random.split(key, jax.tree.leaves(tasks)[0].shape[0])
    return over_tasks(of_task, meta_params, tasks, keys)


def fit_critics(
    loop: InnerLoop, state: TrainState, data: Experience, key: Key[Array, ""]
) -> tuple[Params, Any, Any, Metrics]:
    """Return the critics trained on a batch, their states, their replay, and their metrics.

    Args:
        loop: the inner loop.
        state: that the batch was collected with; its learner holds the critics' as "critic".
        data: `[task, round]`, from `collect_batch`.
        key: the one that `collect_batch` had.
    """
    # Not one of the tasks' keys: those count from 0.
    fit_key = jax.random.fold_in(key, 2**32 - 1)
    meta_params, critic_state = state.meta_params, state.learner["critic"]
    return loop.objective.fit(
        meta_params.critic, critic_state, state.replay, data, meta_params.policy, fit_key
    )


def measured(loop: InnerLoop, meta_params: MetaParams, trajectories: Trajectory) -> Metrics:
    """Return what adaptation did.

    Args:
        loop: the inner loop.
        meta_params: where adaptation started.
        trajectories: `[task, round]`; of a single round, joint training's, nothing adapts.
    """
    per_task = jnp.mean(undiscounted_returns(trajectories), axis=-1)
    if per_task.shape[1] == 1:
        entropy = trajectories.output.distribution.entropy()
        return {
            "return": jnp.mean(per_task),
            "entropy": returns.masked_mean(entropy, trajectories.valid),
        }
    last = jax.tree.map(lambda x: x[:, -1], trajectories)
    adapted = last.output.distribution
    nothing = jax.random.key(0)  # a start draws nothing
    start = lambda: loop.agent.init(meta_params, nothing).policy
    unadapted = jax.vmap(lambda t: loop.evaluate(start(), t)[0])(last)
    kl = jax.vmap(returns.masked_mean)(adapted.kl(unadapted), last.valid)
    return {
        "return_before": jnp.mean(per_task[:, 0]),
        "return_after": jnp.mean(per_task[:, -1]),
        # What is not finite is no better either.
        "tasks_hurt": jnp.mean(~(per_task[:, -1] >= per_task[:, 0])),
        "adaptation_kl": jnp.mean(kl),
        "adaptation_kl_max": jnp.max(kl),
        "entropy": returns.masked_mean(adapted.entropy(), last.valid),
    }


def metric_names(loop: InnerLoop, rounds: int) -> tuple[str, ...]:
    """Return the names of what `measured`, of so many rounds, and `fit_critics` return."""
    return (*(_JOINT_METRICS if rounds == 1 else _METRICS), *loop.objective.metrics)


def _check_parts(env: Env, policy: Policy, adapts: Adapts) -> None:
    params, _ = check_policy(env, policy)
    if has_memory(policy):
        raise MetajaxError(
            "gradient steps adapt policies without a memory, such as metajax.policies.mlp; "
            "metajax.algorithms.rl2 trains those with one."
        )
    if adapts != "all" and (not isinstance(params, dict) or _PARTS[adapts][0] not in params):
        hint = ": mlp(..., context=2)" if adapts == "context" else ""
        raise MetajaxError(f"the policy has no {adapts} to adapt; give it one{hint}.")


INNER_LOOPS: dict[str, Callable[..., Part[InnerLoop]]] = {"gradient-steps": gradient_steps}
