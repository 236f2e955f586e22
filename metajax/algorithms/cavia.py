"""CAVIA, fast context adaptation via meta-learning (Zintgraf et al. 2019)."""

from typing import Any

from metajax._options import options_of
from metajax.algorithms.maml import maml
from metajax.types import Algorithm, Env, Policy


@options_of(maml, without=("adapts",))
def cavia(env: Env, policy: Policy, **options: Any) -> Algorithm:
    """Return CAVIA: MAML whose inner steps change nothing but the policy's context.

    The context is 0 at the start of every task; all else is meta-learned and stays as it is within
    a task.

    Args:
        policy: with a context, `mlp(..., context=2)`.
    """
    return maml(env, policy, adapts="context", **options)._replace(name="cavia")
