"""Play episodes of one task: the only place where episodes start."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from metajax._checks import checked
from metajax.errors import MetajaxError
from metajax.types import (
    Continuous,
    Env,
    Memory,
    Policy,
    PolicyOutput,
    StepInput,
    Task,
    Trajectory,
)

Act = Callable[[Memory, StepInput, Key[Array, ""]], tuple[Memory, Array, PolicyOutput]]
Previous = tuple[Array, Array, Array]  # action, reward and end of the step before


@checked
def rollout(
    key: Key[Array, ""],
    env: Env,
    task: Task,
    act: Act,
    memory: Memory,
    *,
    episodes: int,
    parallel: bool = False,
) -> Trajectory:
    """Play a trial of `episodes` episodes on one task.

    Every episode starts from a fresh `reset` key on the same task. Memory, and the outcome of the
    step before, live through the whole trial. After an early end the state and the memory are
    frozen and the remaining steps are marked not `valid`.

    Example:
        >>> import jax
        >>> import metajax
        >>> family = metajax.make("point-goal", episode_length=5)
        >>> policy = metajax.mlp(family.env.observation_size, family.env.action_space)
        >>> params = policy.init(jax.random.key(0))
        >>> def act(memory, step_input, key):
        ...     memory, output = policy.step(params, memory, step_input)
        ...     return memory, output.distribution.sample(key), output
        >>> task = family.train.sample(jax.random.key(1))
        >>> trajectory = metajax.rollout(
        ...     jax.random.key(2), family.env, task, act, policy.initial_memory(), episodes=3
        ... )
        >>> trajectory.reward.shape, trajectory.step_input.observation.shape
        ((3, 5), (3, 5, 2))

    Args:
        key: consumed.
        env: the environment.
        task: one task of the family.
        act: `(memory, step_input, key) -> (memory, action, policy_output)`.
        memory: at the start of the trial; () for a policy without memory.
        episodes: how many.
        parallel: play the episodes side by side instead of one after the other: each starts from
            `memory`, with no previous action, reward or end. Much faster, and the same thing for
            agents that look at nothing but the observation.

    Returns:
        `Trajectory[episode, time]` with `env.episode_length` steps per episode.
    """
    start = (memory, first_previous(env))
    if parallel:
        keys = jax.random.split(key, episodes)
        return jax.vmap(lambda key: _episode(key, env, task, act, start)[1])(keys)
    return play_on(key, env, task, act, start, episodes=episodes)[1]


def play_on(
    key: Key[Array, ""],
    env: Env,
    task: Task,
    act: Act,
    carried: tuple[Memory, Previous],
    *,
    episodes: int,
) -> tuple[tuple[Memory, Previous], Trajectory]:
    """Play more episodes of a trial that has started; see `rollout`.

    Args:
        key: consumed.
        env: the environment.
        task: one task of the family.
        act: `(memory, step_input, key) -> (memory, action, policy_output)`.
        carried: the memory, and the outcome of the step before: `first_previous` at the start of a
            trial, then what this function returned.
        episodes: how many.

    Returns:
        What the rest of the trial carries on with, and `Trajectory[episode, time]`.
    """
    keys = jax.random.split(key, episodes)
    return jax.lax.scan(lambda c, key: _episode(key, env, task, act, c), carried, keys)


def _episode(key, env: Env, task: Task, act: Act, carried):
    """Return what a trial carries on with after an episode, and its `Trajectory[time]`."""
    memory, previous = carried
    reset_key, act_key = jax.random.split(key)
    initial_state = env.reset(reset_key, task)

    def step(carry, time):
        state, memory, previous, ended = carry
        step_input = StepInput(state.observation, *previous)
        new_memory, action, output = act(memory, step_input, jax.random.fold_in(act_key, time))
        new_state = env.step(state, action)
        end = new_state.terminated | new_state.truncated
        record = (
            step_input,
            action,
            output,
            jnp.where(ended, 0.0, new_state.reward),
            new_state.terminated & ~ended,
            new_state.truncated & ~ended,
            ~ended,
        )
        record = record, new_state.metrics
        new_carry = (new_state, new_memory, (action, new_state.reward, end), ended | end)
        return _select(ended, carry, new_carry), record

    carry = (initial_state, memory, previous, jnp.zeros((), bool))
    carry, (record, metrics) = jax.lax.scan(step, carry, jnp.arange(env.episode_length))
    state, memory, previous, _ = carry
    final_input = StepInput(state.observation, *previous)
    trajectory = Trajectory(
        *record, final_input=final_input, initial_state=initial_state, metrics=metrics
    )
    return (memory, previous), trajectory


def number_of_shards(arrays: PyTree) -> int:
    """Return over how many devices a leading axis is sharded.

    They are those of the axis "task" of the surrounding mesh; 1 where there is none, or where they
    cannot be given the same number each.
    """
    devices = dict(jax.sharding.get_abstract_mesh().shape).get("task", 1)
    return 1 if jax.tree.leaves(arrays)[0].shape[0] % devices else devices


def over_tasks(function: Callable, shared: PyTree, *arguments: PyTree) -> PyTree:
    """Return `function(shared, ...)` of every task: `vmap` over the leading axis of the rest.

    Where the surrounding mesh has an axis "task", every device plays the tasks that it holds:
    physics is then no concern of the partitioner, and neither is how an engine batches its
    environments.

    Args:
        function: of what is shared and one task's slices of `arguments`. What it closes over
            should be constants of the program: arrays that are being traced are `shared`.
        shared: the same for all tasks.
        arguments: `[task, ...]`.
    """
    of_all = jax.vmap(function, in_axes=(None, *[0] * len(arguments)))
    if number_of_shards(arguments) == 1:
        return of_all(shared, *arguments)
    tasks, everywhere = jax.sharding.PartitionSpec("task"), jax.sharding.PartitionSpec()
    specs = (everywhere, *[tasks] * len(arguments))
    placed = jax.shard_map(of_all, in_specs=specs, out_specs=tasks, check_vma=False)
    return placed(shared, *arguments)


def first_previous(env: Env) -> Previous:
    """Return the (previous_action, previous_reward, previous_end) of a trial's first step."""
    space = env.action_space
    action = jnp.zeros(space.size) if isinstance(space, Continuous) else jnp.zeros((), jnp.int32)
    return action, jnp.zeros(()), jnp.zeros((), bool)


