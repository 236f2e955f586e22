"""A segment of training as one XLA program, which calls C MuJoCo where that is the physics.

A segment (meta-iterations, then perhaps an evaluation on held-out tasks) is compiled once; the
host only starts it, reads what it returned and saves its state. Every key is derived from the
seed and the iteration, so neither segment length, nor evaluation, nor an interruption can change
a result on the same devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key, PyTree

from metajax.envs.splits import sample_tasks
from metajax.training.evaluation import Evaluated, draw_trials, evaluate_on
from metajax.training.plan import Evaluation
from metajax.training.sharding import Shardings, by_task, on_mesh, out_shardings
from metajax.types import (
    Algorithm,
    Metrics,
    TaskBatch,
    TaskDistribution,
    TaskFamily,
    TrainState,
    pytree_dataclass,
)

OnNan = Literal["skip", "halt"]

# The trainer's own metrics: which of `floats_of` was not finite, or -1; and the count of steps.
NOT_FINITE, ENVIRONMENT_STEPS = "not_finite", "environment_steps"


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


class Segment(NamedTuple):
    """The program, and how to start it.

    - `init(key) -> RunState`;
    - `run(state, key, stop, evaluate_now, repeat, validate=None) -> (state, metrics, evaluated)`:
      meta-iterations up to `stop` (at most `length` of them), then an evaluation if
      `evaluate_now`. `metrics` are `[length, seed]`, zero where no iteration was run; `NOT_FINITE`
      is one of them, the index of what was not finite first. What was `evaluated` is `[seed, task,
      round, episode]`, zero without evaluation. `repeat` numbers evaluations of the same state.
      With `validate` the tasks are validation tasks where it is true; without, the program has
      none;
    - `out_shardings(shapes)`, for `jit`, of what `run` returns, given the shapes of a state; None
      for one device.
    """

    init: Callable[[Key[Array, ""]], RunState]
    run: Callable[..., tuple[RunState, Metrics, Evaluated]]
    out_shardings: Callable[[RunState], Shardings | None]


Sample = Callable[[Key[Array, ""]], TaskBatch]


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
        mesh: its axis "task" is what tasks are sharded over; None for one device.
        on_nan: an update that is not finite is discarded; "halt" discards all later ones too.
    """

    def sample(key):
        return by_task(mesh, sample_tasks(family.train, key, tasks))

    iterate = on_mesh(mesh, _iteration(algorithm, sample, seeds, on_nan))
    evaluate, evaluation_tasks = None, 0
    if evaluation is not None:
        evaluate = on_mesh(mesh, _evaluation(algorithm, family, evaluation, seeds))
        evaluation_tasks = evaluation.batch(family)
    return Segment(
        _initial(algorithm, sample, seeds),
        _segment(iterate, evaluate, length, seeds),
        lambda shapes: out_shardings(mesh, shapes, evaluation_tasks),
    )


def _seed_keys(key: Key[Array, ""], seeds: int) -> Key[Array, "seed"]:
    return jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.arange(seeds))


def _initial(algorithm: Algorithm, sample: Sample, seeds: int) -> Callable:
    """Return `Segment.init`."""

    def init(key) -> RunState:
        def one_seed(key):
            task_key, init_key = jax.random.split(key)
            return algorithm.init(init_key, sample(task_key))

        init_key = jax.random.split(key, 3)[0]
        state = RunState(
            iteration=jnp.zeros((), jnp.int32),
            discarded=jnp.zeros(seeds, jnp.int32),
            train_state=jax.vmap(one_seed)(_seed_keys(init_key, seeds)),
        )
        # A weakly typed leaf would be saved as a strong one, and resume as another program.
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)

    return init


