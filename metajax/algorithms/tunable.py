"""Hyperparameters that are part of the state, so that one program serves all their values."""

import dataclasses
import numbers as numbers_abc
from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax._checks import checked
from metajax.errors import MetajaxError, brief
from metajax.types import Algorithm, Scalar, TaskBatch, TrainState


def tunable(make: Callable[..., Algorithm], **numbers: Scalar) -> Algorithm:
    """Return an algorithm that reads its numbers from `TrainState.hyperparameters`.

    `make` is called while `init` and `update` are traced, with arrays. A state with other numbers
    needs no other program, and `jax.vmap` over states trains several at once. The agent is that of
    `numbers`: one whose adaptation depends on them is made again, `make(**numbers).agent`.

    Example:
        >>> import jax
        >>> import metajax
        >>> family = metajax.make("point-goal", episode_length=5)
        >>> env = family.env
        >>> policy = metajax.mlp(env.observation_size, env.action_space, hidden=(4,))
        >>> def make(rate):
        ...     return metajax.maml(env, policy, outer=metajax.outer.adam(rate), episodes=2)
        >>> algorithm = metajax.algorithms.tunable(make, rate=1e-3)
        >>> tasks = metajax.envs.splits.sample_tasks(family.train, jax.random.key(0), 2)
        >>> state = algorithm.init(jax.random.key(1), tasks)
        >>> sorted(state.hyperparameters)
        ['rate']

    Args:
        make: `(**numbers) -> Algorithm`, for numbers that may be traced.
        numbers: what the state starts with.

    Raises:
        MetajaxError: a value is not a number, or `make` refuses it.
    """
    for name, value in numbers.items():
        scalar = isinstance(value, numbers_abc.Real) or (
            isinstance(value, jax.Array) and value.ndim == 0
        )
        if not scalar or isinstance(value, bool):
            raise MetajaxError(f"{name} is {brief(value)}; it must be a number.")
    of_numbers = make(**numbers)

    @checked
    def init(key, tasks: TaskBatch) -> TrainState:
        held = {name: jnp.asarray(value, float) for name, value in numbers.items()}
        return dataclasses.replace(make(**held).init(key, tasks), hyperparameters=held)

    @checked
    def update(state: TrainState, tasks: TaskBatch, key):
        return make(**state.hyperparameters).update(state, tasks, key)

    return of_numbers._replace(init=init, update=update)
