"""E-MAML (Stadie et al. 2018): MAML that credits exploration with what it leads to."""

from typing import Any

from metajax._options import options_of
from metajax.algorithms.maml import maml
from metajax.types import Algorithm, Env, Policy


@options_of(maml, without=("credit_exploration", "estimator", "first_order"))
def e_maml(env: Env, policy: Policy, **options: Any) -> Algorithm:
    """Return E-MAML: the gradient of what adaptation on sampled episodes achieves, all of it.

    The parameters θ shape the adapted policy in two ways: through the steps on given episodes, and
    through which episodes there are to learn from. MAML's gradient is the first; to the second
    each episode before adaptation contributes its score ∇log π_θ(τ), times what adaptation then
    achieved (less the mean of the other tasks).

    The episodes being accounted for, an inner step is differentiated as what it is on given
    episodes: the estimator is `naive`. Then, for undiscounted returns that are not normalized and
    no baseline fitted to the same episodes, the meta-gradient is unbiased for any number of
    episodes of one length.
    """
    algorithm = maml(env, policy, credit_exploration=True, estimator="naive", **options)
    return algorithm._replace(name="e-maml")
