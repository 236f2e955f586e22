"""Policy-gradient objectives of one episode, to be maximised.

The first five estimate the same thing and have the same gradient at the behaviour policy,
Σ_t ∇log π(a_t) A_t. They differ in what a second differentiation sees, which is what an inner
loop's objective is for:

===================  ==========================================  ============================
objective            second derivative in expectation            source
===================  ==========================================  ============================
`naive`              misses how θ shapes the data; often         most public MAML code
                     further off than first order
`likelihood_ratio`   misses how θ shapes later rewards           Rothfuss et al. 2019
`dice`               exact                                       Foerster et al. 2018
`loaded_dice`        exact, with lower variance                  Farquhar et al. 2019
`clipped`            that of `likelihood_ratio` at the           Schulman et al. 2017
                     behaviour policy; for several steps
                     on the same episodes
===================  ==========================================  ============================

`advantage` says how good each action was and is taken as a constant. It enters without a factor
discount^t, as practice has it, and then no return has the resulting gradient unless discount is 1.
"Exact" above is for the undiscounted return, or for the discounted one with discount^t · advantage
and discount^t · baseline.

Where the papers write π/⊥π, with ⊥ for a constant, the ratio here is to the policy that sampled:
the same thing at that policy, in value and in every derivative, and importance sampling elsewhere.
So an outer optimizer may evaluate an adaptation again on stored episodes after it has moved the
parameters, and finds a function whose derivatives are those it was promised.

Padding neither counts nor matters, in value or derivative, whatever it holds.
"""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metajax._kinks import smaller, within
from metajax.types import Scalar

CLIP = 0.2  # ε of `clipped`


def _masked(valid: Array, *arrays: Array) -> list[Array]:
    """Return the arrays with zeros for padding, before anything else can touch what it holds."""
    return [jnp.where(valid, x, 0.0) for x in arrays]


def naive(
    log_prob: Float[Array, "time"],
    behaviour_log_prob: Float[Array, "time"],
    advantage: Float[Array, "time"],
    baseline: Float[Array, "time"],
    valid: Bool[Array, "time"],
) -> Float[Array, ""]:
    """Return Σ_t log π(a_t) A_t: right once, biased when differentiated again."""
    del behaviour_log_prob, baseline
    log_prob, advantage = _masked(valid, log_prob, advantage)
    return jnp.sum(log_prob * advantage)


def likelihood_ratio(
    log_prob: Float[Array, "time"],
    behaviour_log_prob: Float[Array, "time"],
    advantage: Float[Array, "time"],
    baseline: Float[Array, "time"],
    valid: Bool[Array, "time"],
) -> Float[Array, ""]:
    """Return Σ_t π(a_t)/π_old(a_t) A_t, ProMP's low variance curvature objective (section 5).

    Its expected Hessian is the exact one less E[Σ_t ∇log π(a_t|s_t) ∇Q_t(s_t,a_t)ᵀ] and its
    transpose: ∇Q_t is how the expected return after t depends on the later policy.
    """
    del baseline
    return jnp.sum(importance_weighted(log_prob, behaviour_log_prob, advantage, valid))


def dice(
    log_prob: Float[Array, "time"],
    behaviour_log_prob: Float[Array, "time"],
    advantage: Float[Array, "time"],
    baseline: Float[Array, "time"],
    valid: Bool[Array, "time"],
) -> Float[Array, ""]:
    """Return DiCE with its baseline term: Σ_t ρ_≤t r_t + Σ_t (1 - ρ_t) b_t.

    ρ_t is π(a_t)/π_old(a_t) and ρ_≤t the product up to t. `advantage + baseline` is the
    return-to-go, its differences are the rewards. The baseline lowers the variance of the first
    derivative only.
    """
    log_prob, behaviour_log_prob, advantage, baseline = _masked(
        valid, log_prob, behaviour_log_prob, advantage, baseline
    )
    log_ratio = log_prob - behaviour_log_prob
    returns = advantage + baseline
    reward = returns - jnp.append(returns[1:], 0.0)
    return jnp.sum(jnp.exp(jnp.cumsum(log_ratio)) * reward + (1 - jnp.exp(log_ratio)) * baseline)


