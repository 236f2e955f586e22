"""The command line: `metajax train`, `resume`, `evaluate`, `render`, `plot` and `list`.

Names and options are checked before anything is compiled. A user's mistake is a `MetajaxError`:
its message goes to stderr and the exit status is 2.
"""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from metajax import presets
from metajax._alarms import without_alarms
from metajax._arguments import flags, help_of, parse, summary_of
from metajax._earlier import MOVED, moved
from metajax._imported import module_of
from metajax._named_parts import NAME, NONE, Choice, Options, paths, with_option
from metajax._records import plain
from metajax._tables import curve_text, plural, task_names
from metajax._version import __version__
from metajax.algorithms import ALGORITHMS
from metajax.checkpoint import saved_steps
from metajax.deployment import Step, load_run
from metajax.envs import FAMILIES
from metajax.envs.splits import Split, on_split
from metajax.errors import MetajaxError, unknown
from metajax.evaluation import adaptation_curve, evaluate, has_memory, trial_total
from metajax.progress import count, duration, reporter, say, silence
from metajax.run_directory import open_run, read_metrics
from metajax.shutdown import graceful_shutdown
from metajax.train import Result, default_devices, train
from metajax.types import Agent, Discrete

DEFAULT_ALGORITHM, DEFAULT_FAMILY = "maml", "halfcheetah-dir"

_SPEEDS = Path(__file__).parent / "envs" / "speeds.json"  # by benchmarks/environments.py

_ENGINES = {
    "jax": "pure JAX",
    "mjx": "MJX, MuJoCo in JAX",
    "warp": "MuJoCo Warp",
    "spring": "Brax spring",
    "positional": "Brax positional",
    "generalized": "Brax generalized",
}


