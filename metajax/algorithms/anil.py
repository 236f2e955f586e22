"""ANIL, almost no inner loop (Raghu et al. 2020): only the head of the policy adapts."""

from metajax._checks import checked
from metajax.adaptation import InnerLoop, gradient_steps
from metajax.algorithms.maml import maml
from metajax.outer import OuterStep, trpo
from metajax.parts import check_made
from metajax.types import Algorithm, Env, Part, Policy


@checked
def anil(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(adapts="head"),
    outer: OuterStep = trpo(),
    inner_steps: int = 1,
    episodes: int = 20,
    first_order: bool = False,
    rematerialize: bool = False,
) -> Algorithm:
    """Return ANIL: MAML whose inner steps change the last layer and the standard deviation only.

    The hidden layers are meta-learned, through the adaptation of the head.

    Args:
        env: the environment that all tasks share.
        policy: policy that is adapted, without a memory.
        inner: adaptation within a task, of the head.
        outer: outer step on the adapted policies' surrogate.
        inner_steps: adaptation steps K during meta-training.
        episodes: episodes per task and adaptation step.
        first_order: whether inner gradients are treated as constants.
        rematerialize: whether inner steps are computed again in the backward pass, which saves
            memory when there are many.

    Raises:
        MetajaxError: an option is unknown or out of range, or
            `inner` adapts something else than the head.
    """
    check_made("ANIL", inner, "inner", "adapts", be="head")
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
    return algorithm._replace(name="anil")
