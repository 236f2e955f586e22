"""Training on the host: it starts segments, reads what they return and saves their state."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from metajax._checks import Seed, checked
from metajax._memory import check_memory
from metajax._text import count, plural
from metajax.envs.splits import at_most, number_of_tasks
from metajax.errors import MetajaxError, check_at_least
from metajax.runs.recorder import Progress, open_recorder
from metajax.runs.selection import Keep, validation_score
from metajax.shutdown import Shutdown, graceful_shutdown
from metajax.steps import counted
from metajax.training.checks import check_counts, check_devices, check_keep
from metajax.training.discards import check_discards
from metajax.training.opening import (
    Call,
    Compiled,
    Reached,
    announce,
    episode_bytes,
    open_training,
)
from metajax.training.plan import Evaluation
from metajax.training.program import ENVIRONMENT_STEPS, NOT_FINITE, OnNan, RunState
from metajax.training.progress import Report, Reporter, reporter
from metajax.training.sharding import default_devices
from metajax.types import Algorithm, TaskFamily


class Result(NamedTuple):
    """What `train` returns.

    Attributes:
        state: of all seeds (`state.train_state.meta_params` has a leading `seed` axis).
        metrics: of all iterations of this call, `[iteration, seed]` each.
        returns: final held-out returns `[seed, task, round, episode]`, None without evaluation.
        environment_metrics: what the environment measured at the end of these episodes, by name
            (see `EnvState.metrics`), `[seed, task, round, episode]`.
        agent: meta-parameters, with a leading `seed` axis, that `returns` are of: those of the
            best agent with `keep="best"`, else the newest.
        agent_iteration: which iteration they are of.
        compile_seconds: spent tracing and compiling.
        train_seconds: wall time after compiling.
        interrupted: the signal that ended training early, or None.
    """

    state: RunState
    metrics: dict[str, np.ndarray]
    returns: np.ndarray | None
    environment_metrics: dict[str, np.ndarray]
    agent: PyTree[Array]
    agent_iteration: int
    compile_seconds: float
    train_seconds: float
    interrupted: int | None

    def meta_params(self, seed: int = 0):
        """Return the meta-parameters of one seed, of `agent`."""
        return jax.tree.map(lambda x: x[seed], self.agent)


@checked
def train(
    algorithm: Algorithm,
    family: TaskFamily,
    *,
    iterations: int = 200,
    tasks: int = 20,
    training_tasks: int | None = None,
    seeds: int = 1,
    seed: Seed = 0,
    segment: int = 10,
    evaluation: Evaluation | None = Evaluation(),
    devices: int | None = None,
    on_nan: OnNan = "skip",
    max_discarded: int | None = 20,
    keep: Keep = "newest",
    patience: int | None = None,
    run_directory: str | Path | None = None,
    resume: bool = False,
    config: dict[str, Any] | None = None,
    report: Report = "print",
    started: Callable[[], None] | None = None,
) -> Result:
    """Meta-train, evaluate on held-out tasks, and keep everything needed to go on.

    Example:
        >>> import metajax
        >>> family = metajax.make("bernoulli-bandit", arms=2)
        >>> policy = metajax.mlp(family.env.observation_size, family.env.action_space)
        >>> algorithm = metajax.reinforce(family.env, policy, episodes=3)
        >>> result = metajax.train(
        ...     algorithm, family, iterations=2, tasks=4, seeds=3, evaluation=None, report=None
        ... )
        >>> result.metrics["entropy"].shape
        (2, 3)

    Args:
        algorithm: meta-learner, such as `metajax.maml(...)` returns.
        family: task family, such as `metajax.make(...)` returns.
        iterations: meta-iterations in all.
        tasks: meta-batch size, tasks per meta-iteration and seed.
        training_tasks: most training tasks that there are; where a family has more, so many are
            drawn once, by `seed`. None for all of them.
        seeds: independent runs in the same program.
        seed: seed of all randomness. The same program on the same devices gives the same bits. With
            another number of seeds, tasks or devices it is another program: the random numbers of
            a seed stay, rounding does not, so what is learned has the same distribution, no more.
        segment: meta-iterations between two looks of the host (progress, metrics, checkpoint).
        evaluation: plan of the evaluations on held-out tasks; None for none.
        devices: number of devices that tasks are sharded over; None for as many as divide them
            evenly, and one for C MuJoCo, which has threads of its own.
        on_nan: response to an update that is not finite: "skip" discards it and goes on, "halt"
            stops.
        max_discarded: updates discarded in a row, of any one seed, after which training stops;
            on_nan="skip". None for never.
        keep: agent that is evaluated at the end, and kept as well as the newest: "newest", or
            "best", the one with the highest return, mean over seeds, on validation tasks, which are
            neither training nor held-out ones (where a family has no others: on training tasks, but
            other episodes). They are played whenever held-out tasks are evaluated.
        patience: evaluations on validation tasks in a row without a better agent after which
            training stops; `keep="best"`. None for never.
        run_directory: directory of metrics and checkpoints; None keeps nothing.
        resume: continue the run in `run_directory` instead of starting one there.
        config: kept in the run directory, as JSON.
        report: "print" prints progress on stdout; None prints nothing; a function is called after
            every segment, instead.
        started: called once, before anything is compiled: from here on nothing is refused.

    Returns:
        See `Result`. On SIGTERM or Ctrl-C the current segment is finished and saved first; while
        the program is still compiled, with nothing to save, the process ends at once (in an
        interactive session, training does once it is compiled).

    Raises:
        MetajaxError: an argument is out of range, the environment breaks its promises, the run
            directory cannot be used, or something was not finite, with `on_nan="halt"` or
            `max_discarded` times in a row; the state is saved.
    """
    check_counts(iterations=iterations, tasks=tasks, seeds=seeds, segment=segment, devices=devices)
    family = family._replace(train=at_most(family.train, training_tasks, seed=seed))
    if max_discarded is not None:
        check_at_least(1, max_discarded=max_discarded)
    check_keep(family, keep, patience, evaluation, iterations)
    devices = default_devices(family, tasks) if devices is None else devices
    check_devices(tasks, devices)
    episodes = episode_bytes(algorithm, family, tasks * seeds, devices)
    check_memory(devices=devices, the_episodes_of_an_iteration=episodes)
    with contextlib.ExitStack() as stack:
        shutdown = stack.enter_context(graceful_shutdown(announce))
        reporting = reporter(report)
        stack.callback(reporting.close)
        call = Call(
            algorithm=algorithm,
            family=family,
            iterations=iterations,
            tasks=tasks,
            seeds=seeds,
            segment=segment,
            evaluation=evaluation,
            devices=devices,
            on_nan=on_nan,
            max_discarded=max_discarded,
            patience=patience,
            run_directory=run_directory,
            chooses=keep == "best",
            key=jax.random.key(seed),
            shutdown=shutdown,
            reporting=reporting,
        )
        open_files = lambda: stack.enter_context(
            open_recorder(run_directory, config, resume=resume)
        )
        compiled, reached = open_training(call, open_files, started or (lambda: None))
        start = time.perf_counter()
        reached, metrics = _train_on(call, compiled, reached)
        return _concluded(call, compiled, reached, metrics, start)


# ---------------------------------------------------------------------------------------------
# Segments
# ---------------------------------------------------------------------------------------------


def _train_on(
    call: Call, compiled: Compiled, reached: Reached
) -> tuple[Reached, dict[str, np.ndarray]]:
    """Run segments until training is over; return how far it has come, and this call's metrics."""
    recorder, reporting = compiled.recorder, call.reporting
    saved = f", saved in {call.run_directory}" if call.run_directory else ""
    history: list[dict[str, np.ndarray]] = []
    start = last_saved = reached.done

    def save() -> int:
        recorder.save(reached.done, reached.state, reached.selection.iteration)
        return reached.done

    if _is_unfinished(call, reached):
        size = plural(min(call.segment, call.iterations), "iteration")
        reporting.stage(f"training, {size} at a time")
    while _is_unfinished(call, reached) and call.shutdown.requested is None:
        before = reached.discards
        reached, progress = _after_segment(call, compiled, reached, start)
        history.append(progress.metrics)
        recorder.record(progress)
        if _is_saved_always(reached) or recorder.is_rested():
            last_saved = save()
        reporting.segment(progress)
        try:
            check_discards(
                before,
                reached.discards,
                reached.done,
                progress.discarded,
                on_nan=call.on_nan,
                max_discarded=call.max_discarded,
                saved=saved,
            )
        except MetajaxError:
            if last_saved < reached.done:
                save()
            raise
    if last_saved < reached.done:
        save()
    return reached, _concatenate(history)