# ---------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------


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
        iterations: meta-iterations in all, instead of the run's own number; and no patience.
        allow_import: modules outside metajax that the run's names may be imported from, which runs
            their code.
    """

    run: Run
    iterations: OptionalNumber = None
    allow_import: Modules = ""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a run on held-out tasks, sampled and likeliest actions.

    Attributes:
        run: the run directory.
        tasks: tasks per seed.
        split: held-out tasks ("test"), training tasks, validation tasks, or tasks beyond the range
            of all three.
        rounds: adaptation steps + 1; the run's own number by default.
        episodes: per task and round; the run's own number by default.
        step: of the checkpoint; the newest by default, or the best if the run kept it.
        backend: another physics engine than the run's.
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
        html: write render.html, a page with everything in it; the default for bodies.
        gif: write render.gif.
        tasks: how many held-out tasks; of finitely many, each at most once.
        seed: which of the seeds that were trained side by side.
        step: of the checkpoint; the newest by default, or the best if the run kept it.
        backend: another physics engine than the run's.
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
        output: the picture, .png, .pdf or .svg.
    """

    runs: Annotated[
        Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="RUN ...", help_behavior_hint="(required)"),
    ]
    output: Path = Path("learning-curves.png")


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """List the algorithms and the task families."""


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
    factory's signature and docstring. Another field says which policy, and so which options it has.

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
        if group in _PREFIXED:
            kind: Any = options
        elif group == "algorithm":  # its parts have prefixes of their own
            kind = Annotated[options, tyro.conf.arg(name="")]
        else:
            kind = Annotated[options, OmitArgPrefixes]
        groups.append((group, kind, dataclasses.field(default=options())))
    policies = presets.policies(algorithm)
    which = tyro.conf.arg(
        help="the policy that is trained.",
        help_behavior_hint=_hint,
        metavar=f"{{{','.join((*policies, 'MODULE:NAME'))}}}",
    )
    default = dataclasses.field(default=policy or policies[0])
    groups.append(("policy_name", Annotated[str, which], default))
    where = f"where the run is kept; {_directory(algorithm, family)}-<date>-<time> by default."
    described = tyro.conf.arg(help=where, help_behavior_hint=_hint)
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
        factory: whose docstring says what they mean.
        options: that it has.
        choices: the values that some of them accept.
    """
    help_, fields = help_of(factory), []
    for option, known in options.items():
        said: dict[str, Any] = {"help": help_.get(option, ""), "help_behavior_hint": _hint}
        if not isinstance(known, Choice):
            annotation = Literal[choices[option]] if option in choices else known.annotation
            described = Annotated[annotation, tyro.conf.arg(**said)]
            fields.append((option, described, dataclasses.field(default=known.default)))
            continue
        said["metavar"] = f"{{{','.join((*known.names, 'MODULE:NAME'))}}}"
        default = dataclasses.field(default=known.name or NONE)
        fields.append((option, Annotated[str, tyro.conf.arg(**said)], default))
        if known.factory is not None and known.options:
            within = _dataclass_of(option, known.factory, known.options, {})
            described = Annotated[within, tyro.conf.arg(name=option)]
            default = dataclasses.field(default=within())
            fields.append((f"{option}{_WITHIN}", described, default))
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.__doc__ = summary_of(factory)
    return made


_WITHIN = "_options"  # a field of a part's own options, beside that of its name


def _values_of(chosen: Any) -> dict[str, Any]:
    """Return what a dataclass of `_dataclass_of` holds, as configurations have it."""
    values = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    for name in [name for name in values if f"{name}{_WITHIN}" in values]:
        within = _values_of(values.pop(f"{name}{_WITHIN}"))
        values[name] = {NAME: values[name]} | within
    return values


def _parts_chosen(arguments: Sequence[str], algorithm: str, allow: list[str]) -> dict[str, Any]:
    """Return the parts of an algorithm that are named on the command line, and allow their modules.

    What an option is depends on the parts above it, so they are looked for level by level.
    """
    parts: dict[str, Any] = {}
    asked = set()
    while True:
        known = presets.options(algorithm, DEFAULT_FAMILY, parts=parts, allow_import=allow)
        choices = {n: c for n, c in paths(known["algorithm"]).items() if isinstance(c, Choice)}
        new = choices.keys() - asked
        if not new:
            return parts
        for path in sorted(new):
            asked.add(path)
            name = _last_value(arguments, f"--{path.replace('_', '-')}")
            if name is None:
                continue
            if (module := module_of(name)) is not None:
                allow += _allowed([module])
            elif name not in choices[path].names:
                continue  # the parser says so
            of = parts
            for word in path.split("."):
                of = of.setdefault(word, {})
            of[NAME] = name
    return parts


def _directory(algorithm: str, family: str) -> Path:
    """Return what the name of a run's directory begins with."""
    names = (name.rpartition(":")[2] for name in (algorithm, family))
    return Path("runs", "-".join(names))


_PREFIXED = {"policy", "evaluation"}


# ---------------------------------------------------------------------------------------------
# Saying things
# ---------------------------------------------------------------------------------------------


def _command(*words: object) -> str:
    return shlex.join(["metajax", *map(str, words)])


def _on_run(command: str, directory: Path, config: presets.Config, *words: object) -> str:
    """Return a command on a run, with leave to import what the run is made of."""
    modules = presets.modules_of(config)
    leave = ["--allow-import", ",".join(modules)] if modules else []
    return _command(command, directory, *words, *leave)


