"""Meta-training as one XLA program, which C MuJoCo is called from where it is the physics.

A segment (meta-iterations, then perhaps an evaluation on held-out tasks) is compiled once; the
host only starts it, reads what it returned and saves its state. Every key is derived from the
seed and the iteration, so neither segment length, nor evaluation, nor an interruption can change
a result on the same devices.
"""

import contextlib
import dataclasses
import functools
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from metajax._checks import Seed, checked, checked_fields
from metajax._memory import bytes_of, check_memory, experience_bytes
from metajax._tables import plural
from metajax.envs.splits import even_count, number_of_tasks, sample_batch
from metajax.errors import MetajaxError, check_at_least
from metajax.evaluation import draw_trials, evaluate_on, has_memory
from metajax.progress import Report, Reporter, count, duration, reporter
from metajax.recorder import Progress, open_recorder
from metajax.rollout import check_env
from metajax.selection import Keep, Selection, validation_score
from metajax.shutdown import Shutdown, graceful_shutdown
from metajax.steps import counted
from metajax.types import (
    Algorithm,
    Env,
    Metrics,
    TaskDistribution,
    TaskFamily,
    TrainState,
    pytree_dataclass,
)

OnNan = Literal["skip", "halt"]

# The trainer's own metrics: which of `_floats` was not finite, or -1; and the count of steps.
NOT_FINITE, ENVIRONMENT_STEPS = "not_finite", "environment_steps"


