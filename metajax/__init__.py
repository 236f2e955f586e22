"""Meta-reinforcement learning as one XLA program.

Example:
    >>> import metajax
    >>> family = metajax.make("point-goal", episode_length=10)
    >>> policy = metajax.mlp(family.env.observation_size, family.env.action_space)
    >>> algorithm = metajax.maml(family.env, policy, outer="adam", episodes=2)
    >>> result = metajax.train(algorithm, family, iterations=1, tasks=2, evaluation=None)
    >>> sorted(result.metrics)[:4]
    ['adaptation_kl', 'adaptation_kl_max', 'entropy', 'meta_gradient_norm']
"""

from metajax._version import __version__
from metajax.algorithms import maml
from metajax.envs import make
from metajax.errors import MetajaxError
from metajax.evaluation import adaptation_curve, evaluate
from metajax.policies import mlp
from metajax.rollout import check_env, rollout
from metajax.rules import fixed, sgd
from metajax.train import Evaluation, train
from metajax.types import (
    Agent,
    Algorithm,
    Continuous,
    Discrete,
    Env,
    EnvState,
    Policy,
    PolicyOutput,
    StepInput,
    TaskDistribution,
    TaskFamily,
    TrainState,
    Trajectory,
    UpdateRule,
)

__all__ = [
    "Agent",
    "Algorithm",
    "Continuous",
    "Discrete",
    "Env",
    "EnvState",
    "Evaluation",
    "MetajaxError",
    "Policy",
    "PolicyOutput",
    "StepInput",
    "TaskDistribution",
    "TaskFamily",
    "TrainState",
    "Trajectory",
    "UpdateRule",
    "__version__",
    "adaptation_curve",
    "check_env",
    "evaluate",
    "fixed",
    "make",
    "maml",
    "mlp",
    "rollout",
    "sgd",
    "train",
]
