"""Agents and experiments from run directories."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
from jaxtyping import Array, PyTree

from metajax import presets
from metajax._checks import checked
from metajax.deployment import HostAgent, simulate
from metajax.errors import MetajaxError
from metajax.runs.checkpoint import restore, saved_kinds, saved_steps
from metajax.runs.directory import RunDirectory, open_run, read_metrics
from metajax.runs.selection import ranked, scores
from metajax.training.program import RunState, agent_part, make_segment
from metajax.types import Algorithm, TaskFamily

Step = int | Literal["best"] | None  # of a checkpoint; None for the newest


@checked
def load(
    run: str | Path,
    *,
    algorithm: Algorithm | None = None,
    family: TaskFamily | None = None,
    seed: int = 0,
    step: Step = None,
    allow_import: Sequence[str] = (),
) -> HostAgent:
    """Return the agent that a run directory holds.

    A run from the command line keeps a configuration that its algorithm and its family are built
    from. A run trained from Python without one is loaded with those that it was trained with.

    Args:
        run: the run directory.
        algorithm: that the run was trained with, instead of that of its configuration.
        family: likewise; both or neither are given.
        seed: which of the seeds trained side by side.
        step: a saved iteration, "best" or None for the newest; see `metajax.runs.load.load_run`.
        allow_import: modules outside metajax that the names in the run's configuration may be
            imported from.

    Raises:
        MetajaxError: the directory holds no run, no such seed, or no good checkpoint; the run keeps
            no configuration and nothing is given instead; or what is given is not what it was
            trained with.
    """
    if (algorithm is None) != (family is None):
        given, missing = ("family", "algorithm") if algorithm is None else ("algorithm", "family")
        raise MetajaxError(f"{given} is given without {missing}; give both or neither.")
    if algorithm is None or family is None:
        experiment, state = load_run(run, step=step, allow_import=allow_import)
        algorithm, family = experiment.algorithm, experiment.family
    else:
        with open_run(run, lock=False) as opened:
            seeds = _seeds_of(opened)
            state = _restored(opened, algorithm, family, tasks=1, seeds=seeds, step=step)
    meta_params = meta_params_of(state, seed)
    return simulate(algorithm.agent, family.env, meta_params, seed=seed)


def meta_params_of(state: RunState, seed: int) -> PyTree[Array]:
    """Return the meta-parameters of one seed.

    Raises:
        MetajaxError: there is no such seed.
    """
    seeds = state.discarded.shape[0]
    if not 0 <= seed < seeds:
        raise MetajaxError(f"the run has seeds 0 to {seeds - 1}, not {seed}.")
    return jax.tree.map(lambda x: x[seed], state.train_state.meta_params)


@checked
def load_run(
    path: str | Path,
    *,
    step: Step = None,
    backend: str | None = None,
    allow_import: Sequence[str] = (),
) -> tuple[presets.Experiment, RunState]:
    """Return the experiment of a run directory and what its agents are made of.

    Of the saved state that is the iteration and the meta-parameters; nothing else is read.

    Args:
        path: of the run directory.
        step: a saved iteration; None for the newest; "best" for the one with the highest score on
            validation tasks. If that is damaged, a warning says which good one with a score is
            taken instead.
        backend: another physics engine than the run's.
        allow_import: modules outside metajax that the run's names may be imported from.

    Raises:
        MetajaxError: the directory holds no run or no such checkpoint, the run keeps no
            configuration, or it was not trained to keep the best.
    """
    with open_run(path, lock=False) as run:
        config = presets.described(run.config, run.path)
        if backend is not None:
            config = config | {"family": {**config["family"], "backend": backend}}
        experiment = presets.build(config, allow_import=allow_import)
        state = _restored(
            run,
            experiment.algorithm,
            experiment.family,
            tasks=experiment.training["tasks"],
            seeds=experiment.training["seeds"],
            step=step,
        )
        return experiment, state


def _restored(
    run: RunDirectory,
    algorithm: Algorithm,
    family: TaskFamily,
    *,
    tasks: int,
    seeds: int,
    step: Step,
) -> RunState:
    """Return the agents' part of a saved state."""
    program = make_segment(algorithm, family, length=1, tasks=tasks, seeds=seeds)
    template = agent_part(jax.eval_shape(program.init, jax.random.key(0)))
    wanted = _best_first(run) if step == "best" else step
    return restore(run.checkpoints, template, step=wanted, part=True)[1]


def _seeds_of(run: RunDirectory) -> int:
    """Return how many seeds were trained, by the shapes in the checkpoints."""
    kind = str(saved_kinds(run.checkpoints).get("state.discarded"))
    found = re.fullmatch(r"int32\[(\d{1,9})\]", kind)
    if found is None:
        raise MetajaxError(f"the checkpoints of {run.path} are not those of a training run.")
    return int(found[1])


def _best_first(run: RunDirectory) -> list[int]:
    """Return the saved iterations that have a score, the best one first."""
    records = read_metrics(run.metrics) if run.metrics.exists() else []
    saved = saved_steps(run.checkpoints)
    # What is scored beyond the newest is still being saved.
    found = {i: s for i, s in scores(records).items() if i <= max(saved, default=0)}
    order = ranked(found)
    if not order:
        raise MetajaxError(
            f"{run.path} has no best agent yet: it takes training with keep 'best', and an "
            "evaluation."
        )
    if order[0] not in saved:
        warnings.warn(
            f"{run.path}: the best checkpoint, of step {order[0]}, is gone.", stacklevel=4
        )
    return order
