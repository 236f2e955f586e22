"""AMAGO's actor and critics, as a part: values under several discounts, and filtered cloning."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metajax._kinks import smallest
from metajax._promotion import on_own_terms
from metajax.errors import check_at_least, check_at_most, check_positive, is_off
from metajax.outer.off_policy import (
    METRICS,
    BatchOf,
    Mean,
    OffPolicyLearner,
    State,
    bellman_target,
    check_distribution,
    check_rates,
    descend,
    mean_of,
    of_taken,
    soft_update,
    some_of,
)
from metajax.outer.value_heads import (
    Moments,
    ValueHead,
    first_moments,
    moments_after,
    rescaling,
    scalar,
    two_hot,
    unit_moments,
)
from metajax.outer.views import Remembered, Views, views_of
from metajax.parts import part
from metajax.policies.distributions import Categorical
from metajax.policies.mlp import Activation
from metajax.policies.squashed import QNetworks, SquashedNormal
from metajax.types import Discrete, Env, Params, Part, Policy, Scalar


@part
def amago(
    learning_rate: Scalar = 3e-4,
    *,
    critic_learning_rate: Scalar = 3e-4,
    discounts: Sequence[float] = (0.1, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999),
    tau: Scalar = 0.003,
    reward_scale: Scalar = 10.0,
    value_weight: Scalar = 1.0,
    behaviour_cloning: Scalar = 0.1,
    samples: int = 1,
    value_head: Literal["scalar", "popart", "two_hot"] = "popart",
    bins: int = 128,
    highest_value: Scalar = 1e5,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    critics: int = 4,
    subset: int = 2,
) -> Part[OffPolicyLearner]:
    """Return the learner of AMAGO (Grigsby et al. 2024), of continuous or discrete actions.

    Critics Q_j have a value under each discount γ_g, all of them of one policy π, which acts by the
    last one, γ. With Q⁻ and π⁻ slow copies, r the scaled reward and d the end of a task:

    - y_g = r + γ_g(1 - d) min_j Q⁻_jg(s', a'), with a' drawn from π⁻ at s' and the minimum over a
      subset of the critics that is drawn anew at each gradient step (REDQ, Chen et al. 2021); each
      Q_j descends the mean over g of the error of its head;
    - with Â = mean_j (Q_j(s, a) - Q_j(s, ã)), under γ, of the critics after that step, and ã drawn
      from π at s, the policy descends the mean of -w min_j Q_j(s, ã) - c 1[Â > 0] log π(a|s): it
      clones what was better than itself (Wang et al. 2020, critic regularized regression);
    - slow copies move by τ.

    Heads: "scalar" has the squared error; "popart" the same in units of the standard deviation of
    y_g so far, and so has Q in the policy's loss (van Hasselt et al. 2016); "two_hot" classifies
    symlog y_g. AMAGO-2 (Grigsby et al. 2024b) is value_head="two_hot" with value_weight=0,
    behaviour_cloning=1 and samples=3.

    Of discrete actions expectations over a' and ã are sums. Without w the target is the mean of the
    subset, not its minimum. Of continuous actions log π(a|s) is that of a within 0.99 of the
    distance from the middle to the bounds, at which it has none.

    Args:
        learning_rate: learning rate of Adam, of the policy.
        critic_learning_rate: learning rate of Adam, of the critics.
        discounts: discounts γ_g per step; the policy acts by the last one.
        tau: share τ of what is learned in its slow copies, per gradient step.
        reward_scale: factor of rewards.
        value_weight: weight w of the value of the policy's own actions in its loss.
        behaviour_cloning: weight c of remembered actions with an advantage in the policy's loss.
        samples: actions ã drawn for the policy's loss; of continuous actions.
        value_head: head of the critics, "scalar", "popart" or "two_hot".
        bins: number of bins of each value; value_head="two_hot".
        highest_value: largest value that there is a bin for, and minus the smallest;
            value_head="two_hot".
        hidden: widths of the critics' hidden layers. Of a policy with a memory they follow a memory
            of the same kind, which all critics share.
        activation: activation function after each hidden layer of the critics.
        critics: number of critics.
        subset: number of critics in a target, drawn at random.

    Raises:
        MetajaxError: an option is out of range; later, that the policy is none of `squashed`, nor
            one with a memory and squashed actions, or of discrete actions none of `mlp`.
    """
    check_at_least(1, **{"the number of discounts": len(discounts)})
    for discount in discounts:
        check_positive(**{"a discount in discounts": discount})
        check_at_most(1, **{"a discount in discounts": discount})
    check_rates(learning_rate, critic_learning_rate, discounts[-1], tau)
    check_positive(reward_scale=reward_scale, highest_value=highest_value)
    check_at_least(0, value_weight=value_weight, behaviour_cloning=behaviour_cloning)
    check_at_least(1, samples=samples, critics=critics, subset=subset)
    check_at_least(2, bins=bins)
    check_at_most(critics, subset=subset)
    head = two_hot(bins, highest_value) if value_head == "two_hot" else scalar()
    of = _Numbers(
        on_own_terms(optax.adam(learning_rate)),
        on_own_terms(optax.adam(critic_learning_rate)),
        tuple(discounts),
        tau,
        reward_scale,
        value_weight,
        behaviour_cloning,
        samples,
        subset,
        value_head == "popart",
    )

    def build(env: Env, policy: Policy) -> OffPolicyLearner:
        outputs = len(discounts) * head.numbers
        sizes = {"hidden": hidden, "activation": activation, "count": critics, "outputs": outputs}
        return _learner(policy, _acting(env, policy, sizes, head), of)

    return Part(build)


class _Numbers(NamedTuple):
    policy_optimizer: Any
    critic_optimizer: Any
    discounts: tuple[float, ...]
    tau: Scalar
    reward_scale: Scalar
    value_weight: Scalar
    behaviour_cloning: Scalar
    samples: int
    subset: int
    popart: bool


def _learner(policy: Policy, acting: "_Acting", of: _Numbers) -> OffPolicyLearner:
    views, values, head, count = acting.views, acting.values, acting.head, len(of.discounts)

    def init(key, policy_params, encoder) -> State:
        critic = values.init(key)
        return {
            "critic": critic,
            "target": (policy_params, critic),
            "moments": first_moments(count) if of.popart else unit_moments(count),
            "critic_optimizer": of.critic_optimizer.init((critic, encoder)),
            "policy_optimizer": of.policy_optimizer.init(policy_params),
        }

    def targets_of(state: State, steps: Remembered, key) -> Float[Array, "*batch discount"]:
        slow_policy, slow_critic = state["target"]
        action_key, subset_key = jax.random.split(key)
        seen = views.after(steps)
        distribution = views.distribution(slow_policy, seen)
        found = acting.expected(distribution, slow_critic, state["moments"], seen, action_key, 1)
        found = some_of(found, of.subset, subset_key)
        later = jnp.mean(found, axis=0) if is_off(of.value_weight) else smallest(found)
        reward, discounts = of.reward_scale * steps.reward, jnp.asarray(of.discounts, later.dtype)
        under_each = jax.vmap(bellman_target, in_axes=(None, None, -1, 0), out_axes=-1)
        return under_each(reward, steps.terminated, later, discounts)

    def critic_loss(trained, batch_of: BatchOf, targets, moments: Moments):
        critic, encoder = trained
        batch = batch_of(encoder)
        mean = mean_of(batch.weight)
        outputs = acting.of_remembered(critic, batch.steps)
        error = jax.vmap(head.error, in_axes=(None, 0, None))(moments, outputs, targets)
        loss = mean(jnp.mean(error, axis=(0, -1)))
        q = mean(jnp.mean(head.value(moments, outputs)[..., -1], axis=0))
        return loss + batch.penalty, {"q_loss": loss, "q_value": q}

    def policy_loss(params, critic, moments: Moments, steps: Remembered, key, mean: Mean):
        seen = views.before(steps)
        distribution = views.distribution(params, seen)
        found = acting.expected(distribution, critic, moments, seen, key, of.samples)[..., -1]
        taken = head.value(moments, acting.of_remembered(critic, steps))[..., -1]
        better = jax.lax.stop_gradient(jnp.mean(taken - found, axis=0)) > 0
        cloned = better.astype(found.dtype)
        value = of.value_weight * smallest(found) / moments.std[-1]
        cloning = of.behaviour_cloning * cloned * acting.log_prob(distribution, steps.action)
        return -mean(value + cloning), mean(cloned)

    def improve(policy_params, encoder, state: State, batch_of: BatchOf, key):
        next_key, action_key = jax.random.split(key)
        batch = jax.lax.stop_gradient(batch_of(encoder))
        steps, mean = batch.steps, mean_of(batch.weight)
        targets = targets_of(state, steps, next_key)
        critic, moments, (slow_policy, slow_critic) = (
            state[name] for name in ("critic", "moments", "target")
        )
        if of.popart:
            average, variance = jax.vmap(_moments(mean), in_axes=-1)(targets)
            moments = moments_after(moments, average, variance)
            by = rescaling(state["moments"], moments)
            critic, slow_critic = (values.rescaled(one, *by) for one in (critic, slow_critic))

        slope, metrics = jax.grad(critic_loss, has_aux=True)(
            (critic, encoder), batch_of, targets, moments
        )
        norm = optax.tree.norm(slope)
        (critic, encoder), of_critic = descend(
            of.critic_optimizer, slope, (critic, encoder), state["critic_optimizer"]
        )
        slope, cloned = jax.grad(policy_loss, has_aux=True)(
            policy_params, critic, moments, steps, action_key, mean
        )
        policy_params, of_policy = descend(
            of.policy_optimizer, slope, policy_params, state["policy_optimizer"]
        )
        slow = soft_update((slow_policy, slow_critic), (policy_params, critic), of.tau)
        state = {
            "critic": critic,
            "target": slow,
            "moments": moments,
            "critic_optimizer": of_critic,
            "policy_optimizer": of_policy,
        }
        metrics |= {"meta_gradient_norm": norm, "cloned_share": cloned}
        return policy_params, encoder, state, metrics

    return OffPolicyLearner(init, improve, (*METRICS, "cloned_share"), policy)


def _moments(mean: Mean) -> Callable[[Array], tuple[Array, Array]]:
    """Return mean and variance of a batch whose steps have weights."""

    def moments(x):
        average = mean(x)
        return average, mean((x - average) ** 2)

    return moments


class _Acting(NamedTuple):
    """A stochastic policy and its critics.

    - `views`: what both see of remembered steps;
    - `expected(distribution, critic, moments, seen, key, samples) -> [critic, *batch, discount]`:
      the value of the actions of a distribution;
    - `of_remembered(critic, steps) -> [critic, *batch, discount, number]`: what critics say of the
      actions that were taken;
    - `log_prob(distribution, action)`: of what is cloned.
    """

    views: Views
    values: QNetworks
    head: ValueHead
    expected: Callable[..., Float[Array, "critic *batch discount"]]
    of_remembered: Callable[[Params, Remembered], Float[Array, "critic *batch discount number"]]
    log_prob: Callable[[Any, Array], Float[Array, "*batch"]]


def _acting(env: Env, policy: Policy, sizes: dict[str, Any], head: ValueHead) -> _Acting:
    views = views_of(env, policy)

    def by_discount(outputs):
        return outputs.reshape(*outputs.shape[:-1], -1, head.numbers)

    if isinstance(env.action_space, Discrete):
        check_distribution("amago", env, policy, Categorical, "'mlp'")
        values = views.q_networks(**sizes)

        def sum_over_actions(distribution, critic, moments, seen, key, samples):
            del key, samples  # nothing is left to chance
            q = head.value(moments, by_discount(values.apply(critic, seen)))
            chance = jax.nn.softmax(distribution.logits)
            return jnp.sum(chance[None, ..., None] * q, axis=-2)

        def of_taken_actions(critic, steps: Remembered):
            outputs = values.apply(critic, views.before(steps))
            taken = jax.vmap(of_taken, in_axes=(-1, None), out_axes=-1)(outputs, steps.action)
            return by_discount(taken)

        log_prob = lambda distribution, action: distribution.log_prob(action)
        return _Acting(views, values, head, sum_over_actions, of_taken_actions, log_prob)
    check_distribution("amago", env, policy, SquashedNormal, "'squashed'", "squashed")
    values = views.q_networks(**sizes)

    def mean_of_drawn(distribution, critic, moments, seen, key, samples):
        def one(key):
            action = distribution.sample(key)
            return head.value(moments, by_discount(values.apply(critic, seen, action)))

        return jnp.mean(jax.vmap(one)(jax.random.split(key, samples)), axis=0)

    def of_actions(critic, steps: Remembered):
        return by_discount(values.apply(critic, views.before(steps), steps.action))

    return _Acting(views, values, head, mean_of_drawn, of_actions, _log_prob_inside)


def _log_prob_inside(
    distribution: SquashedNormal, action: Float[Array, "*batch action"]
) -> Float[Array, "*batch"]:
    """Return the log-density of actions, those near a bound moved away from it."""
    unit = (action - distribution.center) / distribution.half
    inside = jnp.clip(unit, -_MOST_CLONED, _MOST_CLONED)
    return distribution.log_prob(distribution.center + distribution.half * inside)


_MOST_CLONED = 0.99  # of the distance to a bound
