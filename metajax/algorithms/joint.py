"""Policy gradients without meta-learning: one policy for all tasks (from scratch, if there is one).

The agents still adapt when they are tested, by a gradient step per round: joint training, then
fine-tuning, is the baseline that a meta-learner has to beat.
"""

from typing import Any

from metajax._options import options_of
from metajax.algorithms.credit import Baseline
from metajax.algorithms.maml import maml
from metajax.losses.policy_gradient import ControlVariate
from metajax.types import Algorithm, Env, Policy

_META = ("credit_exploration", "first_order", "inner_steps", "kl_penalty", "target_kl")
_SETTLED = (*_META, "outer", "rematerialize")
_NO_PPO, _NO_TRPO = ("outer_epochs", "clip"), ("max_kl", "cg_iterations", "cg_damping")


@options_of(maml, without=(*_SETTLED, "baseline", "trace", *_NO_PPO, *_NO_TRPO))
def reinforce(env: Env, policy: Policy, **options: Any) -> Algorithm:
    """Return REINFORCE (Williams 1992): a step of Adam along Σ_t ∇log π(a_t) G_t, no baseline.

    G_t is the discounted return to go; with `normalize_advantages`, in standard deviations from the
    mean of the task's.
    """
    fixed = {"inner_steps": 0, "outer": "adam", "baseline": "none"}
    return maml(env, policy, **fixed, **options)._replace(name="reinforce")


@options_of(maml, without=(*_SETTLED, "baseline", *_NO_PPO, *_NO_TRPO))
def a2c(env: Env, policy: Policy, *, trace: float = 0.95, **options: Any) -> Algorithm:
    """Return advantage actor-critic (Mnih et al. 2016, synchronous): a learned value network.

    Args:
        trace: λ of generalized advantage estimation.
    """
    fixed = {"inner_steps": 0, "outer": "adam", "baseline": "value_network"}
    return maml(env, policy, trace=trace, **fixed, **options)._replace(name="a2c")


@options_of(maml, without=(*_SETTLED, *_NO_TRPO))
def ppo(
    env: Env,
    policy: Policy,
    *,
    baseline: Baseline = "value_network",
    clip: float = 0.2,
    outer_epochs: int = 10,
    trace: float = 0.95,
    **options: Any,
) -> Algorithm:
    """Return proximal policy optimization (Schulman et al. 2017), full-batch epochs.

    Args:
        baseline: "value_network", "linear" (of observation and time) or "none".
        clip: ε of the clipped ratio.
        outer_epochs: gradient steps on the same episodes.
        trace: λ of generalized advantage estimation.
    """
    own = {"baseline": baseline, "clip": clip, "outer_epochs": outer_epochs, "trace": trace}
    return maml(env, policy, inner_steps=0, outer="ppo", **own, **options)._replace(name="ppo")


@options_of(maml, without=(*_SETTLED, *_NO_PPO, "outer_learning_rate"))
def trpo(env: Env, policy: Policy, *, trace: float = 0.97, **options: Any) -> Algorithm:
    """Return trust region policy optimization (Schulman et al. 2015).

    Args:
        trace: λ of generalized advantage estimation.
    """
    fixed = {"inner_steps": 0, "outer": "trpo"}
    return maml(env, policy, trace=trace, **fixed, **options)._replace(name="trpo")


@options_of(trpo)
def q_prop(
    env: Env,
    policy: Policy,
    *,
    control_variate: ControlVariate = "conservative",
    **options: Any,
) -> Algorithm:
    """Return Q-Prop with a trust region (Gu et al. 2017): TRPO, a critic explaining its advantages.

    Args:
        control_variate: "conservative", "aggressive" or "standard", which alone is unbiased;
            "none" is TRPO.
    """
    return trpo(env, policy, control_variate=control_variate, **options)._replace(name="q-prop")
