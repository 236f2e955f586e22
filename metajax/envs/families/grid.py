"""Grids whose goals are hidden."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from metajax._checks import checked
from metajax._memory import check_memory
from metajax.envs.builders import Moved, make_env
from metajax.envs.drawings import GOALS, Plot
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import finite_splits, uniform_over
from metajax.errors import check_at_least, unknown
from metajax.types import Discrete, TaskDistribution, TaskFamily

SIZE = 5
VARIANTS = ("split", "varibad")
HELD_OUT_EVERY = 5  # of the goals; coprime with the 21 there are, so that they lie scattered


@checked
def gridnav(*, variant: str = "split", episode_length: int = 15) -> TaskFamily:
    """Return `gridnav-v1`, the grid of Zintgraf et al. (2020, section 5.1).

    5 x 5 cells, start in the corner (0, 0); actions: stay, up (y + 1), right (x + 1), down, left;
    at a wall nothing moves. The reward of a step that ends on the goal is 1, of any other -0.1;
    nothing terminates. The observation is the cell [xy], from 0 to 4. Goals are the 21 cells that
    are neither the start nor one of its three neighbours.

    The task is {"goal": [xy]}. Metric: "success", 1 on the goal.

    Args:
        variant: "split" holds out every fifth goal; "varibad" is the paper's: all goals are both
            training and test tasks.
        episode_length: steps per episode; the paper's trials have 4 episodes.

    Raises:
        MetajaxError: the variant is unknown.
    """
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    cells = [(x, y) for x in range(SIZE) for y in range(SIZE) if x > 1 or y > 1]
    goals = {"goal": jnp.array(cells)}
    held_out = np.arange(len(cells)) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
    splits = finite_splits(goals, held_out)
    if variant == "varibad":
        splits |= dict.fromkeys(splits, uniform_over(goals))

    def move(cell: Int[Array, "2"], action: Int[Array, ""], task) -> Moved:
        cell = _walk(cell, action, SIZE)
        return Moved(cell, jnp.where(on_goal(cell, task), 1.0, -0.1))

    def on_goal(cell: Int[Array, "2"], task) -> Bool[Array, ""]:
        return jnp.all(cell == task["goal"])

    env = make_env(
        lambda key, task: jnp.zeros(2, jnp.int32),
        move,
        lambda cell, task: cell.astype(float),
        observation_size=2,
        action_space=Discrete(len(_STEPS)),
        episode_length=episode_length,
        measure=lambda cell, task: {"success": on_goal(cell, task)},
    )
    return TaskFamily(env, **splits, name="gridnav-v1")


_STEPS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))


def _walk(cell: Int[Array, "2"], action: Int[Array, ""], size: int) -> Int[Array, "2"]:
    return jnp.clip(cell + jnp.array(_STEPS, jnp.int32)[action], 0, size - 1)


@checked
def dark_key_door(*, size: int = 9, episode_length: int = 50) -> TaskFamily:
    """Return `dark-key-door-v1`, a dark room with an invisible key and an invisible door.

    After Laskin et al. (2022) and AMAGO's `room_key_door.py`: `size` x `size` cells; actions as in
    `gridnav-v1`. Entering the key's cell for the first time has the reward 1, and so does the
    door's cell once the key is there, which terminates the episode. The observation [4] is the cell
    divided by `size`, whether the key was found, and the time divided by `episode_length`. (AMAGO's
    time limit lets one step more pass.)

    The task is {"start": [xy], "key": [xy], "door": [xy]}, cells drawn uniformly, the same in all
    episodes of a trial. Held-out tasks have key and door such that the sum of their four
    coordinates is a multiple of 5; training tasks do not.

    Args:
        size: cells per side.
        episode_length: steps per episode.

    Raises:
        MetajaxError: an option is out of range, or the room does not fit into memory.
    """
    check_at_least(2, size=size)
    check_memory(all_places_of_key_and_door=16 * size**4)

    def start(key: Key[Array, ""], task):
        del key
        found = jnp.zeros((), bool)
        return {"cell": task["start"], "found": found, "time": jnp.zeros((), jnp.int32)}

    def move(room, action: Int[Array, ""], task) -> Moved:
        cell = _walk(room["cell"], action, size)
        opened = room["found"] & jnp.all(cell == task["door"])
        takes = ~room["found"] & jnp.all(cell == task["key"])
        room = {"cell": cell, "found": room["found"] | takes, "time": room["time"] + 1}
        return Moved(room, (opened | takes).astype(float), opened)

    def observe(room, task):
        del task
        rest = jnp.stack([room["found"].astype(float), room["time"] / episode_length])
        return jnp.concatenate([room["cell"] / size, rest])

    def sampler(held_out: bool) -> TaskDistribution:
        places = jnp.stack(jnp.meshgrid(*[jnp.arange(size)] * 4, indexing="ij"), -1).reshape(-1, 4)
        places = places[(jnp.sum(places, axis=1) % 5 == 0) == held_out]

        def sample(key: Key[Array, ""]):
            start_key, place_key = jax.random.split(key)
            place = places[jax.random.randint(place_key, (), 0, len(places))]
            start = jax.random.randint(start_key, (2,), 0, size)
            return {"start": start, "key": place[:2], "door": place[2:]}

        return TaskDistribution(sample)

    env = make_env(
        start,
        move,
        observe,
        observation_size=4,
        action_space=Discrete(len(_STEPS)),
        episode_length=episode_length,
    )
    return TaskFamily(env, sampler(False), sampler(True), "dark-key-door-v1")


SPECS = (
    FamilySpec(
        "gridnav",
        gridnav,
        "Zintgraf et al. 2020",
        variants=VARIANTS,
        drawing=GOALS,
        # Of 15 steps an episode, twice as many episodes.
        presets={"pearl": {"algorithm": {"prior_episodes": 4, "context": 60}}},
    ),
    FamilySpec(
        "dark-key-door",
        dark_key_door,
        "Laskin et al. 2022",
        drawing=Plot(
            "paths",
            lambda state: state.simulator["cell"].astype(float),
            "paths and mean returns; the cross is the hidden key, the square the hidden door",
        ),
    ),
)