def _iteration(
    algorithm: Algorithm, sample: Sample, seeds: int, on_nan: OnNan
) -> Callable[[RunState, Key[Array, ""]], tuple[RunState, Metrics]]:
    """Return one meta-iteration of all seeds, whose update is discarded if it is not finite."""

    def iterate(state: RunState, key) -> tuple[RunState, Metrics]:
        def one_seed(train_state, discarded, key):
            task_key, update_key = jax.random.split(jax.random.fold_in(key, state.iteration))
            new, metrics = algorithm.update(train_state, sample(task_key), update_key)
            each = jnp.stack([jnp.all(jnp.isfinite(x)) for _, x in floats_of(new, metrics)])
            finite = jnp.all(each)
            first = jnp.where(finite, -1, jnp.argmin(each)).astype(jnp.int32)
            keep = finite if on_nan == "skip" else finite & (discarded == 0)
            kept = jax.tree.map(
                lambda new, old: jnp.where(keep, new, old), guarded(new), guarded(train_state)
            )
            own = {NOT_FINITE: first, ENVIRONMENT_STEPS: new.environment_steps}
            new = dataclasses.replace(new, **kept)
            return new, discarded + (~finite).astype(jnp.int32), metrics | own

        train_state, discarded, metrics = jax.vmap(one_seed)(
            state.train_state, state.discarded, _seed_keys(key, seeds)
        )
        return RunState(state.iteration + 1, discarded, train_state), metrics

    return iterate


def guarded(state: TrainState) -> dict[str, PyTree[Array]]:
    """Return what stays as it was where an update is discarded, by field.

    Not the replay: choosing between two would copy it. What was played was played, whatever was
    made of it, so it stays, and its steps count.
    """
    names = ("meta_params", "learner", "statistics", "hyperparameters")
    return {name: getattr(state, name) for name in names}


def floats_of(state: TrainState, metrics: Metrics) -> list[tuple[str, Any]]:
    """Return what has to be finite, and its name: metrics, those of rewards first, then the state.

    In this order the first that is not is nearest to the reason: all else follows from rewards.
    """
    names = sorted(metrics, key=lambda name: (not name.startswith("return"), name))
    named = [(f"metrics/{name}", metrics[name]) for name in names]
    for field, part in guarded(state).items():
        for path, leaf in jax.tree_util.tree_leaves_with_path({field: part}):
            named.append((jax.tree_util.keystr(path, simple=True, separator="/"), leaf))
    return [(name, x) for name, x in named if jnp.issubdtype(x.dtype, jnp.inexact)]


def _evaluation(
    algorithm: Algorithm, family: TaskFamily, plan: Evaluation, seeds: int
) -> Callable[..., Evaluated]:
    """Return the evaluation of all seeds, on held-out or validation tasks."""

    def evaluate_all(state: RunState, key, repeat, validate):
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
                deterministic=plan.deterministic,
            )

        return jax.vmap(one_seed)(state.train_state, _seed_keys(key, seeds))

    return evaluate_all


def validation_tasks(family: TaskFamily) -> TaskDistribution:
    """Return the tasks by which the best agent is chosen; without others those of training."""
    return family.train if family.validation is None else family.validation


def _segment(iterate: Callable, evaluate: Callable | None, length: int, seeds: int) -> Callable:
    """Return `Segment.run`."""

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
        if evaluate is None:
            return state, metrics, Evaluated(jnp.zeros((seeds, 0, 0, 0)), {})
        shapes = jax.eval_shape(evaluate, state, evaluation_key, repeat, validate)
        evaluated = jax.lax.cond(
            evaluate_now,
            functools.partial(evaluate, state, evaluation_key, repeat, validate),
            lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
        )
        return state, metrics, evaluated

    return run


def segment_arguments(
    stop: int, evaluate_now: bool, repeat: int, *, validates: bool, validate: bool = False
) -> tuple[Array, ...]:
    """Return traced arguments whose types never change: Python scalars would be weakly typed."""
    return (
        jnp.asarray(stop, jnp.int32),
        jnp.asarray(evaluate_now, bool),
        jnp.asarray(repeat, jnp.int32),
        *([jnp.asarray(validate, bool)] if validates else []),
    )
