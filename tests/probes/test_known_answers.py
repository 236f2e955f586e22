"""Tasks small enough to know what must come out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from metajax import outer as steps
from metajax.adaptation import gradient_steps, policy_gradient
from metajax.adaptation import value_network as learned_values
from metajax.algorithms import maml
from metajax.envs import make
from metajax.envs.families.tabular import tabular
from metajax.envs.rollouts import rollout, undiscounted_returns
from metajax.envs.splits import two_splits
from metajax.policies import mlp
from metajax.policies.mlp import value_network
from metajax.rules import sgd
from metajax.training import train
from metajax.training.evaluation import evaluate
from metajax.types import Discrete, Env, EnvState, PolicyOutput, TaskFamily


@pytest.mark.parametrize("split", ["train", "test"])
def test_standing_still_on_point_goal(split):
    """Earns minus the mean distance to the goal, 100 times."""
    family = make("point-goal")

    def stand(memory, step_input, key):
        return memory, jnp.zeros(2), PolicyOutput(distribution=())

    @jax.jit
    @jax.vmap
    def play(key):
        task_key, play_key = jax.random.split(key)
        task = getattr(family, split).sample(task_key)
        return undiscounted_returns(rollout(play_key, family.env, task, stand, (), episodes=1))

    found = np.asarray(play(jax.random.split(jax.random.key(0), 20_000)), np.float64)[:, 0]

    def mean_distance(x):
        return 2 * scipy.integrate.quad(lambda y: np.hypot(x, y), 0, 0.5)[0]

    def integral(low, high):
        return scipy.integrate.quad(mean_distance, low, high)[0]

    strips = [integral((11 * b + 5) / 99 - 0.5, (11 * b + 6) / 99 - 0.5) for b in range(9)]
    whole, held_out = integral(-0.5, 0.5), sum(strips)
    np.testing.assert_allclose(whole, (np.sqrt(2) + np.arcsinh(1)) / 6, rtol=1e-9)  # 0.3826
    expected = -100 * {"train": (whole - held_out) * 11 / 10, "test": held_out * 11}[split]
    assert abs(found.mean() - expected) < 3 * found.std() / np.sqrt(len(found))


@pytest.mark.slow
@pytest.mark.parametrize("outer", [steps.adam(0.03), steps.ppo(0.03), steps.trpo(0.05)], ids=repr)
def test_adaptation_beats_everything_that_does_not_adapt(outer):
    """Two arms whose rewards are N(1, 1): 1 is all that can be had without knowing which is which.

    Whoever knows has 1 + 1/√π.
    """
    family = tabular(states=1, actions=2, episode_length=1, reward_std=0.1)
    algorithm = maml(
        family.env,
        mlp(1, Discrete(2), hidden=(8,)),
        inner=gradient_steps(policy_gradient(critic=None), rule=sgd(0.5)),
        outer=outer,
        episodes=20,
    )
    # Rounding decides whether a seed in six or so stays behind: the middle one of three is shown.
    result = train(algorithm, family, iterations=60, tasks=20, seeds=3, segment=60, evaluation=None)
    evaluated = functools.partial(
        evaluate, algorithm.agent, family, tasks=400, rounds=2, episodes=20
    )
    returns = jax.vmap(evaluated, in_axes=(0, None))(result.agent, jax.random.key(1))
    before, after = np.median(np.mean(returns, axis=(1, 3)), axis=0)
    best = 1 + 1 / np.sqrt(np.pi)
    print(f"{outer}: {before:.2f} before, {after:.2f} after adaptation; {best:.2f} at best")
    assert abs(before - 1) < 0.2
    assert 1.4 < after < best + 0.15


def reward_of_one() -> TaskFamily:
    """Return tasks of three steps that earn 1 each, and then end, or are only cut off."""
    length = 3

    def observe(time, task):
        return jnp.concatenate([jax.nn.one_hot(time, length), task["ends"][None]])

    def reset(key, task):
        no, time = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        return EnvState(observe(time, task), jnp.zeros(()), no, no, time, task, ())

    def step(state, action):
        time = state.time + 1
        last, ends = time == length, state.task["ends"] > 0
        shown = jnp.where(ends, time, time % length)  # what is cut off goes on where it began
        observation = observe(shown, state.task)
        return EnvState(observation, jnp.ones(()), last & ends, last & ~ends, time, state.task, ())

    def sample(key, *, split):
        return {"ends": jax.random.bernoulli(key).astype(float)}

    env = Env(reset, step, length + 1, Discrete(2), length)
    return TaskFamily(env, name="reward-of-one-v1", **two_splits(sample))


def test_the_critic_learns_what_is_to_come():
    """With γ = ½: 1.75, 1.5 and 1 before an end, 2 where an end is only a cut."""
    family = reward_of_one()
    algorithm = maml(
        family.env,
        mlp(4, Discrete(2), hidden=()),
        inner=gradient_steps(
            policy_gradient(critic=learned_values(hidden=(16,), learning_rate=1e-2), discount=0.5)
        ),
        outer=steps.adam(),
        episodes=2,
    )
    result = train(algorithm, family, iterations=100, tasks=8, segment=100, evaluation=None)
    critic = value_network(4, hidden=(16,))
    states = np.concatenate([np.eye(3), np.eye(3)]), np.repeat([[0.0], [1.0]], 3, axis=0)
    params = result.meta_params().critic["value"]
    found = critic.apply(params, jnp.asarray(np.concatenate(states, axis=1)))
    np.testing.assert_allclose(found, [2, 2, 2, 1.75, 1.5, 1], atol=0.05)
