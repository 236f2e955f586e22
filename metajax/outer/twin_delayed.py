"""Twin delayed deep deterministic policy gradients, as a part."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from metajax._promotion import on_own_terms
from metajax.errors import check_at_least
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
    soft_update,
)
from metajax.outer.views import Remembered, views_of
from metajax.parts import part
from metajax.policies.mlp import Activation
from metajax.policies.squashed import NoisyAction, box_of, like
from metajax.types import Env, Params, Part, Policy, Scalar


@part
def td3(
    learning_rate: Scalar = 3e-4,
    *,
    critic_learning_rate: Scalar = 3e-4,
    discount: Scalar = 0.99,
    tau: Scalar = 0.005,
    target_noise: Scalar = 0.2,
    target_noise_clip: Scalar = 0.5,
    policy_delay: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
) -> Part[OffPolicyLearner]:
    """Return twin delayed deep deterministic policy gradients (Fujimoto et al. 2018).

    With π̄ and Q̄ slow copies: y = r + γ(1 - d) min_j Q̄_j(s', clip(π̄(s') + clip(ε))), ε normal; each
    critic descends the mean of (Q_j(s, a) - y)². After every `policy_delay` of these steps the
    policy descends -mean Q_1(s, π(s)), and all slow copies move.

    Args:
        learning_rate: learning rate of Adam, of the policy.
        critic_learning_rate: learning rate of Adam, of the critics.
        discount: discount γ per step.
        tau: share τ of what is learned in its slow copies, each time that they move.
        target_noise: standard deviation of ε, in halves of the distance between an action's bounds.
        target_noise_clip: largest ε, in the same units.
        policy_delay: gradient steps of the critics for each of the policy.
        hidden: widths of the critics' hidden layers. Of a policy with a memory they follow a memory
            of the same kind, which both critics share.
        activation: activation function after each hidden layer of the critics.

    Raises:
        MetajaxError: an option is out of range; later, that the policy is none of `deterministic`,
            nor one with a memory and deterministic actions.
    """
    check_rates(learning_rate, critic_learning_rate, discount, tau)
    check_at_least(0, target_noise=target_noise, target_noise_clip=target_noise_clip)
    check_at_least(1, policy_delay=policy_delay)
    policy_optimizer = on_own_terms(optax.adam(learning_rate))
    critic_optimizer = on_own_terms(optax.adam(critic_learning_rate))

    def build(env: Env, policy: Policy) -> OffPolicyLearner:
        center, half = box_of("td3", env.action_space)
        check_distribution("td3", env, policy, NoisyAction, "'deterministic'", "deterministic")
        views = views_of(env, policy)
        values = views.q_networks(hidden=hidden, activation=activation)

        def act(params: Params, seen):
            return views.distribution(params, seen).mode()

        def init(key, policy_params, encoder) -> State:
            critic = values.init(key)
            return {
                "critic": critic,
                "target": (policy_params, critic),
                "updates": jnp.zeros((), jnp.int32),
                "critic_optimizer": critic_optimizer.init((critic, encoder)),
                "policy_optimizer": policy_optimizer.init(policy_params),
            }

        def improve(policy_params, encoder, state: State, batch_of: BatchOf, key):
            slow_policy, slow_critic = state["target"]

            def target_of(steps: Remembered):
                seen = views.after(steps)
                action = act(slow_policy, seen)
                noise = target_noise * jax.random.normal(key, action.shape, action.dtype)
                noise = jnp.clip(noise, -target_noise_clip, target_noise_clip)
                middle, reach = like(action, center), like(action, half)
                action = jnp.clip(action + reach * noise, middle - reach, middle + reach)
                next_value = jnp.min(values.apply(slow_critic, seen, action), 0)
                return bellman_target(steps.reward, steps.terminated, next_value, discount)

            batch = jax.lax.stop_gradient(batch_of(encoder))
            mean = mean_of(batch.weight)
            (critic, encoder), of_critic, metrics = critic_step(
                lambda critic, steps: values.apply(critic, views.before(steps), steps.action),
                target_of,
                batch_of,
                (state["critic"], encoder),
                critic_optimizer,
                state["critic_optimizer"],
            )

            def policy_loss(policy_params):
                seen = views.before(batch.steps)
                return -mean(values.apply(critic, seen, act(policy_params, seen))[0])

            def delayed(policy_params, of_policy, target):
                slope = jax.grad(policy_loss)(policy_params)
                policy_params, of_policy = descend(
                    policy_optimizer, slope, policy_params, of_policy
                )
                return policy_params, of_policy, soft_update(target, (policy_params, critic), tau)

            updates = state["updates"] + 1
            moving = policy_params, state["policy_optimizer"], state["target"]
            policy_params, of_policy, target = jax.lax.cond(
                updates % policy_delay == 0, delayed, lambda *moving: moving, *moving
            )
            state = {
                "critic": critic,
                "target": target,
                "updates": updates,
                "critic_optimizer": of_critic,
                "policy_optimizer": of_policy,
            }
            return policy_params, encoder, state, metrics

        return OffPolicyLearner(init, improve, METRICS, policy)

    return Part(build)
