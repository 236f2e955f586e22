"""2-D navigation: walk to a goal that the agent is never shown."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax.envs.splits import Split, two_splits, uniform
from metajax.types import Continuous, Env, EnvState, TaskFamily

GOAL_RANGE = 0.5
MAX_STEP = 0.1
ARRIVED = 0.01


def point_goal(*, episode_length: int = 100) -> TaskFamily:
    """Return `point-goal-v1`, the 2-D navigation task of Finn et al. (2017, section 5.3).

    A point starts at the origin and moves by the action, clipped to ±0.1 per axis. The goal is
    uniform in [-0.5, 0.5]². Reward of a step: minus the Euclidean distance to the goal after the
    move (the paper's text says squared; its numbers and its code are the plain distance). The
    episode terminates when both coordinates are within 0.01 of the goal.

    The task is {"goal": [xy]}; held-out goals have a first coordinate in the held-out strips of
    the range (see `metajax.envs.splits`).

    Args:
        episode_length: steps per episode.
    """

    actions = Continuous(2, -MAX_STEP, MAX_STEP)

    def reset(key: Key[Array, ""], task) -> EnvState:
        del key  # every episode starts at the origin
        return EnvState(
            observation=jnp.zeros(2),
            reward=jnp.zeros(()),
            terminated=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
            time=jnp.zeros((), jnp.int32),
            task=task,
            simulator=(),
        )

    def step(state: EnvState, action: Float[Array, "2"]) -> EnvState:
        position = state.observation + actions.to_control(action)
        offset = position - state.task["goal"]
        time = state.time + 1
        terminated = jnp.all(jnp.abs(offset) < ARRIVED)
        return EnvState(
            observation=position,
            reward=-jnp.sqrt(jnp.sum(offset**2)),
            terminated=terminated,
            truncated=(time == episode_length) & ~terminated,
            time=time,
            task=state.task,
            simulator=(),
        )

    def sample(key: Key[Array, ""], *, split: Split):
        x_key, y_key = jax.random.split(key)
        x = uniform(x_key, -GOAL_RANGE, GOAL_RANGE, split=split)
        y = jax.random.uniform(y_key, minval=-GOAL_RANGE, maxval=GOAL_RANGE)
        return {"goal": jnp.stack([x, y])}

    train, test = two_splits(sample)
    return TaskFamily(
        env=Env(reset, step, 2, actions, episode_length),
        train=train,
        test=test,
        name="point-goal-v1",
    )
