"""Adaptation: how an agent learns inside a task, and the parts that it is made of."""

from metajax.adaptation.advantages import Advantages
from metajax.adaptation.context import BELIEF_MODELS, BeliefModel, evidence_lower_bound
from metajax.adaptation.control_variates import CONTROL_VARIATES, ControlVariate, q_prop
from metajax.adaptation.critics import CRITICS, Critic, linear, value_network
from metajax.adaptation.exploration import EXPLORATIONS, Exploration, bilevel
from metajax.adaptation.gradient_steps import (
    INNER_LOOPS,
    Adapted,
    InnerLoop,
    collect_batch,
    fit_critics,
    gradient_steps,
    measured,
    metric_names,
)
from metajax.adaptation.objectives import (
    OBJECTIVES,
    Experience,
    Objective,
    behaviour_log_probs,
    control,
    evaluate_actions,
    policy_gradient,
    q_learning,
)
from metajax.adaptation.posterior import (
    CONTEXT_ENCODERS,
    ContextEncoder,
    Evidence,
    nothing,
    product_of_gaussians,
)
from metajax.adaptation.propensity import REPLAY_ADAPTATIONS, ReplayAdaptation, two_phases
from metajax.adaptation.trials import (
    TRIAL_OBJECTIVES,
    TrialLearner,
    TrialObjective,
    trial_learner,
    whole_trials,
    without_gaps,
)

__all__ = [
    "BELIEF_MODELS",
    "CONTEXT_ENCODERS",
    "CONTROL_VARIATES",
    "CRITICS",
    "EXPLORATIONS",
    "INNER_LOOPS",
    "OBJECTIVES",
    "REPLAY_ADAPTATIONS",
    "TRIAL_OBJECTIVES",
    "Adapted",
    "Advantages",
    "BeliefModel",
    "ContextEncoder",
    "ControlVariate",
    "Critic",
    "Evidence",
    "Experience",
    "Exploration",
    "InnerLoop",
    "Objective",
    "ReplayAdaptation",
    "TrialLearner",
    "TrialObjective",
    "behaviour_log_probs",
    "bilevel",
    "collect_batch",
    "control",
    "evaluate_actions",
    "evidence_lower_bound",
    "fit_critics",
    "gradient_steps",
    "linear",
    "measured",
    "metric_names",
    "nothing",
    "policy_gradient",
    "product_of_gaussians",
    "q_learning",
    "q_prop",
    "trial_learner",
    "two_phases",
    "value_network",
    "whole_trials",
    "without_gaps",
]


def __dir__() -> list[str]:
    return __all__
