"""Agents outside the compiled program, one real environment at a time."""

from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from metajax._checks import checked
from metajax.envs.rollouts import first_previous
from metajax.errors import MetajaxError
from metajax.training.evaluation import has_memory
from metajax.types import Agent, Continuous, Env, StepInput, Trajectory

KEPT_EPISODES = 100  # complete ones, for `adapt`: however long an agent acts, its memory is bounded


class HostAgent:
    """An agent that acts and adapts in an environment it does not simulate.

    One trial is `reset()`, then per step `act(observation)` and `observe(...)` with what came of
    it, and `adapt()` whenever it should learn from the episodes since it last did, of which the
    newest `KEPT_EPISODES` are kept. Agents that adapt in their memory learn as they go: they keep
    no step, and `adapt` does nothing. Made by `simulate` or `metajax.load`.
    """

    def __init__(self, agent: Agent, env: Env, meta_params: PyTree[Array], *, seed: int = 0):
        """See `simulate`."""
        self._agent, self._env, self._meta_params = agent, env, meta_params
        self._keeps_steps = not has_memory(agent)
        self._act = jax.jit(
            lambda adapted, memory, step_input, key: agent.act(adapted, memory, step_input, key)
        )
        self._act_greedily = jax.jit(
            lambda adapted, memory, step_input: agent.act(adapted, memory, step_input, None)
        )
        self._adapt = jax.jit(agent.adapt)
        self._root, self._count = jax.random.key(seed), 0
        self.reset()

    def reset(self) -> None:
        """Forget the task: start a new trial."""
        self.adapted = self._agent.init(self._meta_params, self._next_key())
        self._complete: deque[list[Any]] = deque(maxlen=KEPT_EPISODES)
        self._time = 0
        self._pending = None
        self._start_episode()

    def _start_episode(self) -> None:
        """Let nothing but what was adapted connect an episode with those before it."""
        self._memory = self._agent.initial_memory()
        self._previous: tuple[Any, ...] = first_previous(self._env)
        self._episode: list[Any] = []

    def act(self, observation: np.ndarray, *, deterministic: bool = False) -> np.ndarray:
        """Return the control for one step, clipped and scaled as the environment would.

        Args:
            observation: `[observation]`.
            deterministic: take the distribution's mode instead of a sample.

        Raises:
            MetajaxError: the observation has the wrong size, or `observe` was forgotten.
        """
        if self._pending is not None:
            raise MetajaxError("act was called twice; call observe with the outcome in between.")
        step_input = StepInput(self._observation(observation), *self._previous)
        if deterministic:
            memory, action, output = self._act_greedily(self.adapted, self._memory, step_input)
        else:
            memory, action, output = self._act(
                self.adapted, self._memory, step_input, self._next_key()
            )
        self._memory, self._pending = memory, (step_input, action, output)
        space = self._env.action_space
        return np.asarray(space.to_control(action) if isinstance(space, Continuous) else action)

    def observe(
        self, next_observation: np.ndarray, reward: float, terminated: bool, truncated: bool
    ) -> None:
        """Take in what came of the last action, in the order Gymnasium's `step` returns it.

        Args:
            next_observation: `[observation]`; after an end, the true last one.
            reward: of the step.
            terminated: the episode is over for good.
            truncated: the episode was cut off.

        Raises:
            MetajaxError: there was no action, the observation has the wrong size, or an episode
                outlasts the environment that the agent was made for.
        """
        if self._pending is None:
            raise MetajaxError("observe was called without an action; call act first.")
        following = self._observation(next_observation)
        if self._time == self._env.episode_length:
            raise MetajaxError(
                f"the episode is longer than the {self._env.episode_length} steps the agent was "
                "trained for; end it, or wrap the environment in a time limit."
            )
        step_input, action, output = self._pending
        end = bool(terminated or truncated)
        self._previous, self._pending = (action, np.float32(reward), np.bool_(end)), None
        self._time = 0 if end else self._time + 1
        if not self._keeps_steps:
            return
        outcome = (np.float32(reward), np.bool_(terminated), np.bool_(truncated))
        step = ((step_input, action, output, *outcome), StepInput(following, *self._previous))
        self._episode.append(jax.tree.map(np.array, step))  # copies: nothing of JAX's stays alive
        if end:
            self._complete.append(self._episode)
            self._start_episode()

    def adapt(self) -> None:
        """Learn from the complete episodes since the last call; see `HostAgent`.

        Raises:
            MetajaxError: there is none.
        """
        if not self._keeps_steps:
            return
        if not self._complete:
            raise MetajaxError("there is no complete episode to adapt to.")
        trajectory = jax.tree.map(lambda *x: jnp.stack(x), *map(self._padded, self._complete))
        self.adapted = self._adapt(self._meta_params, self.adapted, trajectory, self._next_key())
        self._complete.clear()

    def _padded(self, episode) -> Trajectory:
        length = self._env.episode_length
        steps = [step for step, _ in episode] + [episode[-1][0]] * (length - len(episode))
        step_input, action, output, reward, terminated, truncated = jax.tree.map(
            lambda *x: jnp.asarray(np.stack(x)), *steps
        )
        valid = jnp.arange(length) < len(episode)
        return Trajectory(
            step_input=step_input,
            action=action,
            output=output,
            reward=jnp.where(valid, reward, 0.0),
            terminated=terminated & valid,
            truncated=truncated & valid,
            valid=valid,
            final_input=episode[-1][1],
        )

    def _observation(self, observation) -> Any:
        array = np.array(observation, np.float32)  # a copy: the caller may write into theirs
        if array.shape != (self._env.observation_size,):
            raise MetajaxError(
                f"an observation has shape {array.shape}; the agent was trained on "
                f"({self._env.observation_size},)."
            )
        return array

    def _next_key(self):
        self._count += 1
        return jax.random.fold_in(self._root, self._count)


@checked
def simulate(agent: Agent, env: Env, meta_params: PyTree[Array], *, seed: int = 0) -> HostAgent:
    """Return a host-side agent for a real environment of the same sizes as `env`.

    Args:
        agent: of the algorithm that trained `meta_params`.
        env: the environment it was trained on; only its sizes and action space are used.
        meta_params: of one seed.
        seed: of the actions it samples.
    """
    return HostAgent(agent, env, meta_params, seed=seed)
