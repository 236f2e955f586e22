"""What algorithms are given in tests: batches of tasks made by hand, and a small environment.

Its episodes may end early, for what learns from whole trials.
"""

import jax
import jax.numpy as jnp

from metajax.envs.builders import Moved, make_env
from metajax.types import Discrete, Task, TaskBatch

EPISODES, LENGTH = 2, 4

# Action 0 turns what is seen, and the last one, of three, ends the episode.
ENV = make_env(
    lambda key, task: jax.random.normal(key, (2,)),
    lambda x, action, task: Moved(
        jnp.array([x[1], -x[0]]) + 0.1 * action, task["pay"][action] * x[0], action == 2
    ),
    lambda x, task: x,
    observation_size=2,
    action_space=Discrete(3),
    episode_length=LENGTH,
)
TASKS = {"pay": jnp.array([[1.0, -1.0, 2.0], [0.5, 2.0, -3.0], [-1.0, 0.0, 1.0]])}


def batch_of(tasks: Task) -> TaskBatch:
    """Return a batch of `tasks[task]`, which are of no list."""
    count = jax.tree.leaves(tasks)[0].shape[0]
    return TaskBatch(tasks, jnp.full(count, -1, jnp.int32))
