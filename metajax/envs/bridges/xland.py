"""Rooms of XLand-MiniGrid as a task family; the package is imported only when asked for."""

import io
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from metajax._checks import checked
from metajax._promotion import mixing_types
from metajax.envs.bridges.packages import HELD_OUT_EVERY, require, typed_like
from metajax.envs.builders import Moved, make_env
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import Split, finite_splits, two_splits
from metajax.errors import MetajaxError, check_at_least, unknown
from metajax.types import Discrete, TaskFamily


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
    (also where a wall stops it): turning towards an object, or putting it down next to the agent,
    does not reach the goal, the next "forward" does. Held-out objects are six, one of each
    shape, all in different colours. With `rulesets`, every eleventh one is held out. (The
    benchmarks that come with the package are pickled, which is why they are not read here:
    `numpy.savez(path, goals=..., rules=..., init_tiles=...)` makes data of one.)

    Args:
        environment: its name in XLand-MiniGrid, which says rooms and size.
        rulesets: path of a .npz file with `goals` [rule set, 5], `rules` [rule set, rule, 7] and
            `init_tiles` [rule set, object, 2].
        objects: number of objects in a room, without rulesets.
        episode_length: steps per episode; three times the cells by default.

    Raises:
        MetajaxError: xminigrid is not installed or has no such environment, the file does not hold
            rule sets, or there is no place for so many objects.
    """
    package = require("xminigrid", "xland")
    known = [n for n in package.registered_environments() if n.startswith("XLand-MiniGrid")]
    if environment not in known:
        raise unknown("environment of XLand-MiniGrid", environment, known)
    check_at_least(1, objects=objects)
    constants = require("xminigrid.core.constants", "xland")
    types = require("xminigrid.types", "xland")
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
        return jax.tree.map(typed_like, first, after)

    @mixing_types
    def move(timestep, action: Int[Array, ""], task) -> Moved:
        after = grid.step(params_of(task), timestep, action)
        return Moved(jax.tree.map(typed_like, after, after), after.reward, after.discount == 0)

    def observe(timestep, task):
        del task
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
        # Any of the others may stand next to it, held out or not.
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


SPECS = (FamilySpec("xland-minigrid", xland_minigrid, "Nikulin et al. 2024", package="xminigrid"),)
