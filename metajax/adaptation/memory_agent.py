"""The agent of a policy with a memory: it adapts by what it remembers, and by nothing else."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metajax.losses import returns
from metajax.policies.distributions import chosen_action
from metajax.types import Agent, MetaParams, Policy, StepInput, Trajectory


def memory_agent(policy: Policy) -> Agent:
    """Return the agent that acts by a policy, and adapts in its memory alone."""

    def act(adapted: MetaParams, memory, step_input: StepInput, key):
        memory, output = policy.step(adapted.policy, memory, policy_input(adapted, step_input))
        return memory, chosen_action(output.distribution, key), output

    def adapt(meta_params: MetaParams, adapted: MetaParams, trajectory: Trajectory, key):
        del meta_params, trajectory, key
        return adapted

    return Agent(lambda meta_params, key: meta_params, policy.initial_memory, act, adapt)


def tracked(
    mean_square: Float[Array, ""],
    x: Float[Array, "*shape"],
    valid: Bool[Array, "*shape"],
    iterations: Int[Array, ""],
) -> Float[Array, ""]:
    """Return a running mean square after the last of so many iterations, whose `x` it has not."""
    difference = returns.masked_mean(x**2, valid) - mean_square
    return mean_square + difference / iterations.astype(difference.dtype)


def root(mean_square: Float[Array, ""]) -> Float[Array, ""]:
    """Return the root of a running mean square; 1 before there is any."""
    return jnp.where(mean_square > 0, jnp.sqrt(mean_square), 1.0)


def policy_input(meta_params: MetaParams, x: StepInput) -> StepInput:
    """Return the input of the policy: rewards are in the unit that its agent keeps."""
    scale = root(meta_params.mean_square_reward)
    return dataclasses.replace(x, previous_reward=x.previous_reward / scale)
