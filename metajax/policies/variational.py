"""The policy of VariBAD: a belief about the task, and a perceptron that acts on it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from metajax._checks import checked
from metajax.errors import check_at_least
from metajax.policies.distributions import DiagonalNormal
from metajax.policies.layers import affine, check_hidden, init_affine, init_perceptron, perceptron
from metajax.policies.memory import Network, with_memory
from metajax.policies.recurrent import gru_network
from metajax.types import ActionSpace, Memory, Policy


@checked
def variational(
    observation_size: int,
    action_space: ActionSpace,
    *,
    latent: int = 5,
    width: int = 64,
    hidden: Sequence[int] = (64, 64),
    bfloat16: bool = False,
    initial_std: float = 1.0,
    minimum_std: float = 1e-6,
) -> Policy:
    """Return a policy on beliefs (Zintgraf et al. 2020): see `metajax.algorithms.varibad`.

    Gated recurrent units encode the trial as a normal distribution of a latent variable, the
    belief; a perceptron acts on the observation and on the belief's mean and log standard
    deviation. What the action or the value would change about the belief does not reach it: it is
    trained by other means.

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's.
        latent: numbers in the latent variable.
        width: units of the recurrent memory.
        hidden: widths of the perceptron's layers, tanh after each.
        bfloat16: multiply the recurrent matrices in bfloat16; memory, gates and sums have full
            precision.
        initial_std: standard deviation at the start, in the policy's action units.
        minimum_std: smallest standard deviation, in the same units.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """
    check_at_least(1, latent=latent)
    check_hidden(hidden)

    def network_of(inputs: int) -> Network:
        encoder = gru_network(width, bfloat16=bfloat16)(inputs)
        sizes = [observation_size + 2 * latent, *hidden]

        def init(key):
            encoder_key, belief_key, body_key = jax.random.split(key, 3)
            return {
                "encoder": encoder.init(encoder_key),
                "belief": init_affine(belief_key, width, 2 * latent),
                "body": init_perceptron(body_key, sizes),
            }

        def initial_memory() -> Memory:
            return {"encoder": encoder.initial_memory(), "belief": standard_normal(latent)}

        def through(advance):
            def run(params, memory, x):
                encoded, y = advance(params["encoder"], memory["encoder"], x)
                mean, log_std = jnp.split(affine(params["belief"], y), 2, axis=-1)
                known = jax.lax.stop_gradient([mean, log_std])
                inputs = jnp.concatenate([x[..., :observation_size], *known], axis=-1)
                now = DiagonalNormal(mean, log_std)
                if x.ndim > 1:
                    now = jax.tree.map(lambda x: x[-1], now)
                return {"encoder": encoded, "belief": now}, perceptron(params["body"], inputs)

            return run

        return Network(
            init, initial_memory, through(encoder.step), through(encoder.unroll), sizes[-1]
        )

    return with_memory(
        network_of,
        observation_size,
        action_space,
        critic="shared",
        initial_std=initial_std,
        minimum_std=minimum_std,
    )


def standard_normal(size: int) -> DiagonalNormal:
    """Return the belief before the first step."""
    return DiagonalNormal(jnp.zeros(size), jnp.zeros(size))


def belief(memory: Memory) -> DiagonalNormal:
    """Return the belief in a memory of `variational`."""
    return memory[0]["belief"]
