"""Random tabular Markov decision processes."""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Int, Key

from metajax._checks import checked
from metajax.envs.builders import Moved, make_env
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import Split, two_splits, uniform
from metajax.errors import check_at_least
from metajax.types import Discrete, TaskFamily


@checked
def tabular(
    *, states: int = 10, actions: int = 5, episode_length: int = 10, reward_std: float = 1.0
) -> TaskFamily:
    """Return `tabular-v1`, the random MDPs of Duan et al. (2016, section 3.2).

    Every episode starts in state 0. Per task: transition probabilities from a flat Dirichlet, mean
    rewards from N(1, 1); per step: reward from N(mean, `reward_std`²). The observation is the
    one-hot state. The task is {"transition": [state, action, next_state], "reward": [state,
    action]}; held-out tasks have the quantile of their first mean reward in the held-out strips.

    With `reward_std=0` and few states the whole process can be enumerated.

    Args:
        states: number of states.
        actions: number of actions.
        episode_length: steps per episode.
        reward_std: standard deviation of the reward around its mean.

    Raises:
        MetajaxError: an option is out of range.
    """
    check_at_least(1, states=states, actions=actions)
    check_at_least(0, reward_std=reward_std)

    def start(key: Key[Array, ""], task):
        del task
        return {"state": jnp.zeros((), jnp.int32), "key": key, "time": jnp.zeros((), jnp.int32)}

    def move(process, action: Int[Array, ""], task) -> Moved:
        step_key = jax.random.fold_in(process["key"], process["time"])
        transition_key, reward_key = jax.random.split(step_key)
        here = process["state"]
        probabilities = task["transition"][here, action]
        next_state = jax.random.categorical(transition_key, jnp.log(probabilities))
        reward = task["reward"][here, action] + reward_std * jax.random.normal(reward_key)
        process = process | {"state": next_state.astype(jnp.int32), "time": process["time"] + 1}
        return Moved(process, reward)

    def sample(key: Key[Array, ""], *, split: Split):
        transition_key, reward_key, quantile_key = jax.random.split(key, 3)
        transition = jax.random.dirichlet(transition_key, jnp.ones(states), (states, actions))
        reward = 1 + jax.random.normal(reward_key, (states, actions))
        quantile = uniform(quantile_key, 0.0, 1.0, split=split)
        return {"transition": transition, "reward": reward.at[0, 0].set(1 + ndtri(quantile))}

    env = make_env(
        start,
        move,
        lambda process, task: jax.nn.one_hot(process["state"], states),
        observation_size=states,
        action_space=Discrete(actions),
        episode_length=episode_length,
    )
    return TaskFamily(env, name="tabular-v1", **two_splits(sample))


SPECS = (
    FamilySpec(
        "tabular",
        tabular,
        "Duan et al. 2016",
        references=("psrl", "ucrl2", "backward_induction"),
    ),
)
