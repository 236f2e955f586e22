"""Meta-reinforcement learning, compiled by JAX.

A segment of training is one XLA program. Physics are part of it, but for C MuJoCo, the default of
robots on a CPU, and MuJoCo Warp, which it calls at every step.

Example:
    >>> import metajax
    >>> family = metajax.make("point-goal", episode_length=10)
    >>> policy = metajax.mlp(family.env.observation_size, family.env.action_space)
    >>> algorithm = metajax.maml(family.env, policy, outer=metajax.outer.adam(), episodes=2)
    >>> result = metajax.train(
    ...     algorithm, family, iterations=1, tasks=2, evaluation=None, report=None
    ... )
    >>> sorted(result.metrics)[:4]
    ['adaptation_kl', 'adaptation_kl_max', 'entropy', 'meta_gradient_norm']

Every algorithm, policy and update rule is here, and in `metajax.algorithms`, `metajax.policies` and
`metajax.rules`. Three names are used twice: `metajax.snail`, `metajax.meta_lstm` and
`metajax.meta_sgd` are the algorithms; the policy is `metajax.policies.snail`, the rules are
`metajax.rules.meta_lstm` and `metajax.rules.meta_sgd`. The other modules in `dir(metajax)` are
imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from metajax import adaptation, algorithms, envs, outer, policies, rules
from metajax._version import __version__
from metajax.algorithms import (
    a2c,
    anil,
    cavia,
    dqn,
    e_maml,
    fomaml,
    learned_optimizer,
    maml,
    maml_dqn,
    meta_lstm,
    meta_sgd,
    mql,
    off_policy_rl2,
    pearl,
    ppo,
    promp,
    q_prop,
    reinforce,
    reptile,
    rl2,
    sac,
    snail,
    td3,
    trpo,
    varibad,
)
from metajax.envs import make
from metajax.envs.rollouts import check_env, rollout
from metajax.errors import MetajaxError
from metajax.policies import (
    conditioned,
    deterministic,
    gru,
    lstm,
    mlp,
    squashed,
    transformer,
    variational,
    window,
)
from metajax.rules import decayed, from_optax, learned_lstm, learned_mlp, sgd, sum_of_rules
from metajax.runs.load import load
from metajax.training import Evaluation, adaptation_curve, evaluate, train
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
    TaskBatch,
    TaskDistribution,
    TaskFamily,
    TrainState,
    Trajectory,
    UpdateRule,
)

if TYPE_CHECKING:
    from metajax import (
        deployment,
        diagnostics,
        export,
        losses,
        plotting,
        presets,
        reference_agents,
        rendering,
        runs,
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
    "TaskBatch",
    "TaskDistribution",
    "TaskFamily",
    "TrainState",
    "Trajectory",
    "UpdateRule",
    "__version__",
    "a2c",
    "adaptation",
    "adaptation_curve",
    "algorithms",
    "anil",
    "cavia",
    "check_env",
    "conditioned",
    "decayed",
    "deployment",
    "deterministic",
    "diagnostics",
    "dqn",
    "e_maml",
    "envs",
    "evaluate",
    "export",
    "fomaml",
    "from_optax",
    "gru",
    "learned_lstm",
    "learned_mlp",
    "learned_optimizer",
    "load",
    "losses",
    "lstm",
    "make",
    "maml",
    "maml_dqn",
    "meta_lstm",
    "meta_sgd",
    "mlp",
    "mql",
    "off_policy_rl2",
    "outer",
    "pearl",
    "plotting",
    "policies",
    "ppo",
    "presets",
    "promp",
    "q_prop",
    "reference_agents",
    "reinforce",
    "rendering",
    "reptile",
    "rl2",
    "rollout",
    "rules",
    "runs",
    "sac",
    "sgd",
    "snail",
    "squashed",
    "sum_of_rules",
    "td3",
    "train",
    "transformer",
    "trpo",
    "variational",
    "varibad",
    "window",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in __all__:  # a module: Matplotlib and Gymnasium take long to import
        return importlib.import_module(f"metajax.{name}")
    raise AttributeError(f"metajax has no {name!r}; see dir(metajax) and help(metajax).")
