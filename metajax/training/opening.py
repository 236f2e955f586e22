"""How training starts or goes on: its program is traced, its state restored, and all compiled."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from metajax._memory import experience_bytes
from metajax._text import duration
from metajax.runs.recorder import Recorder
from metajax.runs.selection import Selection
from metajax.shutdown import Shutdown
from metajax.steps import counted
from metajax.training.checks import check_program
from metajax.training.discards import Discards
from metajax.training.plan import Evaluation
from metajax.training.program import (
    OnNan,
    RunState,
    Segment,
    agent_part,
    make_segment,
    segment_arguments,
)
from metajax.training.progress import Reporter
from metajax.training.sharding import task_mesh
from metajax.types import Algorithm, TaskFamily


class Call(NamedTuple):
    """What `train` was called with, as far as its parts need it, and what it made of that.

    Attributes:
        algorithm: the argument, and so on.
        chooses: whether the best agent is chosen on validation tasks.
        key: of the run.
        shutdown: polled between two units of work.
        reporting: where progress goes.
    """

    algorithm: Algorithm
    family: TaskFamily
    iterations: int
    tasks: int
    seeds: int
    segment: int
    evaluation: Evaluation | None
    devices: int
    on_nan: OnNan
    max_discarded: int | None
    patience: int | None
    run_directory: str | Path | None
    chooses: bool
    key: Key[Array, ""]
    shutdown: Shutdown
    reporting: Reporter

    def arguments(
        self, stop: int, evaluate_now: bool, repeat: int, *, validate: bool = False
    ) -> tuple[Array, ...]:
        """Return the arguments of `Segment.run` after the state and the key."""
        return segment_arguments(
            stop, evaluate_now, repeat, validates=self.chooses, validate=validate
        )


class Compiled(NamedTuple):
    """The compiled program and where its results are kept.

    Attributes:
        run: `Segment.run`.
        names: of what must be finite, by the indices that the program returns.
        recorder: where metrics and states go.
        seconds: that tracing and compiling took.
    """

    run: Callable
    names: list[str]
    recorder: Recorder
    seconds: float


class Reached(NamedTuple):
    """How far training has come.

    Attributes:
        state: after `done` iterations; it is donated to the next segment.
        done: iterations.
        environment_steps: of all seeds.
        seconds: wall time of the segments of this call.
        discards: of this call.
        selection: what the validations have come to.
        best: the meta-parameters that it chose, None for none.
    """

    state: RunState
    done: int
    environment_steps: int
    seconds: float
    discards: Discards
    selection: Selection
    best: PyTree[Array] | None


def announce(text: str) -> None:
    """Print on stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def episode_bytes(algorithm: Algorithm, family: TaskFamily, tasks: int, devices: int) -> int:
    """Return what an iteration's episodes take on each device, those of all seeds' `tasks`."""
    steps = algorithm.trial.steps(family.env) * tasks
    return experience_bytes(family.env, steps) // devices


def open_training(
    call: Call, open_files: Callable[[], Recorder], started: Callable[[], None]
) -> tuple[Compiled, Reached]:
    """Return the compiled program, and where training goes on from.

    Args:
        call: of `train`.
        open_files: opens the run directory, once the program is known to be right.
        started: called before anything is compiled.
    """
    algorithm, family, reporting = call.algorithm, call.family, call.reporting
    program = make_segment(
        algorithm,
        family,
        length=call.segment,
        tasks=call.tasks,
        seeds=call.seeds,
        evaluation=call.evaluation,
        mesh=task_mesh(call.devices) if call.devices > 1 else None,
        on_nan=call.on_nan,
    )
    if call.chooses and family.validation is None:
        announce(
            f"{family.name} has no validation tasks: the best agent is chosen on training "
            "tasks, by other episodes than it learns from."
        )

    def farewell(name: str) -> None:
        reporting.close()
        kept = f"; to go on, resume {call.run_directory}" if opened else ""
        announce(f"{name}: stopped while compiling, with nothing new to save{kept}")

    opened = False
    start = time.perf_counter()
    with call.shutdown.at_once(farewell):
        what = f"compiling {algorithm.name} on {family.name}"
        reporting.stage(f"{what}: tracing", quiet=True)  # until nothing can be refused any more
        tasks = call.tasks * call.seeds
        shapes, names = check_program(
            program,
            call.key,
            algorithm,
            family,
            episode_bytes(algorithm, family, tasks, call.devices),
            tasks,
            call.devices,
            call.arguments(0, False, 0),
        )
        recorder = open_files()
        opened = call.run_directory is not None
        state, selection, best = _restored(call, program, recorder, shapes)
        started()
        traced = time.perf_counter()
        reporting.stage(f"{what}: XLA")
        arguments = call.arguments(0, False, 0)
        state, run = _compile(program, call.key, shapes, state, arguments)
    end = time.perf_counter()
    reporting.note(
        f"compiled in {duration(end - start)} (tracing {duration(traced - start)}, "
        f"XLA {duration(end - traced)})"
    )
    none_yet = np.zeros(call.seeds, int)
    reached = Reached(
        state=state,
        done=int(state.iteration),
        environment_steps=int(counted(state.train_state.environment_steps).sum()),
        seconds=0.0,
        discards=Discards(none_yet, none_yet),
        selection=selection,
        best=best,
    )
    return Compiled(run, names, recorder, end - start), reached


def _restored(
    call: Call, program: Segment, recorder: Recorder, shapes: RunState
) -> tuple[RunState | None, Selection, PyTree[Array] | None]:
    """Return the state that is saved, None without one, what was selected so far, and the best."""
    template: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
    if (shardings := program.out_shardings(shapes)) is not None:
        template = jax.tree.map(lambda x, of: x.update(sharding=of), template, shardings[0])
    state = recorder.restore(template)
    if not call.chooses:
        return state, Selection(), None
    selection, kept = recorder.restore_best(agent_part(template))
    return state, selection, None if kept is None else kept.train_state.meta_params


def _compile(
    program: Segment, key, shapes: RunState, state: RunState | None, arguments: tuple
) -> tuple[RunState, Callable]:
    """Return the state to start from, a new one for None, and the compiled program."""
    shardings = program.out_shardings(shapes)
    init = jax.jit(program.init, out_shardings=shardings and shardings[0])
    start: RunState = init(key) if state is None else state
    run = jax.jit(program.run, donate_argnums=0, out_shardings=shardings)
    return start, run.lower(start, key, *arguments).compile()
