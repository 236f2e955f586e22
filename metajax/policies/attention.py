"""Policies that look back at their trial: SNAIL and a causal transformer.

Their memories hold what was computed of every step, so acting never recomputes the past. Where
step t of a trial goes, step t + `trial_length` would go, too: a longer trial forgets its oldest
steps.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metajax._checks import MOST_LAYERS, checked
from metajax.errors import MetajaxError, check_at_least, check_at_most
from metajax.policies.layers import (
    affine,
    check_hidden,
    init_affine,
    init_perceptron,
    perceptron,
)
from metajax.policies.memory import Actions, Critic, Network, one_step, with_memory
from metajax.types import ActionSpace, Memory, Policy


@checked
def snail(
    observation_size: int,
    action_space: ActionSpace,
    *,
    trial_length: int,
    filters: int = 32,
    key_size: int = 32,
    value_size: int = 32,
    bfloat16: bool = False,
    actions: Actions = "unbounded",
    critic: Critic = "shared",
    hidden: Sequence[int] = (),
    initial_std: float = 1.0,
    minimum_std: float = 1e-6,
) -> Policy:
    """Return a simple neural attentive meta-learner (Mishra et al. 2018, section 3).

    An affine embedding, two blocks of temporal convolutions, one of causal attention; each block
    appends its outputs to its inputs. Dilations are 1, 2, 4 ... as far as a block needs to see the
    whole trial; with the 2, 4, 8 ... of the paper's pseudo-code every second step is out of sight.

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's.
        trial_length: environment steps of a trial, all its episodes together.
        filters: filters of the embedding and of each convolution.
        key_size: numbers in the attention's keys and queries.
        value_size: numbers that attention reads.
        bfloat16: multiply matrices in bfloat16; gates, softmax and sums have full precision.
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
    check_at_least(1, trial_length=trial_length, filters=filters)
    check_at_least(1, key_size=key_size, value_size=value_size)
    dilations = [2**i for i in range(max(1, (trial_length - 1).bit_length()))] * 2
    seen = filters * (1 + len(dilations))  # by the attention

    def network_of(inputs: int) -> Network:
        def init(key):
            keys = iter(jax.random.split(key, 2 + len(dilations)))
            return {
                "embedding": init_affine(next(keys), inputs, filters),
                "convolutions": [
                    init_affine(next(keys), 2 * filters * (1 + i), 2 * filters)
                    for i in range(len(dilations))
                ],
                "attention": init_affine(next(keys), seen, 2 * key_size + value_size),
            }

        def initial_memory() -> Memory:
            return {
                "time": jnp.zeros((), jnp.int32),
                # Of the embedding and all convolutions but the last, which nothing looks back at.
                "features": jnp.zeros((max(dilations), seen - filters)),
                "keys": jnp.zeros((trial_length, key_size)),
                "values": jnp.zeros((trial_length, value_size)),
            }

        def attend(params, memory, features):
            projected = affine(params["attention"], features, bfloat16=bfloat16)
            query, key, value = jnp.split(projected, [key_size, 2 * key_size], axis=-1)
            kept, keys, values, visible = _remember(memory["time"], key, value, memory)
            read = _attention(query, keys, values, visible)
            return jnp.concatenate([features, read], axis=-1), kept

        def with_gated(features, sums):
            filtered, gate = jnp.split(sums, 2, axis=-1)
            return jnp.concatenate([features, jnp.tanh(filtered) * jax.nn.sigmoid(gate)], axis=-1)

        def convolve(params, features, past):
            """Return a convolution's sums; its kernel holds what the present is multiplied by, then
            what the past is.

            Everything is multiplied before it is delayed: sums are smaller to move than features.
            """
            now, before = jnp.split(params["kernel"], 2)
            nothing = jnp.zeros_like(params["bias"])
            both = {
                "kernel": jnp.concatenate([now, before], axis=1),
                "bias": jnp.concatenate([params["bias"], nothing]),
            }
            present, late = jnp.split(affine(both, features, bfloat16=bfloat16), 2, axis=-1)
            early = affine({"kernel": before, "bias": nothing}, past, bfloat16=bfloat16)
            return present + jnp.concatenate([early, late])[: len(features)]

        def step(params, memory, x):
            ring, time = memory["features"], memory["time"]
            features = affine(params["embedding"], x, bfloat16=bfloat16)
            for dilation, convolution in zip(dilations, params["convolutions"], strict=True):
                before = ring[(time - dilation) % len(ring), : features.shape[-1]]
                both = jnp.concatenate([features, before])
                features = with_gated(features, affine(convolution, both, bfloat16=bfloat16))
            ring = ring.at[time % len(ring)].set(features[:-filters])
            y, attended = attend(params, memory, features[None])
            return {"time": time + 1, "features": ring, **attended}, y[0]

        def unroll(params, memory, x):
            ring, time = memory["features"], memory["time"]
            past = jnp.roll(ring, -time, axis=0)  # the oldest first
            features = affine(params["embedding"], x, bfloat16=bfloat16)
            for dilation, convolution in zip(dilations, params["convolutions"], strict=True):
                seen_before = past[-dilation:, : features.shape[-1]]
                features = with_gated(features, convolve(convolution, features, seen_before))
            past = jnp.concatenate([past, features[:, :-filters]])[-len(ring) :]
            y, attended = attend(params, memory, features)
            ring = jnp.roll(past, time + len(x), axis=0)
            return {"time": time + len(x), "features": ring, **attended}, y

        return Network(init, initial_memory, step, unroll, seen + value_size)

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
def transformer(
    observation_size: int,
    action_space: ActionSpace,
    *,
    trial_length: int,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    bfloat16: bool = False,
    actions: Actions = "unbounded",
    critic: Critic = "shared",
    hidden: Sequence[int] = (),
    initial_std: float = 1.0,
    minimum_std: float = 1e-6,
) -> Policy:
    """Return a causal transformer over the trial (Vaswani et al. 2017; normalized before layers).

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's.
        trial_length: environment steps of a trial, all its episodes together; each has a learned
            position.
        width: numbers in the residual stream; the layers between are four times as wide.
        heads: heads of attention, which divide the width.
        layers: each of attention and a perceptron.
        bfloat16: multiply matrices in bfloat16; softmax, normalization and sums have full
            precision.
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
        MetajaxError: the width is no multiple of the heads, or an option is out of range.
    """
    check_at_least(1, trial_length=trial_length, width=width, heads=heads, layers=layers)
    check_at_most(MOST_LAYERS, layers=layers)
    if width % heads:
        raise MetajaxError(f"width is {width} and heads is {heads}; heads must divide width.")
    dense = lambda params, x: affine(params, x, bfloat16=bfloat16)

    def normalized(params, x):
        x = jax.nn.standardize(x, axis=-1, epsilon=1e-5)
        return x * params["scale"][None] + params["offset"][None]

    def network_of(inputs: int) -> Network:
        def init_norm():
            return {"scale": jnp.ones(width), "offset": jnp.zeros(width)}

        def init_layer(key):
            keys = jax.random.split(key, 4)
            return {
                "attention_norm": init_norm(),
                "projections": init_affine(keys[0], width, 3 * width),
                "attention": init_affine(keys[1], width, width),
                "perceptron_norm": init_norm(),
                "widen": init_affine(keys[2], width, 4 * width),
                "narrow": init_affine(keys[3], 4 * width, width),
            }

        def init(key):
            embedding_key, position_key, layers_key = jax.random.split(key, 3)
            return {
                "embedding": init_affine(embedding_key, inputs, width),
                "positions": 0.02 * jax.random.normal(position_key, (trial_length, width)),
                "layers": [init_layer(key) for key in jax.random.split(layers_key, layers)],
                "norm": init_norm(),
            }

        def initial_memory() -> Memory:
            empty = jnp.zeros((trial_length, heads, width // heads))
            caches = [{"keys": empty, "values": empty} for _ in range(layers)]
            return {"time": jnp.zeros((), jnp.int32), "layers": caches}

        def layer(params, cache, time, x):
            projected = dense(params["projections"], normalized(params["attention_norm"], x))
            query, key, value = (
                part.reshape(len(x), heads, -1) for part in jnp.split(projected, 3, axis=-1)
            )
            kept, keys, values, visible = _remember(time, key, value, cache)
            read = jax.vmap(_attention, in_axes=(1, 1, 1, None), out_axes=1)(
                query, keys, values, visible
            )
            x += dense(params["attention"], read.reshape(len(x), width))
            between = jax.nn.gelu(dense(params["widen"], normalized(params["perceptron_norm"], x)))
            return x + dense(params["narrow"], between), kept

        def unroll(params, memory, x):
            time, length = memory["time"], len(x)
            where = (time + jnp.arange(length)) % trial_length
            x = dense(params["embedding"], x) + params["positions"][where]
            caches = []
            for layer_params, cache in zip(params["layers"], memory["layers"], strict=True):
                x, cache = layer(layer_params, cache, time, x)
                caches.append(cache)
            return {"time": time + length, "layers": caches}, normalized(params["norm"], x)

        return Network(init, initial_memory, one_step(unroll), unroll, width)

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
def window(
    observation_size: int,
    action_space: ActionSpace,
    *,
    steps: int = 10,
    hidden: Sequence[int] = (64, 64),
    actions: Actions = "unbounded",
    critic: Critic = "shared",
    initial_std: float = 1.0,
    minimum_std: float = 1e-6,
) -> Policy:
    """Return a perceptron on the last few steps: what memory is worth, one learns by its lack.

    Args:
        observation_size: numbers in an observation.
        action_space: the environment's.
        steps: steps in the input, the present one with them.
        hidden: widths of its layers, tanh after each.
        actions: distribution of continuous actions: normal ("unbounded"), tanh of one within their
            bounds ("squashed"), or one action with noise to explore ("deterministic").
        critic: whether the value is read from the network that chooses the actions ("shared") or
            from another of the same kind ("separate"), or there is none.
        initial_std: standard deviation at the start, in the policy's action units; of unbounded
            actions.
        minimum_std: smallest standard deviation, in the same units; of unbounded actions.

    Raises:
        MetajaxError: an option is unknown or out of range.
    """
    check_at_least(1, steps=steps)
    check_hidden(hidden)

    def network_of(inputs: int) -> Network:
        sizes = [steps * inputs, *hidden]

        def unroll(params, memory, x):
            known = jnp.concatenate([memory, x])
            where = jnp.arange(len(x))[:, None] + jnp.arange(steps)[None]
            return known[len(x) :], perceptron(params, known[where].reshape(len(x), -1))

        init = lambda key: init_perceptron(key, sizes)
        nothing = lambda: jnp.zeros((steps - 1, inputs))
        return Network(init, nothing, one_step(unroll), unroll, sizes[-1])

    return with_memory(
        network_of,
        observation_size,
        action_space,
        actions=actions,
        critic=critic,
        initial_std=initial_std,
        minimum_std=minimum_std,
    )


def _remember(
    time: Int[Array, ""],
    key: Float[Array, "new *key"],
    value: Float[Array, "new *value"],
    cache: dict[str, Any],
) -> tuple[
    dict[str, Array],
    Float[Array, "seen *key"],
    Float[Array, "seen *value"],
    Bool[Array, "new seen"],
]:
    """Return what to keep after some new steps, the keys and values of all, and who may see whom.

    Each step sees as many as can be kept, itself with them.

    Args:
        time: of the first of the new steps, from 0.
        key: of the new steps.
        value: of the new steps.
        cache: the "keys" and "values" kept, that of step t at t modulo their number.

    Raises:
        MetajaxError: there are more new steps than can be kept.
    """
    new, kept = len(key), len(cache["keys"])
    if new > kept:
        raise MetajaxError(f"{new} steps were given to a policy with a trial_length of {kept}.")
    now = time + jnp.arange(new)
    new_cache = {
        "keys": cache["keys"].at[now % kept].set(key),
        "values": cache["values"].at[now % kept].set(value),
    }
    # The old ones before the new, which may take their places before all have seen them.
    keys = jnp.concatenate([cache["keys"], key])
    values = jnp.concatenate([cache["values"], value])
    last = time - 1
    when = last - (last - jnp.arange(kept)) % kept  # of each place; below 0 while it is empty
    when = jnp.concatenate([when, now])
    visible = (when >= 0)[None] & (when[None] <= now[:, None]) & (when[None] > now[:, None] - kept)
    return new_cache, keys, values, visible


def _attention(
    query: Float[Array, "new key"],
    keys: Float[Array, "seen key"],
    values: Float[Array, "seen value"],
    visible: Bool[Array, "new seen"],
) -> Float[Array, "new value"]:
    """Return what each query reads: a softmax over the keys that it may see."""
    scores = query @ keys.T / jnp.sqrt(query.shape[-1])
    return jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1) @ values
