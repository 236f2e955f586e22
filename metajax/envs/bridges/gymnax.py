"""Environments of gymnax as task families; the package is imported only when asked for."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var
from jaxtyping import Array, Int, Key

from metajax._checks import checked
from metajax._promotion import mixing_types
from metajax.envs.bridges.packages import HELD_OUT_EVERY, require, typed_like
from metajax.envs.builders import Moved, make_env
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import (
    Split,
    finite_splits,
    three_splits,
    two_splits,
    uniform,
    uniform_over,
)
from metajax.errors import MetajaxError, unknown
from metajax.types import Continuous, Discrete, TaskFamily


@checked
def gymnax(
    *,
    environment: str = "MetaMaze-misc",
    vary: dict[str, tuple[float, float]] | None = None,
    episode_length: int | None = None,
) -> TaskFamily:
    """Return an environment of gymnax (Lange 2022) as the family `gymnax-ENVIRONMENT-v1`.

    A task is either what a reset draws or what the environment's parameters are.

    - Without `vary` the task is {"seed": []}: all episodes of a trial start with the same reset,
      and with it the maze's goal or the bandit's arms, which gymnax draws there. Every eleventh
      seed is held out; those of validation tasks are negative. Where resets differ in finitely many
      ways (65 goals of MetaMaze, 104 of FourRooms, which it shows), each is one task, and every
      eleventh of them is held out; of fewer than eleven (two coins of BernoulliBandit) the held-out
      tasks are the training tasks. The family is then `gymnax-ENVIRONMENT-v2`.
    - With `vary` the task is {parameter: value}, uniform in the ranges given, and every episode
      has a reset of its own. Held-out tasks have their first parameter in the held-out strips;
      beyond are those with all parameters beyond their ranges.

    Environments with one task (those of which all resets are the same, such as Asterix, Seaquest,
    SpaceInvaders and Pong) are refused, and so are parameters that change nothing.

    Observations are flattened; the time limit is the family's. What gymnax draws in a step comes
    from a key of the episode's own.

    Args:
        environment: its name in gymnax.
        vary: parameters that differ between tasks, each with its lowest and highest value.
        episode_length: steps per episode; gymnax's own by default.

    Raises:
        MetajaxError: gymnax is not installed, or has no such environment, or that no such
            parameter; a range is empty, or bounds the actions; all tasks would be the same; an
            action or observation is no array.
    """
    package = require("gymnax", "gymnax")
    if environment not in package.registered_envs:
        raise unknown("environment of gymnax", environment, package.registered_envs)
    if environment in _NEEDS_NETWORK:
        raise MetajaxError(f"{environment} fetches its data from the network, which is not done.")
    game, params = package.make(environment)
    params = params.replace(**_DRAWN.get(environment, {}))
    derived = _DERIVED.get(environment, {})
    ranges = _checked_ranges(environment, params, vary or {}, derived)
    for name, ends in ranges.items():
        bounds = [vars(game.action_space(params.replace(**{name: x}))) for x in ends]
        if str(bounds[0]) != str(bounds[1]):
            raise MetajaxError(
                f"{name} bounds the actions of {environment}, and actions are the same in all "
                "tasks: it cannot vary."
            )
    actions, space = _action_space(environment, game.action_space(params))
    seen = game.observation_space(params)
    _check_kind(environment, "observations", seen, ("Box",))

    def observe(observation):
        return jnp.ravel(observation).astype(float)

    def params_of(task):
        of_task = params.replace(**{name: task[name] for name in ranges})
        return of_task.replace(**{name: rule(of_task) for name, rule in derived.items()})

    @mixing_types
    def start(key: Key[Array, ""], task):
        step_key, reset_key = jax.random.split(key)
        if not ranges:
            reset_key = jax.random.key(task["seed"])
        observation, state = game.reset_env(reset_key, params_of(task))
        state = jax.tree.map(typed_like, state, after(state, task))
        return {"key": step_key, "state": state, "observation": observe(observation)}

    def advance(key, state, action, task):
        if isinstance(actions, Continuous):
            action = actions.to_control(action)
        return game.step_env(key, state, action.reshape(space.shape), params_of(task))

    def after(state, task):
        action = jnp.zeros(space.shape, space.dtype)
        return jax.eval_shape(lambda: advance(jax.random.key(0), state, action, task)[1])

    @mixing_types
    def move(simulator, action: Array, task) -> Moved:
        key, next_key = jax.random.split(simulator["key"])
        observation, state, reward, terminated, _ = advance(key, simulator["state"], action, task)
        state = jax.tree.map(typed_like, state, state)
        moved = {"key": next_key, "state": state, "observation": observe(observation)}
        return Moved(moved, reward, terminated)

    env = make_env(
        start,
        move,
        lambda simulator, task: simulator["observation"],
        observation_size=math.prod(seen.shape),
        action_space=actions,
        episode_length=(
            int(params.max_steps_in_episode) if episode_length is None else episode_length
        ),
    )
    if ranges:
        _check_influence(environment, ranges, start, move, space)
        return TaskFamily(env, name=f"gymnax-{environment}-v1", **_parameters(ranges))
    of_resets = _distinct_resets(lambda seed: game.reset_env(jax.random.key(seed), params))
    if len(of_resets) == 1:
        known = ", ".join(_variable(params, derived))
        raise MetajaxError(
            f"{environment} has one task only: all its resets are the same, and "
            + (f"vary is empty; it may hold {known}." if known else "no parameter can vary.")
        )
    if len(of_resets) > _PROBED // 8:  # more than can be counted
        return TaskFamily(env, name=f"gymnax-{environment}-v1", **_seeds())
    place = np.arange(len(of_resets)) % HELD_OUT_EVERY
    seeds = {"seed": jnp.asarray(of_resets)}
    splits: dict[str, Any] = {"train": uniform_over(seeds), "test": uniform_over(seeds)}
    if len(of_resets) >= HELD_OUT_EVERY:
        splits = finite_splits(seeds, place == HELD_OUT_EVERY // 2)
    return TaskFamily(env, name=f"gymnax-{environment}-v2", **splits)


_PROBED = 2048  # resets


def _distinct_resets(reset) -> Int[np.ndarray, "different"]:
    """Return a seed for each different reset among the first `_PROBED`, in the order of states."""

    def numbers(seed):
        leaves = [
            jnp.ravel(x).astype(float)
            for x in map(jnp.asarray, jax.tree.leaves(reset(seed)))
            if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        ]
        return jnp.concatenate(leaves)

    found = np.asarray(jax.lax.map(numbers, jnp.arange(_PROBED), batch_size=_PROBED))
    return np.unique(found, axis=0, return_index=True)[1]


def _check_influence(environment: str, ranges, start, move, space) -> None:
    """Check that each parameter is used by the program of a reset and a step."""

    def episode(task):
        key = jax.random.key(0)
        simulator = start(key, task)
        return simulator, move(simulator, jnp.zeros(space.shape, space.dtype), task)

    task = {name: jnp.zeros(()) for name in ranges}
    for name, matters in zip(sorted(ranges), _used(episode, task), strict=True):
        if not matters:
            raise MetajaxError(
                f"{name} changes nothing in {environment}: tasks that differ in it are the same."
            )


def _used(function, *arguments) -> list[bool]:
    """Return which inputs, flattened, the outputs of a function are computed from."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    needed = {x for x in jaxpr.outvars if isinstance(x, Var)}
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed |= {x for x in equation.invars if isinstance(x, Var)}
    return [x in needed for x in jaxpr.invars]