@checked_fields("evaluation.")
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How held-out tasks are evaluated during training.

    Attributes:
        every: meta-iterations between evaluations; there is one at the end in any case.
        tasks: held-out tasks per evaluation and seed; of finitely many, each equally often: rounded
            up to a multiple of their number, if that is within twice as many or `final_tasks`.
        rounds: adaptation steps + 1; may exceed what training uses. None for 4; of an agent with a
            memory, for at most ten rounds, of at least five steps, that are together a trial as in
            training.
        episodes: per task and round; None for 20, or for that trial.
        final_tasks: held-out tasks per seed of the evaluation at the end, which repeats evaluations
            of `tasks` tasks; those of the last one that are too many are left out, unless there
            are finitely many.
        mode: score separate episodes that take the distribution's mode (of a Q-network, the most
            valuable action); adaptation always learns from sampled actions.
    """

    every: int = 50
    tasks: int = 20
    rounds: int | None = None
    episodes: int | None = None
    final_tasks: int = 40
    mode: bool = False

    def __post_init__(self):
        """Check that counts are at least 1."""
        counts = dataclasses.asdict(self)
        del counts["mode"]
        check_at_least(1, **{f"evaluation.{k}": v for k, v in counts.items() if v is not None})

    def batch(self, family: TaskFamily) -> int:
        """Return how many held-out tasks an evaluation takes: `tasks`, or as many as are even."""
        return even_count(family.test, self.tasks, most=self.final_tasks)

    def sizes(self, algorithm: Algorithm, env: Env) -> dict[str, int]:
        """Return the number of "rounds" and of "episodes" in each, for an algorithm's agent."""
        rounds, episodes = self.rounds or 4, self.episodes or 20
        if has_memory(algorithm.agent):
            trial = algorithm.trial.rounds * algorithm.trial.episodes
            # The middle half of single pulls, which pay 0 or 1, is far from their mean.
            fewest = math.ceil(5 / env.episode_length)
            rounds = self.rounds or max(
                n for n in range(1, 11) if n == 1 or (trial % n == 0 and trial // n >= fewest)
            )
            episodes = self.episodes or max(1, trial // rounds)
        return {"rounds": rounds, "episodes": episodes}


@pytree_dataclass
class RunState:
    """Everything a run resumes from.

    Attributes:
        iteration: meta-iterations done.
        discarded: updates discarded because something in them was not finite, per seed.
        train_state: the algorithm's, with a leading `seed` axis.
    """

    iteration: Int[Array, ""]
    discarded: Int[Array, "seed"]
    train_state: TrainState


def agent_part(state: RunState) -> RunState:
    """Return a state, or the shapes of one, without what its agents do not need."""
    meta_params = state.train_state.meta_params
    # Its checkpoint may be one of an earlier time, which knew no more of the state.
    agents: Any = TrainState(meta_params, environment_steps=())  # type: ignore[arg-type]
    return dataclasses.replace(state, train_state=agents)


class Result(NamedTuple):
    """What `train` returns.

    Attributes:
        state: of all seeds (`state.train_state.meta_params` has a leading `seed` axis).
        metrics: of all iterations of this call, `[iteration, seed]` each.
        returns: final held-out returns `[seed, task, round, episode]`, None without evaluation.
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
    agent: PyTree[Array]
    agent_iteration: int
    compile_seconds: float
    train_seconds: float
    interrupted: int | None

    def meta_params(self, seed: int = 0):
        """Return the meta-parameters of one seed, of `agent`."""
        return jax.tree.map(lambda x: x[seed], self.agent)


class Segment(NamedTuple):
    """The program, and how to start it.

    - `init(key) -> RunState`;
    - `run(state, key, stop, evaluate_now, repeat, validate=None) -> (state, metrics, returns)`:
      meta-iterations up to `stop` (at most `length` of them), then an evaluation if
      `evaluate_now`. `metrics` are `[length, seed]`, zero where no iteration was run; `NOT_FINITE`
      is one of them, the index of what was not finite first. `returns` are `[seed, task, round,
      episode]`, zero without evaluation. `repeat` numbers evaluations of the same state. With
      `validate` the tasks are validation tasks where it is true; without, the program has none;
    - `out_shardings`, for `jit`, of what `run` returns: everything is replicated, except returns,
      which stay where their task is. None for one device.
    """

    init: Callable[[Key[Array, ""]], RunState]
    run: Callable[..., tuple[RunState, Metrics, Float[Array, "seed task round episode"]]]
    out_shardings: tuple[NamedSharding, NamedSharding, NamedSharding] | None


def make_segment(
    algorithm: Algorithm,
    family: TaskFamily,
    *,
    length: int,
    tasks: int,
    seeds: int = 1,
    evaluation: Evaluation | None = None,
    mesh: Mesh | None = None,
    on_nan: OnNan = "skip",
) -> Segment:
    """Return the pure functions that training compiles.

    Args:
        algorithm: the meta-learner.
        family: where tasks come from.
        length: most meta-iterations per call of `run`.
        tasks: meta-batch size.
        seeds: independent runs, side by side.
        evaluation: on held-out tasks; None for no evaluation.
        mesh: its axis "task" shares out the tasks over devices; None for one device.
        on_nan: an update that is not finite is discarded; "halt" discards all later ones too.
    """

    def shard(x):
        if mesh is None:
            return x
        sharding = NamedSharding(mesh, PartitionSpec("task"))
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), x)

    def on_mesh(function):
        """Trace `function` once, where `over_tasks` finds the mesh."""

        @jax.jit  # for its cache: physics takes as long to trace as to compile
        @functools.wraps(function)
        def placed(*arguments):
            if mesh is None:
                return function(*arguments)
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*arguments)

        return placed

    def sample_tasks(key):
        return shard(sample_batch(family.train, key, tasks))

    def seed_keys(key):
        return jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.arange(seeds))

    def init(key) -> RunState:
        def one_seed(key):
            task_key, init_key = jax.random.split(key)
            return algorithm.init(init_key, sample_tasks(task_key))

        init_key = jax.random.split(key, 3)[0]
        state = RunState(
            iteration=jnp.zeros((), jnp.int32),
            discarded=jnp.zeros(seeds, jnp.int32),
            train_state=jax.vmap(one_seed)(seed_keys(init_key)),
        )
        # A weakly typed leaf would be saved as a strong one, and resume as another program.
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)

    @on_mesh
    def iterate(state: RunState, key) -> tuple[RunState, Metrics]:
        def one_seed(train_state, discarded, key):
            task_key, update_key = jax.random.split(jax.random.fold_in(key, state.iteration))
            new, metrics = algorithm.update(train_state, sample_tasks(task_key), update_key)
            each = jnp.stack([jnp.all(jnp.isfinite(x)) for _, x in _floats(new, metrics)])
            finite = jnp.all(each)
            first = jnp.where(finite, -1, jnp.argmin(each)).astype(jnp.int32)
            keep = finite if on_nan == "skip" else finite & (discarded == 0)
            kept = jax.tree.map(
                lambda new, old: jnp.where(keep, new, old), _guarded(new), _guarded(train_state)
            )
            own = {NOT_FINITE: first, ENVIRONMENT_STEPS: new.environment_steps}
            new = dataclasses.replace(new, **kept)
            return new, discarded + (~finite).astype(jnp.int32), metrics | own

        train_state, discarded, metrics = jax.vmap(one_seed)(
            state.train_state, state.discarded, seed_keys(key)
        )
        return RunState(state.iteration + 1, discarded, train_state), metrics

    @on_mesh
    def evaluate_all(state: RunState, key, repeat, validate):
        plan = evaluation
        assert plan is not None

        def one_seed(train_state, key):
            key = jax.random.fold_in(jax.random.fold_in(key, state.iteration), repeat)
            trials = draw_trials(family.test, key, plan.batch(family))
            if validate is not None:
                others = draw_trials(validation_tasks(family), key, plan.batch(family))
                trials = jax.tree.map(lambda x, y: jnp.where(validate, x, y), others, trials)
            return evaluate_on(
                trials,
                algorithm.agent,
                family.env,
                train_state.meta_params,
                **plan.sizes(algorithm, family.env),
                mode=plan.mode,
            )

        return jax.vmap(one_seed)(state.train_state, seed_keys(key))

    def run(
        state: RunState,
        key,
        stop,
        evaluate_now: Bool[Array, ""],
        repeat: Int[Array, ""],
        validate: Bool[Array, ""] | None = None,
    ):
        _, train_key, evaluation_key = jax.random.split(key, 3)
        if validate is not None:  # those between are the command line's
            evaluation_key = jnp.where(validate, jax.random.split(key, 6)[5], evaluation_key)
        start = state.iteration
        shapes = jax.eval_shape(iterate, state, train_key)[1]
        metrics = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)

        def body(carry):
            state, metrics = carry
            new_state, new = iterate(state, train_key)
            at = state.iteration - start
            return new_state, jax.tree.map(lambda all, one: all.at[at].set(one), metrics, new)

        # A loop with a traced bound: one program for segments of every length.
        state, metrics = jax.lax.while_loop(
            lambda carry: carry[0].iteration < stop, body, (state, metrics)
        )
        if evaluation is None:
            return state, metrics, jnp.zeros((seeds, 0, 0, 0))
        shape = jax.eval_shape(evaluate_all, state, evaluation_key, repeat, validate)
        returns = jax.lax.cond(
            evaluate_now,
            lambda: evaluate_all(state, evaluation_key, repeat, validate),
            lambda: jnp.zeros(shape.shape, shape.dtype),
        )
        return state, metrics, returns

    out_shardings = None
    if mesh is not None:
        replicated = NamedSharding(mesh, PartitionSpec())
        even = evaluation is not None and evaluation.batch(family) % mesh.size == 0
        by_task = NamedSharding(mesh, PartitionSpec(None, "task")) if even else replicated
        out_shardings = replicated, replicated, by_task
    return Segment(init, run, out_shardings)


def _guarded(state: TrainState) -> dict[str, PyTree[Array]]:
    """Return what stays as it was where an update is discarded, by field.

    Not the replay: choosing between two would copy it. What was played was played, whatever was
    made of it, so it stays, and its steps count.
    """
    names = ("meta_params", "learner", "statistics", "hyperparameters")
    return {name: getattr(state, name) for name in names}


def _floats(state: TrainState, metrics: Metrics) -> list[tuple[str, Any]]:
    """Return what has to be finite, and its name: metrics, those of rewards first, then the state.

    In this order the first that is not says most of the reason: all else follows from rewards.
    """
    names = sorted(metrics, key=lambda name: (not name.startswith("return"), name))
    named = [(f"metrics/{name}", metrics[name]) for name in names]
    for field, part in _guarded(state).items():
        for path, leaf in jax.tree_util.tree_leaves_with_path({field: part}):
            named.append((jax.tree_util.keystr(path, simple=True, separator="/"), leaf))
    return [(name, x) for name, x in named if jnp.issubdtype(x.dtype, jnp.inexact)]


class _Discards(NamedTuple):
    """The updates discarded in this call of `train`.

    Attributes:
        row: length of the last unbroken row of them, `[seed]`.
        longest: of the rows so far, `[seed]`.
        first: what was not finite in the first of them, and in which; None without any.
    """

    row: Int[np.ndarray, "seed"]
    longest: Int[np.ndarray, "seed"]
    first: str | None = None

    def after(self, done: int, not_finite: np.ndarray, names: list[str]) -> "_Discards":
        """Return these and those of the iterations after `done`, given `[iteration, seed]`."""
        row, longest, first = *self[:2], self.first
        for iteration, indices in enumerate(not_finite, done + 1):
            row = np.where(indices >= 0, row + 1, 0)
            longest = np.maximum(longest, row)
            if first is None and (bad := np.flatnonzero(row)).size:
                first = f"{names[indices[bad[0]]]} (iteration {iteration}, seed {bad[0]})"
        return _Discards(row, longest, first)


@checked
def train(
    algorithm: Algorithm,
    family: TaskFamily,
    *,
    iterations: int = 200,
    tasks: int = 20,
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
        algorithm: from `metajax.maml(...)`, say.
        family: from `metajax.make(...)`.
        iterations: meta-iterations in all.
        tasks: meta-batch size, tasks per meta-iteration and seed.
        seeds: independent runs in the same program.
        seed: of all randomness. The same program on the same devices gives the same bits. With
            another number of seeds, tasks or devices it is another program: the random numbers of
            a seed stay, rounding does not, so what is learned has the same distribution, no more.
        segment: meta-iterations between two looks of the host (progress, metrics, checkpoint).
        evaluation: on held-out tasks; None for none.
        devices: the tasks are shared out over this many; None for as many as help, see
            `default_devices`.
        on_nan: "skip" discards updates that are not finite and goes on, "halt" stops.
        max_discarded: updates discarded in a row, of any one seed, after which training stops;
            on_nan="skip". None for never.
        keep: "best" keeps the best agent beside the newest, and reports on it at the end: the one
            with the highest return, mean over seeds, on validation tasks, which are neither
            training nor held-out ones (where a family has no others: on training tasks, but other
            episodes). They are played whenever held-out tasks are evaluated.
        patience: with `keep="best"`, stop after so many of these evaluations in a row without a
            better agent; None for never.
        run_directory: where metrics and checkpoints go; None keeps nothing.
        resume: continue the run in `run_directory` instead of starting one there.
        config: kept in the run directory, as JSON.
        report: "print" tells on stdout what is going on; None is silent; a function is called
            after every segment, instead.
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
    if max_discarded is not None:
        check_at_least(1, max_discarded=max_discarded)
    _check_keep(family, keep, patience, evaluation, iterations)
    choosing = keep == "best"
    if devices is None:
        devices = default_devices(family, tasks)
    _check_devices(tasks, devices)
    steps = algorithm.trial.steps(family.env) * tasks * seeds
    episodes = experience_bytes(family.env, steps) // devices
    check_memory(devices=devices, the_episodes_of_an_iteration=episodes)
    with contextlib.ExitStack() as stack:
        shutdown = stack.enter_context(graceful_shutdown(_announce))
        reporting = reporter(report)
        stack.callback(reporting.close)
        program = make_segment(
            algorithm,
            family,
            length=segment,
            tasks=tasks,
            seeds=seeds,
            evaluation=evaluation,
            mesh=task_mesh(devices) if devices > 1 else None,
            on_nan=on_nan,
        )
        if choosing and family.validation is None:
            _announce(
                f"{family.name} has no validation tasks: the best agent is chosen on training "
                "tasks, by other episodes than it learns from."
            )
        arguments = functools.partial(_arguments, validates=choosing)
        key = jax.random.key(seed)

        def farewell(name):
            reporting.close()
            kept = f"; to go on, resume {run_directory}" if opened else ""
            _announce(f"{name}: stopped while compiling, with nothing new to save{kept}")

        opened = False
        began = time.perf_counter()
        with shutdown.at_once(farewell):
            what = f"compiling {algorithm.name} on {family.name}"
            reporting.stage(f"{what}: tracing", quiet=True)  # until nothing can be refused any more
            unused = arguments(0, False, 0)
            sizes = episodes, tasks * seeds, devices
            shapes, names = _trace(program, key, algorithm, family, *sizes, unused)
            recorder = stack.enter_context(open_recorder(run_directory, config, resume=resume))
            opened = run_directory is not None
            place = program.out_shardings and program.out_shardings[0]
            template = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
            )
            state = recorder.restore(template)
            agents = agent_part(template)
            selection, kept = recorder.restore_best(agents) if choosing else (Selection(), None)
            best = None if kept is None else kept.train_state.meta_params
            if started is not None:
                started()
            traced = time.perf_counter()
            reporting.stage(f"{what}: XLA")
            state, run = _compile(program, key, state, unused)
        compile_seconds = time.perf_counter() - began
        xla_seconds = compile_seconds - (traced - began)
        reporting.note(
            f"compiled in {duration(compile_seconds)} (tracing {duration(traced - began)}, "
            f"XLA {duration(xla_seconds)})"
        )

        began = time.perf_counter()
        history: list[dict[str, np.ndarray]] = []
        returns = None
        done = start = int(state.iteration)
        steps = int(counted(state.train_state.environment_steps).sum())
        training_seconds = 0.0
        none_yet = np.zeros(seeds, int)
        discards = _Discards(none_yet, none_yet)
        exhausted = lambda: patience is not None and selection.since >= patience
        if done < iterations and not exhausted():
            reporting.stage(f"training, {plural(min(segment, iterations), 'iteration')} at a time")
        while done < iterations and shutdown.requested is None and not exhausted():
            stop = min(done + segment, iterations)
            if evaluation is not None:  # evaluations are at multiples of `every`, however cut
                stop = min(stop, done - done % evaluation.every + evaluation.every)
            segment_began = time.perf_counter()
            state, metrics, _ = run(state, key, *arguments(stop, False, 0))
            jax.block_until_ready(state)
            elapsed = time.perf_counter() - segment_began
            training_seconds += elapsed
            returns, validation, score = None, None, -math.inf
            if evaluation is not None and (stop % evaluation.every == 0 and stop < iterations):
                state, _, returns = run(state, key, *arguments(stop, True, 0))
                returns = np.asarray(returns)
            if evaluation is not None and choosing and stop % evaluation.every == 0:
                state, _, validation = run(state, key, *arguments(stop, True, 0, validate=True))
                validation = np.asarray(validation)
                score = validation_score(validation.mean(axis=-1), algorithm.trial.adaptations)
                selection = selection.after(stop, score)
                if selection.iteration == stop:
                    best = _copied(state.train_state.meta_params)
            metrics = {name: np.asarray(m)[: stop - done] for name, m in metrics.items()}
            steps_after = counted(metrics.pop(ENVIRONMENT_STEPS)).sum(axis=1)
            new_steps, steps = int(steps_after[-1]) - steps, int(steps_after[-1])
            known = discards.first
            discards = discards.after(done, metrics.pop(NOT_FINITE), names)
            discarded = np.asarray(state.discarded)
            history.append(metrics)
            progress = Progress(
                iteration=stop,
                iterations=iterations,
                environment_steps=steps,
                steps_after=steps_after,
                steps_per_second=new_steps / elapsed,
                metrics=metrics,
                discarded=discarded,
                returns=returns,
                seconds_left=training_seconds / (stop - start) * (iterations - stop),
                not_finite=discards.first,
                validation=validation,
                score=score,
                selection=selection,
            )
            recorder.record(progress)
            recorder.save(stop, state, selection.iteration)
            reporting.segment(progress)
            done = stop
            saved = f", saved in {run_directory}" if run_directory else ""
            if on_nan == "halt" and discarded.any():
                raise MetajaxError(
                    f"an update was not finite before iteration {stop} (seeds "
                    f"{np.flatnonzero(discarded).tolist()})"
                    + (f": first {discards.first}" if discards.first else "")
                    + f"; halted with the state before it{saved}."
                )
            if max_discarded is not None and discards.longest.max() >= max_discarded:
                stuck = np.flatnonzero(discards.longest >= max_discarded).tolist()
                raise MetajaxError(
                    f"{max_discarded} updates in a row were not finite (seeds {stuck}): first "
                    f"{discards.first}; stopped after iteration {stop} with the state before "
                    f"them{saved}. With max_discarded None it goes on whatever happens."
                )
            if known is None and discards.first is not None:
                warnings.warn(
                    f"an update was discarded, it was not finite: first {discards.first}.",
                    stacklevel=2,
                )
        returns, of_iteration, newest = None, done, state.train_state.meta_params
        if best is not None and selection.iteration is not None:
            of_iteration = selection.iteration
            state = _with_agent(state, best, of_iteration)
        if evaluation is not None:
            sizes = evaluation.sizes(algorithm, family.env)
            # Both kinds of episodes are played, those it learns from and those that count.
            sizes["episodes"] *= 1 + evaluation.mode
            work = seeds * math.prod(sizes.values()), family.env.episode_length
            again = lambda state, repeat: run(state, key, *arguments(of_iteration, True, repeat))
            state, returns = _evaluate_finally(
                again, state, family, evaluation, work, shutdown, reporting
            )
        if returns is not None:
            recorder.record_final(done, returns, of_iteration)
        agent = state.train_state.meta_params
        if best is not None:
            state = _with_agent(state, newest, done)
        return Result(
            state=state,
            metrics=_concatenate(history),
            returns=returns,
            agent=agent,
            agent_iteration=of_iteration,
            compile_seconds=compile_seconds,
            train_seconds=time.perf_counter() - began,
            interrupted=shutdown.requested,
        )


def _announce(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _trace(
    program: Segment,
    key,
    algorithm: Algorithm,
    family: TaskFamily,
    episodes: int,
    tasks: int,
    devices: int,
    arguments: tuple,
) -> tuple[RunState, list[str]]:
    """Return the shapes of a run's state and the names of what may not be finite.

    Args:
        program: to trace.
        key: of the run.
        algorithm: the meta-learner.
        family: where tasks come from.
        episodes: bytes of an iteration's episodes, on each device.
        tasks: of an iteration, of all seeds.
        devices: that share the tasks.
        arguments: any that the program is called with.

    Raises:
        MetajaxError: the environment or the algorithm breaks its promises, or something would not
            fit into memory.
    """
    task = jax.eval_shape(family.train.sample, jax.random.key(0))
    needs = {
        "the_episodes_of_an_iteration": episodes,
        "the_tasks_of_an_iteration": bytes_of(task) * tasks // devices,
    }
    check_memory(devices=devices, **needs)
    check_env(family.env, task)
    shapes = jax.eval_shape(program.init, key)
    check_memory(devices=devices, the_training_state=bytes_of(shapes), **needs)
    # What is wrong with sizes shows while tracing, and must not leave a directory behind.
    results = jax.eval_shape(program.run, shapes, key, *arguments)
    check_memory(devices=devices, the_training_state_and_metrics=bytes_of(results), **needs)
    _check_metrics(algorithm, results[1])
    return shapes, [name for name, _ in _floats(results[0].train_state, results[1])]


def _check_metrics(algorithm: Algorithm, found: Metrics) -> None:
    own = {NOT_FINITE, ENVIRONMENT_STEPS}
    if {*algorithm.metrics} != found.keys() - own or own & {*algorithm.metrics}:
        raise MetajaxError(
            f"{algorithm.name} states that it measures {', '.join(sorted(algorithm.metrics))}; its "
            f"update returns {', '.join(sorted(found.keys() - own))}."
        )


def _compile(
    program: Segment, key, state: RunState | None, arguments: tuple
) -> tuple[RunState, Callable]:
    """Return the state to start from, a new one for None, and the compiled program."""
    shardings = program.out_shardings
    init = jax.jit(program.init, out_shardings=shardings and shardings[0])
    start: RunState = init(key) if state is None else state
    run = jax.jit(program.run, donate_argnums=0, out_shardings=shardings)
    return start, run.lower(start, key, *arguments).compile()


def _evaluate_finally(
    evaluate_batch: Callable,
    state: RunState,
    family: TaskFamily,
    evaluation: Evaluation,
    work: tuple[int, int],
    shutdown: Shutdown,
    reporting: Reporter,
) -> tuple[RunState, np.ndarray | None]:
    """Return the state and the returns of `final_tasks` tasks; None if it is interrupted.

    Args:
        evaluate_batch: `(state, repeat) -> (state, metrics, returns)`.
        state: donated.
        family: whose held-out tasks they are; of finitely many, none is left out.
        evaluation: how.
        work: episodes per held-out task, of all seeds, and steps per episode.
        shutdown: asked before every batch.
        reporting: where progress is told.
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
            return state, None
        reporting.stage(what, done=repeat * size, total=wanted)
        state, _, batch = evaluate_batch(state, repeat)
        batches.append(np.asarray(batch))
    return state, np.concatenate(batches, axis=1)[:, :wanted]


def default_devices(family: TaskFamily, tasks: int) -> int:
    """Return how many devices serve a meta-batch best.

    The most that `tasks` can be shared out over evenly; for the C engine, which uses every core
    from wherever it is called, one. A CPU is several devices only where JAX was told so before it
    started (`jax.config.update("jax_num_cpu_devices", n)`; the command line does).
    """
    if family.backend == "mujoco":
        return 1
    return max(n for n in range(1, jax.device_count() + 1) if tasks % n == 0)


def task_mesh(devices: int) -> Mesh:
    """Return the mesh whose axis "task" runs over the first `devices` devices."""
    # Auto: the compiler carries the sharding of the tasks through everything made from them.
    return jax.make_mesh((devices,), ("task",), axis_types=(AxisType.Auto,))


def validation_tasks(family: TaskFamily) -> TaskDistribution:
    """Return the tasks by which the best agent is chosen; without others those of training."""
    return family.train if family.validation is None else family.validation


def _arguments(
    stop: int, evaluate_now: bool, repeat: int, *, validates: bool, validate: bool = False
):
    """Return traced arguments whose types never change: Python scalars would be weakly typed."""
    return (
        jnp.asarray(stop, jnp.int32),
        jnp.asarray(evaluate_now, bool),
        jnp.asarray(repeat, jnp.int32),
        *([jnp.asarray(validate, bool)] if validates else []),
    )


def _copied(tree: PyTree[Array]) -> PyTree[Array]:
    """Return copies that stay when the program is given the originals for good."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding, may_alias=False), tree)


def _with_agent(state: RunState, meta_params: PyTree[Array], iteration: int) -> RunState:
    """Return the state with the meta-parameters of another iteration."""
    number = jax.device_put(np.int32(iteration), state.iteration.sharding)
    train_state = dataclasses.replace(state.train_state, meta_params=meta_params)
    return dataclasses.replace(state, iteration=number, train_state=train_state)


def _concatenate(history: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if not history:
        return {}
    return {name: np.concatenate([m[name] for m in history]) for name in history[0]}


def check_counts(*, iterations: int, tasks: int, seeds: int, segment: int, devices: int | None):
    """Check the numbers of `train`.

    Raises:
        MetajaxError: one is below 1.
    """
    check_at_least(1, iterations=iterations, tasks=tasks, seeds=seeds, segment=segment)
    if devices is not None:
        check_at_least(1, devices=devices)


def _check_keep(family, keep, patience, evaluation, iterations):
    if keep != "best":
        if patience is not None:
            raise MetajaxError(
                f"patience is {patience!r}, which counts evaluations without a better agent: it "
                "needs keep 'best'."
            )
        return
    if patience is not None:
        check_at_least(1, patience=patience)
    if evaluation is None or evaluation.every > iterations:
        every = "there is none" if evaluation is None else f"evaluation.every is {evaluation.every}"
        raise MetajaxError(
            f"keep 'best' chooses at evaluations during training, but {every} of {iterations} "
            "iterations."
        )
    one, other = (
        jax.tree.map(
            lambda x: f"{x.dtype}{list(x.shape)}",
            jax.eval_shape(lambda key, d=d: sample_batch(d, key, 1), jax.random.key(0)),
        )
        for d in (validation_tasks(family), family.test)
    )
    if one != other:
        raise MetajaxError(
            f"validation tasks of {family.name} have the leaves {one}, held-out tasks {other}; "
            "they must have the same."
        )


def _check_devices(tasks: int, devices: int) -> None:
    if devices > jax.device_count():
        raise MetajaxError(f"{devices} devices asked for, {jax.device_count()} available.")
    if tasks % devices:
        raise MetajaxError(
            f"{tasks} tasks cannot be shared out evenly over {devices} devices; choose a multiple "
            f"of {devices}."
        )
