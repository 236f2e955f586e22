"""Policy-gradient objectives of one episode, to be maximised.

The first four estimate the same thing and have the same gradient at the behaviour policy,
Σ_t ∇log π(a_t) A_t. They differ in what a second differentiation sees, which is what an inner
loop's objective is for:

===================  ==========================================  ============================
objective            second derivative in expectation            source
===================  ==========================================  ============================
`naive`              misses how θ shapes the data; often         most public MAML code
                     further off than first order
`likelihood_ratio`   misses how θ shapes later credit            Rothfuss et al. 2019, LVC
`dice`               exact                                       Foerster et al. 2018
`loaded_dice`        exact, with lower variance                  Farquhar et al. 2019
===================  ==========================================  ============================

`advantage` is credit for each action and is taken as a constant. It enters without a factor
discount^t, as practice has it, and then no return has the resulting gradient unless discount is 1.
"Exact" above is for the undiscounted return, or for the discounted one with discount^t · advantage
and discount^t · baseline.

Padding neither counts nor matters, in value or derivative, whatever it holds.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Estimator = Literal["likelihood_ratio", "dice", "loaded_dice", "naive"]


def _magic_box(x: Array) -> Array:
    """Return 1, whose every derivative is that of exp(x) (DiCE, section 4)."""
    return jnp.exp(x - jax.lax.stop_gradient(x))


def _masked(valid: Array, *arrays: Array) -> list[Array]:
    """Return the arrays with zeros for padding, before anything else can touch what it holds."""
    return [jnp.where(valid, x, 0.0) for x in arrays]


def naive(
    log_prob: Float[Array, "time"],
    advantage: Float[Array, "time"],
    baseline: Float[Array, "time"],
    valid: Bool[Array, "time"],
) -> Float[Array, ""]:
    """Return Σ_t log π(a_t) A_t: right once, biased when differentiated again."""
    del baseline
    log_prob, advantage = _masked(valid, log_prob, advantage)
    return jnp.sum(log_prob * advantage)


def likelihood_ratio(
    log_prob: Float[Array, "time"],
    advantage: Float[Array, "time"],
    baseline: Float[Array, "time"],
    valid: Bool[Array, "time"],
) -> Float[Array, ""]:
    """Return ProMP's low variance curvature objective Σ_t π(a_t)/⊥π(a_t) A_t (equation 5).

    Its expected Hessian is the exact one less E[Σ_t ∇log π(a_t|s_t) ∇Q_t(s_t,a_t)ᵀ] and its
    transpose: ∇Q_t is how the expected return after t depends on the later policy.
    """
    del baseline
    log_prob, advantage = _masked(valid, log_prob, advantage)
    return jnp.sum(_magic_box(log_prob) * advantage)


def dice(
    log_prob: Float[Array, "time"],
    advantage: Float[Array, "time"],
    baseline: Float[Array, "time"],
    valid: Bool[Array, "time"],
) -> Float[Array, ""]:
    """Return DiCE with its baseline term: Σ_t ☐(a_≤t) r_t + Σ_t (1 - ☐(a_t)) b_t.

    `advantage + baseline` is the return-to-go, its differences are the rewards. The baseline
    lowers the variance of the first derivative only.
    """
    log_prob, advantage, baseline = _masked(valid, log_prob, advantage, baseline)
    returns = advantage + baseline
    reward = returns - jnp.append(returns[1:], 0.0)
    return jnp.sum(
        _magic_box(jnp.cumsum(log_prob)) * reward + (1 - _magic_box(log_prob)) * baseline
    )


def loaded_dice(
    log_prob: Float[Array, "time"],
    advantage: Float[Array, "time"],
    baseline: Float[Array, "time"],
    valid: Bool[Array, "time"],
) -> Float[Array, ""]:
    """Return Loaded DiCE with λ = 1: Σ_t (☐(a_≤t) - ☐(a_<t)) A_t (Farquhar et al., section 4)."""
    del baseline
    log_prob, advantage = _masked(valid, log_prob, advantage)
    total = jnp.cumsum(log_prob)
    return jnp.sum((_magic_box(total) - _magic_box(total - log_prob)) * advantage)


ESTIMATORS: dict[str, Callable[..., Float[Array, ""]]] = {
    "likelihood_ratio": likelihood_ratio,
    "dice": dice,
    "loaded_dice": loaded_dice,
    "naive": naive,
}


def importance_weighted(
    log_prob: Float[Array, "*shape"],
    behaviour_log_prob: Float[Array, "*shape"],
    advantage: Float[Array, "*shape"],
    valid: Bool[Array, "*shape"],
    *,
    clip: float | None = None,
) -> Float[Array, "*shape"]:
    """Return the surrogate ρ_t A_t, ρ_t = π(a_t)/π_old(a_t), of each step; 0 on padding.

    Args:
        log_prob: of the actions under the policy being trained.
        behaviour_log_prob: of the actions under the policy that sampled them.
        advantage: credit for each action.
        valid: steps that were played.
        clip: ε of PPO's pessimistic bound min(ρA, clip(ρ, 1-ε, 1+ε)A) (Schulman et al. 2017,
            equation 7); None leaves the ratio alone.
    """
    log_prob, behaviour_log_prob, advantage = _masked(
        valid, log_prob, behaviour_log_prob, advantage
    )
    ratio = jnp.exp(log_prob - behaviour_log_prob)
    if clip is None:
        return ratio * advantage
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
