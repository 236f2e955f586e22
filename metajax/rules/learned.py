"""Learned optimizers: a small network turns gradients into updates, the same for every weight.

Both are descent with a fixed rate plus what the network makes of the gradient; with a rate of 0
they are the papers' own.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metajax._checks import MOST_LAYERS
from metajax.errors import check_at_least, check_at_most, check_positive
from metajax.parts import part
from metajax.rules.coordinatewise import log_and_sign, lstm_step, map_weights, zeros
from metajax.types import Scalar, UpdateRule, pytree_dataclass

LSTM_SCALE = 0.1  # of the LSTM's output
DECAYS = (0.5, 0.9, 0.99)  # of the averages of the gradient
SQUARE_DECAY = 0.999  # of the average of its square
TIMES = (1, 3, 10, 30, 100, 300, 1000, 3000)  # steps


@pytree_dataclass
class LSTMOptimizerState:
    """Trees like the parameters': (hidden, cell) `[weight, hidden]` of each layer."""

    layers: Any


@part
def learned_lstm(learning_rate: Scalar = 0.0, *, hidden: int = 20, layers: int = 2) -> UpdateRule:
    """Return the coordinatewise LSTM optimizer of Andrychowicz et al. (2016).

    Each weight's gradient, as logarithm and sign, goes through an LSTM of its own memory and
    shared weights; the update is a tenth of its linear output.

    Args:
        learning_rate: learning rate of the descent that is added to it, 0 in the paper.
        hidden: units per layer.
        layers: LSTMs on top of one another.

    Raises:
        MetajaxError: a size is less than 1, or the rate is below 0.
    """
    check_at_least(1, hidden=hidden, layers=layers)
    check_at_most(MOST_LAYERS, layers=layers)
    check_at_least(0, learning_rate=learning_rate)

    def init(key, params):
        del params
        *layer_keys, output_key = jax.random.split(key, layers + 1)
        sizes = [2] + [hidden] * (layers - 1)
        return {
            "layers": [
                {"kernel": _dense(k, size + hidden, 4 * hidden), "bias": jnp.zeros(4 * hidden)}
                for k, size in zip(layer_keys, sizes, strict=True)
            ],
            "output": _dense(output_key, hidden, 1),
        }

    def optimizer(weights):
        def start(params) -> Any:
            return LSTMOptimizerState([(zeros(params, hidden),) * 2 for _ in range(layers)])

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            del params

            def of_weights(gradient, _, *memory):
                x, new_memory = log_and_sign(gradient), []
                for layer in range(layers):
                    hidden, cell = memory[2 * layer : 2 * layer + 2]
                    x, cell = lstm_step(weights["layers"][layer], hidden, cell, x)
                    new_memory += [x, cell]
                step = LSTM_SCALE * (x @ weights["output"])[:, 0]
                return step - learning_rate * gradient, *new_memory

            flat = [tree for pair in state.layers for tree in pair]
            updates, *memory = map_weights(of_weights, updates, updates, *flat)
            pairs = list(zip(memory[::2], memory[1::2], strict=True))
            return updates, LSTMOptimizerState(pairs)

        return optax.GradientTransformation(start, update)

    return UpdateRule(init, optimizer)


@pytree_dataclass
class MLPOptimizerState:
    """Averages of the gradients, `[weight, average]` for each array, and the number of steps."""

    means: Any
    square: Any
    count: Any


@part
def learned_mlp(
    learning_rate: Scalar = 0.0, *, hidden: int = 32, scale: float = 1e-2
) -> UpdateRule:
    """Return a perceptron optimizer on momentum and RMS features (after Metz et al. 2020, 2022).

    It sees of each weight: its value, its gradient, averages of it over several spans, the same
    divided by the root mean square of past gradients, and that; each brought to mean square 1 over
    the array; and how long training has lasted. Of the two outputs, one is the direction d and the
    other the logarithm of the length l: the step is -s d exp(s l), s the scale.

    Args:
        learning_rate: learning rate of the descent that is added to it, 0 in the papers.
        hidden: units of each of the two hidden layers.
        scale: scale s of the outputs. Agents take tens of steps; for trainings of thousands the
            papers have 10⁻³.

    Raises:
        MetajaxError: the size is less than 1, the rate is below 0, or the scale is not above 0.
    """
    check_at_least(1, hidden=hidden)
    check_positive(scale=scale)
    check_at_least(0, learning_rate=learning_rate)
    features = 4 + 2 * len(DECAYS) + len(TIMES)

    def init(key, params):
        del params
        keys = jax.random.split(key, 3)
        sizes = [features, hidden, hidden, 2]
        return [
            {"kernel": _dense(k, *shape), "bias": jnp.zeros(shape[1])}
            for k, shape in zip(keys, itertools.pairwise(sizes), strict=True)
        ]

    def optimizer(weights):
        def start(params) -> Any:
            return MLPOptimizerState(
                zeros(params, len(DECAYS)), zeros(params, 1), jnp.zeros((), jnp.int32)
            )

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            count = (state.count + 1).astype(float)
            elapsed = jnp.tanh(count / jnp.asarray(TIMES, float) - 1)

            def of_weights(gradient, theta, means, square):
                g, decays = gradient[:, None], jnp.asarray(DECAYS, gradient.dtype)[None]
                means = decays * means + (1 - decays) * g
                square = SQUARE_DECAY * square + (1 - SQUARE_DECAY) * g**2
                inverse = jax.lax.rsqrt(square / (1 - SQUARE_DECAY**count) + 1e-8)
                x = [theta[:, None], g, means, g * inverse, means * inverse, inverse]
                x = _unit_mean_square(jnp.concatenate(x, axis=-1))
                x = jnp.concatenate(
                    [x, jnp.broadcast_to(elapsed, (theta.size, len(TIMES)))], axis=-1
                )
                for index, layer in enumerate(weights):
                    x = x @ layer["kernel"] + layer["bias"][None]
                    x = jax.nn.relu(x) if index < 2 else x
                step = scale * x[:, 0] * jnp.exp(scale * x[:, 1])
                return -step - learning_rate * gradient, means, square

            updates, means, square = map_weights(
                of_weights, updates, params, state.means, state.square
            )
            return updates, MLPOptimizerState(means, square, state.count + 1)

        return optax.GradientTransformation(start, update)

    return UpdateRule(init, optimizer)


def _unit_mean_square(x: Float[Array, "weight feature"]) -> Float[Array, "weight feature"]:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=0, keepdims=True) + 1e-5)


def _dense(key, inputs: int, outputs: int) -> Float[Array, "inputs outputs"]:
    limit = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, (inputs, outputs), minval=-limit, maxval=limit)
