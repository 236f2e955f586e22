"""A policy that is given a latent variable beside the observation."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from metajax._checks import checked
from metajax.errors import MetajaxError, check_at_least
from metajax.policies.mlp import Activation, mlp
from metajax.policies.squashed import deterministic, squashed
from metajax.types import ActionSpace, Discrete, Policy, StepInput


@checked
def conditioned(
    observation_size: int,
    action_space: ActionSpace,
    *,
    latent: int = 5,
    actions: Literal["squashed", "deterministic"] = "squashed",
    hidden: Sequence[int] = (300, 300, 300),
    activation: Activation = "relu",
) -> Policy:
    """Return a policy that acts on an observation and a latent, as PEARL's does.

    The latent variable `[latent]` (Rakelly et al. 2019; the context of Fakoor et al. 2020) is its
    memory, which no step changes. Discrete actions have logits.

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's; continuous with finite bounds, or discrete.
        latent: numbers in the latent variable.
        actions: distribution of continuous actions, that of `metajax.squashed` or of
            `metajax.deterministic`.
        hidden: widths of the hidden layers.
        activation: activation function after each hidden layer.

    Raises:
        MetajaxError: an option is unknown or out of range, or actions have no bounds.
    """
    check_at_least(1, observation_size=observation_size, latent=latent)
    networks = {"squashed": squashed, "deterministic": deterministic}
    network = mlp if isinstance(action_space, Discrete) else networks[actions]
    policy = network(observation_size + latent, action_space, hidden=hidden, activation=activation)

    def step(params, memory, step_input):
        return memory, policy.step(params, (), with_latent(step_input, memory))[1]

    return Policy(policy.init, lambda: jnp.zeros(latent), step, unroll=step)


def with_latent(step_input: StepInput, latent: jax.Array) -> StepInput:
    """Return an input whose observation `[*batch, ...]` is followed by a latent `[latent]`."""
    observation = step_input.observation
    latent = jnp.broadcast_to(latent, (*observation.shape[:-1], latent.shape[-1]))
    return dataclasses.replace(
        step_input, observation=jnp.concatenate([observation, latent], axis=-1)
    )


def latent_size(policy: Policy) -> int:
    """Return how many numbers the latent variable of a policy has.

    Raises:
        MetajaxError: it is given none.
    """
    memory = jax.eval_shape(policy.initial_memory)
    if not isinstance(memory, jax.ShapeDtypeStruct) or memory.ndim != 1:
        raise MetajaxError(
            "the policy is given no latent variable; take metajax.policies.conditioned."
        )
    return memory.shape[0]


def without_memory(policy: Policy, observation_size: int) -> Policy:
    """Return the policy of observations that are followed by the latent variable."""

    def step(params, memory, step_input):
        observation, latent = jnp.split(step_input.observation, [observation_size], axis=-1)
        seen = dataclasses.replace(step_input, observation=observation)
        return memory, policy.step(params, latent, seen)[1]

    return Policy(policy.init, lambda: (), step, unroll=step)