def _select(condition: Array, if_true, if_false):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def undiscounted_returns(trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Return the sum of rewards of each episode."""
    return jnp.sum(jnp.where(trajectory.valid, trajectory.reward, 0.0), axis=-1)


def check_env(env: Env, task: PyTree) -> None:
    """Check, without running it, that an environment keeps its own promises.

    Args:
        env: the environment.
        task: one of its tasks, or only the shapes of one.

    Raises:
        MetajaxError: `step` changes the shape, dtype or structure of the state, or the sizes that
            the environment declares are not those it produces.
    """
    space = env.action_space
    action = first_previous(env)[0]
    first = jax.eval_shape(env.reset, jax.random.key(0), task)
    promised = {
        "observation": ((env.observation_size,), jnp.floating),
        "reward": ((), jnp.floating),
        "terminated": ((), jnp.bool),
        "truncated": ((), jnp.bool),
    }
    for name, (shape, kind) in promised.items():
        found = getattr(first, name)
        if found.shape != shape or not jnp.issubdtype(found.dtype, kind):
            raise MetajaxError(
                f"the environment's reset returns {name} as {found.dtype}{list(found.shape)}; "
                f"expected {kind.__name__}{list(shape)}."
            )
    second = jax.eval_shape(env.step, first, jax.ShapeDtypeStruct(action.shape, action.dtype))
    before, after = (jax.tree_util.tree_flatten_with_path(s) for s in (first, second))
    if before[1] != after[1]:
        raise MetajaxError(
            f"the environment's step changes the structure of its state from {before[1]} to "
            f"{after[1]}; it must keep it."
        )
    for (path, a), (_, b) in zip(before[0], after[0], strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise MetajaxError(
                f"the environment's step changes state{jax.tree_util.keystr(path)} from "
                f"{a.dtype}{list(a.shape)} to {b.dtype}{list(b.shape)}; both must stay."
            )
    if space.size < 1 or env.episode_length < 1:
        raise MetajaxError(
            f"action size {space.size} and episode length {env.episode_length} must be at least 1."
        )


def check_policy(env: Env, policy: Policy) -> tuple[Any, Any]:
    """Check, without running it, that a policy was made for an environment.

    Args:
        env: the environment.
        policy: one that is to act in it.

    Returns:
        (params, output), the shapes of its parameters and of its output at the first step.

    Raises:
        MetajaxError: it does not take the environment's observations, or chooses other actions.
    """
    space, previous = env.action_space, first_previous(env)

    def first_step():
        params = policy.init(jax.random.key(0))
        step_input = StepInput(jnp.zeros(env.observation_size), *previous)
        output = policy.step(params, policy.initial_memory(), step_input)[1]
        return params, output, output.distribution.mode()

    try:
        params, output, action = jax.eval_shape(first_step)
    except Exception as error:  # each library has its own for shapes that do not fit
        reason = str(error).partition("\n")[0]
        raise MetajaxError(
            f"the policy was made for another environment than this one, with "
            f"{env.observation_size} observed numbers and {space}: {reason}"
        ) from error
    distribution = output.distribution
    scores = getattr(distribution, "logits", getattr(distribution, "q_values", None))
    number = space.size if scores is None else scores.shape[-1]
    kinds = [jnp.issubdtype(x.dtype, jnp.integer) for x in (action, previous[0])]
    if action.shape != previous[0].shape or kinds[0] != kinds[1] or number != space.size:
        those = f"are {number}" if kinds[0] else f"have the shape {list(action.shape)}"
        raise MetajaxError(f"the policy's actions {those}; the environment has {space}.")
    return params, output
