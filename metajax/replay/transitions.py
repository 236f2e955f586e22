"""Steps out of their episodes, each with the input that follows it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from metajax.losses import returns
from metajax.types import StepInput, Trajectory, pytree_dataclass


@pytree_dataclass
class Transitions:
    """Steps of any episodes, in any order.

    Attributes:
        step_input: what the policy saw before each action.
        action: that it took.
        reward: of the step.
        terminated: the step ended the task itself.
        next_input: what the policy saw after it, at the end of an episode too.
        valid: the step was played.
    """

    step_input: StepInput
    action: Shaped[Array, "..."]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    next_input: StepInput
    valid: Bool[Array, "*batch"]


@pytree_dataclass
class Steps:
    """Steps of agents that see nothing but the observation, `[*batch, ...]` each.

    Attributes:
        observation: before the action.
        action: that was taken.
        reward: of the step.
        terminated: the step ended the task itself: nothing follows.
        next_observation: after the action, at the end of an episode too.
    """

    observation: Float[Array, "*batch observation"]
    action: Shaped[Array, "..."]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    next_observation: Float[Array, "*batch observation"]


@pytree_dataclass
class TrialSteps:
    """Whole trials, each one sequence of the steps of all its episodes, with padding behind them.

    What follows an episode's last step is the first of the next one.

    Attributes:
        step_input: what the policy saw before each action, `[*batch step]`.
        action: that was taken.
        reward: of the step.
        terminated: nothing follows: the trial's last step.
        valid: the step was played.
    """

    step_input: StepInput
    action: Shaped[Array, "..."]
    reward: Float[Array, "*batch step"]
    terminated: Bool[Array, "*batch step"]
    valid: Bool[Array, "*batch step"]


def all_steps(trajectory: Trajectory) -> tuple[Steps, Bool[Array, "item"]]:
    """Return the steps of all episodes `[item, ...]`, and which of them were played."""
    all_ = all_transitions(trajectory)
    steps = Steps(
        all_.step_input.observation,
        all_.action,
        all_.reward,
        all_.terminated,
        all_.next_input.observation,
    )
    return steps, all_.valid


def transitions(trajectory: Trajectory) -> Transitions:
    """Return the steps of episodes, with the axes that they have."""
    valid = trajectory.valid
    last, time = returns.last_steps(valid), valid.ndim - 1

    def following(x, final):
        final = jnp.expand_dims(final, time)
        shifted = jnp.concatenate([jax.lax.slice_in_dim(x, 1, None, axis=time), final], axis=time)
        return jnp.where(jnp.expand_dims(last, range(last.ndim, x.ndim)), final, shifted)

    return Transitions(
        trajectory.step_input,
        trajectory.action,
        trajectory.reward,
        trajectory.terminated,
        jax.tree.map(following, trajectory.step_input, trajectory.final_input),
        valid,
    )


def all_transitions(trajectory: Trajectory) -> Transitions:
    """Return the steps of all episodes, `[item, ...]`."""
    axes = trajectory.valid.ndim
    return jax.tree.map(lambda x: jax.lax.collapse(x, 0, axes), transitions(trajectory))