def _seeds() -> dict[str, Any]:
    def sample(key: Key[Array, ""], *, split: Split):
        if split == "validation":
            return {"seed": -1 - jax.random.randint(key, (), 0, 2**31 - 1)}
        seed = HELD_OUT_EVERY * jax.random.randint(key, (), 0, 2**31 // HELD_OUT_EVERY - 1)
        other = jax.random.randint(jax.random.fold_in(key, 0), (), 1, HELD_OUT_EVERY)
        return {"seed": seed if split == "test" else seed + other}

    return two_splits(sample)


def _parameters(ranges: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    def sample(key: Key[Array, ""], *, split: Split):
        task = {}
        for index, (name, (low, high)) in enumerate(ranges.items()):
            this_key = jax.random.fold_in(key, index)
            if index == 0 or split == "extrapolate":
                task[name] = uniform(this_key, low, high, split=split)
            else:
                task[name] = jax.random.uniform(this_key, minval=low, maxval=high)
        return task

    return three_splits(sample)


_NEEDS_NETWORK = ("MNISTBandit-bsuite",)

# Parameters without which a reset would draw nothing.
_DRAWN = {
    "DeepSea-bsuite": {"sample_action_map": True},
    "FourRooms-misc": {"resample_goal_pos": True},
}

# Parameters that follow from others, which gymnax keeps as well.
_DERIVED = {
    "CartPole-v1": {
        "total_mass": lambda params: params.masscart + params.masspole,
        "polemass_length": lambda params: params.masspole * params.length,
    }
}


def _variable(params: Any, derived) -> dict[str, float]:
    """Return the parameters that may differ between tasks, with their defaults."""
    return {
        name: value
        for name, value in vars(params).items()
        if isinstance(value, float) and name not in derived
    }


def _checked_ranges(environment: str, params: Any, vary: Mapping[str, Any], derived):
    known = _variable(params, derived)
    ranges = {}
    for name, range_ in vary.items():
        if name not in known:
            raise unknown(f"parameter of {environment}", name, known)
        try:
            low, high = map(float, range_)
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
        if not low < high:
            raise MetajaxError(
                f"vary[{name!r}] is {range_!r}; it must be (lowest, highest). The default is "
                f"{known[name]}."
            )
        ranges[name] = (low, high)
    return ranges


def _action_space(environment: str, space: Any):
    if _check_kind(environment, "actions", space, ("Box", "Discrete")) == "Discrete":
        return Discrete(int(space.n)), space
    low, high = (
        tuple(np.broadcast_to(bound, space.shape).ravel().tolist())
        for bound in (space.low, space.high)
    )
    return Continuous(math.prod(space.shape), low, high), space


def _check_kind(environment: str, what: str, space: Any, known: tuple[str, ...]) -> str:
    kind = type(space).__name__
    if kind not in known:
        raise MetajaxError(
            f"{what} of {environment} are a {kind}; they must be a {' or '.join(known)}."
        )
    return kind


SPECS = (FamilySpec("gymnax", gymnax, "Lange 2022", package="gymnax"),)
