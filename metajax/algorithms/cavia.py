"""CAVIA, fast context adaptation via meta-learning (Zintgraf et al. 2019)."""

from metajax._checks import checked
from metajax.adaptation import InnerLoop, gradient_steps
from metajax.algorithms.maml import maml
from metajax.outer import OuterStep, trpo
from metajax.parts import check_made
from metajax.rules import sgd
from metajax.types import Algorithm, Env, Part, Policy


@checked
def cavia(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(rule=sgd(1.0), adapts="context"),
    outer: OuterStep = trpo(),
    inner_steps: int = 1,
    episodes: int = 20,
    first_order: bool = False,
    rematerialize: bool = False,
) -> Algorithm:
    """Return CAVIA: MAML whose inner steps change nothing but the policy's context.

    The context is 0 at the start of every task; all else is meta-learned and stays as it is within
    a task.

    Args:
        env: the environment that all tasks share.
        policy: policy that is adapted, with a context: `mlp(..., context=2)`.
        inner: adaptation within a task, of the context.
        outer: outer step on the adapted policies' surrogate.
        inner_steps: adaptation steps K during meta-training.
        episodes: episodes per task and adaptation step.
        first_order: whether inner gradients are treated as constants.
        rematerialize: whether inner steps are computed again in the backward pass, which saves
            memory when there are many.

    Raises:
        MetajaxError: an option is unknown or out of range, or
            `inner` adapts something else than the context.
    """
    check_made("CAVIA", inner, "inner", "adapts", be="context")
    algorithm = maml(
        env,
        policy,
        inner=inner,
        outer=outer,
        inner_steps=inner_steps,
        episodes=episodes,
        first_order=first_order,
        rematerialize=rematerialize,
    )
    return algorithm._replace(name="cavia")