def _is_saved_always(reached: Reached) -> bool:
    """Return whether a state is saved after every segment: a best agent, or one with no replay.

    A replay is large: saving all of it each time could take longer than training.
    """
    is_light = not jax.tree.leaves(reached.state.train_state.replay)
    return is_light or reached.selection.iteration == reached.done


def _is_unfinished(call: Call, reached: Reached) -> bool:
    exhausted = call.patience is not None and reached.selection.since >= call.patience
    return reached.done < call.iterations and not exhausted


def _after_segment(
    call: Call, compiled: Compiled, reached: Reached, start: int
) -> tuple[Reached, Progress]:
    """Return how far training has come after one more segment, and what there is to report.

    Args:
        call: of `train`.
        compiled: the program.
        reached: before the segment; its state is donated.
        start: the iteration that this call of `train` started from.
    """
    done, stop = reached.done, min(reached.done + call.segment, call.iterations)
    every = None if call.evaluation is None else call.evaluation.every
    if every is not None:  # evaluations are at multiples of `every`, however cut
        stop = min(stop, done - done % every + every)
    start_of_segment = time.perf_counter()
    state, metrics, _ = compiled.run(reached.state, call.key, *call.arguments(stop, False, 0))
    jax.block_until_ready(state)
    elapsed = time.perf_counter() - start_of_segment
    seconds = reached.seconds + elapsed

    returns, measured = None, {}
    if every is not None and stop % every == 0 and stop < call.iterations:
        state, _, evaluated = compiled.run(state, call.key, *call.arguments(stop, True, 0))
        returns, measured = jax.tree.map(np.asarray, evaluated)
    validation, score, selection, best = None, -math.inf, reached.selection, reached.best
    if every is not None and call.chooses and stop % every == 0:
        arguments = call.arguments(stop, True, 0, validate=True)
        state, _, (validation, _) = compiled.run(state, call.key, *arguments)
        validation = np.asarray(validation)
        adaptations = call.algorithm.trial.adaptations
        score = validation_score(validation.mean(axis=-1), adaptations)
        selection = selection.after(stop, score)
        if selection.iteration == stop:
            best = _copied(state.train_state.meta_params)

    metrics = {name: np.asarray(m)[: stop - done] for name, m in metrics.items()}
    steps_after = counted(metrics.pop(ENVIRONMENT_STEPS)).sum(axis=1)
    discards = reached.discards.after(done, metrics.pop(NOT_FINITE), compiled.names)
    steps = int(steps_after[-1])
    progress = Progress(
        iteration=stop,
        iterations=call.iterations,
        environment_steps=steps,
        steps_after=steps_after,
        steps_per_second=(steps - reached.environment_steps) / elapsed,
        metrics=metrics,
        discarded=np.asarray(state.discarded),
        returns=returns,
        environment_metrics=measured,
        seconds_left=seconds / (stop - start) * (call.iterations - stop),
        not_finite=discards.first,
        validation=validation,
        score=score,
        selection=selection,
    )
    return Reached(state, stop, steps, seconds, discards, selection, best), progress


