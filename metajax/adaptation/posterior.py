"""Adaptation by a posterior of a latent variable, inferred from steps in any order."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from metajax._kinks import within
from metajax.parts import part
from metajax.policies.conditioned import latent_size
from metajax.policies.distributions import DiagonalNormal
from metajax.policies.layers import action_input, affine, check_hidden, init_perceptron
from metajax.replay import Steps
from metajax.types import Env, Params, Part, Policy, pytree_dataclass

LOWEST_VARIANCE = 1e-7


@pytree_dataclass
class Evidence:
    """What steps say of a latent variable: normal factors, multiplied.

    Attributes:
        precision: the sum of 1/s² over the factors; 0 of no step.
        weighted: the sum of μ/s².
    """

    precision: Float[Array, "*batch latent"]
    weighted: Float[Array, "*batch latent"]

    def __add__(self, other: "Evidence") -> "Evidence":
        """Return what the steps of both say."""
        return jax.tree.map(jnp.add, self, other)

    def where(self, counts: Bool[Array, "*batch"]) -> "Evidence":
        """Return what is said where it counts, and nothing elsewhere."""
        return jax.tree.map(lambda x: jnp.where(counts[..., None], x, jnp.zeros_like(x)), self)

    def posterior(self) -> DiagonalNormal:
        """Return the normal distribution that is the product; N(0, I) where there is no step."""
        known = self.precision > 0
        precision = jnp.where(known, self.precision, 1.0)
        return DiagonalNormal(self.weighted / precision, -jnp.log(precision) / 2)


class ContextEncoder(NamedTuple):
    """How steps say something of a task.

    - `init(key) -> params`;
    - `evidence(params, steps, valid=None) -> Evidence` of steps `[*batch, step]`, of which those
      that are not `valid` say nothing;
    - `latent`: numbers in the latent variable.
    """

    init: Callable[[Key[Array, ""]], Params]
    evidence: Callable[..., Evidence]
    latent: int


@part
def product_of_gaussians(
    *, hidden: Sequence[int] = (200, 200, 200), next_observation: bool = False
) -> Part[ContextEncoder]:
    """Return the encoder of PEARL (Rakelly et al. 2019, section 4.1).

    A perceptron, rectified linear units after each hidden layer, makes of every step a mean μ and,
    by softplus, a variance s². The posterior is the product of these factors: its precision is the
    sum of 1/s², its mean that of μ/s² over this. It does not depend on their order.

    Args:
        hidden: widths of the hidden layers.
        next_observation: whether the perceptron is given the observation after a step too, where
            tasks differ in dynamics.

    Raises:
        MetajaxError: an option is out of range; later, that the policy is given no latent variable.
    """
    check_hidden(hidden)

    def build(env: Env, policy: Policy) -> ContextEncoder:
        latent = latent_size(policy)
        inputs = env.observation_size * (1 + next_observation) + env.action_space.size + 1
        sizes = [inputs, *hidden, 2 * latent]

        def evidence(
            params: Params, steps: Steps, valid: Bool[Array, "*batch step"] | None = None
        ) -> Evidence:
            x = _inputs(env, steps, next_observation)
            for layer in params[:-1]:
                x = jax.nn.relu(affine(layer, x))
            mean, raw = jnp.split(affine(params[-1], x), 2, axis=-1)
            precision = 1 / within(jax.nn.softplus(raw), LOWEST_VARIANCE, jnp.inf)
            if valid is not None:
                precision = jnp.where(valid[..., None], precision, 0.0)
                mean = jnp.where(valid[..., None], mean, 0.0)
            return Evidence(jnp.sum(precision, axis=-2), jnp.sum(mean * precision, axis=-2))

        return ContextEncoder(lambda key: init_perceptron(key, sizes), evidence, latent)

    return Part(build)


def _inputs(env: Env, steps: Steps, next_observation: bool) -> Float[Array, "*batch input"]:
    action = action_input(env.action_space, steps.action)
    parts = [steps.observation, action, steps.reward[..., None]]
    return jnp.concatenate([*parts, *[steps.next_observation] * next_observation], axis=-1)


def nothing(latent: int) -> Evidence:
    """Return what no step says."""
    return Evidence(jnp.zeros(latent), jnp.zeros(latent))


CONTEXT_ENCODERS: dict[str, Callable[..., Part[ContextEncoder]]] = {
    "product-of-gaussians": product_of_gaussians
}
