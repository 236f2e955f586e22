"""Experiments by name: which options a pair of names has, their tuned values, and how to build it.

A configuration is plain data: three names, and five groups of keyword arguments for five
factories. It is what a run directory keeps and what the command line edits.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from metajax._checks import check_options
from metajax.algorithms import ALGORITHMS
from metajax.envs import ENGINES, FAMILIES, VARIANTS, make
from metajax.envs.physics import BACKENDS
from metajax.errors import MetajaxError, brief, unknown
from metajax.policies import gru, lstm, mlp, snail, transformer, variational, window
from metajax.rules import RuleName
from metajax.train import Evaluation, check_counts, train
from metajax.types import Algorithm, TaskFamily

Config = dict[str, Any]

_NAMES = ("algorithm_name", "family_name", "policy_name")
GROUPS = ("algorithm", "policy", "family", "training", "evaluation")

# `train` arguments that are no part of an experiment: they say where and how to watch. How long a
# trial is follows from the rest.
_NOT_OPTIONS = {"algorithm", "family", "evaluation", "run_directory", "resume", "config", "report"}
_NOT_OPTIONS |= {"started", "trial_length"}

# Ten pulls of an arm, one after the other.
_PULLS = {
    "algorithm": {"episodes": 10},
    "training": {"iterations": 400, "tasks": 1000},
    "evaluation": {"every": 100, "tasks": 1000, "final_tasks": 10_000},
}

PRESETS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("maml", "halfcheetah-dir"): {
        # An initial standard deviation of 1 drowns the task in control cost.
        "policy": {"initial_std": 0.5},
        "family": {"episode_length": 100},
        "algorithm": {
            "outer": "ppo",
            "inner_learning_rate": 0.2,
            "outer_learning_rate": 1.5e-3,
        },
        # There are only two tasks: a small batch gives more meta-iterations for the same steps.
        "training": {"iterations": 250, "tasks": 6},
        "evaluation": {"every": 50, "tasks": 20, "episodes": 20},
    },
    ("maml", "halfcheetah-vel"): {
        "policy": {"initial_std": 0.5},
        "family": {"episode_length": 100},
        "algorithm": {
            "outer": "ppo",
            "episodes": 10,
            "inner_learning_rate": 0.2,
            "outer_learning_rate": 1.5e-3,
        },
        "training": {"iterations": 200, "tasks": 20},
        "evaluation": {"every": 50, "tasks": 20, "episodes": 20},
    },
    ("maml", "point-goal"): {
        # The step that can be taken without losing the goal shrinks with the variance, and so does
        # what the unadapted policy may change between two samplings: several epochs on the same
        # episodes let it run away.
        "policy": {"initial_std": 0.045},
        "algorithm": {
            "outer": "adam",
            "inner_learning_rate": 0.04,
            "inner_learning_rate_decay": 0.25,
            "outer_learning_rate": 5e-4,
            "trace": 0.95,
        },
        "training": {"iterations": 500, "tasks": 40},
        "evaluation": {"every": 100, "tasks": 40, "episodes": 20, "final_tasks": 400},
    },
    # As with MAML: what later epochs gain on old episodes, the unadapted policy pays for.
    ("promp", "point-goal"): {"algorithm": {"outer_learning_rate": 2.5e-4, "outer_epochs": 2}},
    # The gradient of a log-probability grows as the standard deviation shrinks.
    ("learned-optimizer", "point-goal"): {"algorithm": {"inner_learning_rate": 0.003}},
    ("dqn", "cartpole-params"): {
        "policy": {"activation": "relu"},
        "family": {"episode_length": 200},
        "algorithm": {
            "episodes": 1,
            "updates": 100,
            "batch": 128,
            "outer_learning_rate": 5e-4,
            "target_period": 200,
            "replay_capacity": 300_000,
            # Of the steps that look alike few end in a fall: clipped errors leave them out.
            "error_clip": None,
            # Fine-tuning an agent that balances can only hurt it.
            "inner_learning_rate": 1e-4,
        },
        "training": {"iterations": 200, "tasks": 16},
        "evaluation": {"every": 50, "tasks": 40, "episodes": 10, "mode": True},
    },
    ("maml", "reacher-goal"): {
        "policy": {"initial_std": 0.5},
        "algorithm": {"outer": "ppo", "episodes": 10},
        "training": {"iterations": 200, "tasks": 20},
        "evaluation": {"every": 50, "tasks": 20, "episodes": 20},
    },
    ("rl2", "halfcheetah-vel"): {
        "policy": {"initial_std": 0.5},
        "algorithm": {
            "chunk": 100,
            "minibatches": 20,
            "outer_learning_rate": 5e-4,
            # Control costs: the standard deviation has to shrink, but not at once.
            "entropy_weight": 0.005,
        },
        "training": {"iterations": 1000, "tasks": 40},
        "evaluation": {"every": 100, "tasks": 60},
    },
    ("rl2", "bernoulli-bandit"): _PULLS,
    ("snail", "bernoulli-bandit"): _PULLS,
    ("varibad", "bernoulli-bandit"): _PULLS,
}


# What goes with an outer step, where it is not what goes with the one of the pair's preset: by
# algorithm, family and outer step, or on any family.
OF_OUTER: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {
    # A trust region is as long at any standard deviation: the literature's values serve. Not for
    # half-cheetahs, whose control costs drown the task at a deviation of 1: -14 after one step in
    # place of 82, and -78 in place of -69.
    ("maml", "point-goal", "trpo"): {
        "policy": {"initial_std": 1.0},
        "algorithm": {"inner_learning_rate": 0.1, "inner_learning_rate_decay": 0.5, "trace": 1.0},
        "training": {"tasks": 20},
    },
    ("maml", "reacher-goal", "trpo"): {
        "policy": {"initial_std": 1.0},
        "algorithm": {"inner_learning_rate": 0.1, "inner_learning_rate_decay": 0.5},
    },
    ("rl2", "trpo"): {"policy": {"critic": "separate"}},  # it learns in epochs of its own
}

# Nothing in joint training makes a gradient step of some length the right one: fine-tuning takes
# natural gradients, whose length does not depend on how far the standard deviation has shrunk. A
# step is as long where the gradient is noise: of ten times the trust region of TRPO, the fifth took
# `reinforce` on `point-goal` from -37 to -125, and no step of TRPO's own did harm.
_FINE_TUNED = {
    "algorithm": {
        "inner_learning_rate": 1.0,
        "inner_learning_rate_decay": 1.0,
        "inner_max_kl": 0.01,
    }
}

# Policies by name; those of memory agents hear of each step what came of it.
_MEMORIES = {f.__name__: f for f in (gru, lstm, snail, transformer, window)}
POLICIES: dict[str, Callable] = {"mlp": mlp, **_MEMORIES, "variational": variational}
# Of the algorithms that need one, their own one first; all others train "mlp".
MEMORY_AGENTS = {
    "rl2": tuple(_MEMORIES),
    "snail": ("snail", *(name for name in _MEMORIES if name != "snail")),
    "varibad": ("variational",),
}

# What an algorithm needs on any family, over MAML's own presets if it adapts by gradients.
OF_ALGORITHM: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(("reinforce", "a2c", "ppo", "trpo", "q-prop"), _FINE_TUNED),
    "cavia": {"policy": {"context": 2}, "algorithm": {"inner_learning_rate": 1.0}},
    "learned-optimizer": {"algorithm": {"inner_learning_rate": 0.03, "outer_learning_rate": 0.01}},
    "reptile": {"algorithm": {"outer_learning_rate": 0.1}},  # a fraction, not Adam's rate
    "snail": {"policy": {"critic": "separate"}},  # as a trust region asks for
}


class Experiment(NamedTuple):
    """What a configuration describes: `train(algorithm, family, evaluation=..., **training)`."""

    algorithm: Algorithm
    family: TaskFamily
    training: dict[str, Any]
    evaluation: Evaluation


def policies(algorithm: str) -> tuple[str, ...]:
    """Return the names of the policies that an algorithm can train, its own one first."""
    return MEMORY_AGENTS.get(algorithm, ("mlp",))


def factories(algorithm: str, family: str, policy: str | None = None) -> dict[str, Callable]:
    """Return the callable behind each group of options.

    Args:
        algorithm: by name.
        family: by name.
        policy: one of `policies(algorithm)`; None for the first.

    Raises:
        MetajaxError: one of them does not exist, or the algorithm cannot train the policy.
    """
    if algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    known = policies(algorithm)
    if policy is not None and policy not in known:
        raise unknown(f"policy for {algorithm}", policy, known)
    return {
        "algorithm": ALGORITHMS[algorithm],
        "policy": POLICIES[policy or known[0]],
        "family": FAMILIES[family],
        "training": train,
        "evaluation": Evaluation,
    }


def options(
    algorithm: str, family: str, policy: str | None = None, outer: str | None = None
) -> dict[str, dict[str, inspect.Parameter]]:
    """Return the options of each group as parameters: name, annotation and preset default.

    Options are the keyword arguments of the group's factory that plain data can express. See
    `factories`.

    Args:
        algorithm: by name.
        family: by name.
        policy: one of `policies(algorithm)`; None for the first.
        outer: the outer step whose values are wanted; None for the one of the preset.

    Raises:
        MetajaxError: a name does not exist, or the algorithm has no such outer step.
    """
    if outer is not None and outer not in outer_steps(algorithm):
        raise unknown(f"outer step of {algorithm}", outer, outer_steps(algorithm))
    preset = _preset(algorithm, family, outer)
    found: dict[str, dict[str, inspect.Parameter]] = {}
    for group, factory in factories(algorithm, family, policy).items():
        found[group] = {}
        for name, parameter in inspect.signature(factory).parameters.items():
            positional = parameter.kind is not parameter.KEYWORD_ONLY and group != "evaluation"
            if positional or name in _NOT_OPTIONS:
                continue
            if name == "rule":  # those that have a name
                parameter = parameter.replace(annotation=RuleName)
            default = preset.get(group, {}).get(name, parameter.default)
            found[group][name] = parameter.replace(default=default)
    return found


def outer_steps(algorithm: str) -> tuple[str, ...]:
    """Return the outer steps that an algorithm can be told to take; () if it has but one.

    Raises:
        MetajaxError: the algorithm does not exist.
    """
    if algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    outer = inspect.signature(ALGORITHMS[algorithm]).parameters.get("outer")
    return () if outer is None else get_args(outer.annotation)


def _preset(algorithm: str, family: str, outer: str | None) -> dict[str, dict[str, Any]]:
    """Return the tuned values of a pair of names; what MAML was tuned to serves its relatives."""
    relatives = ("maml", algorithm) if algorithm not in MEMORY_AGENTS else (algorithm,)
    layers = []
    for name in dict.fromkeys(relatives):
        layers += [OF_ALGORITHM.get(name, {}), PRESETS.get((name, family), {})]
        if outer is not None:
            layers += [OF_OUTER.get((name, outer), {}), OF_OUTER.get((name, family, outer), {})]
            layers += [{"algorithm": {"outer": outer}}]
    return {
        group: {name: value for layer in layers for name, value in layer.get(group, {}).items()}
        for group in GROUPS
    }


def choices(family: str) -> dict[str, tuple[str, ...]]:
    """Return the names that a family's options `backend` and `variant` accept, if it has them.

    Raises:
        MetajaxError: the family does not exist.
    """
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    accepted = {
        "backend": ("auto", *ENGINES.get(family, BACKENDS)),
        "variant": VARIANTS.get(family, ()),
    }
    parameters = inspect.signature(FAMILIES[family]).parameters
    return {name: names for name, names in accepted.items() if name in parameters}


def described(config: Config, path: str | Path) -> Config:
    """Return the configuration of the run in `path`, once it is known to describe one.

    Raises:
        MetajaxError: it does not: `train` was called without a `config`.
    """
    if not {*_NAMES, *GROUPS} <= config.keys():
        raise MetajaxError(
            f"the run {path} was trained from Python and keeps no configuration to build it from; "
            "give one to metajax.train(..., config=...)."
        )
    return config


def default_config(
    algorithm: str, family: str, policy: str | None = None, outer: str | None = None
) -> Config:
    """Return the configuration of these names with its preset values; see `options`."""
    policy = policies(algorithm)[0] if policy is None else policy
    config: Config = dict(zip(_NAMES, (algorithm, family, policy), strict=True))
    for group, parameters in options(algorithm, family, policy, outer).items():
        config[group] = {name: copy.copy(p.default) for name, p in parameters.items()}
    return config


def checked_config(config: Mapping[str, Any]) -> Config:
    """Return a configuration whose options are known and of the right type, without JAX.

    Its training group is complete.

    Raises:
        MetajaxError: a name or an option does not exist, or a value is not of the right type; or
            a number of the training is out of range.
    """
    for name in _NAMES:
        if not isinstance(config.get(name), str):
            raise MetajaxError(f"the configuration has no {name}.")
    for name in config:
        if name not in (*_NAMES, *GROUPS):
            raise unknown("part of the configuration", name, (*_NAMES, *GROUPS))
    found: Config = {name: config[name] for name in _NAMES}
    known = options(*found.values())
    for group in GROUPS:
        values = config.get(group, {})
        if not isinstance(values, Mapping):
            raise MetajaxError(
                f"the configuration's {group} is {brief(values)}; it must be options."
            )
        prefix = "evaluation." if group == "evaluation" else ""
        found[group] = check_options(known[group], values, f"{group} option", prefix=prefix)
    defaults = inspect.signature(train).parameters
    training = {name: defaults[name].default for name in known["training"]} | found["training"]
    check_counts(**{name: training[name] for name in inspect.signature(check_counts).parameters})
    found["training"] = training
    return found


def build(config: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a configuration describes.

    Raises:
        MetajaxError: a name or an option does not exist, or a value is out of range.
    """
    chosen = checked_config(config)
    algorithm_name, family_name, policy_name = (chosen[name] for name in _NAMES)
    env = (family := make(family_name, **chosen["family"])).env
    policy_options = dict(chosen["policy"])
    if "trial_length" in inspect.signature(POLICIES[policy_name]).parameters:
        default = inspect.signature(ALGORITHMS[algorithm_name]).parameters["episodes"].default
        episodes = chosen["algorithm"].get("episodes", default)
        policy_options["trial_length"] = episodes * env.episode_length
    policy = POLICIES[policy_name](env.observation_size, env.action_space, **policy_options)
    algorithm = ALGORITHMS[algorithm_name](env, policy, **chosen["algorithm"])
    evaluation = Evaluation(**chosen["evaluation"])
    return Experiment(algorithm, family, chosen["training"], evaluation)
