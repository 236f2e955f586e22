"""What policies with a memory have in common: inputs and outputs."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from metajax._checks import checked
from metajax.errors import check_at_least, check_positive
from metajax.policies.distributions import action_distribution, initial_spread
from metajax.policies.layers import (
    action_input,
    affine,
    check_hidden,
    init_affine,
    init_perceptron,
    perceptron,
)
from metajax.policies.squashed import box_of, noisy_action, squashed_normal
from metajax.types import (
    ActionSpace,
    Discrete,
    Encoder,
    Memory,
    Params,
    Policy,
    PolicyOutput,
    StepInput,
)

Critic = Literal["shared", "separate", "none"]
Actions = Literal["unbounded", "squashed", "deterministic"]
_NOISE = 0.1  # of deterministic actions, in halves of the distance between their bounds


class Network(NamedTuple):
    """A causal network over time; `unroll` equals a scan of `step`.

    - `init(key) -> params`;
    - `initial_memory() -> memory`;
    - `step(params, memory, x[input]) -> (memory, y[output])`;
    - `unroll(params, memory, x[time, input]) -> (memory, y[time, output])`;
    - `output_size`: numbers in an output.
    """

    init: Callable[[Key[Array, ""]], Params]
    initial_memory: Callable[[], Memory]
    step: Callable[[Params, Memory, Float[Array, "input"]], tuple[Memory, Float[Array, "output"]]]
    unroll: Callable[
        [Params, Memory, Float[Array, "time input"]], tuple[Memory, Float[Array, "time output"]]
    ]
    output_size: int


@checked
def with_memory(
    network_of: Callable[[int], Network],
    observation_size: int,
    action_space: ActionSpace,
    *,
    actions: Actions = "unbounded",
    critic: Critic = "shared",
    hidden: Sequence[int] = (),
    initial_std: float = 1.0,
    minimum_std: float = 1e-6,
) -> Policy:
    """Return the policy whose input is all of a `StepInput` and whose memory is a network's.

    Its input is the observation, the action before (one-hot, if actions are discrete), the reward
    before and whether an episode ended there (Duan et al. 2016, section 2.2). Discrete actions are
    distributed as those of `metajax.mlp`.

    Args:
        network_of: makes the network for a number of inputs.
        observation_size: numbers in an observation.
        action_space: the environment's.
        actions: distribution of continuous actions: that of `metajax.mlp` ("unbounded"), of
            `metajax.squashed` or of `metajax.deterministic`, whose noise is 0.1 here.
        critic: whether the value is read from the network that chooses the actions ("shared") or
            from another of the same kind ("separate"), or there is none.
        hidden: widths of layers between the network, whose inputs they see, too, and the outputs;
            tanh after each.
        initial_std: standard deviation at the start, in the policy's action units; of unbounded
            actions.
        minimum_std: smallest standard deviation, in the same units; of unbounded actions.

    Raises:
        MetajaxError: an option is unknown or out of range, or actions have no bounds and need some.
    """
    check_at_least(1, observation_size=observation_size)
    check_positive(initial_std=initial_std, minimum_std=minimum_std)
    check_hidden(hidden)
    inputs = observation_size + action_space.size + 2
    memory_network = network = network_of(inputs)
    if hidden:
        network = _with_hidden(network, inputs, hidden)
    separate = critic == "separate"
    outputs, spread, distribution_of = _acting(action_space, actions, initial_std, minimum_std)

    def init(key: Key[Array, ""]) -> Params:
        actor_key, head_key, critic_key, value_key = jax.random.split(key, 4)
        small = nn.initializers.variance_scaling(0.01, "fan_avg", "uniform")
        params = {
            "actor": network.init(actor_key),
            "head": init_affine(head_key, network.output_size, outputs, small),
        }
        params |= spread()
        if separate:
            params["critic"] = network.init(critic_key)
        if critic != "none":
            params["value"] = init_affine(value_key, network.output_size, 1)
        return params

    def initial_memory() -> Memory:
        return [network.initial_memory() for _ in range(1 + separate)]

    def encoded(x: StepInput) -> Float[Array, "*batch input"]:
        action = action_input(action_space, x.previous_action)
        outcome = jnp.stack([x.previous_reward, x.previous_end.astype(float)], axis=-1)
        return jnp.concatenate([x.observation, action, outcome], axis=-1)

    def output(params, acting, valuing) -> PolicyOutput:
        chosen = affine(params["head"], acting)
        value = None if critic == "none" else affine(params["value"], valuing)[..., 0]
        return PolicyOutput(distribution_of(chosen, params), value)

    def through(advance):
        def run(params, memory, step_input) -> tuple[Memory, PolicyOutput]:
            x = encoded(step_input)
            memory = list(memory)
            memory[0], acting = advance(params["actor"], memory[0], x)
            valuing = acting
            if separate:
                memory[1], valuing = advance(params["critic"], memory[1], x)
            return memory, output(params, acting, valuing)

        return run

    def encode(params, step_input):
        start = memory_network.initial_memory()
        return memory_network.unroll(params, start, encoded(step_input))[1]

    encoder = Encoder(memory_network.init, encode, memory_network.output_size)
    return Policy(init, initial_memory, through(network.step), through(network.unroll), encoder)


def _acting(action_space: ActionSpace, actions: Actions, initial_std: float, minimum_std: float):
    """Return how many outputs say an action, its free parameters, and its distribution."""
    size, none = action_space.size, lambda: {}
    if actions == "unbounded" or isinstance(action_space, Discrete):
        spread = lambda: initial_spread(action_space, initial_std)
        return size, spread, lambda x, params: action_distribution(x, params, minimum_std)
    center, half = box_of(f"a policy whose actions are {actions}", action_space)
    if actions == "squashed":
        return 2 * size, none, lambda x, params: squashed_normal(x, center, half)
    return size, none, lambda x, params: noisy_action(x, center, half, _NOISE)


def _with_hidden(network: Network, inputs: int, hidden: Sequence[int]) -> Network:
    """Return a network followed by hidden layers, which see its inputs, too."""

    def init(key):
        network_key, hidden_key = jax.random.split(key)
        return {
            "network": network.init(network_key),
            "hidden": init_perceptron(hidden_key, [network.output_size + inputs, *hidden]),
        }

    def through(advance):
        def run(params, memory, x):
            memory, y = advance(params["network"], memory, x)
            return memory, perceptron(params["hidden"], jnp.concatenate([y, x], axis=-1))

        return run

    return Network(
        init, network.initial_memory, through(network.step), through(network.unroll), hidden[-1]
    )


def one_step(unroll: Callable[..., tuple[Memory, Array]]) -> Callable[..., tuple[Memory, Array]]:
    """Return the `step` of a network whose `unroll` of a single input costs no more than that."""

    def step(params, memory, x):
        memory, y = unroll(params, memory, x[None])
        return memory, y[0]

    return step
