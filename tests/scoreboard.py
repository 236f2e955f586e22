"""A family whose returns tell what happened."""

import jax.numpy as jnp
import numpy as np

from metajax.envs.splits import two_splits, uniform
from metajax.types import Continuous, Env, EnvState, TaskFamily

LENGTH = 2


def scoreboard() -> TaskFamily:
    """Return a family whose reward is the task plus the action: returns tell what happened."""

    def reset(key, task):
        no = jnp.zeros((), bool)
        return EnvState(jnp.zeros(1), jnp.zeros(()), no, no, jnp.zeros((), jnp.int32), task, ())

    def step(state, action):
        time, no = state.time + 1, jnp.zeros((), bool)
        reward = state.task["score"] + action[0]
        return EnvState(state.observation, reward, no, time == LENGTH, time, state.task, ())

    env = Env(reset, step, 1, Continuous(1, -np.inf, np.inf), LENGTH)
    draw = lambda key, split: {"score": uniform(key, 0.0, 1.0, split=split)}
    return TaskFamily(env, name="board", **two_splits(draw))
