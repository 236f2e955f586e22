"""Update rules that are not themselves learned, any optax transformation, and sums with them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from metajax._checks import checked
from metajax._promotion import mixing_types
from metajax.errors import MetajaxError, check_at_least
from metajax.parts import part
from metajax.types import Scalar, UpdateRule


@checked
def from_optax(optimizer: optax.GradientTransformation, *, second_order: bool = True) -> UpdateRule:
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

    @mixing_types
    def update_of(gradient):
        update, _ = optimizer.update(gradient, optimizer.init(jnp.ones(2)), jnp.ones(2))
        return jnp.sum(jnp.asarray(update))

    def is_smooth() -> bool:
        finite = jnp.all(jnp.isfinite(jax.grad(update_of)(jnp.zeros(2))))
        return isinstance(finite, Tracer) or bool(finite)  # of a rate that is traced, unknown

    if second_order and not is_smooth():
        raise MetajaxError(
            "the inner optimizer's update has no finite derivative at a zero gradient, so "
            "second-order meta-gradients would be NaN; give optax.adam eps_root=1e-8, leave "
            "optax.clip_by_global_norm out, or use first-order gradients."
        )
    return UpdateRule(init=lambda key, params: (), optimizer=lambda rule_params: optimizer)


@part
def sgd(learning_rate: Scalar | optax.Schedule = 0.1) -> UpdateRule:
    """Return plain gradient descent with step size `learning_rate`, MAML's own inner step.

    Example:
        >>> import jax
        >>> import metajax
        >>> rule = metajax.sgd(0.5)
        >>> params = {"weight": 1.0}
        >>> rule_params = rule.init(jax.random.key(0), params)
        >>> optimizer = rule.optimizer(rule_params)
        >>> optimizer.update({"weight": 2.0}, optimizer.init(params))[0]
        {'weight': -1.0}

    Args:
        learning_rate: step size α on the mean loss of a time step; a schedule of the inner step,
            too.

    Raises:
        MetajaxError: the learning rate is below 0.
    """
    if not callable(learning_rate):
        check_at_least(0, learning_rate=learning_rate)
    return from_optax(optax.sgd(learning_rate), second_order=False)  # linear: nothing to check


@checked
def decayed(rule: UpdateRule, decay: Scalar) -> UpdateRule:
    """Return `rule` with updates after the first `decay` times as long."""
    shorter = optax.scale_by_schedule(lambda count: jnp.where(count == 0, 1.0, decay))

    def optimizer(rule_params):
        return optax.chain(rule.optimizer(rule_params), shorter)

    return UpdateRule(rule.init, optimizer)


@checked
def sum_of_rules(rule: UpdateRule, nominal: UpdateRule) -> UpdateRule:
    """Return the rule whose steps are the sum of two rules' steps.

    A learned rule that is added to a good optimizer has only to learn what that lacks (Harrison et
    al. 2022).

    Args:
        rule: one of them; its parameters are the first of a pair.
        nominal: the other.
    """

    def init(key, params):
        keys = jax.random.split(key)
        return rule.init(keys[0], params), nominal.init(keys[1], params)

    def optimizer(rule_params):
        parts = [
            optax.with_extra_args_support(part.optimizer(part_params))
            for part, part_params in zip((rule, nominal), rule_params, strict=True)
        ]

        def start(params) -> Any:
            return tuple(part.init(params) for part in parts)

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            steps, state = zip(
                *(
                    part.update(updates, part_state, params, **extra)
                    for part, part_state in zip(parts, state, strict=True)
                ),
                strict=True,
            )
            return optax.tree.add(*steps), state

        return optax.GradientTransformationExtraArgs(start, update)

    return UpdateRule(init, optimizer)
