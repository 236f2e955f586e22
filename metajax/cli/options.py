"""What can be asked for on the command line: a dataclass of options for each command."""

import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from metajax import presets
from metajax._imported import module_of
from metajax._named_parts import NAME, NONE, Choice, Options, paths
from metajax.cli.arguments import help_of, summary_of
from metajax.envs.splits import Split

DEFAULT_ALGORITHM, DEFAULT_FAMILY = "maml", "halfcheetah-dir"
PREFIXED = {"policy", "evaluation"}  # groups whose options have the group's name before theirs


def _hint(default: str) -> str:
    return "" if default == "None" else f"(default: {default})"


Run = Annotated[Path, Positional, tyro.conf.arg(metavar="RUN")]
OptionalNumber = Annotated[int | None, tyro.conf.arg(help_behavior_hint=_hint)]
OptionalName = Annotated[str | None, tyro.conf.arg(help_behavior_hint=_hint)]
Modules = Annotated[str, tyro.conf.arg(metavar="MODULE,...", help_behavior_hint=lambda _: "")]
StepName = Annotated[str | None, tyro.conf.arg(metavar="{INT,best}", help_behavior_hint=_hint)]


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Go on with an interrupted run, or train a finished one further.

    Attributes:
        run: the run directory.
        iterations: meta-iterations in all, instead of the run's own number; the run's patience no
            longer applies.
        allow_import: modules outside metajax that the run's names may be imported from, which runs
            their code.
    """

    run: Run
    iterations: OptionalNumber = None
    allow_import: Modules = ""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a run: sampled and deterministic actions on held-out tasks.

    Attributes:
        run: the run directory.
        tasks: tasks per seed.
        split: tasks that are played: held-out tasks ("test"), training tasks, validation tasks, or
            tasks beyond the range of all three.
        rounds: adaptation steps + 1; the run's own number by default.
        episodes: episodes per task and round; the run's own number by default.
        step: iteration of the checkpoint, or "best" if the run kept it; the newest by default.
        backend: physics engine, instead of the run's own.
        allow_import: modules outside metajax that the run's names may be imported from, which runs
            their code.
    """

    run: Run
    tasks: int = 40
    split: Split = "test"
    rounds: OptionalNumber = None
    episodes: OptionalNumber = None
    step: StepName = None
    backend: OptionalName = None
    allow_import: Modules = ""


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """Draw the agent before and after adaptation on held-out tasks.

    Bodies become a page that plays by itself (or a GIF), other families a plot.

    Attributes:
        run: the run directory.
        html: whether to write render.html, a page with everything in it; the default for bodies.
        gif: whether to write render.gif.
        tasks: number of held-out tasks; of finitely many, each at most once.
        seed: index of the seed, of those trained side by side.
        step: iteration of the checkpoint, or "best" if the run kept it; the newest by default.
        backend: physics engine, instead of the run's own.
        allow_import: modules outside metajax that the run's names may be imported from, which runs
            their code.
    """

    run: Run
    html: FlagCreatePairsOff[bool] = False
    gif: FlagCreatePairsOff[bool] = False
    tasks: int = 4
    seed: int = 0
    step: StepName = None
    backend: OptionalName = None
    allow_import: Modules = ""


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw the learning curves of several runs into one picture.

    Attributes:
        runs: the run directories.
        output: file of the picture, .png, .pdf or .svg.
    """

    runs: Annotated[
        Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="RUN ...", help_behavior_hint="(required)"),
    ]
    output: Path = Path("learning-curves.png")


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """List the algorithms and the task families."""


# Of the commands whose options do not depend on what is typed.
OPTIONS: dict[str, type] = {
    "resume": ResumeOptions,
    "evaluate": EvaluateOptions,
    "render": RenderOptions,
    "plot": PlotOptions,
    "list": ListOptions,
}


def train_options(
    algorithm: str,
    family: str,
    policy: str | None = None,
    parts: Mapping[str, Any] | None = None,
    *,
    allow_import: Sequence[str] = (),
) -> type:
    """Return the dataclass of the options of `metajax train ALGORITHM FAMILY`.

    One field per group of `presets.options`; names, types, defaults and help are those of the
    factory's signature and docstring. Another field is the policy, whose options its group has.

    Args:
        algorithm: by name.
        family: by name.
        policy: by name; None for the algorithm's first.
        parts: the algorithm's parts that are wanted, as in `presets.options`.
        allow_import: modules outside metajax that may be imported.

    Raises:
        MetajaxError: the algorithm, the family or a part does not exist.
    """
    factories = presets.factories(algorithm, family, policy, allow_import=allow_import)
    choices = presets.choices(family, allow_import=allow_import)
    known = presets.options(algorithm, family, policy, parts, allow_import=allow_import)
    groups: list[tuple[str, Any, Any]] = []
    for group, of_group in known.items():
        of_family = choices if group == "family" else {}
        options = _dataclass_of(group, factories[group], of_group, of_family)
        if group in PREFIXED:
            kind: Any = options
        elif group == "algorithm":  # its parts have prefixes of their own
            kind = Annotated[options, tyro.conf.arg(name="")]
        else:
            kind = Annotated[options, OmitArgPrefixes]
        groups.append((group, kind, dataclasses.field(default=options())))
    policies = presets.policies(algorithm)
    which = tyro.conf.arg(
        help="policy that is trained.",
        help_behavior_hint=_hint,
        metavar=f"{{{','.join((*policies, 'MODULE:NAME'))}}}",
    )
    default = dataclasses.field(default=policy or policies[0])
    groups.append(("policy_name", Annotated[str, which], default))
    default_directory = f"{directory_of(algorithm, family)}-<date>-<time>"
    described = tyro.conf.arg(
        help=f"directory that the run is kept in; {default_directory} by default.",
        help_behavior_hint=_hint,
    )
    directory = Annotated[Path | None, described]
    groups.append(("run_directory", directory, dataclasses.field(default=None)))
    options = dataclasses.make_dataclass("TrainOptions", groups, frozen=True)
    options.__doc__ = (
        f"Meta-train {algorithm} on {family} and evaluate on held-out tasks.\n\n"
        "metajax list names all algorithms and families; each pair has its own defaults.\n\n"
        "MODULE:NAME is a factory of your own, in a module that can be imported here."
    )
    return options


def _dataclass_of(
    name: str, factory: Callable, options: Options, choices: Mapping[str, tuple[str, ...]]
) -> type:
    """Return a dataclass of a factory's options, those of its parts in dataclasses of their own.

    Args:
        name: of the dataclass.
        factory: in whose docstring their meaning stands.
        options: that it has.
        choices: the values that some of them accept.
    """
    help_, fields = help_of(factory), []
    for option, known in options.items():
        shown: dict[str, Any] = {"help": help_.get(option, ""), "help_behavior_hint": _hint}
        if not isinstance(known, Choice):
            annotation = Literal[choices[option]] if option in choices else known.annotation
            described = Annotated[annotation, tyro.conf.arg(**shown)]
            fields.append((option, described, dataclasses.field(default=known.default)))
            continue
        shown["metavar"] = f"{{{','.join((*known.names, 'MODULE:NAME'))}}}"
        default = dataclasses.field(default=known.name or NONE)
        fields.append((option, Annotated[str, tyro.conf.arg(**shown)], default))
        if known.factory is not None and known.options:
            within = _dataclass_of(option, known.factory, known.options, {})
            described = Annotated[within, tyro.conf.arg(name=option)]
            default = dataclasses.field(default=within())
            fields.append((f"{option}{_WITHIN}", described, default))
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.__doc__ = summary_of(factory)
    return made


_WITHIN = "_options"  # of the field of a part's own options, next to that of its name


def values_of(chosen: Any) -> dict[str, Any]:
    """Return what a dataclass of `_dataclass_of` holds, as configurations have it."""
    values = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    for name in [name for name in values if f"{name}{_WITHIN}" in values]:
        within = values_of(values.pop(f"{name}{_WITHIN}"))
        values[name] = {NAME: values[name]} | within
    return values


def parts_chosen(
    arguments: Sequence[str], algorithm: str, family: str, allow: list[str]
) -> dict[str, Any]:
    """Return the parts of an algorithm that are named on the command line, and allow their modules.

    What an option is depends on the parts above it, so they are looked for level by level.
    """
    parts: dict[str, Any] = {}
    asked = set()
    while True:
        known = presets.options(algorithm, family, parts=parts, allow_import=allow)
        choices = {n: c for n, c in paths(known["algorithm"]).items() if isinstance(c, Choice)}
        new = choices.keys() - asked
        if not new:
            return parts
        for path in sorted(new):
            asked.add(path)
            name = last_value(arguments, f"--{path.replace('_', '-')}")
            if name is None:
                continue
            if (module := module_of(name)) is not None:
                allow += allowed([module])
            elif name not in choices[path].names:
                continue  # the parser refuses it
            of = parts
            for word in path.split("."):
                of = of.setdefault(word, {})
            of[NAME] = name
    return parts


def last_value(arguments: Sequence[str], option: str) -> str | None:
    """Return the last value given to an option that decides which others there are, or None."""
    found = None
    for word, following in itertools.pairwise([*arguments, ""]):
        flag, _, value = word.partition("=")
        value = value or following
        if flag.replace("_", "-") == option and value and not value.startswith("-"):
            found = value
    return found


def directory_of(algorithm: str, family: str) -> Path:
    """Return what the name of a run's directory starts with."""
    names = (name.rpartition(":")[2] for name in (algorithm, family))
    return Path("runs", "-".join(names))


def allowed(modules: Sequence[str]) -> list[str]:
    """Return the modules that may be imported; those in the current directory are found."""
    if modules and (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    return list(modules)


def modules_in(modules: str) -> Sequence[str]:
    """Return the modules that `--allow-import` lists."""
    return allowed([name for name in modules.split(",") if name])
