"""Experiments by name: which options a pair of names has, their tuned values, and how to build it.

A configuration is plain data: three names, and five groups of keyword arguments for five
factories. It is what a run directory keeps and what the command line edits.

A name is one of metajax's own or "module:attribute", a factory (of a family: or its `FamilySpec`)
in a module of the user's. To import a module is to run its code, so every function here that finds
things by name imports none but those in its argument `allow_import`.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metajax._earlier import evaluation_of_today, is_earlier, named_parts, translated
from metajax._imported import check_factory, imported, module_of, of_type
from metajax._named_parts import (
    NAME,
    Options,
    built,
    checked_values,
    name_in,
    options_with,
    paths,
    unknown_names,
)
from metajax.algorithms import ALGORITHMS
from metajax.envs import FAMILIES, FamilySpec
from metajax.envs.specs import Preset, merged
from metajax.errors import MetajaxError, brief, unknown
from metajax.policies import (
    conditioned,
    deterministic,
    gru,
    lstm,
    mlp,
    snail,
    squashed,
    transformer,
    variational,
    window,
)
from metajax.training import Evaluation, train
from metajax.training.checks import check_counts
from metajax.types import Algorithm, Policy, TaskFamily

Config = dict[str, Any]

_NAMES = ("algorithm_name", "family_name", "policy_name")
GROUPS = ("algorithm", "policy", "family", "training", "evaluation")

# `train` arguments that are no part of an experiment: they say where and how to watch. How long a
# trial is follows from the rest.
_NOT_OPTIONS = {"algorithm", "family", "evaluation", "run_directory", "resume", "config", "report"}
_NOT_OPTIONS |= {"started", "trial_length"}

# Policies by name; the inputs of memory agents have of each step what came of it.
_MEMORIES = {f.__name__: f for f in (gru, lstm, snail, transformer, window)}
POLICIES: dict[str, Callable] = {
    "mlp": mlp,
    "squashed": squashed,
    "deterministic": deterministic,
    "conditioned": conditioned,
    **_MEMORIES,
    "variational": variational,
}
# Of the algorithms that need one within the bounds of actions; SAC trains "mlp" on discrete ones.
_WITHIN_BOUNDS = {
    "sac": ("squashed", "mlp"),
    "td3": ("deterministic",),
    "pearl": ("conditioned",),
    "mql": ("conditioned",),
}
# Of the algorithms that need one, their own one first; all others train "mlp".
MEMORY_AGENTS = {
    "rl2": tuple(_MEMORIES),
    "snail": ("snail", *(name for name in _MEMORIES if name != "snail")),
    "off-policy-rl2": tuple(_MEMORIES),
    "varibad": ("variational",),
}

# PPO on trials, as `metajax.rl2` has it.
_EPOCHS_OF_TRIALS = {"epochs": 4, "minibatches": 4, "clip": 0.2, "max_gradient_norm": 1.0}

# One episode, then as many gradient steps; agents that do not adapt are the same in every round.
_REMEMBERED = {
    "training": {"tasks": 1, "iterations": 300},
    "evaluation": {"rounds": 1, "episodes": 10, "tasks": 10, "every": 25, "deterministic": True},
}

# What an algorithm needs on any family. What was tuned for it on one stands in that family's file.
OF_ALGORITHM: dict[str, Preset] = {
    "cavia": {"policy": {"context": 2}},
    "sac": _REMEMBERED,
    "td3": _REMEMBERED,
    "pearl": {
        "training": {"tasks": 5, "iterations": 500, "training_tasks": 100},
        # The score is that of the last episode, the first by the posterior.
        "evaluation": {"rounds": 3, "episodes": 1, "tasks": 30, "every": 10},
    },
    # One round before adaptation, whose steps are what is adapted to, and one after it.
    "mql": {
        "policy": {"latent": 30, "actions": "deterministic", "hidden": (256, 256)},
        "training": {"tasks": 1, "iterations": 300},
        "evaluation": {"rounds": 2, "episodes": 1, "tasks": 10, "every": 25, "deterministic": True},
    },
    # A trust region's critic learns in epochs of its own.
    "rl2": {"outer": {"trpo": {"policy": {"critic": "separate"}}}},
    # Critics are the learner's; actions are within the bounds that critics know.
    "off-policy-rl2": {"policy": {"critic": "none", "actions": "squashed"}},
    "snail": {
        "policy": {"critic": "separate"},  # as a trust region asks for
        "outer": {"ppo": {"algorithm": {"outer": _EPOCHS_OF_TRIALS}}},
    },
}


class Experiment(NamedTuple):
    """What a configuration describes: `train(algorithm, family, evaluation=..., **training)`."""

    algorithm: Algorithm
    family: TaskFamily
    training: dict[str, Any]
    evaluation: Evaluation


def policies(algorithm: str) -> tuple[str, ...]:
    """Return metajax's policies that an algorithm can train, by name, its own one first."""
    if module_of(algorithm) is not None:
        return tuple(POLICIES)
    return (MEMORY_AGENTS | _WITHIN_BOUNDS).get(algorithm, ("mlp",))


