"""Meta-SGD (Li et al. 2017): MAML whose inner step has a learned rate for every weight."""

from typing import Any

from metajax._options import options_of
from metajax.algorithms.maml import maml
from metajax.types import Algorithm, Env, Policy


@options_of(maml, without=("rule",))
def meta_sgd(env: Env, policy: Policy, **options: Any) -> Algorithm:
    """Return Meta-SGD: MAML with the rule `metajax.rules.meta_sgd`.

    `inner_learning_rate` is where all rates begin.
    """
    return maml(env, policy, rule="meta-sgd", **options)._replace(name="meta-sgd")
