"""Temporal-difference errors of action values: target minus value, of each transition.

Nothing is held constant here: the caller says what a derivative is taken by.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def q_learning(
    q: Float[Array, "*batch action"],
    action: Int[Array, "*batch"],
    reward: Float[Array, "*batch"],
    discount: Float[Array, "*batch"],
    next_q: Float[Array, "*batch action"],
) -> Float[Array, "*batch"]:
    """Return r + γ max_a Q(s', a) - Q(s, a) (Watkins 1989).

    Args:
        q: values of the actions before the step.
        action: that was taken.
        reward: of that action.
        discount: γ, 0 where the step terminated the task.
        next_q: values after the step; of the target network in DQN (Mnih et al. 2015).
    """
    return double_q_learning(q, action, reward, discount, next_q, selector=next_q)


def double_q_learning(
    q: Float[Array, "*batch action"],
    action: Int[Array, "*batch"],
    reward: Float[Array, "*batch"],
    discount: Float[Array, "*batch"],
    next_q: Float[Array, "*batch action"],
    selector: Float[Array, "*batch action"],
) -> Float[Array, "*batch"]:
    """Return r + γ Q(s', argmax_a selector_a) - Q(s, a) (van Hasselt et al. 2016, equation 4).

    Args:
        q: values of the actions before the step.
        action: that was taken.
        reward: of that action.
        discount: γ, 0 where the step terminated the task.
        next_q: values after the step, of the target network.
        selector: values after the step that choose the action, of the online network.
    """
    target = reward + discount * _of(next_q, jnp.argmax(selector, axis=-1))
    return target - _of(q, action)


def _of(values: Array, action: Array) -> Array:
    return jnp.take_along_axis(values, action[..., None], axis=-1)[..., 0]
