"""Soft actor-critic (Haarnoja et al. 2018), on one task or on several jointly."""

from metajax import outer as learners
from metajax._checks import checked
from metajax.algorithms.off_policy import off_policy, step_by_step
from metajax.outer import OffPolicyLearner
from metajax.parts import check_made
from metajax.types import Algorithm, Env, Part, Policy, Scalar


@checked
def sac(
    env: Env,
    policy: Policy,
    *,
    learner: Part[OffPolicyLearner] = learners.sac(),
    episodes: int = 1,
    updates_per_step: Scalar = 1.0,
    batch: int = 256,
    replay_capacity: int = 1_000_000,
    random_steps: int = 10_000,
) -> Algorithm:
    """Return soft actor-critic: a stochastic policy that is rewarded for its entropy, too.

    Args:
        env: the environment that all tasks share.
        policy: `squashed`, or `mlp` of discrete actions.
        learner: losses and rates, `metajax.outer.sac`.
        episodes: episodes per task and meta-iteration.
        updates_per_step: update-to-data ratio, gradient steps per environment step.
        batch: remembered steps in each gradient step.
        replay_capacity: environment steps that are kept.
        random_steps: environment steps with uniformly drawn actions, before anything is learned.

    Raises:
        MetajaxError: an option is unknown or out of range, or the learner is not SAC's.
    """
    check_made("SAC", learner, "learner", be=learners.sac)
    return off_policy(
        env,
        step_by_step(env, policy, learner, batch),
        name="sac",
        episodes=episodes,
        updates_per_step=updates_per_step,
        batch=batch,
        replay_capacity=replay_capacity,
        random_steps=random_steps,
    )
