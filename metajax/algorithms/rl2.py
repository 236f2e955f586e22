"""RL² (Duan et al. 2016): an agent that adapts by remembering its trial."""

from metajax._checks import checked
from metajax.adaptation import TrialObjective, trial_learner, whole_trials
from metajax.outer import OuterStep, ppo, trpo
from metajax.types import Algorithm, Env, Part, Policy, TaskBatch, TrainState


@checked
def rl2(
    env: Env,
    policy: Policy,
    *,
    objective: Part[TrialObjective] = whole_trials(),
    outer: OuterStep = ppo(1e-3, epochs=4, minibatches=4, clip=0.2, max_gradient_norm=1.0),
    episodes: int = 2,
) -> Algorithm:
    """Return RL²: a policy with a memory, trained on whole trials.

    Example:
        >>> import jax
        >>> import metajax
        >>> family = metajax.make("bernoulli-bandit", arms=5)
        >>> policy = metajax.gru(family.env.observation_size, family.env.action_space)
        >>> algorithm = metajax.rl2(family.env, policy, episodes=10)
        >>> jax.tree.map(lambda x: x.shape, algorithm.agent.initial_memory())
        [(64,)]

    Args:
        env: the environment that all tasks share.
        policy: policy with a memory and a critic, such as `metajax.policies.gru`; one of its own
            where the outer step is a trust region.
        objective: objective on a trial.
        outer: outer step on all trials: clipped epochs in minibatches of trials, or a trust region
            as in the paper.
        episodes: episodes of a trial.

    Raises:
        MetajaxError: an option is unknown or out of range, the policy was made for another
            environment, or it has no critic of the kind that is needed.
    """
    learner = trial_learner(
        env, policy, objective=objective.build(env, policy), outer=outer, episodes=episodes
    )

    def init(key, tasks) -> TrainState:
        del tasks
        return learner.init(key)

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        return learner.improve(state, learner.collect(state.meta_params, tasks.task, key))

    return Algorithm(init, update, learner.agent, "rl2", learner.trial, learner.metrics)


@checked
def snail(
    env: Env,
    policy: Policy,
    *,
    objective: Part[TrialObjective] = whole_trials(),
    outer: OuterStep = trpo(),
    episodes: int = 2,
) -> Algorithm:
    """Return SNAIL (Mishra et al. 2018, section 5.2): RL² whose memory looks back at its trial.

    Args:
        env: the environment that all tasks share.
        policy: policy with a memory and a critic, such as `metajax.policies.snail`.
        objective: objective on a trial.
        outer: outer step on all trials; a trust region, as in the paper.
        episodes: episodes of a trial.

    Raises:
        MetajaxError: as in `rl2`.
    """
    algorithm = rl2(env, policy, objective=objective, outer=outer, episodes=episodes)
    return algorithm._replace(name="snail")
