"""Environments of other packages as task families, imported only when asked for."""

import importlib
import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var
from jaxtyping import Array, Int, Key

from metajax._checks import checked
from metajax._promotion import mixing_types
from metajax.envs.episodes import Moved, make_env
from metajax.envs.splits import (
    Split,
    finite,
    finite_splits,
    three_splits,
    two_splits,
    uniform,
)
from metajax.errors import MetajaxError, check_at_least, unknown
from metajax.types import Continuous, Discrete, TaskFamily

HELD_OUT_EVERY = 11  # of seeds, of objects and of given rule sets


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
    package = _import("gymnax", "gymnax")
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
        state = jax.tree.map(_like, state, after(state, task))
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
        state = jax.tree.map(_like, state, state)
        moved = {"key": next_key, "state": state, "observation": observe(observation)}
        return Moved(moved, reward, terminated)

    env = make_env(
        start,
        move,
        lambda simulator: simulator["observation"],
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
    splits: dict[str, Any] = {"train": finite(seeds), "test": finite(seeds)}
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

# Parameters that follow from others, which gymnax keeps beside them.
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


@checked
def xland_minigrid(
    *,
    environment: str = "XLand-MiniGrid-R1-9x9",
    rulesets: str | None = None,
    objects: int = 4,
    episode_length: int | None = None,
) -> TaskFamily:
    """Return a room of XLand-MiniGrid (Nikulin et al. 2024) as a task family.

    A task is a rule set: {"goal", "rules", "init_tiles"} in the package's own encoding. Every
    episode places agent and objects anew. Reaching the goal has reward 1 - 0.9·time/episode_length
    and terminates the episode. The observation is the egocentric view, tile and colour of every
    cell one-hot. It does not show what the agent carries: an object that was picked up is out of
    sight until it is put down, so rules about carried objects ask for a memory.

    Without `rulesets`, one object of 66 (6 shapes in 11 colours) must be found among others: be
    near it, or pick it up. XLand-MiniGrid looks at "near" goals after the action "forward" alone
    (also where a wall stops it): turning towards an object, or putting it down beside the agent,
    does not reach the goal, the next "forward" does. Held-out objects are six, one of each
    shape, all in different colours. With `rulesets`, every eleventh one is held out. (The
    benchmarks that come with the package are pickled, which is why they are not read here:
    `numpy.savez(path, goals=..., rules=..., init_tiles=...)` makes data of one.)

    Args:
        environment: its name in XLand-MiniGrid, which says rooms and size.
        rulesets: path of a .npz file with `goals` [rule set, 5], `rules` [rule set, rule, 7] and
            `init_tiles` [rule set, object, 2].
        objects: in a room, without `rulesets`.
        episode_length: steps per episode; three times the cells by default.

    Raises:
        MetajaxError: xminigrid is not installed or has no such environment, the file does not hold
            rule sets, or there is no place for so many objects.
    """
    package = _import("xminigrid", "xland")
    known = [n for n in package.registered_environments() if n.startswith("XLand-MiniGrid")]
    if environment not in known:
        raise unknown("environment of XLand-MiniGrid", environment, known)
    check_at_least(1, objects=objects)
    constants = _import("xminigrid.core.constants", "xland")
    types = _import("xminigrid.types", "xland")
    grid, params = package.make(environment)
    if episode_length is not None:
        params = params.replace(max_steps=episode_length)

    def params_of(task):
        return params.replace(ruleset=types.RuleSet(**{name: task[name] for name in _RULES}))

    @mixing_types
    def start(key: Key[Array, ""], task):
        first = grid.reset(params_of(task), key)
        action = jnp.zeros((), jnp.int32)
        after = jax.eval_shape(lambda: grid.step(params_of(task), first, action))
        return jax.tree.map(_like, first, after)

    @mixing_types
    def move(timestep, action: Int[Array, ""], task) -> Moved:
        after = grid.step(params_of(task), timestep, action)
        return Moved(jax.tree.map(_like, after, after), after.reward, after.discount == 0)

    def observe(timestep):
        kinds, colors = timestep.observation[..., 0], timestep.observation[..., 1]
        cells = [
            jax.nn.one_hot(kinds, constants.NUM_TILES),
            jax.nn.one_hot(colors, constants.NUM_COLORS),
        ]
        return jnp.concatenate(cells, axis=-1).ravel()

    splits = _one_object(objects) if rulesets is None else _from_file(rulesets)
    wanted = jax.eval_shape(splits["train"].sample, jax.random.key(0))["init_tiles"].shape[0]
    empty = np.asarray(grid.reset(params, jax.random.key(0)).state.grid)[..., 0]
    places = min(np.sum(empty == constants.Tiles.FLOOR) - 1, len(_SHAPES) * len(_COLORS))
    if wanted > places:
        raise MetajaxError(f"{environment} has places for {places} objects, not for {wanted}.")
    size = params.view_size**2 * (constants.NUM_TILES + constants.NUM_COLORS)
    env = make_env(
        start,
        move,
        observe,
        observation_size=size,
        action_space=Discrete(grid.num_actions(params)),
        episode_length=params.max_steps,
    )
    return TaskFamily(env, name=f"{environment.lower()}-v1", **splits)


_RULES = ("goal", "rules", "init_tiles")
_SHAPES = (3, 4, 5, 7, 11, 12)  # ball, square, pyramid, key, hexagon, star
_COLORS = tuple(range(1, 12))
_HOLD, _NEAR = 1, 3  # goals of XLand-MiniGrid


def _one_object(objects: int) -> dict[str, Any]:
    kinds = [(shape, color) for shape in _SHAPES for color in _COLORS]
    diagonal = [(_SHAPES.index(s) + _COLORS.index(c)) % HELD_OUT_EVERY == 5 for s, c in kinds]
    tiles, held_out = np.array(kinds, np.uint8), np.array(diagonal)

    def sample(key: Key[Array, ""], *, split: Split):
        wanted_key, goal_key, other_key = jax.random.split(key, 3)
        candidates = np.flatnonzero(held_out == (split == "test"))
        wanted = jax.random.choice(wanted_key, candidates)
        # Any of the others may stand beside it, held out or not.
        others = jax.random.permutation(other_key, len(tiles) - 1)[: objects - 1]
        present = jnp.append(others + (others >= wanted), wanted)
        goal = jnp.where(jax.random.bernoulli(goal_key), _HOLD, _NEAR)
        tile = jnp.asarray(tiles)[wanted]
        return {
            "goal": jnp.concatenate([goal[None], tile, jnp.zeros(2)]).astype(jnp.uint8),
            "rules": jnp.zeros((1, 7), jnp.uint8),
            "init_tiles": jnp.asarray(tiles)[present],
        }

    # Every object serves training or is held out.
    return {name: tasks for name, tasks in two_splits(sample).items() if name != "validation"}


def _from_file(path: str) -> dict[str, Any]:
    names = {"goals": "goal", "rules": "rules", "init_tiles": "init_tiles"}
    try:
        with np.load(io.BytesIO(Path(path).read_bytes())) as stored:
            tasks = {name: np.asarray(stored[key]) for key, name in names.items()}
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise MetajaxError(
            f"cannot read rule sets from {path}: {error} The file must be a .npz with "
            f"{', '.join(names)}."
        ) from None
    shapes = {name: x.shape for name, x in tasks.items()}
    goals, rules, tiles = shapes.values()
    count = goals[0] if goals else 0
    lengths = (rules[1:2], tiles[1:2])
    expected = ((count, 5), (count, *lengths[0], 7), (count, *lengths[1], 2))
    if (goals, rules, tiles) != expected or count < HELD_OUT_EVERY:
        raise MetajaxError(
            f"{path} holds arrays of the shapes {shapes}; they must be goals [n, 5], rules "
            f"[n, rules, 7] and init_tiles [n, objects, 2], with n at least {HELD_OUT_EVERY}."
        )
    flat = np.concatenate([x.reshape(count, -1) for x in tasks.values()], axis=1)
    _, first, place = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    if len(again := np.flatnonzero(first[place.ravel()] != np.arange(count))):
        twin = first[place.ravel()][again[0]]
        raise MetajaxError(
            f"rule sets {twin} and {again[0]} of {path} are the same: one may be held out and the "
            "other not. Give each once."
        )
    held_out = np.arange(count) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
    arrays = {name: jnp.asarray(x, jnp.uint8) for name, x in tasks.items()}
    return finite_splits(arrays, held_out)


def _like(x, like):
    """Return an array of the dtype of `like`, never weakly typed: a state keeps its types."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return x
    return jax.lax.convert_element_type(x, like.dtype)


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MetajaxError(
            f"this family needs the package {module.partition('.')[0]} ({error}): "
            f'in a clone, pip install -e ".[{extra}]".'
        ) from None
