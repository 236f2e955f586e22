"""Twin delayed deep deterministic policy gradients, TD3, on one task or on several jointly."""

from metajax import outer as learners
from metajax._checks import checked
from metajax.algorithms.off_policy import off_policy, step_by_step
from metajax.outer import OffPolicyLearner
from metajax.parts import check_made
from metajax.types import Algorithm, Env, Part, Policy, Scalar


@checked
def td3(
    env: Env,
    policy: Policy,
    *,
    learner: Part[OffPolicyLearner] = learners.td3(),
    episodes: int = 1,
    updates_per_step: Scalar = 1.0,
    batch: int = 256,
    replay_capacity: int = 1_000_000,
    random_steps: int = 25_000,
) -> Algorithm:
    """Return TD3 (Fujimoto et al. 2018): two critics, of which the more cautious one is believed.

    Args:
        env: the environment that all tasks share.
        policy: `deterministic`.
        learner: losses and rates, `metajax.outer.td3`.
        episodes: episodes per task and meta-iteration.
        updates_per_step: update-to-data ratio, gradient steps per environment step.
        batch: remembered steps in each gradient step.
        replay_capacity: environment steps that are kept.
        random_steps: environment steps with uniformly drawn actions, before anything is learned.

    Raises:
        MetajaxError: an option is unknown or out of range, or the learner is not TD3's.
    """
    check_made("TD3", learner, "learner", be=learners.td3)
    return off_policy(
        env,
        step_by_step(env, policy, learner, batch),
        name="td3",
        episodes=episodes,
        updates_per_step=updates_per_step,
        batch=batch,
        replay_capacity=replay_capacity,
        random_steps=random_steps,
    )
