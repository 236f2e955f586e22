"""The LSTM meta-learner (Ravi & Larochelle 2017), on policy gradients."""

from typing import Any

from metajax._options import options_of
from metajax.algorithms.maml import maml
from metajax.types import Algorithm, Env, Policy


@options_of(maml, without=("rule", "first_order"))
def meta_lstm(env: Env, policy: Policy, *, first_order: bool = True, **options: Any) -> Algorithm:
    """Return Meta-LSTM: MAML with the rule `metajax.rules.meta_lstm`.

    The paper trains on images; here the gradient is the policy gradient, and the loss minus the
    mean reward of a step.

    Args:
        first_order: treat the gradients and losses that the LSTM reads as constants, as the
            paper does.
    """
    algorithm = maml(env, policy, rule="meta-lstm", first_order=first_order, **options)
    return algorithm._replace(name="meta-lstm")
