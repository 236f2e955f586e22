"""What `train` and `resume` have in common: they train, and show what came of it."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from metajax import presets
from metajax._alarms import without_alarms
from metajax._text import duration, plural, show
from metajax.cli.display import DETERMINISTIC, SAMPLED, curve_text, metrics_text, on_run, what_runs
from metajax.training import Result, train
from metajax.training.sharding import default_devices


def train_and_show(
    config: presets.Config, directory: Path, *, resume: bool, allow_import: Sequence[str]
) -> int:
    """Train, and show what came of it; return the exit status.

    Args:
        config: of the run.
        directory: of the run.
        resume: whether it holds the run already.
        allow_import: modules outside metajax that the configuration's names may be imported from.
    """
    start = time.perf_counter()
    config = presets.checked_config(config, allow_import=allow_import)
    _ask_for_devices(config)
    experiment = presets.build(config, allow_import=allow_import)
    if config["training"]["devices"] is None:  # kept, so that a resumed run has as many
        devices = default_devices(experiment.family, config["training"]["tasks"])
        experiment.training["devices"] = config["training"]["devices"] = devices
    described = what_runs(config, experiment, resume=resume)
    if "backend" in config["family"]:  # stay with the engine, whatever machine it is resumed on
        config["family"]["backend"] = experiment.family.backend

    def started() -> None:
        for line in (*described, f"run: {directory}"):
            show(line)

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
        show(f"stopped by {name} after {plural(done, 'iteration')}{saved}. To go on:")
        show(f"  {on_run('resume', directory, config, *further)}")
        return status
    seconds = time.perf_counter() - start
    acting = DETERMINISTIC if experiment.evaluation.deterministic else SAMPLED
    show()
    show(_whose(result, config["training"]))
    show(curve_text(result.returns, acting, experiment.algorithm, experiment.family, "test"))
    if result.environment_metrics:
        show(metrics_text(result.environment_metrics, experiment.algorithm))
    show()
    _conclude(result, directory, config, done, seconds)
    return status


def _whose(result: Result, training: dict[str, Any]) -> str:
    """Return which agent the final table is of, and why it ended before its iterations."""
    done = int(result.state.iteration)
    which = "best" if training.get("keep") == "best" else "newest"
    agent = f"The {which} agent, of iteration {result.agent_iteration}"
    if done < training["iterations"]:
        return (
            f"{agent}; stopped after {done}, {training['patience']} evaluations without a better."
        )
    return f"{agent} of {done}." if done != result.agent_iteration else f"{agent}."


def _conclude(
    result: Result, directory: Path, config: presets.Config, done: int, seconds: float
) -> None:
    draw(directory)
    show(f"evaluate:  {on_run('evaluate', directory, config)}")
    show(f"render:    {on_run('render', directory, config)}")
    show(f"resume:    {on_run('resume', directory, config, '--iterations', 2 * done)}")
    compiling = duration(result.compile_seconds)
    show(f"wall time: {duration(seconds)}, {compiling} of it compiling")


PICTURE = "curves.png"


def draw(directory: Path) -> None:
    """Draw the learning curves of a run into its directory."""
    from metajax.plotting import plot_run  # Matplotlib takes long to import

    picture = directory / PICTURE
    plot_run(directory, picture)
    show(f"picture:   {picture}")


def _ask_for_devices(config: presets.Config) -> None:
    """Make the CPU look like several devices, unless JAX has started or has a number set.

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