def family_spec(name: str, *, allow_import: Sequence[str] = ()) -> FamilySpec:
    """Return the spec of a family.

    Args:
        name: of the family.
        allow_import: modules outside metajax that may be imported.

    Raises:
        MetajaxError: there is no such family, or its module cannot or may not be imported.
    """
    if module_of(name) is None:
        if name not in FAMILIES:
            raise unknown("family", name, FAMILIES)
        return FAMILIES[name]
    found = imported("family", name, allow_import)
    spec = found if isinstance(found, FamilySpec) else FamilySpec(name, found, "")
    check_factory("family", name, spec.factory, ())
    return spec._replace(name=name)


def _factory(
    kind: str, name: str, known: Mapping[str, Callable], allow_import: Sequence[str]
) -> Callable:
    """Return the factory of an algorithm or a policy."""
    if module_of(name) is None:
        if name not in known:
            raise unknown(kind, name, known)
        return known[name]
    kind = kind.partition(" ")[0]
    factory = imported(kind, name, allow_import)
    check_factory(kind, name, factory, _ARGUMENTS[kind])
    return factory


_ARGUMENTS = {"algorithm": ("env", "policy"), "policy": ("observation_size", "action_space")}


def factories(
    algorithm: str,
    family: str,
    policy: str | None = None,
    *,
    allow_import: Sequence[str] = (),
) -> dict[str, Callable]:
    """Return the callable behind each group of options.

    Args:
        algorithm: by name.
        family: by name.
        policy: one of `policies(algorithm)`, or one of the user's; None for the first.
        allow_import: modules outside metajax that may be imported.

    Raises:
        MetajaxError: one of them does not exist, or the algorithm cannot train the policy.
    """
    of_algorithm = _factory("algorithm", algorithm, ALGORITHMS, allow_import)
    known = {name: POLICIES[name] for name in policies(algorithm)}
    return {
        "algorithm": of_algorithm,
        "policy": _factory(
            f"policy for {algorithm}", policy or next(iter(known)), known, allow_import
        ),
        "family": family_spec(family, allow_import=allow_import).factory,
        "training": train,
        "evaluation": Evaluation,
    }


def options(
    algorithm: str,
    family: str,
    policy: str | None = None,
    parts: Mapping[str, Any] | None = None,
    *,
    allow_import: Sequence[str] = (),
) -> dict[str, Options]:
    """Return the options of each group with their preset defaults, by name.

    Options are the keyword arguments of the group's factory that data can express: parameters with
    an annotation and a default, and choices of parts, which have options of their own.

    Args:
        algorithm: by name.
        family: by name.
        policy: one of `policies(algorithm)`, or one of the user's; None for the first.
        parts: the algorithm's parts that are wanted, `{option: {"name": name, ...}}`; those that
            are not there are those of the preset.
        allow_import: modules outside metajax that may be imported.

    Raises:
        MetajaxError: a name does not exist, or the algorithm has no such part.
    """
    names = {"algorithm": algorithm, "family": family, "policy": policy or ""}
    made = factories(algorithm, family, policy, allow_import=allow_import)
    spec = family_spec(family, allow_import=allow_import)
    preset = _preset(algorithm, spec, name_in((parts or {}).get("outer")))
    found: dict[str, Options] = {}
    for group, factory in made.items():
        known = options_with(
            names.get(group) or group,
            factory,
            values=preset.get(group, {}),
            chosen=(parts or {}) if group == "algorithm" else {},
            allow_import=allow_import,
            positional=group == "evaluation",
        )
        found[group] = {name: known[name] for name in known if name not in _NOT_OPTIONS}
    _check_preset(algorithm, spec, found)
    return found


