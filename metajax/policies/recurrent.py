"""Recurrent policies: a memory of fixed size."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from metajax._checks import checked
from metajax.errors import check_at_least
from metajax.policies.layers import affine, init_affine, orthogonal
from metajax.policies.memory import Actions, Critic, Network, with_memory
from metajax.types import ActionSpace, Policy


@checked
def gru(
    observation_size: int,
    action_space: ActionSpace,
    *,
    width: int = 64,
    initial_span: float = 2.0,
    bfloat16: bool = False,
    actions: Actions = "unbounded",
    critic: Critic = "shared",
    hidden: Sequence[int] = (),
    initial_std: float = 1.0,
    minimum_std: float = 1e-6,
) -> Policy:
    """Return a policy with gated recurrent units (Cho et al. 2014), the memory of RL².

    The reset gate is applied after the recurrent product.

    Example:
        >>> import jax
        >>> import metajax
        >>> policy = metajax.gru(3, metajax.Discrete(4), width=16)
        >>> jax.tree.map(lambda x: x.shape, policy.initial_memory())
        [(16,)]

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's.
        width: units of the memory.
        initial_span: steps over which the units remember at the start: by the biases of their
            update gates, time constants are uniform between 2, where gates are half open, and this
            (Tallec & Ollivier 2018). Where a trial is long, as long as the trial.
        bfloat16: multiply matrices in bfloat16; memory, gates and sums have full precision.
        actions: distribution of continuous actions: normal ("unbounded"), tanh of one within their
            bounds ("squashed"), or one action with noise to explore ("deterministic").
        critic: whether the value is read from the network that chooses the actions ("shared") or
            from another of the same kind ("separate"), or there is none.
        hidden: widths of layers between the network, whose inputs they see, too, and the outputs;
            tanh after each.
        initial_std: standard deviation at the start, in the policy's action units; of unbounded
            actions.
        minimum_std: smallest standard deviation, in the same units; of unbounded actions.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """

    network_of = gru_network(width, initial_span=initial_span, bfloat16=bfloat16)
    return with_memory(
        network_of,
        observation_size,
        action_space,
        actions=actions,
        critic=critic,
        hidden=hidden,
        initial_std=initial_std,
        minimum_std=minimum_std,
    )


@checked
def gru_network(
    width: int, *, initial_span: float = 2.0, bfloat16: bool = False
) -> Callable[[int], Network]:
    """Return what makes the network of `gru` for a number of inputs.

    Raises:
        MetajaxError: the width is below 1, or the span below 2.
    """
    check_at_least(1, width=width)
    check_at_least(2, initial_span=initial_span)

    def cell(params, h, x):
        recurrent = affine(params["recurrent"], h, bfloat16=bfloat16)
        (reset_x, update_x, new_x), (reset_h, update_h, new_h) = (
            jnp.split(part, 3, axis=-1) for part in (x, recurrent)
        )
        reset, update = jax.nn.sigmoid(reset_x + reset_h), jax.nn.sigmoid(update_x + update_h)
        new = jnp.tanh(new_x + reset * new_h)
        h = (1 - update) * new + update * h
        return h, h

    def network_of(inputs: int) -> Network:
        network = _recurrent(cell, lambda: jnp.zeros(width), 3, width, bfloat16)(inputs)

        def init(key):
            params = network.init(key)
            # With nothing but its bias b, the gate remembers 1 + exp(b) steps.
            span_key = jax.random.fold_in(key, 2)
            span = jax.random.uniform(span_key, (width,), minval=1.0, maxval=initial_span - 1)
            bias = params["input"]["bias"].at[width : 2 * width].set(jnp.log(span))
            params["input"] |= {"bias": bias}
            return params

        return network._replace(init=init)

    return network_of


@checked
def lstm(
    observation_size: int,
    action_space: ActionSpace,
    *,
    width: int = 64,
    bfloat16: bool = False,
    actions: Actions = "unbounded",
    critic: Critic = "shared",
    hidden: Sequence[int] = (),
    initial_std: float = 1.0,
    minimum_std: float = 1e-6,
) -> Policy:
    """Return a policy with long short-term memory (Hochreiter & Schmidhuber 1997).

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015).

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's.
        width: units of the memory: a cell and an output of this size.
        bfloat16: multiply matrices in bfloat16; memory, gates and sums have full precision.
        actions: distribution of continuous actions: normal ("unbounded"), tanh of one within their
            bounds ("squashed"), or one action with noise to explore ("deterministic").
        critic: whether the value is read from the network that chooses the actions ("shared") or
            from another of the same kind ("separate"), or there is none.
        hidden: widths of layers between the network, whose inputs they see, too, and the outputs;
            tanh after each.
        initial_std: standard deviation at the start, in the policy's action units; of unbounded
            actions.
        minimum_std: smallest standard deviation, in the same units; of unbounded actions.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """

    def cell(params, memory, x):
        h, c = memory
        gates = x + affine(params["recurrent"], h, bfloat16=bfloat16)
        enter, forget, new, leave = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(forget + 1) * c + jax.nn.sigmoid(enter) * jnp.tanh(new)
        h = jax.nn.sigmoid(leave) * jnp.tanh(c)
        return (h, c), h

    check_at_least(1, width=width)
    nothing = lambda: (jnp.zeros(width), jnp.zeros(width))
    network_of = _recurrent(cell, nothing, 4, width, bfloat16)
    return with_memory(
        network_of,
        observation_size,
        action_space,
        actions=actions,
        critic=critic,
        hidden=hidden,
        initial_std=initial_std,
        minimum_std=minimum_std,
    )


def _recurrent(cell, initial_memory, gates: int, width: int, bfloat16: bool):
    """Return `network_of` for `cell(params, memory, x[gates * width]) -> (memory, y[width])`."""

    def network_of(inputs: int) -> Network:
        def init(key):
            input_key, recurrent_key = jax.random.split(key)
            blocks = [
                init_affine(key, width, width, orthogonal)
                for key in jax.random.split(recurrent_key, gates)
            ]
            return {
                "input": init_affine(input_key, inputs, gates * width),
                "recurrent": jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *blocks),
            }

        def step(params, memory, x):
            return cell(params, memory, affine(params["input"], x, bfloat16=bfloat16))

        def unroll(params, memory, x):
            # What does not depend on the memory is one product for all steps.
            projected = affine(params["input"], x, bfloat16=bfloat16)
            return jax.lax.scan(lambda memory, x: cell(params, memory, x), memory, projected)

        return Network(init, initial_memory, step, unroll, width)

    return network_of
