"""VariBAD against its definition: what is predicted from which belief, what trains what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from trials import ENV, EPISODES, LENGTH, TASKS, batch_of

from metajax.adaptation import evidence_lower_bound
from metajax.adaptation.trials import Statistics
from metajax.algorithms import rl2, varibad
from metajax.envs.rollouts import rollout
from metajax.errors import MetajaxError
from metajax.outer import ppo
from metajax.policies import gru, mlp, variational
from metajax.policies.variational import belief

pytestmark = pytest.mark.usefixtures("float64")

KEY = jax.random.key(2)
BELIEFS, PREDICTIONS, BATCH, RATE = 4, 5, 3, 0.01
OPTIONS = {
    "vae_updates": 1,
    "vae_batch": BATCH,
    "replay_capacity": 3,
    "model": evidence_lower_bound(
        beliefs=BELIEFS,
        predictions=PREDICTIONS,
        kl_weight=0.3,
        state_weight=0.7,
        decoder_hidden=(3,),
    ),
}


def plain(learning_rate=1e-3):
    """Return one outer step on all trials, and their number of episodes."""
    outer = ppo(learning_rate, epochs=1, clip=0.2, max_gradient_norm=1.0)
    return {"episodes": EPISODES, "outer": outer}


def algorithm_of(policy, learning_rate=1e-3, **options):
    return varibad(ENV, policy, **plain(learning_rate), **(OPTIONS | options))


@pytest.fixture(scope="module")
def start(float64):
    """Return a policy, and a state far from where heads are small and rewards have no scale."""
    policy = variational(2, ENV.action_space, latent=2, width=3, hidden=(3,))
    state = jax.jit(algorithm_of(policy).init)(jax.random.key(1), batch_of(TASKS))
    moved = lambda x: x + 0.4 * jnp.sin(7.0 + jnp.arange(x.size).reshape(x.shape))
    meta_params = dataclasses.replace(
        state.meta_params,
        policy=jax.tree.map(moved, state.meta_params.policy),
        mean_square_reward=jnp.array(4.0),
    )
    learner = state.learner | {"decoders": jax.tree.map(moved, state.learner["decoders"])}
    statistics = Statistics(jnp.array(9.0), jnp.array(1, jnp.int32))
    return policy, dataclasses.replace(
        state, meta_params=meta_params, learner=learner, statistics=statistics
    )


@pytest.fixture
def descent(monkeypatch):
    """Adam is plain gradient descent, so that a step shows the gradient."""
    monkeypatch.setattr(optax, "adam", optax.sgd)


def played(policy, state, key, scale):
    """Return, per task, what was heard before each action, the action and what came of it.

    Rewards are those played over `scale`.
    """
    agent = algorithm_of(policy).agent

    def trial(task, key):
        act = lambda memory, x, key: agent.act(state.meta_params, memory, x, key)
        return rollout(key, ENV, task, act, policy.initial_memory(), episodes=EPISODES)

    trajectory = jax.jit(jax.vmap(trial))(TASKS, jax.random.split(key, 3))
    trials = []
    for task in range(3):
        steps = []
        for episode in range(EPISODES):
            length = int(trajectory.valid[task, episode].sum())
            for time in range(length):
                at = lambda x, e=episode, t=time, k=task: x[k, e, t]
                x = jax.tree.map(at, trajectory.step_input)
                if time + 1 < length:
                    there = trajectory.step_input.observation[task, episode, time + 1]
                else:
                    there = trajectory.final_input.observation[task, episode]
                x = dataclasses.replace(x, previous_reward=x.previous_reward / scale)
                reward = trajectory.reward[task, episode, time] / scale
                steps.append((x, trajectory.action[task, episode, time], reward, there))
        trials.append(steps)
    return trials


def decoded(decoder, *inputs):
    x = jnp.concatenate(inputs)
    for layer in decoder["body"]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ decoder["head"]["kernel"] + decoder["head"]["bias"]


def bound_by_hand(policy, params, decoders, steps, when, what, noise):
    """Return the bound of one trial, belief by belief and prediction by prediction."""
    memory, beliefs = policy.initial_memory(), [(jnp.zeros(2), jnp.ones(2))]
    for x, *_ in steps:
        memory, _ = policy.step(params, memory, x)
        beliefs.append((belief(memory).mean, jnp.exp(belief(memory).log_std)))
    total = 0.0
    for t, e in zip(when, noise, strict=True):
        (mean_before, std_before), (mean, std) = beliefs[t], beliefs[t + 1]
        latent, reconstruction = mean + std * e, 0.0
        for i in what:
            x, action, reward, there = steps[i]
            taken = jnp.eye(3)[action]
            said = decoded(decoders["reward"], latent, x.observation, taken, there)[0]
            moved = decoded(decoders["state"], latent, x.observation, taken)
            reconstruction -= (said - reward) ** 2 / 2 + 0.7 * jnp.sum((moved - there) ** 2) / 2
        spread, offset = (std / std_before) ** 2, ((mean - mean_before) / std_before) ** 2
        divergence = jnp.sum(spread + offset - 1 - jnp.log(spread)) / 2
        total += len(steps) * reconstruction / PREDICTIONS - 0.3 * divergence
    return total / BELIEFS


def test_a_step_ascends_the_evidence_lower_bound(start, descent):
    policy, state = start
    algorithm = algorithm_of(policy, 1e-30, vae_learning_rate=RATE)
    after, _ = jax.jit(algorithm.update)(state, batch_of(TASKS), KEY)

    learner_key, vae_key = jax.random.split(KEY)
    replay_key, bound_key = jax.random.split(jax.random.split(vae_key, 1)[0])
    scale = jnp.sqrt(after.meta_params.mean_square_reward)
    assert abs(scale - 2) > 0.1
    trials = played(policy, state, learner_key, scale)
    assert {len(steps) for steps in trials} != {EPISODES * LENGTH}  # some have gaps
    drawn = []
    slots = jax.random.randint(replay_key, (BATCH,), 0, 3)
    for slot, key in zip(slots, jax.random.split(bound_key, BATCH), strict=True):
        steps = trials[slot]
        keys = jax.random.split(key, 3)
        when = jax.random.randint(keys[0], (BELIEFS,), 0, len(steps)).tolist()
        what = jax.random.randint(keys[1], (PREDICTIONS,), 0, len(steps)).tolist()
        drawn.append((steps, when, what, jax.random.normal(keys[2], (BELIEFS, 2))))

    @jax.jit
    def step(params, decoders):
        def loss(learned):
            return -sum(bound_by_hand(policy, *learned, *one) for one in drawn) / BATCH

        learned = (params, decoders)
        return jax.tree.map(lambda x, g: x - RATE * g, learned, jax.grad(loss)(learned))

    begin = state.meta_params.policy, state.learner["decoders"]
    found = ravel_pytree((after.meta_params.policy, after.learner["decoders"]))[0]
    assert np.abs(found - ravel_pytree(begin)[0]).max() > 1e-3
    np.testing.assert_allclose(found, ravel_pytree(step(*begin))[0], rtol=0, atol=1e-12)


def test_actions_do_not_train_the_belief_nor_predictions_the_actions(start, descent):
    policy, state = start

    def moved(learning_rate, vae_learning_rate):
        algorithm = algorithm_of(policy, learning_rate, vae_learning_rate=vae_learning_rate)
        after, _ = jax.jit(algorithm.update)(state, batch_of(TASKS), KEY)
        before, after = state.meta_params.policy, after.meta_params.policy
        flat = lambda tree: ravel_pytree(tree)[0]
        believing = {name: before["actor"][name] for name in ("encoder", "belief")}
        still = lambda a, b: float(np.abs(flat(a) - flat(b)).max())
        acting = still(before["head"], after["head"]) + still(
            before["actor"]["body"], after["actor"]["body"]
        )
        return still(believing, {name: after["actor"][name] for name in believing}), acting

    believing, acting = moved(0.1, 1e-30)
    assert believing < 1e-25 < 1e-4 < acting
    believing, acting = moved(1e-30, 0.1)
    assert acting < 1e-25 < 1e-4 < believing


def test_its_policy_is_trained_as_in_rl2(start):
    policy, state = start
    algorithm = algorithm_of(policy, vae_learning_rate=1e-30)
    after, _ = jax.jit(algorithm.update)(state, batch_of(TASKS), KEY)
    expected, _ = jax.jit(rl2(ENV, policy, **plain()).update)(
        dataclasses.replace(state, learner=state.learner["policy"], replay=()),
        batch_of(TASKS),
        jax.random.split(KEY)[0],
    )
    for a, b in zip(
        jax.tree.leaves(after.meta_params), jax.tree.leaves(expected.meta_params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_what_is_wrong_is_one_sentence():
    for other in (gru(2, ENV.action_space), mlp(2, ENV.action_space)):
        with pytest.raises(MetajaxError, match="needs a policy with a belief"):
            varibad(ENV, other, **plain())
    policy = variational(2, ENV.action_space)
    with pytest.raises(MetajaxError, match="kl_weight is -1"):
        varibad(ENV, policy, **plain(), model=evidence_lower_bound(kl_weight=-1.0))
    with pytest.raises(MetajaxError, match="vae_batch is 0"):
        varibad(ENV, policy, **plain(), vae_batch=0)
