"""Episodes before and after adaptation, with every position that they went through."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree, Shaped

from metajax.envs.rollouts import first_previous, play_on
from metajax.training.evaluation import has_memory
from metajax.types import Agent, EnvState, Task, TaskFamily, pytree_dataclass


@pytree_dataclass
class Recording:
    """Episodes with every position they went through.

    Attributes:
        positions: from the reset on, one more than there are steps.
        action: as the policy sampled it.
        reward: of each step, 0 where none was played.
        valid: the steps played.
    """

    positions: Float[Array, "*batch steps position"]
    action: Shaped[Array, "..."]
    reward: Float[Array, "*batch time"]
    valid: Bool[Array, "*batch time"]

    @property
    def returns(self) -> Float[Array, "*batch"]:
        """Undiscounted returns."""
        return self.reward.sum(axis=-1)


def record(
    agent: Agent,
    family: TaskFamily,
    meta_params: PyTree[Array],
    task: Task,
    key: Key[Array, ""],
    position: Callable[[EnvState], Float[Array, "position"]],
    *,
    adaptations: int,
    episodes: int,
    shown: int,
) -> tuple[Recording, Recording]:
    """Return episodes of one task before and after adaptation, `[episode, time]` each.

    The i-th episode starts in the same state before and after. None of them is adapted on: of an
    agent with a memory each is another first episode of its trial, or another one after the rest.

    Args:
        agent: of the algorithm that trained `meta_params`.
        family: its environment is played.
        meta_params: what was trained.
        task: one task.
        key: consumed.
        position: what to record of a state.
        adaptations: adaptation steps; of a memory, parts of the trial that it has played.
        episodes: per adaptation step or part.
        shown: how many episodes to return.
    """
    env = family.env
    begin_key, adapt_key, before_key, after_key, reset_key = jax.random.split(key, 5)

    def play(env, agent_now, key, episodes):
        adapted, carried = agent_now

        def act(memory, step_input, key):
            return agent.act(adapted, memory, step_input, key)

        return play_on(key, env, task, act, carried, episodes=episodes)

    def adapt(agent_now, key):
        adapted, carried = agent_now
        play_key, learn_key = jax.random.split(key)
        played, trajectory = play(env, agent_now, play_key, episodes)
        adapted = agent.adapt(meta_params, adapted, trajectory, learn_key)
        return (adapted, played if has_memory(agent) else carried), None

    def film(agent_now, reset_key, key) -> Recording:
        # A rollout keeps no states: play from a known start, then repeat the actions from there.
        start = env.reset(reset_key, task)
        fixed = env._replace(reset=lambda key, task: start)
        trajectory = jax.tree.map(lambda x: x[0], play(fixed, agent_now, key, 1)[1])

        def step(state, action):
            new_state = env.step(state, action)
            return new_state, position(new_state)

        _, positions = jax.lax.scan(step, start, trajectory.action)
        positions = jnp.concatenate([position(start)[None], positions])
        reward = jnp.where(trajectory.valid, trajectory.reward, 0.0)
        return Recording(positions, trajectory.action, reward, trajectory.valid)

    nothing_heard = (agent.initial_memory(), first_previous(env))
    before = (agent.init(meta_params, begin_key), nothing_heard)
    after, _ = jax.lax.scan(adapt, before, jax.random.split(adapt_key, adaptations))
    reset_keys = jax.random.split(reset_key, shown)

    def film_all(agent_now, key):
        keys = jax.random.split(key, shown)
        return jax.vmap(lambda r, k: film(agent_now, r, k))(reset_keys, keys)

    return film_all(before, before_key), film_all(after, after_key)
