"""Task families as Gymnasium environments, for agents that are not written in JAX."""

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Array, Bool, Key

from metajax._checks import checked
from metajax._memory import check_memory, experience_bytes
from metajax.envs.splits import Split, on_split, sample_batch
from metajax.errors import MetajaxError, check_at_least, unknown
from metajax.types import ActionSpace, Discrete, Env, EnvState, Task, TaskFamily


class GymnasiumEnv(gymnasium.Env):
    """A task family as a `gymnasium.Env`.

    The action is as the agent chose it: the environment clips and scales. `info["task"]` of a reset
    says what the task is, and `reset(options={"task": task})` changes it for good.

    Attributes:
        observation_space: a `Box` [observation] of float32.
        action_space: a `Box` [action] of float32, or `Discrete`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    @checked
    def __init__(self, family: TaskFamily, task: Task | None = None, *, split: Split = "train"):
        """Make it.

        Args:
            family: the family.
            task: of every episode; None draws another one at every reset.
            split: where it is drawn from.

        Raises:
            MetajaxError: the task is none of the family's, or there is no such split.
        """
        env, distribution = family.env, on_split(family, split).test
        self._task = None if task is None else _checked(task, distribution.sample)
        self._sample = distribution.sample
        self._reset = jax.jit(env.reset)
        self._draw = jax.jit(distribution.sample)
        self._step = jax.jit(env.step)
        self._state: EnvState | None = None
        self.observation_space, self.action_space = _spaces(env)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of this episode's start and task, and of those that follow.
            options: {"task": task} to play that one from now on.

        Raises:
            MetajaxError: there is no such option, or the task is none of the family's.
        """
        super().reset(seed=seed)
        self._task = _task_after(options, self._task, self._sample)
        task_key, reset_key = _keys(self.np_random)
        task = self._draw(task_key) if self._task is None else self._task
        state = self._state = self._reset(reset_key, task)
        return _observation(state), {"task": jax.tree.map(np.array, task)}

    def step(self, action) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; see `gymnasium.Env.step`. The last value has the environment's metrics.

        Raises:
            ResetNeeded: no episode has started, or this one is over.
        """
        state = self._state
        if state is None or state.terminated or state.truncated:
            raise gymnasium.error.ResetNeeded("call reset before step: no episode is under way.")
        state = self._state = self._step(state, _as_action(action, self.action_space))
        ends = bool(state.terminated), bool(state.truncated)
        measured = {name: float(value) for name, value in state.metrics.items()}
        return _observation(state), float(state.reward), *ends, measured


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv):
    """A task family as a `gymnasium.vector.VectorEnv`: many environments in one compiled step.

    Where an episode is over, the next step starts another one instead, without a reward
    (`AutoresetMode.NEXT_STEP`). See `GymnasiumEnv` for spaces, actions and tasks.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": [],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    @checked
    def __init__(
        self,
        family: TaskFamily,
        num_envs: int,
        tasks: Task | None = None,
        *,
        split: Split = "train",
    ):
        """Make it.

        Args:
            family: the family.
            num_envs: number of environments.
            tasks: `[num_envs]`, one for each; None draws another one for every episode.
            split: where they are drawn from.

        Raises:
            MetajaxError: tasks are none of the family's or not as many, a number is wrong, or the
                environments do not fit into memory.
        """
        check_at_least(1, num_envs=num_envs)
        # Before Gymnasium writes the bounds of each of their spaces down.
        check_memory(the_environments=experience_bytes(family.env, num_envs))
        env, distribution = family.env, on_split(family, split).test
        self.num_envs = num_envs
        self._draw_batch = lambda key: sample_batch(distribution, key, num_envs)
        self._tasks = None if tasks is None else _checked(tasks, self._draw_batch)
        self._state: EnvState | None = None
        self.single_observation_space, self.single_action_space = _spaces(env)
        batch = gymnasium.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, num_envs)
        self.action_space = batch(self.single_action_space, num_envs)

        @jax.jit
        def reset(keys, tasks):
            task_key, reset_key = keys
            tasks = self._draw_batch(task_key) if tasks is None else tasks
            return jax.vmap(env.reset)(jax.random.split(reset_key, num_envs), tasks)

        @jax.jit
        def step(state: EnvState, actions: Array, key: Key[Array, ""], drawn: bool):
            def one(state, action, key):
                task_key, reset_key = jax.random.split(key)
                task = distribution.sample(task_key)
                task = jax.tree.map(lambda new, old: jnp.where(drawn, new, old), task, state.task)
                start, after = env.reset(reset_key, task), env.step(state, action)
                over: Bool[Array, ""] = state.terminated | state.truncated
                return jax.tree.map(lambda a, b: jnp.where(over, a, b), start, after)

            return jax.vmap(one)(state, actions, jax.random.split(key, num_envs))

        self._reset, self._step = reset, step

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in every environment; see `GymnasiumEnv.reset`, with a leading axis.

        Raises:
            MetajaxError: there is no such option, or tasks are none of the family's.
        """
        super().reset(seed=seed)
        self._tasks = _task_after(options, self._tasks, self._draw_batch)
        state = self._state = self._reset(_keys(self.np_random), self._tasks)
        return _observation(state), {"task": jax.tree.map(np.array, state.task)}

    def step(
        self, actions
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step in every environment; see `gymnasium.vector.VectorEnv.step`.

        The last value has the environments' metrics by name, and as "_name" which have taken a
        step. Where environments have started again, it has all tasks as "task", and which those are
        as "_task".

        Raises:
            ResetNeeded: no episode has started.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset before step: no episode is under way.")
        key, _ = _keys(self.np_random)
        actions = _as_action(actions, self.action_space)
        over = np.asarray(self._state.terminated | self._state.truncated)
        state = self._state = self._step(self._state, actions, key, self._tasks is None)
        info = {"task": jax.tree.map(np.array, state.task), "_task": over} if over.any() else {}
        ends = np.array(state.terminated), np.array(state.truncated)
        for name, value in state.metrics.items() if not over.all() else ():
            info |= {name: np.where(over, 0.0, value), f"_{name}": ~over}
        return _observation(state), np.array(state.reward), *ends, info


def _spaces(env: Env) -> tuple[gymnasium.spaces.Box, gymnasium.Space]:
    observed = gymnasium.spaces.Box(-np.inf, np.inf, (env.observation_size,), np.float32)
    space: ActionSpace = env.action_space
    if isinstance(space, Discrete):
        return observed, gymnasium.spaces.Discrete(space.size)
    return observed, gymnasium.spaces.Box(*space.bounds, dtype=np.float32)


def _keys(random: np.random.Generator) -> Key[Array, "2"]:
    return jax.random.split(jax.random.key(int(random.integers(2**31))))


def _observation(state: EnvState) -> np.ndarray:
    return np.array(state.observation, np.float32)  # the caller's own, to write into


def _as_action(action, space: gymnasium.Space) -> Array:
    whole = np.issubdtype(space.dtype, np.integer)
    try:
        array = np.asarray(action, np.int64 if whole else np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.shape != space.shape:
        raise MetajaxError(f"the action is {action!r}; it must be of the shape {space.shape}.")
    if whole and not space.contains(array.astype(space.dtype)):
        raise MetajaxError(f"the action is {action!r}; it must be in {space}.")
    return jnp.asarray(array, jnp.int32 if whole else jnp.float32)


def _task_after(options: Mapping[str, Any] | None, task: Task | None, sample) -> Task | None:
    """Return the task that the options of a reset ask for, or the one there was."""
    for name in options or ():
        if name != "task":
            raise unknown("option of reset", name, ("task",))
    return _checked(options["task"], sample) if options else task


def _checked(task: Task, sample) -> Task:
    """Return the task as JAX arrays, if it looks like what `sample` draws."""
    expected = jax.eval_shape(sample, jax.random.key(0))
    try:
        found = jax.tree.map(lambda like, x: jnp.asarray(x, like.dtype), expected, task)
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None or jax.tree.map(jnp.shape, found) != jax.tree.map(lambda x: x.shape, expected):
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", expected)
        raise MetajaxError(f"the task is {task!r}; it must be of the form {shapes}.")
    return found
