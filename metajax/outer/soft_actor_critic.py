"""Soft actor-critic, as a part: of continuous or discrete actions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from metajax._kinks import smallest
from metajax._promotion import on_own_terms
from metajax.errors import MetajaxError, check_at_least, check_at_most, check_positive, is_off
from metajax.outer.off_policy import (
    METRICS,
    BatchOf,
    OffPolicyLearner,
    State,
    bellman_target,
    check_distribution,
    check_rates,
    critic_step,
    descend,
    mean_of,
    of_taken,
    soft_update,
    some_of,
)
from metajax.outer.views import Remembered, Views, has_memory, views_of
from metajax.parts import part
from metajax.policies.distributions import Categorical
from metajax.policies.mlp import Activation, ValueNetwork
from metajax.policies.squashed import QNetworks, SquashedNormal, value_of_states
from metajax.types import Discrete, Env, Params, Part, Policy, Scalar


@part
def sac(
    learning_rate: Scalar = 3e-4,
    *,
    critic_learning_rate: Scalar = 3e-4,
    discount: Scalar = 0.99,
    tau: Scalar = 0.005,
    reward_scale: Scalar = 1.0,
    temperature: Scalar | None = None,
    target_entropy: Scalar | None = None,
    value_network: bool = False,
    output_penalty: Scalar = 0.0,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    critics: int = 2,
    subset: int | None = None,
) -> Part[OffPolicyLearner]:
    """Return soft actor-critic (Haarnoja et al. 2018b), of continuous or discrete actions.

    With Q⁻ the slow copies of the critics Q_j, γ the discount, α the temperature and d the end of a
    task:

    - y = r + γ(1 - d)(min_j Q⁻_j(s', a') - α log π(a')), with a' drawn from π at s'; each Q_j
      descends the mean of (Q_j(s, a) - y)²;
    - the policy descends the mean of α log π(ã) - min_j Q_j(s, ã), with ã drawn from π at s, of the
      critics after that step;
    - log α descends -log α·mean(log π(ã) + H̄), of the same ã;
    - Q⁻ ← (1 - τ)Q⁻ + τQ.

    With a value network (Haarnoja et al. 2018a) y = r + γ(1 - d)V⁻(s') instead, V descends the mean
    of (V(s) - min_j Q_j(s, ã) + α log π(ã))² of the critics after their step, and V⁻ is the only
    slow copy.

    With a subset (REDQ, Chen et al. 2021) the minimum in y is over some of the critics alone, drawn
    anew at each gradient step, and the policy has the mean of all in place of min_j Q_j.

    Of discrete actions (Christodoulou 2019) expectations over a' and ã are sums.

    Args:
        learning_rate: learning rate of Adam, of the policy and of the temperature.
        critic_learning_rate: learning rate of Adam, of the critics and of the value network.
        discount: discount γ per step.
        tau: share τ of what is learned in its slow copy, per gradient step.
        reward_scale: factor of rewards.
        temperature: temperature α; None to learn it, from 1.
        target_entropy: entropy H̄ of the policy that a learned temperature keeps, in nats; None for
            minus the number of action dimensions, of discrete actions 0.89 of the most there is.
        value_network: whether a network of its own learns the value of states; of policies without
            a memory.
        output_penalty: weight of the mean squares of the policy's means and log standard
            deviations, before they are squashed, in its loss; of continuous actions.
        hidden: widths of the critics' hidden layers, and of the value network's. Of a policy with a
            memory they follow a memory of the same kind, which all critics share.
        activation: activation function after each hidden layer of the critics.
        critics: number of critics.
        subset: number of critics whose minimum is the target, drawn at random; None for all of
            them. 2 of 10 in the paper.

    Raises:
        MetajaxError: an option is out of range; later, that the policy is none of `squashed`, nor
            one with a memory and squashed actions, or of discrete actions none of `mlp`.
    """
    check_rates(learning_rate, critic_learning_rate, discount, tau)
    check_positive(reward_scale=reward_scale)
    check_at_least(0, output_penalty=output_penalty)
    check_at_least(1, critics=critics)
    if temperature is not None:
        check_at_least(0, temperature=temperature)
    if subset is not None:
        check_at_least(1, subset=subset)
        check_at_most(critics, subset=subset)
        if value_network:
            raise MetajaxError("a value network has no subset of critics; subset must be None.")
    of = _Numbers(
        on_own_terms(optax.adam(learning_rate)),
        on_own_terms(optax.adam(critic_learning_rate)),
        discount,
        tau,
        reward_scale,
        temperature,
        subset,
    )

    def build(env: Env, policy: Policy) -> OffPolicyLearner:
        sizes = {"hidden": hidden, "activation": activation}
        soft = _soft_policy(env, policy, sizes | {"count": critics}, target_entropy, output_penalty)
        if value_network and has_memory(policy):
            raise MetajaxError("value_network is of policies without a memory; it must be False.")
        values = value_of_states(env.observation_size, **sizes) if value_network else None
        return _soft_learner(policy, soft, values, of)

    return Part(build)


class _Numbers(NamedTuple):
    policy_optimizer: Any
    critic_optimizer: Any
    discount: Scalar
    tau: Scalar
    reward_scale: Scalar
    temperature: Scalar | None
    subset: int | None


def _lowest_of(subset: int, key: Key[Array, ""]) -> Callable[[Array], Array]:
    """Return the lowest value by some critics, the same ones at every step."""
    return lambda values: smallest(some_of(values, subset, key))


def _soft_learner(
    policy: Policy, soft: "_SoftPolicy", values: ValueNetwork | None, of: _Numbers
) -> OffPolicyLearner:
    """Return the learner of a policy, whose critics have a value network beside them or not."""
    views = soft.views

    def init(key, policy_params, encoder) -> State:
        critic_key, value_key = jax.random.split(key)
        critic = soft.values.init(critic_key)
        value = () if values is None else values.init(value_key)
        actor = policy_params, jnp.zeros(()) if of.temperature is None else ()
        return {
            "critic": critic,
            "value": value,
            "target": value or critic,
            "log_temperature": actor[1],
            "critic_optimizer": of.critic_optimizer.init((critic, encoder)),
            "value_optimizer": of.critic_optimizer.init(value),
            "policy_optimizer": of.policy_optimizer.init(actor),
        }

    def improve(policy_params, encoder, state: State, batch_of: BatchOf, key):
        next_key, action_key, *rest = jax.random.split(key, 2 if of.subset is None else 3)
        learned = of.temperature is None
        alpha: Any = jnp.exp(state["log_temperature"]) if learned else of.temperature
        in_target, in_policy = smallest, smallest
        if of.subset is not None:
            in_target = _lowest_of(of.subset, rest[0])
            in_policy = lambda values: jnp.mean(values, axis=0)

        def target_of(steps: Remembered):
            seen = views.after(steps)
            if values is None:
                value, log_prob, expected = soft.draw(
                    policy_params, state["target"], seen, next_key, in_target
                )
                value = expected(value - alpha * log_prob)
            else:
                value = values.apply(state["target"], seen)
            reward = of.reward_scale * steps.reward
            return bellman_target(reward, steps.terminated, value, of.discount)

        batch = jax.lax.stop_gradient(batch_of(encoder))
        seen, mean = views.before(batch.steps), mean_of(batch.weight)
        trained, of_critic = (state["critic"], encoder), state["critic_optimizer"]
        (critic, encoder), of_critic, metrics = critic_step(
            soft.q_of, target_of, batch_of, trained, of.critic_optimizer, of_critic
        )

        def policy_loss(policy_params):
            value, log_prob, expected = soft.draw(
                policy_params, critic, seen, action_key, in_policy
            )
            soft_value = expected(value - alpha * log_prob)
            loss = soft.penalty(policy_params, seen, mean) - mean(soft_value)
            return loss, (soft_value, -mean(expected(log_prob)))

        slope, (soft_value, entropy) = jax.grad(policy_loss, has_aux=True)(policy_params)
        value, of_value = state["value"], state["value_optimizer"]
        if values is not None:
            of_states = values.apply
            slope_of = jax.grad(lambda v: mean((of_states(v, seen) - soft_value) ** 2))
            value, of_value = descend(of.critic_optimizer, slope_of(value), value, of_value)
        excess = entropy - jnp.asarray(soft.target_entropy, entropy.dtype)
        (policy_params, log_temperature), of_policy = descend(
            of.policy_optimizer,
            (slope, excess if learned else ()),
            (policy_params, state["log_temperature"]),
            state["policy_optimizer"],
        )
        state = {
            "critic": critic,
            "value": value,
            "target": soft_update(state["target"], value or critic, of.tau),
            "log_temperature": log_temperature,
            "critic_optimizer": of_critic,
            "value_optimizer": of_value,
            "policy_optimizer": of_policy,
        }
        metrics |= {"temperature": jnp.asarray(alpha, entropy.dtype)}
        return policy_params, encoder, state, metrics

    return OffPolicyLearner(init, improve, (*METRICS, "temperature"), policy)


class _SoftPolicy(NamedTuple):
    """A stochastic policy and its critics.

    - `views`: what both see of remembered steps;
    - `draw(params, critic, seen, key, of_critics) -> (values, log_probs, expected)`: `of_critics`
      of Q_j, and log π, of an action that is drawn; of each action, where they are discrete;
      `expected` is the mean of such numbers under the policy;
    - `q_of(critic, steps)`: values of the actions that were taken `[critic, *batch]`;
    - `target_entropy`: in nats;
    - `penalty(params, seen, mean)`: of the policy's outputs, in its loss.
    """

    views: Views
    values: QNetworks
    draw: Callable[..., tuple[Array, Array, Callable[[Array], Array]]]
    q_of: Callable[[Params, Remembered], Float[Array, "critic *batch"]]
    target_entropy: Scalar
    penalty: Callable[..., Float[Array, ""]]


def _soft_policy(
    env: Env,
    policy: Policy,
    sizes: dict[str, Any],
    target_entropy: Scalar | None,
    output_penalty: Scalar,
) -> _SoftPolicy:
    space, views = env.action_space, views_of(env, policy)
    if isinstance(space, Discrete):
        check_distribution("sac", env, policy, Categorical, "'mlp'")
        values = views.q_networks(**sizes)

        def draw_all(params, critic, seen, key, of_critics):
            del key  # nothing is left to chance
            log_prob = jax.nn.log_softmax(views.distribution(params, seen).logits)
            value = of_critics(values.apply(critic, seen))
            return value, log_prob, lambda x: jnp.sum(jnp.exp(log_prob) * x, axis=-1)

        def q_of_taken(critic, steps: Remembered):
            return of_taken(values.apply(critic, views.before(steps)), steps.action)

        most = float(np.log(space.size))
        wanted = _SHARE_OF_ENTROPY * most if target_entropy is None else target_entropy
        return _SoftPolicy(views, values, draw_all, q_of_taken, wanted, lambda *_: jnp.zeros(()))
    check_distribution("sac", env, policy, SquashedNormal, "'squashed'", "squashed")
    values = views.q_networks(**sizes)

    def draw(params, critic, seen, key, of_critics):
        action, log_prob = views.distribution(params, seen).sample_with_log_prob(key)
        return of_critics(values.apply(critic, seen, action)), log_prob, lambda x: x

    def q_of(critic, steps: Remembered):
        return values.apply(critic, views.before(steps), steps.action)

    def penalty(params, seen, mean):
        if is_off(output_penalty):
            return jnp.zeros(())
        normal = views.distribution(params, seen).normal
        squares = jnp.mean(normal.mean**2 + normal.log_std**2, axis=-1)
        return output_penalty * mean(squares)

    wanted = -float(space.size) if target_entropy is None else target_entropy
    return _SoftPolicy(views, values, draw, q_of, wanted, penalty)


_SHARE_OF_ENTROPY = 0.89  # of a uniform policy's; CleanRL's, with 0.98 some games are never learned
