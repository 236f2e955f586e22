"""Steps with those before them in their episode, out of a ring that keeps each step once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from metajax._memory import bytes_of, check_memory
from metajax.policies.history import HistoryEncoder, Recent
from metajax.replay.ring import Replay, shared_out
from metajax.replay.transitions import Steps, all_steps
from metajax.types import Params, Trajectory, pytree_dataclass


@pytree_dataclass
class TimedSteps:
    """Steps of episodes, those of an episode in their order and next to each other.

    Attributes:
        steps: `[item, ...]`.
        time: steps of the episode before each.
    """

    steps: Steps
    time: Int[Array, "item"]


@pytree_dataclass
class Windows:
    """Steps with those before them.

    Attributes:
        inputs: `[*batch, history + 2]`, the last of which follows the step: its previous action and
            reward are those of the step.
        terminated: the step ended the task itself: nothing follows.
    """

    inputs: Recent
    terminated: Bool[Array, "*batch"]


def timed_steps(trajectory: Trajectory) -> tuple[TimedSteps, Bool[Array, "item"]]:
    """Return the steps of all episodes `[item, ...]`, and which of them were played."""
    steps, valid = all_steps(trajectory)
    length = trajectory.valid.shape[-1]
    return TimedSteps(steps, jnp.arange(len(valid), dtype=jnp.int32) % length), valid


def windows_at(kept: TimedSteps, slot: Int[Array, "item"], history: int) -> Windows:
    """Return the windows `[item]` of some steps.

    Args:
        kept: steps in a ring, or those of a trajectory.
        slot: where in it they are.
        history: earlier steps whose observation is wanted.
    """
    steps, count = kept.steps, len(kept.time)
    back = jnp.arange(history + 1, -1, -1, dtype=jnp.int32)[None]
    index = (slot[:, None] - back) % count
    earlier = kept.time[index] == kept.time[slot][:, None] - back
    # What is not preceded by the step before it belongs to another episode.
    known = jnp.cumprod(earlier[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1] > 0

    def where_known(x):
        there = jnp.expand_dims(known, range(known.ndim, x.ndim + 1))
        return jnp.where(there, x[index], jnp.zeros((), x.dtype))

    following = steps.next_observation[slot][:, None]
    observation = jnp.concatenate([where_known(steps.observation)[:, 1:], following], axis=1)
    seen = jnp.concatenate([known[:, 1:], jnp.ones_like(known[:, :1])], axis=1)
    inputs = Recent(observation, where_known(steps.action), where_known(steps.reward), seen)
    return Windows(inputs, steps.terminated[slot])


def sample_windows(replay: Replay, key: Key[Array, ""], count: int, *, history: int) -> Windows:
    """Return `count` windows `[item]` of steps drawn uniformly, with replacement.

    In a full ring the oldest steps, of whose episode the start is overwritten, are not drawn.

    Args:
        replay: of `TimedSteps`; not empty, and with room for more than `history` + 1.
        key: consumed.
        count: how many.
        history: earlier steps whose observation is wanted.

    Raises:
        MetajaxError: the windows do not fit into memory.
    """
    kept: TimedSteps = replay.items
    capacity = len(kept.time)
    size = (history + 2) * count * bytes_of(kept) // capacity
    check_memory(the_windows_drawn_from_the_replay=size)
    full = replay.size == capacity
    rank = jax.random.randint(key, (count,), jnp.where(full, history + 1, 0), replay.size)
    slot = (jnp.where(full, replay.next, 0) + rank) % capacity
    return shared_out(windows_at(kept, slot, history))


def no_windows(encoder: HistoryEncoder, count: int) -> Windows:
    """Return `count` windows of nothing, of the shapes that an encoder asks for."""
    nothing = lambda x: jnp.zeros((count, len(x) + 1, *x.shape[1:]), x.dtype)
    inputs = jax.tree.map(nothing, encoder.initial_memory())
    return Windows(inputs, jnp.zeros(count, bool))


def contexts(
    encoder: HistoryEncoder, params: Params, windows: Windows
) -> Float[Array, "item context"]:
    """Return the contexts in which the actions of windows `[item]` were taken."""
    now = jax.tree.map(lambda x: x[:, :-1], windows.inputs)
    return jax.vmap(encoder.encode, in_axes=(None, 0))(params, now)


def steps_in_context(encoder: HistoryEncoder, params: Params, windows: Windows) -> Steps:
    """Return the steps of windows `[item]`, whose observations go on with their contexts."""
    inputs = windows.inputs
    # Now and afterwards side by side: half as many steps of the recurrence.
    both = jax.tree.map(lambda x: jnp.stack([x[:, :-1], x[:, 1:]]), inputs)
    encode = jax.vmap(jax.vmap(encoder.encode, in_axes=(None, 0)), in_axes=(None, 0))
    observation, following = jnp.concatenate(
        [both.observation[:, :, -1], encode(params, both)], axis=-1
    )
    action, reward = inputs.previous_action[:, -1], inputs.previous_reward[:, -1]
    return Steps(observation, action, reward, windows.terminated, following)
