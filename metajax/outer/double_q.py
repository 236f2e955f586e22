"""Double Q-learning on remembered steps, as a part: the policy is the Q-network itself."""

import jax.numpy as jnp
import optax

from metajax._promotion import on_own_terms
from metajax.errors import MetajaxError, check_at_most, check_positive
from metajax.outer.off_policy import (
    METRICS,
    BatchOf,
    OffPolicyLearner,
    State,
    bellman_target,
    check_distribution,
    critic_step,
    of_taken,
    soft_update,
)
from metajax.outer.views import Remembered, views_of
from metajax.parts import part
from metajax.policies.distributions import Categorical
from metajax.policies.epsilon_greedy import epsilon_greedy
from metajax.types import Discrete, Env, Part, Policy, Scalar


@part
def double_q(
    learning_rate: Scalar = 3e-4,
    *,
    discount: Scalar = 0.99,
    tau: Scalar = 0.005,
    epsilon: Scalar = 0.1,
) -> Part[OffPolicyLearner]:
    """Return double Q-learning (van Hasselt et al. 2016), of discrete actions.

    The policy's logits are Q-values. With Q⁻ their slow copy they descend the mean of
    (Q(s, a) - r - γ(1 - d)Q⁻(s', argmax Q(s', ·)))²; then Q⁻ ← (1 - τ)Q⁻ + τQ.

    Args:
        learning_rate: learning rate of Adam.
        discount: discount γ per step.
        tau: share τ of the network in its slow copy, per gradient step.
        epsilon: probability ε of a uniformly drawn action where it explores, in (0, 1].

    Raises:
        MetajaxError: an option is out of range; later, that actions are continuous.
    """
    check_positive(learning_rate=learning_rate, discount=discount, tau=tau, epsilon=epsilon)
    check_at_most(1, discount=discount, tau=tau, epsilon=epsilon)
    optimizer = on_own_terms(optax.adam(learning_rate))

    def build(env: Env, policy: Policy) -> OffPolicyLearner:
        if not isinstance(env.action_space, Discrete):
            raise MetajaxError(
                "double-q needs discrete actions; this environment's are continuous."
            )
        check_distribution("double-q", env, policy, Categorical, "'mlp'")
        views = views_of(env, policy)

        def q_values(params, seen):
            return views.distribution(params, seen).logits

        def init(key, policy_params, encoder) -> State:
            del key
            start = optimizer.init((policy_params, encoder))
            return {"target": policy_params, "optimizer": start}

        def improve(policy_params, encoder, state: State, batch_of: BatchOf, key):
            del key  # nothing is left to chance

            def target_of(steps: Remembered):
                seen = views.after(steps)
                best = jnp.argmax(q_values(policy_params, seen), axis=-1)
                slow = q_values(state["target"], seen)
                next_value = of_taken(slow[None], best)[0]
                return bellman_target(steps.reward, steps.terminated, next_value, discount)

            def q_of(params, steps: Remembered):
                return of_taken(q_values(params, views.before(steps))[None], steps.action)

            (policy_params, encoder), of_policy, metrics = critic_step(
                q_of,
                target_of,
                batch_of,
                (policy_params, encoder),
                optimizer,
                state["optimizer"],
            )
            target = soft_update(state["target"], policy_params, tau)
            state = {"target": target, "optimizer": of_policy}
            return policy_params, encoder, state, metrics

        return OffPolicyLearner(init, improve, METRICS, epsilon_greedy(policy, epsilon))

    return Part(build)
