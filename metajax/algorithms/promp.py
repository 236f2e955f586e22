"""ProMP, proximal meta-policy search (Rothfuss et al. 2019)."""

from typing import Any

from metajax._options import options_of
from metajax.algorithms.maml import maml
from metajax.types import Algorithm, Env, Policy

_SETTLED = ("credit_exploration", "estimator", "first_order", "outer")


@options_of(maml, without=(*_SETTLED, "max_kl", "cg_iterations", "cg_damping"))
def promp(
    env: Env,
    policy: Policy,
    *,
    kl_penalty: float = 5e-4,
    target_kl: float | None = None,
    **options: Any,
) -> Algorithm:
    """Return ProMP: MAML with low variance curvature, clipped outer epochs and a KL penalty.

    The inner estimator is the low variance curvature objective; the outer step makes several
    clipped epochs on the same episodes, and pays for moving away from the policy that sampled
    those before adaptation.

    Args:
        kl_penalty: on how far the policies that played the episodes before adaptation move in an
            outer step (the paper's η).
        target_kl: nats per step that η is doubled or halved towards, up to a thousand times more
            or less than it was; None to leave it as it is, as the paper does.
    """
    fixed = {"outer": "ppo", "estimator": "likelihood_ratio"}
    own = {"kl_penalty": kl_penalty, "target_kl": target_kl}
    return maml(env, policy, **own, **fixed, **options)._replace(name="promp")
