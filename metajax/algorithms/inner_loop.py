"""The inner loop of the gradient family: play, take a step of a rule down an objective, play again.

All that an agent which adapts by gradients does within one task. Meta-learners differ in what they
make of it.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key

from metajax._checks import checked
from metajax._options import options_of
from metajax._promotion import on_own_terms
from metajax.algorithms.objectives import (
    Experience,
    Objective,
    evaluate_actions,
    policy_gradient_objective,
)
from metajax.errors import MetajaxError, check_at_least, is_off
from metajax.losses import returns
from metajax.outer.trust_region import fisher_vector_product, natural_step
from metajax.rollout import check_policy, over_tasks, rollout, undiscounted_returns
from metajax.rules import RULES, RuleName, decayed
from metajax.types import (
    Agent,
    Env,
    Metrics,
    Params,
    Policy,
    Task,
    Trajectory,
    UpdateRule,
    pytree_dataclass,
)

Adapts = Literal["all", "head", "context"]
DAMPING = 1e-2  # of the Fisher matrix of natural adaptation steps; these are differentiated
_PARTS = {"head": ("head", "log_std"), "context": ("context",)}


@pytree_dataclass
class MetaParams:
    """What is meta-learned: `policy` (θ), `rule` (the inner rule's own), `critic` (by name)."""

    policy: Params
    rule: Any
    critic: Any


@pytree_dataclass
class Adapted:
    """A policy adapted to one task, and the state of the rule that adapts it."""

    policy: Params
    rule_state: Any


class InnerLoop(NamedTuple):
    """Adaptation to one task.

    - `init(key) -> (meta_params, critic_state)`;
    - `agent`: what evaluation sees; its `adapt` is one adaptation step;
    - `collect(meta_params, adapted, task, key, rounds) -> (experience[round], adapted)`: adapt
      `rounds` times, each time on fresh episodes; nothing in the result has a gradient;
    - `readapt(policy_params, rule_params, experience[round]) -> (adapted, before)`: the same steps
      on stored episodes, to be differentiated; `before` is what the policy before each step says
      of its episodes, as `evaluate` returns it, `[round, ...]`;
    - `evaluate(policy_params, trajectory) -> (distribution, log_prob)`: see `evaluate_actions`;
    - `metrics(meta_params, trajectories[task, round]) -> metrics`: what adaptation did; of a single
      round, "return" in the place of "return_before" and "return_after";
    - `objective`: what the steps descend;
    - `steps_per_round`: environment steps of an adaptation step, padding included.
    """

    init: Callable[[Key[Array, ""]], tuple[MetaParams, Any]]
    agent: Agent
    collect: Callable[[MetaParams, Adapted, Task, Key[Array, ""], int], tuple[Experience, Adapted]]
    readapt: Callable[[Params, Any, Experience], tuple[Adapted, Any]]
    evaluate: Callable[[Params, Trajectory], tuple[Any, Array]]
    metrics: Callable[[MetaParams, Trajectory], Metrics]
    objective: Objective
    steps_per_round: int


@checked
def inner_loop(
    env: Env,
    policy: Policy,
    objective: Objective,
    *,
    episodes: int = 20,
    inner_learning_rate: float = 0.1,
    inner_learning_rate_decay: float = 1.0,
    inner_epochs: int = 1,
    inner_max_kl: float = 0.0,
    rule: UpdateRule | RuleName = "sgd",
    adapts: Adapts = "all",
    first_order: bool = False,
    rematerialize: bool = False,
) -> InnerLoop:
    """Return an inner loop of gradient steps.

    Args:
        env: the environment that all tasks share.
        policy: what is adapted, without a memory.
        objective: what the steps descend.
        episodes: per task and adaptation step.
        inner_learning_rate: α, of gradient descent on the mean over time steps; rules that are
            learned begin as gradient descent with it.
        inner_learning_rate_decay: factor on steps after the first (0.5 in MAML's own tests).
        inner_epochs: gradient steps on the same episodes in one adaptation step.
        inner_max_kl: above 0, the rule gets natural gradients, as long as moves the policy by so
            many nats: with the rule "sgd" and a rate of 1 a step is that of TRPO, without its line
            search.
        rule: what makes a step of a gradient, one of `metajax.rules.RULES` or a rule.
        adapts: what of the policy an inner step changes: "all" of it, its "head" (the last layer
            and the standard deviation) or its "context" (inputs of its own, from 0 in every task).
        first_order: treat inner gradients as constants.
        rematerialize: recompute inner steps in the backward pass; saves memory when there are
            many.

    Raises:
        MetajaxError: an option is unknown or out of range, or the policy was made for another
            environment, has a memory or lacks the part to adapt.
    """
    check_at_least(1, episodes=episodes, inner_epochs=inner_epochs)
    check_at_least(0, inner_learning_rate=inner_learning_rate)
    check_at_least(0, inner_learning_rate_decay=inner_learning_rate_decay)
    check_at_least(0, inner_max_kl=inner_max_kl)
    if isinstance(rule, str):
        rule = RULES[rule](inner_learning_rate)
    if isinstance(inner_learning_rate_decay, Tracer) or inner_learning_rate_decay != 1:
        rule = decayed(rule, inner_learning_rate_decay)
    _check_parts(env, policy, adapts)

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
        """Return the gradient in the metric of the policy, scaled to `inner_max_kl`."""
        flat, unravel = ravel_pytree(gradient)
        product = fisher_vector_product(
            lambda part: evaluate(whole(part), trajectory)[0],
            lambda old, new: returns.masked_mean(old.kl(new), trajectory.valid),
            part,
            damping=DAMPING,
        )
        return unravel(natural_step(product, flat, max_kl=inner_max_kl))

    def step(rule_params, adapted: Adapted, experience: Experience) -> Adapted:
        optimizer = on_own_terms(rule.optimizer(rule_params))

        def epoch(adapted: Adapted, _):
            part, whole = split(adapted.policy)
            loss = lambda part: objective.loss(whole(part), adapted.policy, experience)
            value, gradient = jax.value_and_grad(loss)(part)
            if not is_off(inner_max_kl):
                gradient = natural(gradient, part, whole, experience.trajectory)
            if first_order:
                value, gradient = jax.lax.stop_gradient((value, gradient))
            updates, rule_state = optimizer.update(gradient, adapted.rule_state, part, value=value)
            return Adapted(whole(optax.apply_updates(part, updates)), rule_state), None

        if inner_epochs == 1:
            return epoch(adapted, None)[0]
        return jax.lax.scan(epoch, adapted, length=inner_epochs)[0]

    def start(policy_params, rule_params) -> Adapted:
        if adapts == "context":
            zero = jnp.zeros_like(policy_params["context"])
            policy_params = policy_params | {"context": zero}
        part, _ = split(policy_params)
        return Adapted(policy_params, on_own_terms(rule.optimizer(rule_params)).init(part))

    def begin(meta_params: MetaParams, key) -> Adapted:
        del key
        return start(meta_params.policy, meta_params.rule)

    def with_credit(meta_params: MetaParams, trajectory: Trajectory) -> Experience:
        return Experience(trajectory, objective.assign(meta_params.critic, trajectory))

    def act(adapted: Adapted, memory, step_input, key):
        memory, output = policy.step(adapted.policy, memory, step_input)
        distribution = output.distribution
        action = distribution.mode() if key is None else distribution.sample(key)
        return memory, action, output

    def adapt(meta_params: MetaParams, adapted: Adapted, trajectory: Trajectory, key) -> Adapted:
        del key
        return step(meta_params.rule, adapted, with_credit(meta_params, trajectory))

    def collect(meta_params: MetaParams, adapted: Adapted, task, key, rounds: int):
        def round_(adapted, key):
            def act_now(memory, step_input, key):
                return act(adapted, memory, step_input, key)

            memory = policy.initial_memory()
            trajectory = rollout(key, env, task, act_now, memory, episodes=episodes, parallel=True)
            experience = with_credit(meta_params, trajectory)
            return step(meta_params.rule, adapted, experience), experience

        adapted, experience = jax.lax.scan(round_, adapted, jax.random.split(key, rounds))
        return jax.lax.stop_gradient((experience, adapted))

    def readapt(policy_params, rule_params, experience: Experience):
        def again(adapted: Adapted, stored: Experience):
            before = evaluate(adapted.policy, stored.trajectory)
            return step(rule_params, adapted, stored), before

        if rematerialize:
            again = jax.checkpoint(again)
        return jax.lax.scan(again, start(policy_params, rule_params), experience)

    def init(key):
        policy_key, rule_key, critic_key = jax.random.split(key, 3)
        policy_params = policy.init(policy_key)
        rule_params = rule.init(rule_key, split(policy_params)[0])
        critic, critic_state = objective.init(critic_key)
        return MetaParams(policy_params, rule_params, critic), critic_state

    def metrics(meta_params: MetaParams, trajectories: Trajectory) -> Metrics:
        per_task = jnp.mean(undiscounted_returns(trajectories), axis=-1)
        if per_task.shape[1] == 1:  # joint training: nothing adapts
            entropy = trajectories.output.distribution.entropy()
            return {
                "return": jnp.mean(per_task),
                "entropy": returns.masked_mean(entropy, trajectories.valid),
            }
        last = jax.tree.map(lambda x: x[:, -1], trajectories)
        adapted = last.output.distribution
        unadapted = jax.vmap(lambda t: evaluate(begin(meta_params, None).policy, t)[0])(last)
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

    agent = Agent(begin, policy.initial_memory, act, adapt)
    steps = episodes * env.episode_length
    return InnerLoop(init, agent, collect, readapt, evaluate, metrics, objective, steps)


@options_of(policy_gradient_objective)
@options_of(inner_loop)
def policy_gradient_loop(env: Env, policy: Policy, **options: Any) -> InnerLoop:
    """Return an inner loop of policy-gradient steps."""
    own = inspect.signature(policy_gradient_objective).parameters
    of_objective = {name: options.pop(name) for name in own if name in options}
    objective = policy_gradient_objective(env, policy, **of_objective)
    return inner_loop(env, policy, objective, **options)


def collect_batch(
    loop: InnerLoop, meta_params: MetaParams, tasks: Task, key: Key[Array, ""], rounds: int
) -> tuple[Experience, Adapted]:
    """Return what `loop.collect` does from the beginning of each task: `[task, round, ...]`.

    Args:
        loop: the inner loop.
        meta_params: where adaptation begins.
        tasks: `[task, ...]`.
        key: consumed.
        rounds: adaptation steps.
    """

    def of_task(meta_params, task, key):
        return loop.collect(meta_params, loop.agent.begin(meta_params, key), task, key, rounds)

    keys = jax.random.split(key, jax.tree.leaves(tasks)[0].shape[0])
    return over_tasks(of_task, meta_params, tasks, keys)


def fit_critic(
    loop: InnerLoop,
    meta_params: MetaParams,
    critic_state: Any,
    data: Experience,
    key: Key[Array, ""],
) -> tuple[Params, Any, Metrics]:
    """Return the critic trained on a batch, its state, and its metrics.

    Args:
        loop: the inner loop.
        meta_params: that the batch was collected with.
        critic_state: of the critic's training.
        data: `[task, round]`, from `collect_batch`.
        key: the one that `collect_batch` had.
    """
    # Not one of the tasks' keys: those count from 0.
    fit_key = jax.random.fold_in(key, 2**32 - 1)
    return loop.objective.fit(meta_params.critic, critic_state, data, meta_params.policy, fit_key)


def learns_rule(loop: InnerLoop) -> bool:
    """Return whether the rule of an inner loop has parameters."""
    return bool(jax.tree.leaves(jax.eval_shape(loop.init, jax.random.key(0))[0].rule))


def _check_parts(env: Env, policy: Policy, adapts: Adapts) -> None:
    params, _ = check_policy(env, policy)
    if jax.tree.leaves(jax.eval_shape(policy.initial_memory)):
        raise MetajaxError(
            "gradient steps adapt policies without a memory, such as metajax.policies.mlp; "
            "metajax.algorithms.rl2 trains those with one."
        )
    if adapts != "all" and (not isinstance(params, dict) or _PARTS[adapts][0] not in params):
        hint = ": mlp(..., context=2)" if adapts == "context" else ""
        raise MetajaxError(f"the policy has no {adapts} to adapt; give it one{hint}.")
