"""Adaptation by a belief: what a latent variable is learned from.

From a sample of the belief at any step, decoders predict rewards and transitions of the whole
trial; belief and decoders are those of a variational autoencoder (Zintgraf et al. 2020).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax.errors import MetajaxError, check_at_least, is_off
from metajax.parts import part
from metajax.policies.distributions import DiagonalNormal
from metajax.policies.layers import (
    action_input,
    affine,
    check_hidden,
    init_affine,
    init_perceptron,
    perceptron,
)
from metajax.policies.variational import belief, standard_normal
from metajax.replay import Transitions
from metajax.types import Env, Metrics, Params, Part, Policy, Scalar


class BeliefModel(NamedTuple):
    """What makes a belief about the task useful: predictions of a trial from it.

    - `init(keys[2]) -> decoders`;
    - `bound((policy_params, decoders), steps, key) -> (bound, metrics)`: an estimate of what is
      raised, of one trial `steps[step]` that has no gaps;
    - `metrics`: the names of those;
    - `predictions`: how many numbers a trial's estimate holds.
    """

    init: Callable[[Key[Array, "2"]], Params]
    bound: Callable[[Any, Transitions, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]
    metrics: tuple[str, ...]
    predictions: int


@part
def evidence_lower_bound(
    *,
    beliefs: int = 50,
    predictions: int = 50,
    kl_weight: Scalar = 0.1,
    state_weight: Scalar = 0.0,
    decoder_hidden: Sequence[int] = (64, 32),
) -> Part[BeliefModel]:
    """Return the evidence lower bound of VariBAD.

    Args:
        beliefs: steps of a trial whose bound counts in an update, drawn uniformly.
        predictions: steps of a trial that each of them is to predict, drawn uniformly.
        kl_weight: weight of the divergence from the belief a step before.
        state_weight: weight of the log-likelihood of observations, that of rewards being 1; 0 where
            tasks differ in rewards alone.
        decoder_hidden: widths of the decoders' layers, tanh after each.

    Raises:
        MetajaxError: an option is out of range; later, that the policy has no belief.
    """
    check_at_least(1, beliefs=beliefs, predictions=predictions)
    check_at_least(0, kl_weight=kl_weight, state_weight=state_weight)
    check_hidden(decoder_hidden)
    weighs_state = not is_off(state_weight)

    def build(env: Env, policy: Policy) -> BeliefModel:
        latent = _latent_size(policy)

        def init_decoder(key, inputs: int, outputs: int):
            body_key, head_key = jax.random.split(key)
            sizes = [latent + inputs, *decoder_hidden]
            return {
                "body": init_perceptron(body_key, sizes),
                "head": init_affine(head_key, sizes[-1], outputs),
            }

        def init(keys):
            reward_key, state_key = keys
            action = env.action_space.size
            decoders = {"reward": init_decoder(reward_key, 2 * env.observation_size + action, 1)}
            if weighs_state:
                inputs = env.observation_size + action
                decoders["state"] = init_decoder(state_key, inputs, env.observation_size)
            return decoders

        def log_likelihood(decoders, latent, step: Transitions):
            """Return that of what followed a step, of variance 1, weighted and up to a constant."""
            here, there = step.step_input.observation, step.next_input.observation
            action = action_input(env.action_space, step.action)
            reward = _decode(decoders["reward"], latent, here, action, there)[0]
            likelihood = -((reward - step.reward) ** 2) / 2
            if weighs_state:
                state = _decode(decoders["state"], latent, here, action)
                likelihood -= state_weight * jnp.sum((state - there) ** 2) / 2
            return likelihood

        def bound(learned, steps: Transitions, key):
            """Return what estimates the mean evidence lower bound of the beliefs of a trial.

            Equation 7 of the paper, with the belief before as the prior (section 3.1):
            reconstruction of all steps, less the divergence.
            """
            params, decoders = learned
            belief_key, step_key, latent_key = jax.random.split(key, 3)
            played = jnp.sum(steps.valid)
            believed = _beliefs(policy, params, steps, latent)
            when = jax.random.randint(belief_key, (beliefs,), 0, played)
            what = jax.random.randint(step_key, (predictions,), 0, played)
            before, now = (jax.tree.map(lambda x, t=t: x[t], believed) for t in (when, when + 1))
            latents, predicted = now.sample(latent_key), jax.tree.map(lambda x: x[what], steps)
            of_all = jax.vmap(
                jax.vmap(log_likelihood, in_axes=(None, None, 0)), in_axes=(None, 0, None)
            )
            likelihood = jnp.mean(of_all(decoders, latents, predicted))
            reconstruction = played.astype(likelihood.dtype) * likelihood
            divergence = jnp.mean(now.kl(before))
            found = {"log_likelihood": likelihood, "belief_kl": divergence}
            return reconstruction - kl_weight * divergence, found

        return BeliefModel(init, bound, ("log_likelihood", "belief_kl"), beliefs * predictions)

    return Part(build)


def _decode(decoder, *inputs):
    x = jnp.concatenate(inputs, axis=-1)
    return affine(decoder["head"], perceptron(decoder["body"], x))


def _beliefs(policy: Policy, params: Params, steps: Transitions, latent: int) -> DiagonalNormal:
    """Return the belief at every step of a trial, and the one before the first."""

    def encode(memory, step_input):
        memory, _ = policy.step(params, memory, step_input)
        return memory, belief(memory)

    _, encoded = jax.lax.scan(encode, policy.initial_memory(), steps.step_input)
    return jax.tree.map(
        lambda first, x: jnp.concatenate([first[None], x]), standard_normal(latent), encoded
    )


def _latent_size(policy: Policy) -> int:
    memory = jax.eval_shape(policy.initial_memory)
    try:
        return belief(memory).mean.size
    except (TypeError, KeyError, IndexError):
        raise MetajaxError(
            "VariBAD needs a policy with a belief: metajax.policies.variational."
        ) from None


BELIEF_MODELS: dict[str, Callable[..., Part[BeliefModel]]] = {
    "evidence-lower-bound": evidence_lower_bound
}
