"""Feed-forward policies and value networks: no memory, the observation alone decides."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax.errors import check_at_least, check_positive
from metajax.policies.distributions import action_distribution, initial_spread
from metajax.policies.layers import check_hidden
from metajax.types import ActionSpace, Params, Policy, PolicyOutput

ACTIVATIONS: dict[str, Callable] = {"tanh": nn.tanh, "relu": nn.relu}
Activation = Literal["tanh", "relu"]


class _MLP(nn.Module):
    hidden: Sequence[int]
    outputs: int
    activation: Activation
    output_scale: float

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(nn.Dense, param_dtype=jnp.result_type(float))
        for width in self.hidden:
            x = ACTIVATIONS[self.activation](
                dense(width, kernel_init=nn.initializers.xavier_uniform())(x)
            )
        initializer = nn.initializers.variance_scaling(self.output_scale**2, "fan_avg", "uniform")
        return dense(self.outputs, kernel_init=initializer)(x)


@checked
def mlp(
    observation_size: int,
    action_space: ActionSpace,
    *,
    hidden: Sequence[int] = (64, 64),
    activation: Activation = "tanh",
    initial_std: float = 1.0,
    minimum_std: float = 1e-6,
    context: int = 0,
) -> Policy:
    """Return a memoryless policy: a multi-layer perceptron on the observation.

    Continuous actions: a normal distribution whose mean is the network's output and whose
    log standard deviation is a free parameter per action dimension. Discrete actions: logits.

    Its parameters are those of the hidden layers ("body"), of the last layer ("head") and, where
    there are any, "log_std" and "context".

    Example:
        >>> import jax
        >>> import metajax
        >>> policy = metajax.mlp(3, metajax.Continuous(2), hidden=(8,))
        >>> params = policy.init(jax.random.key(0))
        >>> jax.tree.map(lambda x: x.shape, params["head"])
        {'bias': (2,), 'kernel': (8, 2)}

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's.
        hidden: widths of the hidden layers.
        activation: activation function after each hidden layer.
        initial_std: standard deviation at the start, in the policy's action units.
        minimum_std: smallest standard deviation, in the same units.
        context: number of inputs that are parameters themselves, 0 at the start, in addition to the
            observation.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """
    check_at_least(1, observation_size=observation_size)
    check_hidden(hidden)
    check_positive(initial_std=initial_std, minimum_std=minimum_std)
    check_at_least(0, context=context)
    network = _MLP(tuple(hidden), action_space.size, activation, output_scale=0.1)
    last_layer = f"Dense_{len(hidden)}"

    def init(key: Key[Array, ""]) -> Params:
        layers = dict(network.init(key, jnp.zeros(observation_size + context))["params"])
        params = {"head": layers.pop(last_layer), "body": layers}
        params |= initial_spread(action_space, initial_std)
        if context:
            params["context"] = jnp.zeros(context)
        return params

    def output(params, observation) -> PolicyOutput:
        if context:
            inputs = jnp.broadcast_to(params["context"], (*observation.shape[:-1], context))
            observation = jnp.concatenate([observation, inputs], axis=-1)
        layers = params["body"] | {last_layer: params["head"]}
        x = jnp.asarray(network.apply({"params": layers}, observation))
        return PolicyOutput(action_distribution(x, params, minimum_std))

    def step(params, memory, step_input):
        return memory, output(params, step_input.observation)

    return Policy(init, lambda: (), step, unroll=step)


class ValueNetwork(NamedTuple):
    """A state-value function: `init(key) -> params`, `apply(params, observation) -> value`."""

    init: Callable[[Key[Array, ""]], Params]
    apply: Callable[[Params, Float[Array, "*batch observation"]], Float[Array, "*batch"]]


@checked
def value_network(
    observation_size: int, *, hidden: Sequence[int] = (64, 64), activation: Activation = "tanh"
) -> ValueNetwork:
    """Return a multi-layer perceptron from an observation to a discounted return.

    Args:
        observation_size: numbers in an observation.
        hidden: widths of the hidden layers.
        activation: activation function after each hidden layer.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """
    check_at_least(1, observation_size=observation_size)
    check_hidden(hidden)
    network = _MLP(tuple(hidden), 1, activation, output_scale=1.0)
    return ValueNetwork(
        init=lambda key: network.init(key, jnp.zeros(observation_size))["params"],
        apply=lambda params, observation: jnp.squeeze(
            jnp.asarray(network.apply({"params": params}, observation)), -1
        ),
    )