def _allowed(modules: Sequence[str]) -> list[str]:
    """Return the modules that may be imported; those in the current directory are found."""
    if modules and (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    return list(modules)


def _split(modules: str) -> Sequence[str]:
    return _allowed([name for name in modules.split(",") if name])


MODE = "likeliest"  # the mean of a normal distribution, the best action of a Q-network


def _described(
    config: presets.Config, experiment: presets.Experiment, *, resume: bool
) -> tuple[str, str]:
    """Return what is about to run on what, and why there."""
    backend = experiment.family.backend
    devices = jax.devices()
    used = config["training"]["devices"]
    kind = "CPU" if devices[0].platform == "cpu" else devices[0].device_kind
    program = (
        f"metajax {__version__}: {config['algorithm_name']} on {experiment.family.name}, "
        f"JAX {jax.__version__} on {plural(used, f'{kind} device')}"
        + (f" of {len(devices)}" if len(devices) > used else "")
    )
    engine = _ENGINES.get(backend, backend)
    if backend == "mujoco":
        engine = f"C MuJoCo on {plural(os.cpu_count() or 1, 'thread')}"
    if backend == "warp" and devices[0].platform == "cpu":
        engine += ", slow on a CPU"
    if backend == "jax":
        return program, f"physics: none ({engine})"
    found = "no accelerator" if devices[0].platform == "cpu" else devices[0].device_kind
    asked = config["family"].get("backend", backend) != "auto"  # where a family has but one engine
    why = "as before" if resume else "as asked for" if asked else f"{found} found"
    return program, f'physics: {engine} (backend "{backend}": {why})'


# ---------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------


def _train(arguments: Sequence[str]) -> int:
    names = []
    for word in arguments[:2]:
        if word.startswith("-"):
            break
        names.append(word)
    positional = len(names)
    algorithm, family = [*names, *(DEFAULT_ALGORITHM, DEFAULT_FAMILY)[len(names) :]]
    if algorithm in FAMILIES:
        raise MetajaxError(
            f"{algorithm!r} is a family; name an algorithm first: metajax train "
            f"{DEFAULT_ALGORITHM} {algorithm}."
        )
    program = f"metajax train {algorithm} {family}"
    policy = _last_value(arguments, "--policy-name") or presets.policies(algorithm)[0]
    modules = map(module_of, (algorithm, family, policy))
    allow = _allowed([module for module in modules if module is not None])
    parts = _parts_chosen(arguments, algorithm, allow)
    options = train_options(algorithm, family, policy, parts, allow_import=allow)

    def hint(word: str) -> str | None:
        if word in (*ALGORITHMS, *FAMILIES) or module_of(word) is not None:
            return f"{word!r} comes too late: metajax train ALGORITHM FAMILY --option value ..."
        known = presets.options(algorithm, family, policy, parts, allow_import=allow)["algorithm"]
        if (said := _of_other_parts(word, known)) is None:
            here = {"algorithm": algorithm, "family": family, "policy": policy}
            return _elsewhere(word, here, program)
        return f"{said}. See {program} --help."

    chosen = parse(options, arguments[positional:], program, hint)
    config = presets.default_config(algorithm, family, policy, parts, allow_import=allow)
    for group in presets.GROUPS:
        config[group] = _values_of(getattr(chosen, group))
    directory = chosen.run_directory
    if directory is None:
        directory = Path(f"{_directory(algorithm, family)}-{datetime.now():%Y%m%d-%H%M%S}")
    return _run(config, directory, resume=False, allow_import=allow)


def _of_other_parts(flag: str, known: Options) -> str | None:
    """Return what to say of an option of an algorithm's other parts, or one of earlier versions."""
    option = _without_no(flag).removeprefix("--").replace("-", "_")
    if (place := moved(option, paths(known))) is not None:
        return f"{flag} is now {_flag('algorithm', place)}"
    for place in (option, *MOVED.get(option, ())):
        lacking, owners = with_option(known, place) or ("", [])
        if owners and place == option:
            return f"the {lacking} has no {flag}; it is an option of {_listed(owners)}"
        if owners:
            return f"{flag} is now {_flag('algorithm', place)}, an option of {_listed(owners)}"
    return None


def _without_no(flag: str) -> str:
    return flag.replace("--no-", "--", 1).replace(".no-", ".", 1)


def _elsewhere(flag: str, here: dict[str, str], program: str) -> str | None:
    """Return what to say of an option that others have than those that are named here."""
    option = _without_no(flag)
    trainers = {policy: name for name in ALGORITHMS for policy in presets.policies(name)}
    groups = {
        "algorithm": {name: (name, DEFAULT_FAMILY) for name in ALGORITHMS},
        "family": {name: (DEFAULT_ALGORITHM, name) for name in FAMILIES},
        "policy": {name: (trainers[name], DEFAULT_FAMILY, name) for name in presets.POLICIES},
    }
    for group, names in groups.items():
        owners = [
            name
            for name, chosen in names.items()
            if option in (_flag(group, known) for known in paths(presets.options(*chosen)[group]))
        ]
        if owners:
            mine = f"the policy {here[group]}" if group == "policy" else here[group]
            return (
                f"{mine} has no {flag}; it is an option of {_listed(owners)}. See {program} --help."
            )
    return _of_other_commands(flag, program)


def _of_other_commands(flag: str, program: str) -> str | None:
    """Return what to say of an option that other commands have."""
    known = {name: command.options for name, command in COMMANDS.items() if command.options}
    known["train"] = train_options(DEFAULT_ALGORITHM, DEFAULT_FAMILY)
    owners = [f"metajax {name}" for name, options in known.items() if flag in flags(options)]
    if not owners:
        return None
    return f"{program} has no {flag}; it is an option of {_listed(owners)}. See {program} --help."


def _flag(group: str, option: str) -> str:
    return f"--{f'{group}.' if group in _PREFIXED else ''}{option.replace('_', '-')}"


def _listed(names: Sequence[str]) -> str:
    most = 6
    if len(names) > most + 1:
        names = [*names[:most], f"{len(names) - most} others"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _last_value(arguments: Sequence[str], option: str) -> str | None:
    """Return the last value given to an option that has a say in what the others are, or None."""
    found = None
    for word, following in itertools.pairwise([*arguments, ""]):
        flag, _, value = word.partition("=")
        value = value or following
        if flag.replace("_", "-") == option and value and not value.startswith("-"):
            found = value
    return found


def _resume(options: ResumeOptions) -> int:
    allow = _split(options.allow_import)
    with open_run(options.run, lock=False) as run:
        described = presets.described(run.config, run.path)
        config = presets.checked_config(described, allow_import=allow)
        steps = saved_steps(run.checkpoints)
        records = read_metrics(run.metrics) if run.metrics.exists() else []
    done = steps[-1] if steps else 0
    wanted = options.iterations
    finished = any("final_held_out" in r and r["iteration"] == done for r in records)
    if wanted is None:  # it may have been trained further since
        wanted = max(config["training"]["iterations"], done)
        if finished and config["training"].get("patience"):  # it was stopped early
            wanted = done
    else:
        config["training"]["patience"] = None
    if wanted < done:
        raise MetajaxError(
            f"{options.run} has done {done} iterations already; --iterations must be at least that."
        )
    if wanted == done and finished:
        picture = options.run / _PICTURE
        newest = (options.run / "metrics.jsonl").stat().st_mtime_ns
        if not picture.exists() or picture.stat().st_mtime_ns < newest:
            _draw(options.run)  # what interrupted it came before
        further = _on_run("resume", options.run, config, "--iterations", 2 * done)
        say(f"{options.run} is finished: {plural(done, 'iteration')}. To go on: {further}")
        return 0
    config["training"]["iterations"] = wanted
    return _run(config, options.run, resume=True, allow_import=allow)


def _run(
    config: presets.Config, directory: Path, *, resume: bool, allow_import: Sequence[str]
) -> int:
    """Train, and say what came of it."""
    began = time.perf_counter()
    config = presets.checked_config(config, allow_import=allow_import)
    _ask_for_devices(config)
    experiment = presets.build(config, allow_import=allow_import)
    if config["training"]["devices"] is None:  # kept, so that a resumed run has as many
        devices = default_devices(experiment.family, config["training"]["tasks"])
        experiment.training["devices"] = config["training"]["devices"] = devices
    described = _described(config, experiment, resume=resume)
    if "backend" in config["family"]:  # stay with the engine, whatever machine it is resumed on
        config["family"]["backend"] = experiment.family.backend

    def started() -> None:
        for line in (*described, f"run: {directory}"):
            say(line)

    with without_alarms():
        result = train(
            experiment.algorithm,
            experiment.family,
            evaluation=experiment.evaluation,
            run_directory=directory,
            resume=resume,
            config=config,
            started=started,
            **experiment.training,
        )
    # A directory keeps the number of iterations that it was made with.
    further = ["--iterations", config["training"]["iterations"]] if resume else []
    done = int(result.state.iteration)
    status = 0 if result.interrupted is None else 128 + result.interrupted
    if result.returns is None:
        name = signal.Signals(status - 128).name
        saved = ", saved" if done else ""
        say(f"stopped by {name} after {plural(done, 'iteration')}{saved}. To go on:")
        say(f"  {_on_run('resume', directory, config, *further)}")
        return status
    seconds = time.perf_counter() - began
    acting = MODE if experiment.evaluation.mode else "sampled"
    say()
    say(_whose(result, config["training"]))
    say(curve_text(result.returns, acting, experiment.algorithm, experiment.family, "test"))
    say()
    _conclude(result, directory, config, done, seconds)
    return status


def _whose(result: Result, training: dict[str, Any]) -> str:
    """Return which agent the final table is of, and why it ended before its iterations."""
    done = int(result.state.iteration)
    which = "best" if training.get("keep") == "best" else "newest"
    said = f"The {which} agent, of iteration {result.agent_iteration}"
    if done < training["iterations"]:
        return f"{said}; stopped after {done}, {training['patience']} evaluations without a better."
    return f"{said} of {done}." if done != result.agent_iteration else f"{said}."


def _conclude(
    result: Result, directory: Path, config: presets.Config, done: int, seconds: float
) -> None:
    _draw(directory)
    say(f"evaluate:  {_on_run('evaluate', directory, config)}")
    say(f"render:    {_on_run('render', directory, config)}")
    say(f"resume:    {_on_run('resume', directory, config, '--iterations', 2 * done)}")
    compiling = duration(result.compile_seconds)
    say(f"wall time: {duration(seconds)}, {compiling} of it compiling")


_PICTURE = "curves.png"


def _draw(directory: Path) -> None:
    from metajax.plotting import plot_run  # Matplotlib takes long to import

    picture = directory / _PICTURE
    plot_run(directory, picture)
    say(f"picture:   {picture}")


@contextlib.contextmanager
def _at_work(what: str) -> Iterator[None]:
    """Say what is going on and for how long; a signal ends the process at once."""
    progress = reporter("print")

    def farewell(name: str) -> None:
        progress.close()
        print(f"{name}: stopped.", file=sys.stderr, flush=True)

    with without_alarms(), graceful_shutdown() as shutdown, shutdown.at_once(farewell):
        progress.stage(what)
        try:
            yield
        finally:
            progress.close()


def _ask_for_devices(config: presets.Config) -> None:
    """Make the CPU look like several devices, unless JAX has started or was told a number.

    XLA runs one program of small arrays on one core; two devices are two programs. The C engine
    has its own threads.
    """
    count = config["training"]["devices"]
    if count is None:
        in_c = config["family"].get("backend") in ("auto", "mujoco")
        count = 1 if in_c else len(os.sched_getaffinity(0))
    if count > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)


def _evaluate(options: EvaluateOptions) -> int:
    experiment, state = load_run(
        options.run,
        step=_step(options.step),
        backend=options.backend,
        allow_import=_split(options.allow_import),
    )
    chosen = {name: getattr(options, name) for name in ("rounds", "episodes")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    for name, value in {"tasks": options.tasks, **chosen}.items():
        _check_positive(name, value)
    evaluation = dataclasses.replace(experiment.evaluation, **chosen)
    sizes = evaluation.sizes(experiment.algorithm, experiment.family.env)
    sizes = {"tasks": options.tasks, **sizes}
    algorithm, family = experiment.algorithm, experiment.family
    family = on_split(family, options.split)
    iteration = int(state.iteration)
    output = options.run / f"evaluation-{options.split}.json"
    _check_writable(output)

    @jax.jit
    def evaluate_both(meta_params, keys):
        def one_seed(meta_params, key):
            both = [
                evaluate(algorithm.agent, family, meta_params, key, **sizes, mode=mode)
                for mode in (False, True)
            ]
            return both

        return jax.vmap(one_seed)(meta_params, keys)

    meta_params = state.train_state.meta_params
    keys = jax.random.split(_key(experiment, "evaluate"), state.discarded.shape[0])
    jax.eval_shape(evaluate_both, meta_params, keys)  # what is wrong with sizes shows here
    say(
        f"evaluating {options.run}, {_which(options.step)} iteration {iteration} (physics: "
        f"{family.backend}) ..."
    )
    with _at_work("compiling and evaluating"):
        sampled, mode = map(np.asarray, evaluate_both(meta_params, keys))
    say(curve_text(sampled, "sampled", algorithm, family, options.split))
    say()
    say(curve_text(mode, MODE, algorithm, family, options.split))
    say()
    record = {
        "iteration": iteration,
        "backend": family.backend,
        "split": options.split,
        **sizes,
        "tasks": sampled.shape[1],
        "task_names": task_names(family.test),
        "sampled": _curve_record(sampled, algorithm.agent),
        MODE: _curve_record(mode, algorithm.agent),
    }
    try:
        output.write_text(json.dumps(plain(record), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise MetajaxError(f"cannot write {output}: {error.strerror}.") from None
    say(f"written to {output}")
    return 0


def _step(word: str | None) -> Step:
    """Return which checkpoint is asked for."""
    if word is None or word == "best":
        return word
    if not word.isdecimal():
        raise MetajaxError(f"--step is {word!r}; it must be a saved iteration or 'best'.")
    return int(word)


def _which(word: str | None) -> str:
    return {None: "newest", "best": "best"}.get(word, "saved")


def _curve_record(returns: np.ndarray, agent: Agent) -> dict[str, Any]:
    """Return an adaptation curve as it is saved."""
    record: dict[str, Any] = {
        "adaptation_curve": [s._asdict() for s in adaptation_curve(returns)],
        "returns_per_seed_task_round": returns.mean(axis=3),
    }
    if has_memory(agent):
        record["trial_total"] = trial_total(returns)._asdict()
    return record


def _key(experiment: presets.Experiment, use: Literal["evaluate", "render"]) -> jax.Array:
    # The trainer splits the same key and takes the first three.
    keys = jax.random.split(jax.random.key(experiment.training["seed"]), 5)
    return keys[3 if use == "evaluate" else 4]


def _check_writable(output: Path) -> None:
    """Check what can be before there is something to write."""
    if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
        reason = errno.EISDIR if output.is_dir() else errno.EACCES
        raise MetajaxError(f"cannot write {output}: {os.strerror(reason)}.")


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise MetajaxError(f"--{name} is {value}; it must be at least 1.")


def _render(options: RenderOptions) -> int:
    from metajax import rendering  # Matplotlib takes long to import

    _check_positive("tasks", options.tasks)
    with open_run(options.run, lock=False) as run:
        config = presets.described(run.config, run.path)
    allow = _split(options.allow_import)
    name = config["family_name"]
    drawing = presets.family_spec(name, allow_import=allow).drawing
    asked = [f".{kind}" for kind in ("html", "gif") if getattr(options, kind)]
    wanted = asked or rendering.formats(drawing)[:1]
    for suffix in wanted:
        rendering.check_picture(suffix, drawing, name)
    experiment, state = load_run(
        options.run, step=_step(options.step), backend=options.backend, allow_import=allow
    )
    seeds = state.discarded.shape[0]
    if not 0 <= options.seed < seeds:
        raise MetajaxError(f"--seed is {options.seed}; the run has seeds 0 to {seeds - 1}.")
    meta_params = jax.tree.map(lambda x: x[options.seed], state.train_state.meta_params)
    algorithm, env = experiment.algorithm, experiment.family.env
    rounds, episodes = experiment.evaluation.sizes(algorithm, env).values()
    adaptations = algorithm.trial.adaptations or 1
    if has_memory(algorithm.agent):  # its last episode
        adaptations, episodes = rounds * episodes - 1, 1
    outputs = [options.run / f"render{suffix}" for suffix in wanted]
    for output in outputs:
        _check_writable(output)
    say(f"drawing {options.run}, {_which(options.step)} iteration {int(state.iteration)} ...")
    with _at_work(f"compiling, playing and drawing {plural(options.tasks, 'held-out task')}"):
        rendering.render(
            drawing,
            algorithm.agent,
            experiment.family,
            meta_params,
            _key(experiment, "render"),
            outputs,
            tasks=options.tasks,
            adaptations=adaptations,
            episodes=episodes,
            joint=algorithm.joint,
        )
    for output in outputs:
        say(f"written to {output}")
    return 0


def _plot(options: PlotOptions) -> int:
    from metajax.plotting import plot_comparison  # Matplotlib takes long to import

    plot_comparison(options.runs, options.output)
    say(f"written to {options.output}")
    return 0


def _list(options: ListOptions) -> int:
    del options
    say("algorithms")
    for name, factory in sorted(ALGORITHMS.items()):
        say(f"  {name:<19}{summary_of(factory)}")
    speeds = json.loads(_SPEEDS.read_text())
    say("\nfamilies")
    for name, spec in sorted(FAMILIES.items()):
        say(f"  {name:<19}{spec.source}")
        try:
            env = spec.factory().env
        except MetajaxError as error:  # its package is not installed
            say(f"{'':<21}{error}")
            continue
        space = env.action_space
        discrete = isinstance(space, Discrete)
        acts = f"1 of {space.size}" if discrete else plural(space.size, "number")
        say(
            f"{'':<21}observation: {plural(env.observation_size, 'number')}, "
            f"action: {acts}, episode: {plural(env.episode_length, 'step')}"
        )
        if name in speeds["steps_per_second"]:
            say(f"{'':<21}{count(speeds['steps_per_second'][name])} steps per second")
        for option, names in presets.choices(name).items():
            say(f"{'':<21}--{option} {', '.join(names)}")
        if spec.references:
            say(f"{'':<21}reference agents: {', '.join(spec.references)}")
    say(f"\nsteps per second: {speeds['measured']}")
    return 0


class Command(NamedTuple):
    """What a word on the command line does: `run(options)` or, for train, `run(arguments)`."""

    run: Callable[[Any], int]
    options: type | None = None


COMMANDS = {
    "train": Command(_train),
    "resume": Command(_resume, ResumeOptions),
    "evaluate": Command(_evaluate, EvaluateOptions),
    "render": Command(_render, RenderOptions),
    "plot": Command(_plot, PlotOptions),
    "list": Command(_list, ListOptions),
}


def _usage() -> str:
    about = {
        "train": "Meta-train an algorithm on a task family.",
        **{
            name: (command.options.__doc__ or "").partition("\n")[0]
            for name, command in COMMANDS.items()
            if command.options is not None
        },
    }
    return "\n".join(
        [
            "usage: metajax COMMAND [ARGUMENTS]",
            "",
            "Meta-reinforcement learning, compiled by JAX.",
            "",
            *(f"  {name:<9} {text}" for name, text in about.items()),
            "",
            f"metajax train is metajax train {DEFAULT_ALGORITHM} {DEFAULT_FAMILY}.",
            "metajax COMMAND --help says more; metajax --version tells the version.",
        ]
    )


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        say(_usage())
        return 0
    if arguments[0] == "--version":
        say(f"metajax {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command = COMMANDS[name]
    if command.options is None:
        return command.run(rest)
    program = f"metajax {name}"
    hint = lambda word: _of_other_commands(word, program)
    return command.run(parse(command.options, rest, program, hint))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 is success, 2 a mistake of the user's (one sentence on stderr), 128 + n a stop by signal n.

    Args:
        arguments: without the program's name; those of this process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII alone
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(
                f"warning: {message}", file=sys.stderr
            )
            return _dispatch(sys.argv[1:] if arguments is None else list(arguments))
    except MetajaxError as error:
        print(error, file=sys.stderr)
        return 2
    except SystemExit as stop:  # tyro has shown its help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            silence()
