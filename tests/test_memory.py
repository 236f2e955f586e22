"""Policies with a memory against reference libraries and closed forms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metajax.errors import MetajaxError
from metajax.policies import gru, lstm, snail, transformer, window
from metajax.policies.layers import orthogonal
from metajax.types import Continuous, Discrete, StepInput

pytestmark = pytest.mark.usefixtures("float64")

TRIAL = 5
ACTIONS = Discrete(3)
MAKERS = {
    "gru": lambda **options: gru(2, ACTIONS, width=5, **options),
    "lstm": lambda **options: lstm(2, ACTIONS, width=5, **options),
    "snail": lambda **options: snail(
        2, ACTIONS, trial_length=TRIAL, filters=4, key_size=3, value_size=2, **options
    ),
    "transformer": lambda **options: transformer(
        2, ACTIONS, trial_length=TRIAL, width=6, heads=2, layers=1, **options
    ),
}


@functools.cache
def prepared(name):
    """Return a policy and parameters none of which is zero."""
    policy = MAKERS[name]()
    flat, unravel = ravel_pytree(jax.jit(policy.init)(jax.random.key(1)))
    return policy, unravel(flat + 0.3 * jax.random.normal(jax.random.key(5), flat.shape))


def sequence(key, length=TRIAL):
    observation_key, action_key, reward_key = jax.random.split(jax.random.key(key), 3)
    return StepInput(
        jax.random.normal(observation_key, (length, 2)),
        jax.random.randint(action_key, (length,), 0, 3),
        jax.random.normal(reward_key, (length,)),
        jnp.arange(length) % 3 == 0,
    )


def heard(x: StepInput):
    """Return what a network is given, as the paper on RL² lists it."""
    outcome = jnp.stack([x.previous_reward, x.previous_end], axis=-1)
    return jnp.concatenate([x.observation, jnp.eye(3)[x.previous_action], outcome], axis=-1)


def unrolled(policy, params, x):
    return jax.jit(policy.unroll)(params, policy.initial_memory(), x)[1]


def spoken(params, y):
    """Return logits and values of the outputs of a network."""
    both = (y @ params[name]["kernel"] for name in ("head", "value"))
    return [x + params[name]["bias"][None] for x, name in zip(both, ("head", "value"), strict=True)]


def test_gru_is_that_of_flax():
    (policy, params), x, width = prepared("gru"), sequence(0), 5
    cell, ours = nn.GRUCell(width, param_dtype=float), params["actor"]
    kernels = {
        name: jnp.split(ours[part]["kernel"], 3, axis=-1)
        for name, part in (("i", "input"), ("h", "recurrent"))
    }
    biases = {part: jnp.split(ours[part]["bias"], 3) for part in ("input", "recurrent")}
    theirs = {f"h{gate}": {"kernel": kernels["h"][i]} for i, gate in enumerate("rzn")}
    theirs |= {f"i{gate}": {"kernel": kernels["i"][i]} for i, gate in enumerate("rzn")}
    for i, gate in enumerate("rz"):  # where flax has one bias we have the sum of two
        theirs[f"i{gate}"]["bias"] = biases["input"][i] + biases["recurrent"][i]
    theirs["in"]["bias"], theirs["hn"]["bias"] = biases["input"][2], biases["recurrent"][2]
    _, y = jax.lax.scan(
        lambda h, x: cell.apply({"params": theirs}, h, x), jnp.zeros(width), heard(x)
    )
    assert_says(unrolled(policy, params, x), params, y)


def test_units_forget_in_the_time_that_they_are_given():
    policy = gru(2, ACTIONS, width=1000, initial_span=50.0)
    params = jax.jit(policy.init)(jax.random.key(0))
    # Deaf, with nothing but its gates' biases, a unit keeps all but 1 / time of its memory.
    params["actor"] = jax.tree.map(lambda x: x if x.ndim == 1 else 0 * x, params["actor"])
    first = jax.tree.map(lambda x: x[0], sequence(0))
    [memory], _ = jax.jit(policy.step)(params, [jnp.ones(1000)], first)
    times = np.sort(1 / (1 - memory))
    np.testing.assert_allclose(times, np.linspace(2, 50, 1000), atol=3)


def test_orthogonal_is_that_of_flax():
    found = orthogonal(jax.random.key(3), (64, 64), float)
    np.testing.assert_allclose(found.T @ found, np.eye(64), atol=1e-13)
    theirs = nn.initializers.orthogonal()(jax.random.key(3), (64, 64), float)
    np.testing.assert_allclose(found, theirs, atol=1e-11)
    single = orthogonal(jax.random.key(3), (256, 256), jnp.float32)
    np.testing.assert_allclose(single.T @ single, np.eye(256), atol=1e-5)


def test_lstm_is_that_of_flax():
    (policy, params), x, width = prepared("lstm"), sequence(0), 5
    cell, ours = nn.LSTMCell(width, param_dtype=float), params["actor"]
    theirs = {}
    for i, gate in enumerate("ifgo"):
        part = slice(i * width, (i + 1) * width)
        bias = ours["input"]["bias"][part] + ours["recurrent"]["bias"][part] + (gate == "f")
        theirs[f"i{gate}"] = {"kernel": ours["input"]["kernel"][:, part]}
        theirs[f"h{gate}"] = {"kernel": ours["recurrent"]["kernel"][:, part], "bias": bias}
    nothing = (jnp.zeros(width), jnp.zeros(width))
    _, y = jax.lax.scan(lambda c, x: cell.apply({"params": theirs}, c, x), nothing, heard(x))
    assert_says(unrolled(policy, params, x), params, y)


def assert_says(output, params, y, tolerance=1e-9):
    logits, value = spoken(params, y)
    exact = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(output.distribution.logits, logits, **exact)
    np.testing.assert_allclose(output.value, value[:, 0], **exact)


@pytest.mark.parametrize("name", MAKERS)
def test_hidden_layers_see_the_network_and_its_inputs(name):
    policy, x = MAKERS[name](hidden=(7, 6)), sequence(0)
    params = jax.jit(policy.init)(jax.random.key(2))
    assert params["head"]["kernel"].shape == (6, 3) and params["value"]["kernel"].shape == (6, 1)
    network = params["actor"]["network"]
    bare, size = prepared(name)[0], len(params["actor"]["hidden"][0]["kernel"]) - len(heard(x)[0])
    as_it_is = {"kernel": jnp.eye(size), "bias": jnp.zeros(size)}
    y = unrolled(bare, {"actor": network, "head": as_it_is, "value": as_it_is}, x)
    y = jnp.concatenate([y.distribution.logits, heard(x)], axis=-1)
    for layer in params["actor"]["hidden"]:
        y = jnp.tanh(jnp.einsum("ti,io->to", y, layer["kernel"]) + layer["bias"][None])
    assert_says(unrolled(policy, params, x), params, y)


def test_snail_is_its_definition():
    """Convolutions by their sums over time, attention by jax.nn, whole trial at once."""
    (policy, params), x = prepared("snail"), sequence(0)
    ours = params["actor"]
    dense = lambda layer, x: x @ layer["kernel"] + layer["bias"][None]
    y = dense(ours["embedding"], heard(x))
    for dilation, layer in zip([1, 2, 4] * 2, ours["convolutions"], strict=True):
        lagged = np.zeros_like(y)
        lagged[dilation:] = y[:-dilation]
        filtered, gate = jnp.split(dense(layer, jnp.concatenate([y, lagged], axis=-1)), 2, axis=-1)
        y = jnp.concatenate([y, jnp.tanh(filtered) * jax.nn.sigmoid(gate)], axis=-1)
    query, key, value = jnp.split(dense(ours["attention"], y), [3, 6], axis=-1)
    value = jnp.pad(value, ((0, 0), (0, 1)))  # the reference wants them as wide as the keys
    read = jax.nn.dot_product_attention(
        query[:, None], key[:, None], value[:, None], is_causal=True, implementation="xla"
    )
    y = jnp.concatenate([y, read[:, 0, :2]], axis=-1)
    assert_says(unrolled(policy, params, x), params, y, 1e-6)  # its softmax is of float32


def test_transformer_is_that_of_flax():
    (policy, params), x = prepared("transformer"), sequence(0)
    ours = params["actor"]
    layer = ours["layers"][0]
    dense = lambda layer, x: x @ layer["kernel"] + layer["bias"][None]

    def normalized(norm, x):
        module = nn.LayerNorm(epsilon=1e-5)
        return module.apply({"params": {"scale": norm["scale"], "bias": norm["offset"]}}, x)

    kernels = jnp.split(layer["projections"]["kernel"].reshape(6, -1, 3), 3, axis=1)
    biases = jnp.split(layer["projections"]["bias"].reshape(-1, 3), 3)
    theirs = {
        name: {"kernel": kernel, "bias": bias}
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
    }
    theirs["out"] = {
        "kernel": layer["attention"]["kernel"].reshape(2, 3, 6),
        "bias": layer["attention"]["bias"],
    }
    attention = nn.MultiHeadDotProductAttention(num_heads=2)
    y = dense(ours["embedding"], heard(x)) + ours["positions"]
    mask = nn.make_causal_mask(jnp.ones(TRIAL))
    y += attention.apply({"params": theirs}, normalized(layer["attention_norm"], y), mask=mask[0])
    between = jax.nn.gelu(dense(layer["widen"], normalized(layer["perceptron_norm"], y)))
    y = normalized(ours["norm"], y + dense(layer["narrow"], between))
    assert_says(unrolled(policy, params, x), params, y)


def test_window_sees_so_many_steps():
    policy, x = window(2, ACTIONS, steps=3), sequence(0, 8)
    params = jax.jit(policy.init)(jax.random.key(1))
    changed = x.__class__(**vars(x) | {"observation": x.observation.at[2].add(1.0)})
    before, after = (unrolled(policy, params, s).distribution.logits for s in (x, changed))
    moved = np.any(np.asarray(before != after), axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(moved), [2, 3, 4])


def test_window_without_hidden_layers_is_linear():
    policy = window(2, ACTIONS, steps=2, hidden=())
    params, x = jax.jit(policy.init)(jax.random.key(1)), sequence(0)
    inputs = heard(x)
    before = jnp.concatenate([jnp.zeros((1, inputs.shape[-1])), inputs[:-1]])
    assert_says(unrolled(policy, params, x), params, jnp.concatenate([before, inputs], axis=-1))


def test_convolutions_alone_see_the_whole_trial():
    """With attention that reads nothing: the last value hears every reward."""
    (policy, params), x = prepared("snail"), sequence(0)
    actor = params["actor"] | {
        "attention": jax.tree.map(jnp.zeros_like, params["actor"]["attention"])
    }

    def last(reward):
        heard = x.__class__(**vars(x) | {"previous_reward": reward})
        blind = params | {"actor": actor}
        return jnp.sum(policy.unroll(blind, policy.initial_memory(), heard)[1].value[-1])

    assert np.all(jax.jit(jax.grad(last))(x.previous_reward) != 0)


@pytest.mark.parametrize("name", ["snail", "transformer"])
def test_a_longer_trial_forgets_its_oldest_steps(name):
    """Beyond its length attention slides; steps that it cannot see any more change nothing."""
    policy, params = prepared(name)
    x = sequence(0, 2 * TRIAL + 5)
    step = lambda memory, x: policy.step(params, memory, x)
    play = jax.jit(lambda x: jax.lax.scan(step, policy.initial_memory(), x)[1].value)
    changed = x.__class__(**vars(x) | {"previous_reward": x.previous_reward.at[1].add(10.0)})
    moved = np.asarray(play(x) != play(changed))
    assert not moved[0] and np.all(moved[1:TRIAL]) and np.all(np.isfinite(play(x)))
    # Also in pieces, whose later steps take the places of what the earlier ones still see.
    memory, values = policy.initial_memory(), []
    for start in range(0, 2 * TRIAL, TRIAL):
        piece = jax.tree.map(lambda x: x[start : start + TRIAL], x)  # noqa: B023
        memory, output = policy.unroll(params, memory, piece)
        values.append(output.value)
    np.testing.assert_allclose(np.concatenate(values), play(x)[: 2 * TRIAL], atol=1e-5)
    if name == "transformer":  # its one layer keeps nothing of what it saw
        assert not np.any(moved[1 + TRIAL :])


@pytest.mark.parametrize("name", MAKERS)
def test_bfloat16_is_close_and_not_the_same(name):
    full, params = prepared(name)
    half = MAKERS[name](bfloat16=True)
    values = [unrolled(policy, params, sequence(0)).value for policy in (full, half)]
    assert values[1].dtype == values[0].dtype
    difference = np.max(np.abs(values[0] - values[1])) / np.std(values[0])
    assert 1e-6 < difference < 0.1


def test_continuous_actions_are_heard_as_they_are():
    policy = gru(2, Continuous(2), width=4, initial_std=0.3)
    x = sequence(0)
    x = x.__class__(**vars(x) | {"previous_action": jnp.zeros((TRIAL, 2))})
    changed = x.__class__(**vars(x) | {"previous_action": x.previous_action.at[3, 1].set(2.0)})
    params = policy.init(jax.random.key(0))
    before, after = (unrolled(policy, params, s).distribution for s in (x, changed))
    assert np.all(before.mean[:3] == after.mean[:3]) and np.all(before.mean[3:] != after.mean[3:])
    np.testing.assert_allclose(jnp.exp(before.log_std), 0.3, rtol=1e-6)


def test_bad_options():
    with pytest.raises(MetajaxError, match="heads must divide width"):
        transformer(2, ACTIONS, trial_length=3, width=6, heads=4)
    with pytest.raises(MetajaxError, match="critic"):
        gru(2, ACTIONS, critic="both")
    for make in (
        lambda: gru(2, ACTIONS, width=0),
        lambda: gru(2, ACTIONS, initial_span=1.0),
        lambda: gru(2, ACTIONS, hidden=(4, 0)),
        lambda: lstm(2, ACTIONS, initial_std=0.0),
        lambda: snail(2, ACTIONS, trial_length=0),
        lambda: window(2, ACTIONS, steps=0),
        lambda: window(2, ACTIONS, hidden=(0,)),
    ):
        with pytest.raises(MetajaxError, match="must be"):
            make()
    policy = snail(2, ACTIONS, trial_length=3)
    with pytest.raises(MetajaxError, match="trial_length of 3"):
        params = jax.eval_shape(policy.init, jax.random.key(0))
        jax.eval_shape(policy.unroll, params, policy.initial_memory(), sequence(0, 4))
