"""Adaptation by an off-policy learner, to a task's own steps and to those of meta-training.

Of the latter those count that could be of the new task: a logistic regression tells the two apart
by their contexts, and its odds are importance weights (Fakoor et al. 2020, section 3).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from metajax.errors import check_at_least, check_positive
from metajax.outer.off_policy import Batch, OffPolicyLearner, State
from metajax.outer.trust_region import conjugate_gradient
from metajax.parts import part
from metajax.policies.history import HistoryEncoder
from metajax.replay import TimedSteps, Windows, contexts, steps_in_context, windows_at
from metajax.types import MetaParams, Params, Part, Scalar

NEWTON_STEPS, HALVINGS = 20, 8
_dot = functools.partial(jnp.matmul, precision="highest")


class ReplayAdaptation(NamedTuple):
    """How an agent learns a task from its own steps and from some of meta-training.

    - `kept_steps`: steps of meta-training that agents keep, `MetaParams.experience`, as windows;
    - `adapt(learner, encoder, meta_params, adapted, steps, valid, key) -> adapted`: learn from
      those of `steps[item]` that are `valid`. Parameters of policies are {"encoder", "policy"},
      those of critics `networks`.
    """

    kept_steps: int
    adapt: Callable[..., MetaParams]


def fit_propensity(
    new: Float[Array, "step feature"],
    valid: Bool[Array, "step"],
    old: Float[Array, "item feature"],
    *,
    penalty: Scalar,
) -> Float[Array, "weight"]:
    """Return the weights w of a logistic regression that tells old features x from new ones.

    The logarithm of P(old)/P(new) is wᵀ(x, 1). w minimizes ½ mean log(1 + e^{wᵀx}) of what is new +
    ½ mean log(1 + e^{-wᵀx}) of what is old + c·‖w‖², the bias apart: both count the same, as if
    there were equally many. By Newton's method, each step halved as often as is best.

    Args:
        new: of the new task.
        valid: which of them count; at least one.
        old: of meta-training.
        penalty: weight c > 0.
    """
    x = jnp.concatenate([new, old])
    x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    of_new = valid.astype(x.dtype)
    of_new = of_new / jnp.sum(of_new)
    of_old = jnp.full(len(old), 1 / len(old), x.dtype)
    share = jnp.concatenate([of_new, of_old]) / 2
    label = jnp.concatenate([-jnp.ones_like(of_new), jnp.ones_like(of_old)])
    ridge = jnp.full(x.shape[1], penalty, x.dtype).at[-1].set(0.0)
    steps = jnp.asarray([0.0, *(0.5**k for k in range(HALVINGS))], x.dtype)

    def loss(w):
        return jnp.sum(share * jax.nn.softplus(-label * _dot(x, w))) + jnp.sum(ridge * w**2)

    def newton(_, w):
        chance = jax.nn.sigmoid(-label * _dot(x, w))  # of the other label
        slope = 2 * ridge * w - _dot(share * label * chance, x)
        curvature = share * chance * (1 - chance)
        hessian = _dot(x.T, curvature[:, None] * x) + 2 * jnp.diag(ridge)
        step = conjugate_gradient(lambda v: _dot(hessian, v), slope, iterations=len(w))
        tried = w[None] - steps[:, None] * step[None]
        return tried[jnp.argmin(jax.vmap(loss)(tried))]

    return jax.lax.fori_loop(0, NEWTON_STEPS, newton, jnp.zeros(x.shape[1], x.dtype))


def propensity(
    weights: Float[Array, "weight"], old: Float[Array, "item feature"], *, clip: Scalar
) -> Float[Array, "item"]:
    """Return β = P(new)/P(old) of features of meta-training, as importance weights of mean 1.

    Args:
        weights: from `fit_propensity`.
        old: of meta-training.
        clip: β that larger ones are clipped to, before they are divided by their mean.
    """
    log_odds = -_dot(old, weights[:-1]) - weights[-1]
    beta = jnp.exp(jnp.minimum(log_odds, jnp.log(jnp.asarray(clip, log_odds.dtype))))
    return beta / jnp.mean(beta)


def effective_sample_size(weight: Float[Array, "item"]) -> Float[Array, ""]:
    """Return (Σβ)²/(m·Σβ²) of m weights: 1 where they are equal, 1/m where one of them counts."""
    return jnp.mean(weight) ** 2 / jnp.mean(weight**2)


def pulled(anchor: PyTree[Array], moved: PyTree[Array], strength: Scalar) -> PyTree[Array]:
    """Return the proximal step θ̂ + (θ - θ̂)/(1 + strength), that of (strength/2)·‖θ - θ̂‖².

    It is the minimum of that and of ½‖x - θ‖², whatever the strength: 0 leaves θ as it is, and an
    infinite one gives the very bits of θ̂.

    Args:
        anchor: θ̂.
        moved: θ.
        strength: at least 0; may be infinite.
    """
    share = 1 / (1 + jnp.asarray(strength, float))

    def pull(old, new):
        kept = share.astype(new.dtype)
        near = jnp.where(kept < 1, old + kept * (new - old), new)
        return jnp.where(kept > 0, near, old)

    return jax.tree.map(pull, anchor, moved)


@part
def two_phases(
    *,
    steps: int = 10,
    replay_steps: int = 100,
    batch: int = 256,
    kept_steps: int = 1000,
    penalty: Scalar = 0.05,
    clip: Scalar = 7.0,
    pull: Scalar | None = None,
    proximal_rate: Scalar = 0.1,
) -> Part[ReplayAdaptation]:
    """Return the adaptation of Meta-Q-Learning (Fakoor et al. 2020, section 3.2).

    First gradient steps of the learner on the new task's steps, then on those of meta-training,
    weighted by β, their odds of being of the new task. Each is followed by the proximal step
    θ ← θ̂ + (θ - θ̂)/(1 + ηλ) towards what meta-training learned, with λ = 1 - ESS, the effective
    sample size of β: what is unlike all that is known may move little, what is like it is free.
    θ are the policy, the encoder of contexts and the critics; their slow copies follow them. The
    paper's λ/2·‖θ - θ̂‖² is in the loss, whose gradients Adam scales; here λ is in units of steps:
    parameters come no further than 1/(ηλ) of the optimizer's steps away.

    Features are contexts by the encoder as meta-training left it. Optimizers start anew.

    Args:
        steps: gradient steps on the new task's own steps; 0 for none.
        replay_steps: gradient steps on those of meta-training that follow; 0 for none.
        batch: steps in each gradient step, drawn uniformly, with replacement.
        kept_steps: steps of meta-training that agents keep, drawn uniformly from the replay.
        penalty: weight c of the squared weights of the logistic regression.
        clip: β that larger ones are clipped to, before they are divided by their mean.
        pull: weight λ of the proximal term; None for 1 - ESS.
        proximal_rate: step size η of the proximal step, in units of 1/λ.

    Raises:
        MetajaxError: an option is out of range.
    """
    check_at_least(0, steps=steps, replay_steps=replay_steps, proximal_rate=proximal_rate)
    check_at_least(1, batch=batch, kept_steps=kept_steps)
    check_positive(penalty=penalty, clip=clip)
    if pull is not None:
        check_at_least(0, pull=pull)

    def adapt(
        learner: OffPolicyLearner,
        encoder: HistoryEncoder,
        meta_params: MetaParams,
        adapted: MetaParams,
        own: TimedSteps,
        valid: Bool[Array, "item"],
        key: Key[Array, ""],
    ) -> MetaParams:
        init_key, learn_key = jax.random.split(key)
        kept: Windows = meta_params.experience
        every = windows_at(own, jnp.arange(len(valid)), encoder.history)
        known = meta_params.policy["encoder"]
        new, old = (contexts(encoder, known, windows) for windows in (every, kept))
        fitted = fit_propensity(new, valid, old, penalty=penalty)
        weight = propensity(fitted, old, clip=clip)
        strength = 1 - effective_sample_size(weight) if pull is None else pull
        played, count = jnp.argsort(~valid, stable=True), jnp.sum(valid)

        def step(index, carry):
            params, state = carry
            draw_key, step_key = jax.random.split(jax.random.fold_in(learn_key, index))
            first = index < steps
            at = jax.random.randint(draw_key, (batch,), 0, jnp.where(first, count, kept_steps))
            # Of the other phase any steps, which do not count.
            mine, theirs = played[jnp.minimum(at, count - 1)], jnp.minimum(at, kept_steps - 1)
            drawn = jax.tree.map(
                lambda own, old: jnp.where(first, own[mine], old[theirs]), every, kept
            )
            beta = jnp.where(first, jnp.ones(batch, weight.dtype), weight[theirs])
            policy, of_encoder, state, _ = learner.improve(
                params["policy"],
                params["encoder"],
                state,
                lambda params: Batch(steps_in_context(encoder, params, drawn), 0.0, beta),
                step_key,
            )
            anchor = meta_params.policy, meta_params.critic.get("critic", ())
            moved = {"encoder": of_encoder, "policy": policy}, state.get("critic", ())
            params, critic = pulled(anchor, moved, proximal_rate * strength)
            return params, state | ({"critic": critic} if "critic" in state else {})

        params = adapted.policy
        state = learner.init(init_key, params["policy"], params["encoder"]) | adapted.critic
        params, state = jax.lax.fori_loop(0, steps + replay_steps, step, (params, state))
        return dataclasses.replace(adapted, policy=params, critic=networks(state))

    adapts = steps + replay_steps > 0
    return Part(lambda env, policy: ReplayAdaptation(kept_steps, adapt if adapts else _as_it_was))


def networks(state: State) -> dict[str, Params]:
    """Return the critics of a learner's state and its slow copies, without optimizers."""
    return {name: state[name] for name in ("critic", "target") if name in state}


def _as_it_was(learner, encoder, meta_params, adapted, own, valid, key) -> MetaParams:
    del learner, encoder, meta_params, own, valid, key
    return adapted


REPLAY_ADAPTATIONS: dict[str, Callable[..., Part[ReplayAdaptation]]] = {"two-phases": two_phases}
