"""E-MAML (Stadie et al. 2018): MAML whose gradient counts exploration."""

from metajax._checks import checked
from metajax.adaptation import InnerLoop, gradient_steps, policy_gradient
from metajax.algorithms.maml import maml
from metajax.outer import OuterStep, trpo
from metajax.parts import check_made
from metajax.types import Algorithm, Env, Part, Policy


@checked
def e_maml(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(policy_gradient("naive")),
    outer: OuterStep = trpo(),
    inner_steps: int = 1,
    episodes: int = 20,
    rematerialize: bool = False,
) -> Algorithm:
    """Return E-MAML: the gradient of what adaptation on sampled episodes achieves, all of it.

    The parameters θ shape the adapted policy in two ways: through the steps on given episodes, and
    through which episodes there are to learn from. MAML's gradient is the first; to the second
    each episode before adaptation contributes its score ∇log π_θ(τ), times what adaptation then
    achieved (less the mean of the other tasks).

    The episodes being accounted for, an inner step is differentiated as what it is on given
    episodes: the estimator is `naive`. Then, for undiscounted returns that are not normalized and
    no critic fitted to the same episodes, the meta-gradient is unbiased for any number of episodes
    of one length.

    Args:
        env: the environment that all tasks share.
        policy: policy that is adapted, without a memory.
        inner: adaptation within a task, by the estimator "naive".
        outer: outer step on the surrogate of all policies whose actions count.
        inner_steps: adaptation steps K during meta-training.
        episodes: episodes per task and adaptation step.
        rematerialize: whether inner steps are computed again in the backward pass, which saves
            memory when there are many.

    Raises:
        MetajaxError: an option is unknown or out of range, or the estimator of `inner` is another.
    """
    check_made("E-MAML", inner, "inner", "objective", "estimator", be="naive")
    algorithm = maml(
        env,
        policy,
        inner=inner,
        outer=outer,
        inner_steps=inner_steps,
        episodes=episodes,
        rematerialize=rematerialize,
        credit_exploration=True,
    )
    return algorithm._replace(name="e-maml")
