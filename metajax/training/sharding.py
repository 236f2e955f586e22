"""Tasks over devices: the mesh, and where what a program returns is kept."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from metajax.replay import Replay, TaskReplay
from metajax.types import TaskBatch, TaskFamily

Shardings = tuple[PyTree, NamedSharding, NamedSharding]


def default_devices(family: TaskFamily, tasks: int) -> int:
    """Return how many devices serve a meta-batch best.

    The most that `tasks` can be sharded evenly over; for the C engine, which uses every core from
    wherever it is called, one. A CPU is several devices only where JAX was configured so before it
    started (`jax.config.update("jax_num_cpu_devices", n)`; the command line does).
    """
    if family.backend == "mujoco":
        return 1
    return max(n for n in range(1, jax.device_count() + 1) if tasks % n == 0)


def task_mesh(devices: int) -> Mesh:
    """Return the mesh whose axis "task" runs over the first `devices` devices."""
    # Auto: the compiler carries the sharding of the tasks through everything made from them.
    return jax.make_mesh((devices,), ("task",), axis_types=(AxisType.Auto,))


def by_task(mesh: Mesh | None, tasks: TaskBatch) -> TaskBatch:
    """Return the tasks of a batch, sharded over the mesh; as they are without one."""
    if mesh is None:
        return tasks
    sharding = NamedSharding(mesh, PartitionSpec("task"))
    task, slot = jax.lax.with_sharding_constraint((tasks.task, tasks.slot), sharding)
    return dataclasses.replace(tasks, task=task, slot=slot)


def on_mesh(mesh: Mesh | None, function: Callable) -> Callable:
    """Return `function`, traced once, where `over_tasks` finds the mesh."""

    @jax.jit  # for its cache: physics takes as long to trace as to compile
    @functools.wraps(function)
    def placed(*arguments: Any) -> Any:
        if mesh is None:
            return function(*arguments)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return placed


def out_shardings(mesh: Mesh | None, shapes: PyTree, evaluation_tasks: int) -> Shardings | None:
    """Return the shardings of a segment's state, metrics and evaluation; None for one device.

    Every device has all of the state, but for what is remembered: of that each keeps the rings of
    some tasks, or a part of the one ring, where these can be shared out evenly.

    Args:
        mesh: over which tasks are sharded.
        shapes: of the state, with a leading seed axis.
        evaluation_tasks: of an evaluation, 0 without one; what it measures stays where its task is.
    """
    if mesh is None:
        return None
    replicated = NamedSharding(mesh, PartitionSpec())

    def second_axis(count: int) -> NamedSharding:
        even = count > 0 and count % mesh.size == 0
        return NamedSharding(mesh, PartitionSpec(None, "task")) if even else replicated

    def place(part):
        if not isinstance(part, _REMEMBERED):
            return replicated
        kept = second_axis(jax.tree.leaves(part.items)[0].shape[1])
        items = jax.tree.map(lambda _: kept, part.items)
        return dataclasses.replace(part, items=items, next=replicated, size=replicated)

    state = jax.tree.map(place, shapes, is_leaf=lambda part: isinstance(part, _REMEMBERED))
    return state, replicated, second_axis(evaluation_tasks)


_REMEMBERED = (Replay, TaskReplay)
