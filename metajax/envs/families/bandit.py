"""Multi-armed bandits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from metajax._checks import checked
from metajax.envs.builders import Moved, make_env
from metajax.envs.drawings import Plot, observed
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import Split, two_splits, uniform
from metajax.errors import check_at_least
from metajax.types import Discrete, TaskFamily


@checked
def bernoulli_bandit(*, arms: int = 5, episode_length: int = 1) -> TaskFamily:
    """Return `bernoulli-bandit-v1`, the bandits of Duan et al. (2016, section 3.1).

    The reward of arm i is 1 with probability p_i, else 0; the p_i are U[0, 1], fresh for every
    task. The observation is the constant 0. An episode is one pull, so a trial of n pulls has n
    episodes. The task is {"probability": [arm]}; held-out tasks have the probability of their first
    arm in the held-out strips of the range.

    Args:
        arms: number of arms, the paper's k.
        episode_length: pulls per episode.

    Raises:
        MetajaxError: an option is out of range.
    """

    def sample(key: Key[Array, ""], *, split: Split):
        return {"probability": _first_split(key, arms, split)}

    def reward(key, task, arm):
        return jax.random.bernoulli(key, task["probability"][arm]).astype(float)

    return _bandit("bernoulli-bandit-v1", arms, episode_length, sample, reward)


@checked
def gaussian_bandit(
    *, arms: int = 5, reward_std: float = 1.0, episode_length: int = 1
) -> TaskFamily:
    """Return `gaussian-bandit-v1`: rewards of arm i are N(m_i, `reward_std`²), the m_i are U[0, 1].

    As in pytorch-maml-rl's `bandit.py`; otherwise as `bernoulli-bandit-v1`. The task is {"mean":
    [arm]}.

    Args:
        arms: number of arms.
        reward_std: standard deviation of a reward around its mean.
        episode_length: pulls per episode.

    Raises:
        MetajaxError: an option is out of range.
    """
    check_at_least(0, reward_std=reward_std)

    def sample(key: Key[Array, ""], *, split: Split):
        return {"mean": _first_split(key, arms, split)}

    def reward(key, task, arm):
        return task["mean"][arm] + reward_std * jax.random.normal(key)

    return _bandit("gaussian-bandit-v1", arms, episode_length, sample, reward)


def _first_split(key: Key[Array, ""], arms: int, split: Split):
    first_key, all_key = jax.random.split(key)
    return jax.random.uniform(all_key, (arms,)).at[0].set(uniform(first_key, 0.0, 1.0, split=split))


def _bandit(name: str, arms: int, episode_length: int, sample, draw) -> TaskFamily:
    check_at_least(1, arms=arms)

    def start(key: Key[Array, ""], task):
        del task
        return {"key": key, "pulls": jnp.zeros((), jnp.int32)}

    def move(bandit, arm: Int[Array, ""], task) -> Moved:
        reward = draw(jax.random.fold_in(bandit["key"], bandit["pulls"]), task, arm)
        return Moved(bandit | {"pulls": bandit["pulls"] + 1}, reward)

    env = make_env(
        start,
        move,
        lambda bandit, task: jnp.zeros(1),
        observation_size=1,
        action_space=Discrete(arms),
        episode_length=episode_length,
    )
    return TaskFamily(env, name=name, **two_splits(sample))


_DRAWING = Plot(
    "arms",
    observed,
    "mean reward of the arms, how often they are pulled, mean return",
    shown=100,
)

# Ten pulls of an arm, one after the other.
_PULLS = {
    "algorithm": {"episodes": 10},
    "training": {"iterations": 400, "tasks": 1000},
    "evaluation": {"every": 100, "tasks": 1000, "final_tasks": 10_000},
}

# A twentieth of RL²'s pulls, each of which is learned from many times.
_REMEMBERED_PULLS = {
    "algorithm": {
        "episodes": 10,
        "learner": {"name": "double-q", "learning_rate": 1e-3, "tau": 0.01},
        "updates_per_step": 0.1,
        "random_trials": 200,
        "replay_capacity": 50_000,
    },
    "training": {"iterations": 1000, "tasks": 20},
    "evaluation": {"every": 250, "tasks": 1000, "final_tasks": 10_000, "deterministic": True},
}

SPECS = (
    FamilySpec(
        "bernoulli-bandit",
        bernoulli_bandit,
        "Duan et al. 2016",
        drawing=_DRAWING,
        presets=dict.fromkeys(("rl2", "snail", "varibad"), _PULLS)
        | {"off-policy-rl2": _REMEMBERED_PULLS},
        references=("at_random", "greedy", "thompson", "upper_confidence", "by_index"),
    ),
    FamilySpec(
        "gaussian-bandit",
        gaussian_bandit,
        "the Gaussian twin of bernoulli-bandit",
        drawing=_DRAWING,
    ),
)