def _preset(algorithm: str, family: FamilySpec, outer: str | None) -> Preset:
    """Return the values of an algorithm on a family, which come after its own on any family."""
    layers: list[Preset] = []
    for preset in (OF_ALGORITHM.get(algorithm, {}), family.presets.get(algorithm, {})):
        layers += [preset, preset.get("outer", {}).get(outer or "", {})]
    return merged(*layers)


def _check_preset(algorithm: str, family: FamilySpec, known: Mapping[str, Options]) -> None:
    """Check that a family sets nothing that does not exist; policies may be others than its own."""
    preset = family.presets.get(algorithm, {})
    for values in (preset, *preset.get("outer", {}).values()):
        for group in values.keys() - {"outer", "policy"}:
            if group not in GROUPS:
                raise unknown(f"group of options in {family.name}'s presets", group, GROUPS)
            for path in unknown_names(known[group], values[group]):
                what = f"{group} option in {family.name}'s preset for {algorithm}"
                raise unknown(what, path, paths(known[group]) if "." in path else known[group])


def choices(family: str, *, allow_import: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the names that a family's options `backend` and `variant` accept, if it has them.

    Raises:
        MetajaxError: the family does not exist.
    """
    spec = family_spec(family, allow_import=allow_import)
    found = {"backend": ("auto", *spec.backends)} if spec.backends else {}
    return found | ({"variant": spec.variants} if spec.variants else {})


def described(config: Config, path: str | Path) -> Config:
    """Return the configuration of the run in `path`, once it is known to describe one.

    Raises:
        MetajaxError: it does not: `train` was called without a `config`.
    """
    if not {*_NAMES, *GROUPS} <= config.keys():
        raise MetajaxError(
            f"the run {path} was trained from Python and keeps no configuration to build it from; "
            "load its agent by metajax.load(run, algorithm=..., family=...), or give one to "
            "metajax.train(..., config=...)."
        )
    return _of_today(config)


def _of_today(config: Config) -> Config:
    """Return a configuration whose algorithm and evaluation have today's options."""
    config = config | {"evaluation": evaluation_of_today(config["evaluation"])}
    of_algorithm, name = config["algorithm"], config["algorithm_name"]
    if not isinstance(of_algorithm, Mapping) or name not in ALGORITHMS:
        return config
    if not is_earlier(of_algorithm):
        return config
    parts = named_parts(of_algorithm)
    known = options(name, config["family_name"], config["policy_name"], parts)["algorithm"]
    return config | {"algorithm": translated(of_algorithm, paths(known))}


def modules_of(config: Config) -> list[str]:
    """Return the modules outside metajax that a configuration's names are to be imported from."""

    def names(value: Any) -> Iterator[str]:
        for name, one in value.items() if isinstance(value, Mapping) else ():
            if name == NAME and isinstance(one, str):
                yield one
            yield from names(one)

    parts = config.get("algorithm", {})
    modules = map(module_of, (*(config[name] for name in _NAMES), *names(parts)))
    return list(dict.fromkeys(module for module in modules if module is not None))


def default_config(
    algorithm: str,
    family: str,
    policy: str | None = None,
    parts: Mapping[str, Any] | None = None,
    *,
    allow_import: Sequence[str] = (),
) -> Config:
    """Return the configuration of these names with its preset values; see `options`."""
    policy = policies(algorithm)[0] if policy is None else policy
    config: Config = dict(zip(_NAMES, (algorithm, family, policy), strict=True))
    known = options(algorithm, family, policy, parts, allow_import=allow_import)
    for group, of_group in known.items():
        config[group] = {name: copy.deepcopy(one.default) for name, one in of_group.items()}
    return config


def checked_config(config: Mapping[str, Any], *, allow_import: Sequence[str] = ()) -> Config:
    """Return a configuration whose options are known and of the right type, without JAX.

    Its training group is complete.

    Args:
        config: the configuration.
        allow_import: modules outside metajax that its names may be imported from.

    Raises:
        MetajaxError: a name or an option does not exist, or a value is not of the right type; or
            a number of the training is out of range.
    """
    return _checked(config, allow_import)[0]


def _checked(
    config: Mapping[str, Any], allow_import: Sequence[str]
) -> tuple[Config, dict[str, Options]]:
    """Return what `checked_config` does, and the options that it was checked against."""
    for name in _NAMES:
        if not isinstance(config.get(name), str):
            raise MetajaxError(f"the configuration has no {name}.")
    for name in config:
        if name not in (*_NAMES, *GROUPS):
            raise unknown("part of the configuration", name, (*_NAMES, *GROUPS))
    found: Config = {name: config[name] for name in _NAMES}
    known = known_options(config, allow_import=allow_import)
    for group in GROUPS:
        values = config.get(group, {})
        if not isinstance(values, Mapping):
            raise MetajaxError(
                f"the configuration's {group} is {brief(values)}; it must be options."
            )
        prefix = "evaluation." if group == "evaluation" else ""
        found[group] = checked_values(known[group], values, f"{group} option", prefix=prefix)
    defaults = inspect.signature(train).parameters
    training = {name: defaults[name].default for name in known["training"]} | found["training"]
    check_counts(**{name: training[name] for name in inspect.signature(check_counts).parameters})
    found["training"] = training
    return found, known


def known_options(
    config: Mapping[str, Any], *, allow_import: Sequence[str] = ()
) -> dict[str, Options]:
    """Return the options that a configuration's names, those of parts among them, have.

    Defaults of an algorithm's parts are its own: a preset is for what is asked for anew.
    """
    parts = config.get("algorithm", {})
    parts = parts if isinstance(parts, Mapping) else {}
    algorithm, family, policy = (config[name] for name in _NAMES)
    known = options(algorithm, family, policy, parts, allow_import=allow_import)
    factory = _factory("algorithm", algorithm, ALGORITHMS, allow_import)
    return known | {
        "algorithm": options_with(
            algorithm, factory, values={}, chosen=parts, allow_import=allow_import
        )
    }


def build(config: Mapping[str, Any], *, allow_import: Sequence[str] = ()) -> Experiment:
    """Return the experiment that a configuration describes.

    Args:
        config: the configuration.
        allow_import: modules outside metajax that its names may be imported from.

    Raises:
        MetajaxError: a name or an option does not exist, or a value is out of range.
    """
    chosen, known = _checked(config, allow_import)
    algorithm_name, family_name, policy_name = names = [chosen[name] for name in _NAMES]
    made = factories(*names, allow_import=allow_import)
    family = of_type(TaskFamily, family_name, made["family"](**chosen["family"]))
    env = family.env
    policy_options = dict(chosen["policy"])
    if "trial_length" in inspect.signature(made["policy"]).parameters:
        episodes = _episodes(algorithm_name, made["algorithm"], chosen["algorithm"])
        policy_options["trial_length"] = episodes * env.episode_length
    policy = made["policy"](env.observation_size, env.action_space, **policy_options)
    policy = of_type(Policy, policy_name, policy)
    algorithm = made["algorithm"](env, policy, **built(known["algorithm"], chosen["algorithm"]))
    algorithm = of_type(Algorithm, algorithm_name, algorithm)
    evaluation = Evaluation(**chosen["evaluation"])
    return Experiment(algorithm, family, chosen["training"], evaluation)


def _episodes(name: str, algorithm: Callable, chosen: Mapping[str, Any]) -> int:
    """Return how many episodes a trial has."""
    parameters = inspect.signature(algorithm).parameters
    if "episodes" not in parameters:
        raise MetajaxError(
            f"{name} has no option 'episodes', which says how long a policy's trials are: take a "
            "policy without the option 'trial_length'."
        )
    return chosen.get("episodes", parameters["episodes"].default)
