"""Train, held-out and validation tasks from one range, disjoint by construction, and beyond it."""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from metajax._checks import Seed, checked
from metajax._memory import bytes_of, check_memory
from metajax.errors import MetajaxError, check_at_least, unknown
from metajax.types import Task, TaskBatch, TaskDistribution, TaskFamily

Split = Literal["train", "test", "validation", "extrapolate"]

BLOCKS = 9
STRIPS = 11  # per block; the middle one is held out, which leaves every mean where it was
MARGIN = 1e-3  # of a strip, kept free at its ends: more than rounding can cross
BEYOND = 0.25  # of the range


def uniform(
    key: Key[Array, ""], low: float, high: float, *, split: Split, below: bool = False
) -> Float[Array, ""]:
    """Draw from U[low, high] restricted to the parts of the range that belong to one split.

    The range is cut into 9 blocks of 11 strips. The middle strip of every block is held out: 1/11
    of the range, distributed evenly over it, with the same mean as the training strips. Validation
    tasks lie where two strips meet, in the middle of the margins that both keep free there:
    distributed as evenly, with the same mean. Beyond the range is the quarter of its width that
    follows.

    Args:
        key: consumed.
        low: lower end of the range.
        high: upper end of the range.
        split: "train", "test", "validation" or "extrapolate".
        below: extrapolate on both sides of the range, not only above it.
    """
    block_key, strip_key, within_key = jax.random.split(key, 3)
    if split == "validation":
        edge = jax.random.randint(strip_key, (), 1, BLOCKS * STRIPS)
        apart = jax.random.uniform(within_key, minval=-MARGIN / 2, maxval=MARGIN / 2)
        return low + (high - low) * ((edge + apart) / (BLOCKS * STRIPS))
    block = jax.random.randint(block_key, (), 0, BLOCKS)
    middle = STRIPS // 2
    if split == "test":
        strip = jnp.asarray(middle)
    else:
        strip = jax.random.randint(strip_key, (), 0, STRIPS - 1)
        strip = strip + (strip >= middle).astype(strip.dtype)
    within = jax.random.uniform(within_key, minval=MARGIN, maxval=1 - MARGIN)
    if split == "extrapolate":
        beyond = BEYOND * within
        under = below & jax.random.bernoulli(strip_key)
        return jnp.where(under, low - (high - low) * beyond, high + (high - low) * beyond)
    fraction = ((block * STRIPS + strip).astype(within.dtype) + within) / (BLOCKS * STRIPS)
    return low + (high - low) * fraction


def between(
    key: Key[Array, ""], listed: Float[np.ndarray, "listed"], low: float, high: float
) -> Float[Array, ""]:
    """Draw from U[low, high] restricted to the middle halves of the gaps that a list leaves there.

    Args:
        key: consumed.
        listed: numbers in the range, in any order.
        low: lower end of the range.
        high: upper end of the range.
    """
    ends = np.concatenate([[low], np.sort(listed), [high]])
    gaps = np.diff(ends)
    gaps = np.where(gaps < MARGIN * (high - low) / (BLOCKS * STRIPS), 0, gaps)
    gap_key, within_key = jax.random.split(key)
    gap = jax.random.choice(gap_key, len(gaps), p=jnp.asarray(gaps / gaps.sum(), float))
    within = jax.random.uniform(within_key, minval=0.25, maxval=0.75)
    return jnp.asarray(ends, float)[gap] + jnp.asarray(gaps, float)[gap] * within


def is_held_out(value: Float[Array, "*shape"], low: float, high: float) -> Bool[Array, "*shape"]:
    """Return whether `value` lies in a held-out strip of [low, high]."""
    strip = jnp.floor((value - low) / (high - low) * BLOCKS * STRIPS).astype(int)
    return strip % STRIPS == STRIPS // 2


def on_split(family: TaskFamily, split: str) -> TaskFamily:
    """Return the family with another of its distributions in the place of the held-out tasks.

    Args:
        family: the family.
        split: "train", "test", "validation" or "extrapolate".

    Raises:
        MetajaxError: the split is unknown, or the family has no such tasks.
    """
    if split not in Split.__args__:
        raise unknown("split", split, Split.__args__)
    chosen = getattr(family, split)
    if chosen is None and split == "validation":
        raise MetajaxError(
            f"{family.name} has no validation tasks: all that there are serve training or are held "
            "out."
        )
    if chosen is None:
        raise MetajaxError(f"{family.name} has no tasks to extrapolate to: nothing lies beyond.")
    return family._replace(test=chosen)


def two_splits(sample) -> dict[str, Any]:
    """Return training, held-out and validation tasks of a `TaskFamily`, by field.

    Args:
        sample: `(key, *, split) -> task`, with tasks of their own for each of the three.
    """
    return _distributions(sample, "train", "test", "validation")


