"""ProMP, proximal meta-policy search (Rothfuss et al. 2019)."""

from metajax._checks import checked
from metajax.adaptation import InnerLoop, gradient_steps, policy_gradient
from metajax.algorithms.maml import maml
from metajax.outer import OuterStep, ppo
from metajax.parts import check_made
from metajax.types import Algorithm, Env, Part, Policy, Scalar


@checked
def promp(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(policy_gradient("likelihood_ratio")),
    outer: OuterStep = ppo(epochs=5, clip=0.3),
    inner_steps: int = 1,
    episodes: int = 20,
    rematerialize: bool = False,
    kl_penalty: Scalar = 5e-4,
    target_kl: Scalar | None = None,
) -> Algorithm:
    """Return ProMP: MAML with low variance curvature, clipped outer epochs and a KL penalty.

    The inner estimator is the low variance curvature objective; the outer step makes several
    clipped epochs on the same episodes, and is penalized for moving away from the policy that
    sampled those before adaptation.

    Args:
        env: the environment that all tasks share.
        policy: policy that is adapted, without a memory.
        inner: adaptation within a task, by the estimator "likelihood_ratio".
        outer: outer step, `metajax.outer.ppo`.
        inner_steps: adaptation steps K during meta-training.
        episodes: episodes per task and adaptation step.
        rematerialize: whether inner steps are computed again in the backward pass, which saves
            memory when there are many.
        kl_penalty: weight η of how far the policies that played the episodes before adaptation move
            in an outer step, in nats.
        target_kl: nats per step that η is doubled or halved towards, up to a thousand times more or
            less than it was; None to leave it as it is, as the paper does.

    Raises:
        MetajaxError: an option is unknown or out of range, or `inner` or `outer` are not ProMP's.
    """
    check_made("ProMP", inner, "inner", "objective", "estimator", be="likelihood_ratio")
    check_made("ProMP", outer, "outer", be=ppo)
    algorithm = maml(
        env,
        policy,
        inner=inner,
        outer=outer,
        inner_steps=inner_steps,
        episodes=episodes,
        rematerialize=rematerialize,
        kl_penalty=kl_penalty,
        target_kl=target_kl,
    )
    return algorithm._replace(name="promp")
