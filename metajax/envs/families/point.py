"""2-D navigation: walk to a goal that the agent is never shown."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax.envs.builders import Moved, make_env
from metajax.envs.drawings import GOALS
from metajax.envs.specs import FamilySpec, gradient_presets
from metajax.envs.splits import (
    Split,
    between,
    finite_splits,
    three_splits,
    uniform,
)
from metajax.errors import unknown
from metajax.types import Continuous, Env, TaskDistribution, TaskFamily

GOAL_RANGE = 0.5
MAX_STEP = 0.1
ARRIVED = 0.01
GOAL_RADIUS = 0.2  # of the sparse reward


@checked
def point_goal(*, episode_length: int = 100) -> TaskFamily:
    """Return `point-goal-v1`, the 2-D navigation task of Finn et al. (2017, section 5.3).

    A point starts at the origin and moves by the action, clipped to ±0.1 per axis. The goal is
    uniform in [-0.5, 0.5]². Reward of a step: minus the Euclidean distance to the goal after the
    move (the paper's text says squared; its numbers and its code are the plain distance). The
    episode terminates when both coordinates are within 0.01 of the goal.

    The task is {"goal": [xy]}; held-out goals have a first coordinate in the held-out strips of
    the range (see `metajax.envs.splits`). Metrics: "distance" to the goal, and "success" (1 where
    the episode terminates).

    Args:
        episode_length: steps per episode.
    """

    def move(position, action: Float[Array, "2"], task) -> Moved:
        position = position + actions.to_control(action)
        offset = position - task["goal"]
        reward = -jnp.sqrt(jnp.sum(offset**2))
        return Moved(position, reward, arrived(offset))

    def sample(key: Key[Array, ""], *, split: Split):
        x_key, y_key = jax.random.split(key)
        x = uniform(x_key, -GOAL_RANGE, GOAL_RANGE, split=split, below=True)
        y = jax.random.uniform(y_key, minval=-GOAL_RANGE, maxval=GOAL_RANGE)
        return {"goal": jnp.stack([x, y])}

    actions = Continuous(2, -MAX_STEP, MAX_STEP)

    def arrived(offset: Float[Array, "2"]):
        return jnp.all(jnp.abs(offset) < ARRIVED)

    env = _point(move, arrived, actions, episode_length)
    return TaskFamily(env, name="point-goal-v1", **three_splits(sample))


def _point(move, arrived, actions: Continuous, episode_length: int) -> Env:
    def measure(position, task):
        offset = position - task["goal"]
        return {"distance": jnp.sqrt(jnp.sum(offset**2)), "success": arrived(offset)}

    return make_env(
        lambda key, task: jnp.zeros(2),  # every episode starts at the origin
        move,
        lambda position, task: position,
        observation_size=2,
        action_space=actions,
        episode_length=episode_length,
        measure=measure,
    )


class Variant(NamedTuple):
    """The numbers in which the papers' sparse points differ.

    Attributes:
        episode_length: steps per episode.
        tasks: number of goals on the half-circle, a fifth of them held out; None for all of it.
    """

    episode_length: int
    tasks: int | None


SPARSE_VARIANTS = {
    # Rakelly et al. 2019: oyster, rlkit/envs/point_robot.py and configs/sparse-point-robot.json
    "pearl": Variant(20, 100),
    # Zintgraf et al. 2020: varibad, environments/navigation/point_robot.py
    "varibad": Variant(100, None),
}


@checked
def point_sparse(
    *, variant: str = "varibad", dense: bool = False, episode_length: int | None = None
) -> TaskFamily:
    """Return `point-sparse-v1`, the half-circle of goals of Rakelly et al. (2019, section 6.3).

    A point starts at the origin and moves by a tenth of the action, clipped to ±1 per axis. The
    goal lies on the upper half of the unit circle. Reward of a step: 1 - ‖position - goal‖ within
    0.2 of the goal, else 0, after the move; nothing terminates. Metrics: "distance" to the goal,
    and "success" (1 within 0.2 of it).

    The task is {"goal": [xy]}. Variant "pearl" has the paper's 100 goals in the paper's order, the
    first 80 for training. In variant "varibad" held-out goals have their angle in the held-out
    strips of the half-circle, and goals to extrapolate to lie up to 45° below it on both sides.
    (VariBAD's later code draws from quarter circles.)

    Args:
        variant: paper whose goals and horizon are taken, a key of `SPARSE_VARIANTS`.
        dense: reward -‖position - goal‖ everywhere, on which the first paper trains.
        episode_length: steps per episode, instead of the variant's.

    Raises:
        MetajaxError: the variant is unknown.
    """
    if variant not in SPARSE_VARIANTS:
        raise unknown("variant", variant, SPARSE_VARIANTS)
    chosen = SPARSE_VARIANTS[variant]

    def move(position, action: Float[Array, "2"], task) -> Moved:
        position = position + actions.to_control(action)
        distance = jnp.sqrt(jnp.sum((position - task["goal"]) ** 2))
        near = distance <= GOAL_RADIUS
        return Moved(position, -distance if dense else jnp.where(near, 1 - distance, 0.0))

    def sample(key: Key[Array, ""], *, split: Split):
        return at(uniform(key, 0.0, jnp.pi, split=split, below=True))

    def at(angle: Float[Array, ""]):
        return {"goal": jnp.stack([jnp.cos(angle), jnp.sin(angle)])}

    if chosen.tasks is None:
        splits = three_splits(sample)
    else:
        angles = np.linspace(0, np.pi, chosen.tasks)
        goals = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        np.random.RandomState(1337).shuffle(goals)
        held_out = np.arange(chosen.tasks) >= 0.8 * chosen.tasks
        splits = finite_splits({"goal": jnp.asarray(goals, float)}, held_out)
        splits["validation"] = TaskDistribution(lambda key: at(between(key, angles, 0.0, np.pi)))
    actions = Continuous(2, scale=MAX_STEP)

    def arrived(offset: Float[Array, "2"]):
        return jnp.sqrt(jnp.sum(offset**2)) <= GOAL_RADIUS

    length = chosen.episode_length if episode_length is None else episode_length
    env = _point(move, arrived, actions, length)
    return TaskFamily(env, name="point-sparse-v1", **splits)


_GOAL = {
    # The step that can be taken without losing the goal shrinks with the variance, and so does
    # what the unadapted policy may change between two samplings: several epochs on the same
    # episodes let it run away.
    "policy": {"initial_std": 0.045},
    "algorithm": {
        "inner": {
            "rule": {"learning_rate": 0.04},
            "learning_rate_decay": 0.25,
            "objective": {"gae_lambda": 0.95},
        },
        "outer": {"name": "adam", "learning_rate": 5e-4},
    },
    "training": {"iterations": 500, "tasks": 40},
    "evaluation": {"every": 100, "tasks": 40, "episodes": 20, "final_tasks": 400},
    "outer": {
        # A trust region is as long at any standard deviation: the literature's values serve.
        "trpo": {
            "policy": {"initial_std": 1.0},
            "algorithm": {
                "inner": {
                    "rule": {"learning_rate": 0.1},
                    "learning_rate_decay": 0.5,
                    "objective": {"gae_lambda": 1.0},
                },
            },
            "training": {"tasks": 20},
        }
    },
}
_GOAL_OF_OTHERS = {
    # As with MAML: what later epochs gain on old episodes, the unadapted policy loses.
    "promp": {"algorithm": {"outer": {"learning_rate": 2.5e-4, "epochs": 2}}},
    # The gradient of a log-probability grows as the standard deviation shrinks.
    "learned-optimizer": {"algorithm": {"inner": {"rule": {"learning_rate": 0.003}}}},
}

# Rakelly et al. 2019: oyster, configs/point-robot.json, whose episodes have 20 steps
_GOAL_BY_PEARL = {
    "algorithm": {
        "initial_episodes": 2,
        "extra_episodes": 2,
        "updates": 1000,
        "context": 64,
        "exploration_episodes": 1,
        "learner": {"reward_scale": 100.0},
    },
    "training": {"training_tasks": 80},
    "evaluation": {"rounds": 2, "tasks": 20},
}
# Rakelly et al. 2019: oyster, configs/sparse-point-robot.json
_SPARSE_BY_PEARL = {
    "family": {"variant": "pearl"},
    "algorithm": {
        "prior_episodes": 5,
        "posterior_episodes": 45,
        "extra_episodes": 0,
        "updates": 1000,
        "context": 1024,
        "kl_weight": 1.0,
        "replay_capacity": 100_000,
        "exploration_episodes": 5,
        "distance_metric": "distance",
        "learner": {"reward_scale": 100.0, "discount": 0.9},
    },
    "training": {"tasks": 10},
    "evaluation": {"rounds": 20, "tasks": 20},
}

SPECS = (
    FamilySpec(
        "point-goal",
        point_goal,
        "Finn et al. 2017",
        drawing=GOALS,
        presets=gradient_presets(_GOAL, _GOAL_OF_OTHERS) | {"pearl": _GOAL_BY_PEARL},
    ),
    FamilySpec(
        "point-sparse",
        point_sparse,
        "Rakelly et al. 2019",
        variants=tuple(SPARSE_VARIANTS),
        drawing=GOALS,
        presets={"pearl": _SPARSE_BY_PEARL},
    ),
)
