"""Critics: what states are worth, so that an action is judged by what it changed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from metajax._promotion import on_own_terms
from metajax.errors import check_at_least, check_positive
from metajax.losses import baselines, returns
from metajax.parts import part
from metajax.policies.layers import check_hidden
from metajax.policies.mlp import value_network as network_of_values
from metajax.types import Env, Params, Part, Policy, Scalar, Trajectory

Values = tuple[Float[Array, "episode time"], Float[Array, "episode"]]


class Critic(NamedTuple):
    """State values of one task, and how they are learned from all tasks.

    - `init(key) -> (params, state)`: parameters and the state of their optimizer; None for a critic
      that is fitted to a task's episodes whenever it is asked, and keeps nothing;
    - `values(params, trajectory, discount) -> (value[episode, time], final_value[episode])`: of the
      observations before each action, and of those after the last; a final value of 0 does not
      bootstrap truncated episodes;
    - `fit(params, state, trajectories, targets) -> (params, state, loss)`: on the episodes of all
      tasks and rounds; None like `init`.
    """

    values: Callable[[Params, Trajectory, Scalar], Values]
    init: Callable[[Key[Array, ""]], tuple[Params, Any]] | None = None
    fit: Callable[..., tuple[Params, Any, Float[Array, ""]]] | None = None


@part
def linear() -> Part[Critic]:
    """Return a linear fit to features of observation and time, per task and adaptation step.

    The features know the time, so the value is 0 at the horizon (Duan et al. 2016).
    """

    def values(params, trajectory: Trajectory, discount):
        del params
        features = jax.vmap(baselines.linear_features)(trajectory.step_input.observation)
        target = jax.vmap(lambda r, v: returns.discounted_returns(r, v, discount))(
            trajectory.reward, trajectory.valid
        )
        weights = baselines.fit_linear(
            features.reshape(-1, features.shape[-1]), target.ravel(), trajectory.valid.ravel()
        )
        return features @ weights, jnp.zeros(features.shape[0])

    return Part(lambda env, policy: Critic(values))


@part
def value_network(
    *, hidden: Sequence[int] = (64, 64), learning_rate: Scalar = 1e-3, epochs: int = 10
) -> Part[Critic]:
    """Return one perceptron for all tasks, whose values also bootstrap truncated episodes.

    Args:
        hidden: widths of the hidden layers.
        learning_rate: learning rate of Adam on the squared error.
        epochs: full-batch gradient steps per meta-iteration.

    Raises:
        MetajaxError: an option is out of range.
    """
    check_hidden(hidden)
    check_positive(learning_rate=learning_rate)
    check_at_least(1, epochs=epochs)
    optimizer = on_own_terms(optax.adam(learning_rate))

    def build(env: Env, policy: Policy) -> Critic:
        del policy
        network = network_of_values(env.observation_size, hidden=hidden)

        def values(params, trajectory: Trajectory, discount):
            del discount
            final = network.apply(params, trajectory.final_input.observation)
            return network.apply(params, trajectory.step_input.observation), final

        def init(key):
            params = network.init(key)
            return params, optimizer.init(params)

        def fit(params, state, trajectories: Trajectory, targets):
            def loss(params):
                value = network.apply(params, trajectories.step_input.observation)
                return returns.masked_mean((value - targets) ** 2, trajectories.valid)

            def epoch(carry, _):
                params, state = carry
                value, gradient = jax.value_and_grad(loss)(params)
                updates, state = optimizer.update(gradient, state)
                return (optax.apply_updates(params, updates), state), value

            carry, losses = jax.lax.scan(epoch, (params, state), length=epochs)
            return *carry, losses[0]

        return Critic(values, init, fit)

    return Part(build)


CRITICS: dict[str, Callable[..., Part[Critic]]] = {
    "linear": linear,
    "value-network": value_network,
}
