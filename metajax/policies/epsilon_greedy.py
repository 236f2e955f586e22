"""A policy that acts by Q-values, and explores by chance."""

import jax.numpy as jnp

from metajax._checks import checked
from metajax.errors import check_at_most, check_positive
from metajax.policies.distributions import EpsilonGreedy
from metajax.types import Policy, PolicyOutput, Scalar


@checked
def epsilon_greedy(policy: Policy, epsilon: Scalar) -> Policy:
    """Return the policy whose Q-values are the logits of `policy`, over discrete actions.

    Args:
        policy: for its logits.
        epsilon: probability of a uniformly drawn action, in (0, 1].

    Raises:
        MetajaxError: epsilon is out of range.
    """
    check_positive(epsilon=epsilon)
    check_at_most(1, epsilon=epsilon)

    def acting(function):
        def of_values(params, memory, step_input):
            memory, output = function(params, memory, step_input)
            q_values = output.distribution.logits
            chance = jnp.full(q_values.shape[:-1], epsilon, q_values.dtype)
            return memory, PolicyOutput(EpsilonGreedy(q_values, chance), output.value)

        return of_values

    return policy._replace(step=acting(policy.step), unroll=acting(policy.unroll))
