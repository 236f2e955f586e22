"""Policy gradients without meta-learning: one policy for all tasks (from scratch, if there is one).

The agents still adapt when they are tested, by a gradient step per round: joint training, then
fine-tuning, is the baseline that a meta-learner has to beat. Nothing in joint training makes a
gradient step of some length the right one: fine-tuning takes natural gradients, whose length does
not depend on how far the standard deviation has shrunk. A step is as long where the gradient is
noise: of ten times the trust region of TRPO, the fifth took `reinforce` on `point-goal` from -37 to
-125, and no step of TRPO's own did harm.
"""

from metajax import outer as steps
from metajax._checks import checked
from metajax.adaptation import (
    InnerLoop,
    Objective,
    gradient_steps,
    policy_gradient,
    value_network,
)
from metajax.adaptation import q_prop as control_variate
from metajax.algorithms.maml import maml
from metajax.errors import MetajaxError
from metajax.outer import OuterStep
from metajax.parts import check_made, made_with
from metajax.rules import sgd
from metajax.types import Algorithm, Env, Part, Policy


def fine_tuning(objective: Part[Objective]) -> Part[InnerLoop]:
    """Return natural-gradient steps of 0.01 nats."""
    return gradient_steps(objective, rule=sgd(1.0), max_kl=0.01)


def _jointly(
    name: str, env: Env, policy: Policy, inner: Part[InnerLoop], outer: OuterStep, episodes: int
) -> Algorithm:
    algorithm = maml(env, policy, inner=inner, outer=outer, inner_steps=0, episodes=episodes)
    return algorithm._replace(name=name)


@checked
def reinforce(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = fine_tuning(policy_gradient(critic=None)),
    outer: OuterStep = steps.adam(1e-3),
    episodes: int = 20,
) -> Algorithm:
    """Return REINFORCE (Williams 1992): a step of Adam along Σ_t ∇log π(a_t) G_t, no baseline.

    G_t is the discounted return to go; with `normalize_advantages`, in standard deviations from the
    mean of the task's.

    Args:
        env: the environment that all tasks share.
        policy: without a memory.
        inner: objective of training, without a critic, and fine-tuning on it when agents are
            tested.
        outer: outer step, of Adam.
        episodes: episodes per task and meta-iteration.

    Raises:
        MetajaxError: an option is unknown or out of range, or a part is not REINFORCE's.
    """
    if made_with(inner, "objective", "critic") is not None:
        raise MetajaxError("inner.objective.critic is a critic; in REINFORCE it must be None.")
    check_made("REINFORCE", outer, "outer", be=steps.adam)
    return _jointly("reinforce", env, policy, inner, outer, episodes)


@checked
def a2c(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = fine_tuning(policy_gradient(critic=value_network(), gae_lambda=0.95)),
    outer: OuterStep = steps.adam(1e-3),
    episodes: int = 20,
) -> Algorithm:
    """Return advantage actor-critic (Mnih et al. 2016, synchronous): a learned value network.

    Args:
        env: the environment that all tasks share.
        policy: without a memory.
        inner: objective of training, and fine-tuning on it when agents are tested.
        outer: outer step, of Adam.
        episodes: episodes per task and meta-iteration.

    Raises:
        MetajaxError: an option is unknown or out of range, or a part is not A2C's.
    """
    check_made("A2C", inner, "inner", "objective", "critic", be=value_network)
    check_made("A2C", outer, "outer", be=steps.adam)
    return _jointly("a2c", env, policy, inner, outer, episodes)


@checked
def ppo(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = fine_tuning(policy_gradient(critic=value_network(), gae_lambda=0.95)),
    outer: OuterStep = steps.ppo(epochs=10, clip=0.2),
    episodes: int = 20,
) -> Algorithm:
    """Return proximal policy optimization (Schulman et al. 2017), full-batch epochs.

    Args:
        env: the environment that all tasks share.
        policy: without a memory.
        inner: objective of training, and fine-tuning on it when agents are tested.
        outer: outer step, `metajax.outer.ppo`.
        episodes: episodes per task and meta-iteration.

    Raises:
        MetajaxError: an option is unknown or out of range, or the outer step is not PPO's.
    """
    check_made("PPO", outer, "outer", be=steps.ppo)
    return _jointly("ppo", env, policy, inner, outer, episodes)


@checked
def trpo(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = fine_tuning(policy_gradient(gae_lambda=0.97)),
    outer: OuterStep = steps.trpo(),
    episodes: int = 20,
) -> Algorithm:
    """Return trust region policy optimization (Schulman et al. 2015).

    Args:
        env: the environment that all tasks share.
        policy: without a memory.
        inner: objective of training, and fine-tuning on it when agents are tested.
        outer: outer step, `metajax.outer.trpo`.
        episodes: episodes per task and meta-iteration.

    Raises:
        MetajaxError: an option is unknown or out of range, or the outer step is not TRPO's.
    """
    check_made("TRPO", outer, "outer", be=steps.trpo)
    return _jointly("trpo", env, policy, inner, outer, episodes)


@checked
def q_prop(
    env: Env,
    policy: Policy,
    *,
    inner: Part[InnerLoop] = fine_tuning(
        policy_gradient(gae_lambda=0.97, control_variate=control_variate())
    ),
    outer: OuterStep = steps.trpo(),
    episodes: int = 20,
) -> Algorithm:
    """Return Q-Prop with a trust region (Gu et al. 2017): TRPO, a critic explaining its advantages.

    Args:
        env: the environment that all tasks share.
        policy: without a memory.
        inner: objective of training, with a control variate, and fine-tuning on it when
            agents are tested.
        outer: outer step, `metajax.outer.trpo`.
        episodes: episodes per task and meta-iteration.

    Raises:
        MetajaxError: an option is unknown or out of range, or the outer step is not TRPO's.
    """
    check_made("Q-Prop", outer, "outer", be=steps.trpo)
    return _jointly("q-prop", env, policy, inner, outer, episodes)
