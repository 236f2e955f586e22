"""Gradients through the simulator: the same episodes again, as functions of the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metajax.errors import MetajaxError
from metajax.types import Continuous, Env, Params, Policy, StepInput, Trajectory


def check_pathwise(env: Env) -> None:
    """Check what can be without a task.

    Raises:
        MetajaxError: the actions are not continuous.
    """
    if not isinstance(env.action_space, Continuous):
        raise MetajaxError(
            "pathwise gradients need continuous actions; this environment's are discrete."
        )


def pathwise_returns(
    env: Env, policy: Policy, params: Params, trajectory: Trajectory, *, truncation: int
) -> Float[Array, "episode"]:
    """Return the undiscounted returns of the episodes, played again under `params`.

    Initial states and noise are those of the episodes, so under the parameters that acted it is
    they that are played, and the derivative is that of the reparametrised return (Kingma & Welling
    2014; through physics: Freeman et al. 2021). Episodes end when they ended.

    Args:
        env: whose step is differentiable: MJX, Brax and the families in plain JAX.
        policy: without a memory.
        params: of the policy.
        trajectory: `[episode, time]`, from `metajax.rollout`.
        truncation: environment steps between two states that are taken as constants: gradients
            reach no further back, where they would explode or vanish.

    Raises:
        MetajaxError: the trajectory was not played in the program, or the environment's step
            cannot be differentiated.
    """
    if trajectory.initial_state is None:
        raise MetajaxError(
            "pathwise adaptation simulates episodes again; these were played by something else "
            "than the simulator."
        )

    @jax.checkpoint
    def step(state, recorded):
        time, action, played, valid = recorded
        state = jax.tree.map(
            lambda x: jnp.where(time % truncation == 0, jax.lax.stop_gradient(x), x), state
        )
        noise = (action - played.mean) * jnp.exp(-played.log_std)
        nothing = jnp.zeros_like(action), jnp.zeros(()), jnp.zeros((), bool)
        step_input = StepInput(state.observation, *nothing)
        _, output = policy.step(params, policy.initial_memory(), step_input)
        distribution = output.distribution
        action = distribution.mean + jnp.exp(distribution.log_std) * noise
        new_state = env.step(state, action)
        # A frozen state after the end, so that nothing there has a derivative.
        state = jax.tree.map(lambda new, old: jnp.where(valid, new, old), new_state, state)
        return state, jnp.where(valid, new_state.reward, 0.0)

    def of_episode(trajectory: Trajectory):
        times = jnp.arange(trajectory.reward.shape[0])
        played = trajectory.output.distribution
        recorded = times, trajectory.action, played, trajectory.valid
        return jnp.sum(jax.lax.scan(step, trajectory.initial_state, recorded)[1])

    return jax.vmap(of_episode)(trajectory)


def forward_over_reverse(
    loss: Callable[[Params, Any], Float[Array, ""]],
) -> Callable[[Params, Any], Float[Array, ""]]:
    """Return `loss(params, data)`, whose second derivatives are taken forward over reverse.

    What reverse mode asks of a gradient g(θ) is vᵀ∂g/∂θ. That is a derivative of g in the direction
    v, since the Hessian is symmetric, at a fraction of the memory (Kemaev et al. 2025). And it
    works where reverse over reverse mode does not: differentiating a loop twice that way, JAX
    loses the custom derivatives in it, on which physics depends.

    Args:
        loss: differentiated by its first argument alone.
    """

    @jax.custom_vjp
    def value_and_gradient(params, data):
        return jax.value_and_grad(loss)(params, data)

    def forward(params, data):
        return value_and_gradient(params, data), (params, data)

    def backward(residual, cotangents):
        params, data = residual
        value, direction = cotangents
        (_, gradient), (_, curvature) = jax.jvp(
            lambda params: jax.value_and_grad(loss)(params, data), (params,), (direction,)
        )
        return jax.tree.map(lambda g, h: value * g + h, gradient, curvature), None

    value_and_gradient.defvjp(forward, backward)

    @jax.custom_vjp
    def once(params, data):
        return loss(params, data)

    def backward_once(gradient, cotangent):
        return jax.tree.map(lambda g: cotangent * g, gradient), None

    once.defvjp(value_and_gradient, backward_once)
    return once
