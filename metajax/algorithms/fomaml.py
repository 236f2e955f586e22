"""First-order MAML (Finn et al. 2017, section 5.2)."""

from metajax._checks import checked
from metajax.adaptation import InnerLoop, gradient_steps
from metajax.algorithms.maml import maml
from metajax.outer import OuterStep, trpo
from metajax.types import Algorithm, Env, Part, Policy


@checked
def fomaml(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(),
    outer: OuterStep = trpo(),
    inner_steps: int = 1,
    episodes: int = 20,
) -> Algorithm:
    """Return first-order MAML: the gradient at θ' is taken for the gradient at θ.

    Args:
        env: the environment that all tasks share.
        policy: policy that is adapted, without a memory.
        inner: adaptation within a task.
        outer: outer step on the adapted policies' surrogate.
        inner_steps: adaptation steps K during meta-training.
        episodes: episodes per task and adaptation step.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """
    algorithm = maml(
        env,
        policy,
        inner=inner,
        outer=outer,
        inner_steps=inner_steps,
        episodes=episodes,
        first_order=True,
    )
    return algorithm._replace(name="fomaml")