def three_splits(sample) -> dict[str, Any]:
    """Return what `two_splits` does, and tasks to extrapolate to, by field."""
    return two_splits(sample) | _distributions(sample, "extrapolate")


def _distributions(sample, *splits: Split) -> dict[str, Any]:
    return {name: TaskDistribution(functools.partial(sample, split=name)) for name in splits}


def uniform_over(tasks: dict[str, Array]) -> TaskDistribution:
    """Return the uniform distribution over `tasks[task]`."""
    count = jax.tree.leaves(tasks)[0].shape[0]

    def sample(key: Key[Array, ""]) -> Task:
        index = jax.random.randint(key, (), 0, count)
        return jax.tree.map(lambda x: x[index], tasks)

    return TaskDistribution(sample, tasks)


@checked
def finite(distribution: TaskDistribution, count: int, *, seed: Seed = 0) -> TaskDistribution:
    """Return the uniform distribution over `count` tasks of another, so that each has a slot.

    Args:
        distribution: any; of finitely many tasks, each is taken as often as the others.
        count: how many tasks there are from now on.
        seed: of which they are.

    Raises:
        MetajaxError: there would be no task, they do not fit into memory, or an argument is not
            what its annotation says.
    """
    check_at_least(1, count=count)
    return uniform_over(sample_batch(distribution, jax.random.key(seed), count))


def at_most(
    distribution: TaskDistribution, training_tasks: int | None, *, seed: Seed
) -> TaskDistribution:
    """Return a distribution over no more tasks of another than so many; itself, if it has no more.

    Args:
        distribution: any.
        training_tasks: most tasks; None for all of them.
        seed: of which they are.

    Raises:
        MetajaxError: there would be no task, or they do not fit into memory.
    """
    if training_tasks is None:
        return distribution
    check_at_least(1, training_tasks=training_tasks)
    if 0 < number_of_tasks(distribution) <= training_tasks:
        return distribution
    return finite(distribution, training_tasks, seed=seed)


def finite_splits(tasks: dict[str, Array], held_out: Bool[np.ndarray, "task"]) -> dict[str, Any]:
    """Return training and held-out distributions of a `TaskFamily`, by field.

    Args:
        tasks: with a leading axis.
        held_out: which of them.
    """
    parts = {"train": ~held_out, "test": held_out}
    return {
        name: uniform_over(jax.tree.map(lambda x, where=where: x[where], tasks))
        for name, where in parts.items()
    }


def sample_tasks(distribution: TaskDistribution, key: Key[Array, ""], count: int) -> TaskBatch:
    """Return `count` tasks with their slots; of finitely many, each as often as the others.

    Args:
        distribution: of tasks.
        key: consumed.
        count: how many.

    Raises:
        MetajaxError: they do not fit into memory.
    """
    one = jax.eval_shape(distribution.sample, key)
    check_memory(the_tasks=count * (bytes_of(one) + bytes_of(key)))
    if distribution.finite is None:
        task = jax.vmap(distribution.sample)(jax.random.split(key, count))
        return TaskBatch(task, jnp.full(count, -1, jnp.int32))
    available = number_of_tasks(distribution)
    order_key, batch_key = jax.random.split(key)
    order = jax.random.permutation(order_key, available)  # who gets the odd ones
    slot = jax.random.permutation(batch_key, order[jnp.arange(count) % available])
    task = jax.tree.map(lambda x: x[slot], distribution.finite)
    return TaskBatch(task, slot.astype(jnp.int32), available, distribution.finite)


def sample_batch(distribution: TaskDistribution, key: Key[Array, ""], count: int) -> Task:
    """Return the tasks of `sample_tasks` alone, `[task]`."""
    return sample_tasks(distribution, key, count).task


def number_of_tasks(distribution: TaskDistribution) -> int:
    """Return how many tasks there are; 0 if they cannot be counted."""
    if distribution.finite is None:
        return 0
    return jax.tree.leaves(distribution.finite)[0].shape[0]


def even_count(distribution: TaskDistribution, count: int, *, most: int = 0) -> int:
    """Return how many tasks to take instead of `count`, so that each occurs equally often.

    Args:
        distribution: of tasks.
        count: how many are asked for.
        most: the number of tasks that can be afforded, if that is more than twice `count`.

    Returns:
        The next multiple of the number of tasks there are; `count` itself, if they cannot be
        counted or are more than can be afforded: then each is taken once at most.
    """
    available = number_of_tasks(distribution)
    affordable = max(2 * count, most)
    return math.ceil(count / available) * available if 0 < available <= affordable else count