def _copied(tree: PyTree[Array]) -> PyTree[Array]:
    """Return copies that stay when the program is given the originals for good."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding, may_alias=False), tree)


def _concatenate(history: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if not history:
        return {}
    return {name: np.concatenate([m[name] for m in history]) for name in history[0]}


# ---------------------------------------------------------------------------------------------
# Final evaluation
# ---------------------------------------------------------------------------------------------


def _concluded(
    call: Call,
    compiled: Compiled,
    reached: Reached,
    metrics: dict[str, np.ndarray],
    start: float,
) -> Result:
    """Return the result of training, after the final evaluation of the best agent or the newest.

    Args:
        call: of `train`.
        compiled: the program.
        reached: when training ended; its state is donated.
        metrics: of this call's iterations.
        start: when the program was compiled, by `time.perf_counter`.
    """
    state, best, of_iteration = reached.state, reached.best, reached.done
    newest = state.train_state.meta_params
    if best is not None and reached.selection.iteration is not None:
        of_iteration = reached.selection.iteration
        state = _with_agent(state, best, of_iteration)
    returns, measured = None, {}
    if call.evaluation is not None:
        env = call.family.env
        sizes = call.evaluation.sizes(call.algorithm, env)
        # Both kinds of episodes are played, those it learns from and those that are scored.
        sizes["episodes"] *= 1 + call.evaluation.deterministic
        state, returns, measured = _evaluate_finally(
            lambda state, repeat: compiled.run(
                state, call.key, *call.arguments(of_iteration, True, repeat)
            ),
            state,
            call.family,
            call.evaluation,
            (call.seeds * math.prod(sizes.values()), env.episode_length),
            call.shutdown,
            call.reporting,
        )
    if returns is not None:
        compiled.recorder.record_final(reached.done, returns, measured, of_iteration)
    agent = state.train_state.meta_params
    if best is not None:
        state = _with_agent(state, newest, reached.done)
    return Result(
        state=state,
        metrics=metrics,
        returns=returns,
        environment_metrics=measured,
        agent=agent,
        agent_iteration=of_iteration,
        compile_seconds=compiled.seconds,
        train_seconds=time.perf_counter() - start,
        interrupted=call.shutdown.requested,
    )


def _evaluate_finally(
    evaluate_batch: Callable,
    state: RunState,
    family: TaskFamily,
    evaluation: Evaluation,
    work: tuple[int, int],
    shutdown: Shutdown,
    reporting: Reporter,
) -> tuple[RunState, np.ndarray | None, dict[str, np.ndarray]]:
    """Return the state, and returns and metrics of `final_tasks` tasks; None if interrupted.

    Args:
        evaluate_batch: `(state, repeat) -> (state, metrics, evaluated)`.
        state: donated.
        family: whose held-out tasks they are; of finitely many, none is left out.
        evaluation: how.
        work: episodes per held-out task, of all seeds, and steps per episode.
        shutdown: polled before every batch.
        reporting: where progress goes.
    """
    size = evaluation.batch(family)
    repeats = -(-evaluation.final_tasks // size)
    wanted = repeats * size if number_of_tasks(family.test) else evaluation.final_tasks
    episodes = repeats * size * work[0]
    what = (
        f"evaluating {plural(wanted, 'held-out task')} ({count(episodes)} episodes, "
        f"{count(episodes * work[1])} steps)"
    )
    batches = []
    for repeat in range(repeats):
        if shutdown.requested is not None:
            return state, None, {}
        reporting.stage(what, done=repeat * size, total=wanted)
        state, _, batch = evaluate_batch(state, repeat)
        batches.append(jax.tree.map(np.asarray, batch))
    returns, measured = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :wanted], *batches)
    return state, returns, measured


def _with_agent(state: RunState, meta_params: PyTree[Array], iteration: int) -> RunState:
    """Return the state with the meta-parameters of another iteration."""
    number = jax.device_put(np.int32(iteration), state.iteration.sharding)
    train_state = dataclasses.replace(state.train_state, meta_params=meta_params)
    return dataclasses.replace(state, iteration=number, train_state=train_state)
