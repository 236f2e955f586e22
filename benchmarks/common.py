"""What every benchmark needs: honest timing, the machine's description, a place for results."""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import mujoco
import mujoco.rollout
import numpy as np

import metajax
from metajax import presets
from metajax.plotting import Curves, load_curves
from metajax.runs.recorder import Progress
from metajax.runs.records import plain
from metajax.training import Result

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/benchmarks")
# As the command line does: every core of a CPU is a device.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))

LIBRARIES = ("jax", "jaxlib", "mujoco", "mujoco-mjx", "brax", "flax", "optax", "numpy")


def machine() -> dict[str, Any]:
    """Return device, processor count, versions and XLA's flags, to be kept with every result."""
    commit = ""
    if shutil.which("git") is not None:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
        commit = found.stdout.strip()
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def timed(*programs: Callable[[], Any], repeats: int) -> list[list[float]]:
    """Return the wall seconds of each program, `repeats` times, in turn so that drift is shared.

    Each is run once before, unmeasured, and waited for every time.
    """
    for program in programs:
        jax.block_until_ready(program())
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(repeats):
        for index, program in enumerate(programs):
            began = time.perf_counter()
            jax.block_until_ready(program())
            seconds[index].append(time.perf_counter() - began)
    return seconds


def bare_mujoco(model, control) -> Callable[[], Any]:
    """Return a call of `mujoco.rollout` on all threads, from where the model stands.

    Args:
        model: a compiled MuJoCo model.
        control: of every world and substep `[world, substep, nu]`.
    """
    threads = len(os.sched_getaffinity(0))
    data = [mujoco.MjData(model) for _ in range(threads)]
    pool = mujoco.rollout.Rollout(nthread=threads)
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    state = np.zeros((len(control), mujoco.mj_stateSize(model, kind)))
    mujoco.mj_getState(model, data[0], state[0], kind)
    state[:] = state[0]
    return lambda: pool.rollout(model, data, state, control)[0]


def ratio(a: list[float], b: list[float]) -> float:
    """Return the median over pairs of a ÷ b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def standard_error(samples: np.ndarray) -> Any:
    """Return the standard error of the mean over the first axis, plain data; None of one sample."""
    if len(samples) == 1:
        return np.full(samples.shape[1:], None).tolist()
    return (np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))).tolist()


def plus_minus(mean: float, error: float | None, digits: int) -> str:
    """Return the mean and, where there is one, its standard error."""
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def save(name: str, result: Mapping[str, Any], directory: Path = RESULTS) -> Path:
    """Write `result` and the machine's description as `name`.json."""
    return _write(directory / f"{name}.json", {"machine": machine(), **result})


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
    return path


def saved(name: str) -> dict[str, Any]:
    """Return what was saved as `name`, {} if nothing was."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def train_or_resume(
    directory: Path,
    config: dict[str, Any],
    say: Callable[[Progress], str | None],
    experiment: presets.Experiment | None = None,
) -> Result:
    """Return what a run gives, begun in `directory` or gone on with; if interrupted, exit.

    Args:
        directory: of the run.
        config: of the experiment.
        say: what to print of a segment, None for nothing; where it stands and how fast it goes is
            said before and after it.
        experiment: if it is another one than the configuration describes.
    """
    experiment = presets.build(config) if experiment is None else experiment

    def report(progress: Progress) -> None:
        if (said := say(progress)) is not None:
            print(
                f"{directory.name}: {progress.iteration}/{progress.iterations}, "
                f"{progress.steps_per_second:,.0f} steps/s, {said}, "
                f"{progress.seconds_left / 60:.1f} min left",
                flush=True,
            )

    result = metajax.train(
        experiment.algorithm,
        experiment.family,
        evaluation=experiment.evaluation,
        **experiment.training,
        run_directory=directory,
        resume=directory.exists(),
        config=config,
        report=report,
    )
    if result.interrupted is not None:
        sys.exit(128 + result.interrupted)
    return result


def kept_run(
    name: str,
    config: dict[str, Any],
    again: bool,
    say: Callable[[Progress], str | None],
    experiment: presets.Experiment | None = None,
) -> tuple[Result, Curves, dict[str, Any]]:
    """Return what `train_or_resume` gives, its curves, and what a table's row says of any run.

    Args:
        name: of the run.
        config: see `train_or_resume`, as all that follow.
        again: start it over.
        say: what to print.
        experiment: if it is another one.
    """
    directory = RUNS / name.replace(", ", "-").replace(" ", "-")
    if again:
        shutil.rmtree(directory, ignore_errors=True)
    began = time.process_time()
    result = train_or_resume(directory, config, say, experiment)
    curves = load_curves(directory)
    return (
        result,
        curves,
        {
            "seeds": config["training"]["seeds"],
            "steps_per_seed": float(curves.environment_steps[-1]),
            "processor_seconds_of_last_part": time.process_time() - began,
            "compile_seconds": result.compile_seconds,
            "config": config,
        },
    )


def fill_table(
    name: str,
    doc: str,
    axes: Mapping[str, tuple[str, Sequence[str]]],
    run: Callable[..., dict[str, Any]],
    table: Callable[[list[dict[str, Any]]], str],
    draw: Callable[[list[dict[str, Any]], Path], None],
    defaults: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Run what is asked for on the command line and not there yet; write JSON, table and picture.

    Args:
        name: of the result.
        doc: its first line describes the command.
        axes: by option, the field of a row that it chooses and the values there are.
        run: `(*values, seeds, again) -> row`.
        table: rows as Markdown.
        draw: rows to a file.
        defaults: by option, what is run where it is not given, if not all values.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for option, (_, values) in axes.items():
        default = list((defaults or {}).get(option, values))
        parser.add_argument(f"--{option}", nargs="+", default=default, choices=values)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--redraw", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    fields = [field for field, _ in axes.values()]

    def there() -> dict[tuple, dict[str, Any]]:
        rows = saved(name).get("rows", [])
        return {tuple(row[field] for field in fields): row for row in rows}

    path = RESULTS / f"{name}.json"
    known = there()
    for chosen in itertools.product(*(getattr(arguments, option) for option in axes)):
        if arguments.redraw or (chosen in known and not arguments.again):
            continue
        row = {"machine": machine()} | run(*chosen, arguments.seeds, arguments.again)
        print(table([row]).splitlines()[-1], flush=True)
        # Read again: commands may run side by side.
        known = there() | {chosen: row}
        _write(path, {"rows": list(known.values())})
    order = itertools.product(*(values for _, values in axes.values()))
    rows = [known[chosen] for chosen in order if chosen in known]
    print(table(rows))
    path.with_suffix(".md").write_text(table(rows) + "\n")
    draw(rows, path.with_suffix(".png"))
    print(f"wrote {path}")


def saved_rows(name: str, field: str) -> dict[Any, dict[str, Any]]:
    """Return the rows of what was saved as `name`, by the value of a field."""
    return {row[field]: row for row in saved(name).get("rows", [])}
