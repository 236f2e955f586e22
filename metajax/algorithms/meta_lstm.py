"""The LSTM meta-learner (Ravi & Larochelle 2017), on policy gradients."""

from metajax import rules
from metajax._checks import checked
from metajax.adaptation import InnerLoop, gradient_steps
from metajax.algorithms.maml import maml
from metajax.outer import OuterStep, trpo
from metajax.parts import check_made
from metajax.types import Algorithm, Env, Part, Policy


@checked
def meta_lstm(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = gradient_steps(rule=rules.meta_lstm(0.1)),
    outer: OuterStep = trpo(),
    inner_steps: int = 1,
    episodes: int = 20,
    first_order: bool = True,
    rematerialize: bool = False,
) -> Algorithm:
    """Return Meta-LSTM: MAML with the rule `metajax.rules.meta_lstm`.

    The paper trains on images; here the gradient is the policy gradient, and the loss minus the
    mean reward of a step.

    Args:
        env: the environment that all tasks share.
        policy: policy that is adapted, without a memory.
        inner: adaptation within a task, by this rule.
        outer: outer step on the adapted policies' surrogate.
        inner_steps: adaptation steps K during meta-training.
        episodes: episodes per task and adaptation step.
        first_order: whether the gradients and losses that the LSTM reads are treated as constants,
            as in the paper.
        rematerialize: whether inner steps are computed again in the backward pass, which saves
            memory when there are many.

    Raises:
        MetajaxError: an option is unknown or out of range, or
            the rule of `inner` is another.
    """
    check_made("Meta-LSTM", inner, "inner", "rule", be=rules.meta_lstm)
    algorithm = maml(
        env,
        policy,
        inner=inner,
        outer=outer,
        inner_steps=inner_steps,
        episodes=episodes,
        first_order=first_order,
        rematerialize=rematerialize,
    )
    return algorithm._replace(name="meta-lstm")
