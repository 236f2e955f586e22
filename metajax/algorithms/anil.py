"""ANIL, almost no inner loop (Raghu et al. 2020): only the head of the policy adapts."""

from typing import Any

from metajax._options import options_of
from metajax.algorithms.maml import maml
from metajax.types import Algorithm, Env, Policy


@options_of(maml, without=("adapts",))
def anil(env: Env, policy: Policy, **options: Any) -> Algorithm:
    """Return ANIL: MAML whose inner steps change the last layer and the standard deviation only.

    The hidden layers are meta-learned, through the adaptation of the head.
    """
    return maml(env, policy, adapts="head", **options)._replace(name="anil")
