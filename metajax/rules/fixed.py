"""Update rules that are not themselves learned: any optax transformation."""

import jax
import jax.numpy as jnp
import optax

from metajax.errors import MetajaxError
from metajax.types import UpdateRule


def fixed(optimizer: optax.GradientTransformation, *, second_order: bool = True) -> UpdateRule:
    """Return the rule that applies `optimizer` unchanged.

    A second-order meta-gradient differentiates the optimizer's update with respect to the
    gradient. Where a gradient is exactly zero some optimizers have no finite derivative (the
    square root in `optax.adam` with its default `eps_root=0`), and one such weight makes the whole
    meta-gradient NaN: such an optimizer is refused.

    Args:
        optimizer: descends; its state starts afresh for every task.
        second_order: whether the update will be differentiated. False accepts any optimizer.

    Raises:
        MetajaxError: the update's derivative at a zero gradient is not finite.
    """

    def update_of(gradient):
        update, _ = optimizer.update(gradient, optimizer.init(jnp.ones(2)), jnp.ones(2))
        return jnp.sum(jnp.asarray(update))

    if second_order and not jnp.all(jnp.isfinite(jax.grad(update_of)(jnp.zeros(2)))):
        raise MetajaxError(
            "the inner optimizer's update has no finite derivative at a zero gradient, so "
            "second-order meta-gradients would be NaN; give it a smooth root (for optax.adam: "
            "eps_root=1e-8) or use first-order gradients."
        )
    return UpdateRule(init=lambda key, params: (), optimizer=lambda rule_params: optimizer)


def sgd(learning_rate: optax.ScalarOrSchedule) -> UpdateRule:
    """Return plain gradient descent with step size `learning_rate`, MAML's own inner step."""
    return fixed(optax.sgd(learning_rate))


def decayed(rule: UpdateRule, decay: float) -> UpdateRule:
    """Return `rule` with updates after the first `decay` times as long."""
    shorter = optax.scale_by_schedule(lambda count: jnp.where(count == 0, 1.0, decay))

    def optimizer(rule_params):
        return optax.chain(rule.optimizer(rule_params), shorter)

    return UpdateRule(rule.init, optimizer)
