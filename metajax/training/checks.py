"""What is checked before anything is compiled or written."""

import jax

from metajax._memory import bytes_of, check_memory
from metajax.envs.rollouts import check_env
from metajax.envs.splits import sample_batch
from metajax.errors import MetajaxError, check_at_least
from metajax.runs.selection import Keep
from metajax.training.plan import Evaluation
from metajax.training.program import (
    ENVIRONMENT_STEPS,
    NOT_FINITE,
    RunState,
    Segment,
    floats_of,
    validation_tasks,
)
from metajax.types import Algorithm, Metrics, TaskFamily


def check_counts(*, iterations: int, tasks: int, seeds: int, segment: int, devices: int | None):
    """Check the numbers of `train`.

    Raises:
        MetajaxError: one is below 1.
    """
    check_at_least(1, iterations=iterations, tasks=tasks, seeds=seeds, segment=segment)
    if devices is not None:
        check_at_least(1, devices=devices)


def check_keep(
    family: TaskFamily,
    keep: Keep,
    patience: int | None,
    evaluation: Evaluation | None,
    iterations: int,
) -> None:
    """Check that the best agent can be chosen, where it is to be; arguments as in `train`.

    Raises:
        MetajaxError: it cannot.
    """
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


def check_devices(tasks: int, devices: int) -> None:
    """Check that there are so many devices, and that tasks can be sharded evenly over them.

    Raises:
        MetajaxError: one of these is not so.
    """
    if devices > jax.device_count():
        raise MetajaxError(f"{devices} devices asked for, {jax.device_count()} available.")
    if tasks % devices:
        raise MetajaxError(
            f"{tasks} tasks cannot be sharded evenly over {devices} devices; choose a multiple "
            f"of {devices}."
        )


def check_program(
    program: Segment,
    key,
    algorithm: Algorithm,
    family: TaskFamily,
    episodes: int,
    tasks: int,
    devices: int,
    arguments: tuple,
) -> tuple[RunState, list[str]]:
    """Trace a run's program; return the shapes of its state and the names of what must be finite.

    Args:
        program: to trace.
        key: of the run.
        algorithm: the meta-learner.
        family: where tasks come from.
        episodes: bytes of an iteration's episodes, on each device.
        tasks: of an iteration, of all seeds.
        devices: over which tasks are sharded.
        arguments: any that the program is called with, after state and key.

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
    return shapes, [name for name, _ in floats_of(results[0].train_state, results[1])]


def _check_metrics(algorithm: Algorithm, found: Metrics) -> None:
    own = {NOT_FINITE, ENVIRONMENT_STEPS}
    if {*algorithm.metrics} != found.keys() - own or own & {*algorithm.metrics}:
        raise MetajaxError(
            f"{algorithm.name} states that it measures {', '.join(sorted(algorithm.metrics))}; its "
            f"update returns {', '.join(sorted(found.keys() - own))}."
        )
