"""Episodes of given actions, state by state."""

import jax
import jax.numpy as jnp
import numpy as np


def play(env, task, actions, *, seed=0):
    """The states of one episode, the reset first: `[1 + time]`."""

    def step(state, action):
        state = env.step(state, action)
        return state, state

    @jax.jit
    def run(key, task, actions):
        first = env.reset(key, task)
        _, rest = jax.lax.scan(step, first, actions)
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)

    actions = jnp.asarray(actions)
    return jax.tree.map(np.asarray, run(jax.random.key(seed), task, actions))
