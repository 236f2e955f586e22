"""The LSTM meta-learner (Ravi & Larochelle 2017): weights as the cell state of an LSTM.

θ_t = f_t ∘ θ_{t-1} - i_t ∘ ∇L: the forget gate f shrinks weights, the input gate i is the learning
rate, and both see the gradient and the loss through a second, ordinary LSTM. One set of weights
serves all coordinates. The learned initial cell is the initial policy, θ.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from metajax.errors import MetajaxError, check_at_least
from metajax.parts import part
from metajax.rules.coordinatewise import log_and_sign, lstm_step, map_weights, zeros
from metajax.types import Scalar, UpdateRule, pytree_dataclass


@pytree_dataclass
class MetaLSTMState:
    """What the rule remembers of each weight: trees like the parameters', of `[weight, ...]`.

    Attributes:
        hidden: of the LSTM that reads gradient and loss, `[weight, hidden]`.
        cell: the same.
        gates: inputs to the sigmoids of (forget, input) at the last step, `[weight, 2]`.
    """

    hidden: Any
    cell: Any
    gates: Any


@part
def meta_lstm(learning_rate: Scalar = 0.1, *, hidden: int = 20) -> UpdateRule:
    """Return the LSTM meta-learner, which starts as gradient descent.

    The update needs the loss: `optimizer.update(gradient, state, params, value=loss)`. The
    derivative with respect to gradient and loss is taken where the caller lets it; the paper
    treats both as constants, which is `first_order` in `maml`.

    Args:
        learning_rate: learning rate of the descent that it starts as, in (0, 1): the initial input
            gate. (The
            paper's bias in [-5, -4] is a rate of 0.007 to 0.018.)
        hidden: units of the LSTM that reads gradient and loss.

    Raises:
        MetajaxError: the learning rate is no value of a sigmoid, or `hidden` is less than 1.
    """
    if not isinstance(learning_rate, Tracer) and not 0 < learning_rate < 1:
        raise MetajaxError(
            f"the learning rate of meta-lstm is {learning_rate}; it is the value of a gate: it "
            "must lie in (0, 1)."
        )
    check_at_least(1, hidden=hidden)

    def init(key, params):
        del params
        lstm_key, gate_key, bias_key = jax.random.split(key, 3)

        def small(key, *shape):
            return jax.random.uniform(key, shape, minval=-0.01, maxval=0.01)

        forget = jax.random.uniform(bias_key, minval=4.0, maxval=5.0)
        gate_bias = jnp.stack([forget, jax.scipy.special.logit(learning_rate)])
        lstm = {"kernel": small(lstm_key, 4 + hidden, 4 * hidden), "bias": jnp.zeros(4 * hidden)}
        return {
            "lstm": lstm,
            "gates": {"kernel": small(gate_key, hidden + 2, 2), "bias": gate_bias},
        }

    def optimizer(weights):
        kernel, bias = weights["gates"]["kernel"], weights["gates"]["bias"]

        def start(params) -> Any:
            return MetaLSTMState(zeros(params, hidden), zeros(params, hidden), zeros(params, 2))

        def update(
            updates: Any, state: Any, params: Any = None, *, value: Any = None, **_: Any
        ) -> tuple[Any, Any]:
            loss = log_and_sign(value)

            def of_weights(gradient, theta, hidden, cell, gates):
                seen = log_and_sign(gradient), jnp.broadcast_to(loss, (theta.size, 2))
                hidden, cell = lstm_step(
                    weights["lstm"], hidden, cell, jnp.concatenate(seen, axis=-1)
                )
                # Each gate sees the LSTM, the weight, and its own last value.
                seen = jnp.concatenate([hidden, theta[:, None]], axis=-1)
                gates = seen @ kernel[:-1] + gates * kernel[-1:] + bias[None]
                forget, rate = jax.nn.sigmoid(gates).T
                return (forget - 1) * theta - rate * gradient, hidden, cell, gates

            updates, *memory = map_weights(
                of_weights, updates, params, state.hidden, state.cell, state.gates
            )
            return updates, MetaLSTMState(*memory)

        return optax.GradientTransformationExtraArgs(start, update)

    return UpdateRule(init, optimizer)