def loaded_dice(
    log_prob: Float[Array, "time"],
    behaviour_log_prob: Float[Array, "time"],
    advantage: Float[Array, "time"],
    baseline: Float[Array, "time"],
    valid: Bool[Array, "time"],
) -> Float[Array, ""]:
    """Return Loaded DiCE with λ = 1: Σ_t (ρ_≤t - ρ_<t) A_t (Farquhar et al., section 4)."""
    del baseline
    log_prob, behaviour_log_prob, advantage = _masked(
        valid, log_prob, behaviour_log_prob, advantage
    )
    log_ratio = log_prob - behaviour_log_prob
    total = jnp.cumsum(log_ratio)
    return jnp.sum((jnp.exp(total) - jnp.exp(total - log_ratio)) * advantage)


def clipped(
    log_prob: Float[Array, "time"],
    behaviour_log_prob: Float[Array, "time"],
    advantage: Float[Array, "time"],
    baseline: Float[Array, "time"],
    valid: Bool[Array, "time"],
) -> Float[Array, ""]:
    """Return PPO's objective with ε = 0.2 (see `importance_weighted`)."""
    del baseline
    return jnp.sum(importance_weighted(log_prob, behaviour_log_prob, advantage, valid, clip=CLIP))


ESTIMATORS: dict[str, Callable[..., Float[Array, ""]]] = {
    "likelihood_ratio": likelihood_ratio,
    "dice": dice,
    "loaded_dice": loaded_dice,
    "naive": naive,
    "clipped": clipped,
}


def importance_weighted(
    log_prob: Float[Array, "*shape"],
    behaviour_log_prob: Float[Array, "*shape"],
    advantage: Float[Array, "*shape"],
    valid: Bool[Array, "*shape"],
    *,
    clip: Scalar | None = None,
) -> Float[Array, "*shape"]:
    """Return the surrogate ρ_t A_t, ρ_t = π(a_t)/π_old(a_t), of each step; 0 on padding.

    Args:
        log_prob: of the actions under the policy being trained.
        behaviour_log_prob: of the actions under the policy that sampled them.
        advantage: of each action.
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
    return smaller(ratio * advantage, within(ratio, 1 - clip, 1 + clip) * advantage)


ControlVariateKind = Literal["standard", "conservative", "aggressive"]


def control_variate_weight(
    advantage: Float[Array, "*shape"], estimate: Float[Array, "*shape"], kind: ControlVariateKind
) -> Float[Array, "*shape"]:
    """Return η, how much of the critic's advantage Q-Prop subtracts (Gu et al. 2017, section 3.2).

    Args:
        advantage: from returns.
        estimate: Ā(s, a) = ∇_a Q(s, μ(s)) · (a - μ(s)), the critic's.
        kind: "standard" 1; "conservative" 1 where the two agree in sign, else 0; "aggressive"
            their common sign, 1 or -1. The last two look at the action, which leaves a bias.
    """
    if kind == "standard":
        return jnp.ones_like(advantage)
    agree = advantage * estimate
    return (agree > 0).astype(agree.dtype) if kind == "conservative" else jnp.sign(agree)


def control_variate(
    control: Float[Array, "*shape action"],
    mean: Float[Array, "*shape action"],
    behaviour_mean: Float[Array, "*shape action"],
    valid: Bool[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """Return what policy gradients lose when η Ā is subtracted from the advantages.

    Q-Prop's second term (Gu et al. 2017, equation 6), η ∇_a Q(s, μ_old) · (μ - μ_old), linear in
    the mean action μ: then it makes up for E[ρ η Ā] in every derivative, not only in the first.

    Args:
        control: η ∇_a Q, constants.
        mean: of the policy being trained.
        behaviour_mean: of the policy that sampled.
        valid: steps that were played.
    """
    return jnp.where(valid, jnp.sum(control * (mean - behaviour_mean), axis=-1), 0.0)
