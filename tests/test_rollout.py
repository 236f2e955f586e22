"""Episodes and trials: what is carried, what is frozen, what starts afresh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from metajax.envs.rollouts import check_env, rollout, undiscounted_returns
from metajax.errors import MetajaxError
from metajax.types import Continuous, Discrete, Env, EnvState, PolicyOutput

LENGTH = 5


def diary(length=LENGTH, space=None) -> Env:
    """Return an environment that shows [noise of the reset, time, task, sum of actions].

    Its task {"end", "name"} says when it terminates. The reward is 10 · time + task, and what
    follows a termination is NaN: nobody may look.
    """

    def reset(key, task):
        noise = jax.lax.lgamma(1 + jax.random.uniform(key))  # lgamma marks resets in the program
        no = jnp.zeros((), bool)
        observation = jnp.stack([noise, 0.0, task["name"], 0.0])
        time = jnp.zeros((), jnp.int32)
        return EnvState(observation, jnp.zeros(()), no, no, time, task, (jnp.zeros(()),))

    def step(state, action):
        time = state.time + 1
        total = state.simulator[0] + jnp.sum(action)
        after_the_end = jnp.where(state.time >= state.task["end"], jnp.nan, 0.0)
        name = state.task["name"]
        return EnvState(
            observation=jnp.stack([state.observation[0], time.astype(float), name, total]),
            reward=10.0 * time + name + after_the_end,
            terminated=time == state.task["end"],
            truncated=time == length,
            time=time,
            task=state.task,
            simulator=(total + after_the_end,),
        )

    return Env(reset, step, 4, space or Continuous(1), length)


def act(memory, step_input, key):
    """Add up the observed times, and act at random."""
    memory = memory + 1 + step_input.observation[1]
    return memory, jax.random.normal(key, (1,)), PolicyOutput(distribution=memory)


def play(end, *, parallel=False, episodes=3, act=act, seed=0):
    task = {"end": jnp.asarray(end), "name": jnp.asarray(7.0)}
    return rollout(
        jax.random.key(seed),
        diary(),
        task,
        act,
        jnp.zeros(()),
        episodes=episodes,
        parallel=parallel,
    )


@pytest.fixture(scope="module")
def early():
    """Return three episodes that terminate after three of five steps."""
    return play(3)


def test_episodes_start_afresh_on_the_same_task(early):
    seen = early.step_input.observation
    assert len(set(np.asarray(seen[:, 0, 0]))) == 3
    np.testing.assert_array_equal(seen[:, :, 0], np.repeat(seen[:, :1, 0], LENGTH, axis=1))
    np.testing.assert_array_equal(seen[:, :, 2], 7)
    np.testing.assert_array_equal(seen[:, 0, 1], 0)


def test_steps_after_an_early_end_are_frozen_and_masked(early):
    for episode in range(3):
        np.testing.assert_array_equal(early.valid[episode], [True, True, True, False, False])
        np.testing.assert_array_equal(early.terminated[episode], [0, 0, 1, 0, 0])
        np.testing.assert_array_equal(early.reward[episode], [17, 27, 37, 0, 0])
        seen = early.step_input.observation[episode]
        np.testing.assert_array_equal(seen[:, 1], [0, 1, 2, 3, 3])
        np.testing.assert_array_equal(seen[3], seen[4])
    assert not jnp.any(early.truncated)
    np.testing.assert_array_equal(undiscounted_returns(early), 17 + 27 + 37)
    for leaf in jax.tree.leaves(early):
        assert np.all(np.isfinite(leaf))


def test_the_final_input_is_what_followed_the_last_valid_step(early):
    final = early.final_input
    np.testing.assert_array_equal(final.observation[:, 1], 3)
    total = jnp.sum(early.action[:, :3, 0], axis=1)
    np.testing.assert_allclose(final.observation[:, 3], total, rtol=1e-6)
    np.testing.assert_array_equal(final.previous_action, early.action[:, 2])
    np.testing.assert_array_equal(final.previous_reward, 37)
    np.testing.assert_array_equal(final.previous_end, True)


def test_truncation_is_not_termination():
    trajectory = play(99)
    assert jnp.all(trajectory.valid) and not jnp.any(trajectory.terminated)
    np.testing.assert_array_equal(trajectory.truncated[0], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(trajectory.final_input.observation[:, 1], LENGTH)
    np.testing.assert_array_equal(trajectory.final_input.previous_end, True)


def test_memory_lives_through_the_trial_and_rests_in_the_padding(early):
    # 1 + the time at each of the valid steps: 1, 3, 6, and so on from 6 in the next episode.
    memory = early.output.distribution
    np.testing.assert_array_equal(memory[:, :3], [[1, 3, 6], [7, 9, 12], [13, 15, 18]])
    np.testing.assert_array_equal(memory[:, 3], [10, 16, 22])  # of steps that never happened


def test_the_outcome_of_an_episode_reaches_the_next_one(early):
    seen = early.step_input
    np.testing.assert_array_equal(seen.previous_action[:, 1:3], early.action[:, :2])
    np.testing.assert_array_equal(seen.previous_reward[:, 1:3], early.reward[:, :2])
    np.testing.assert_array_equal(seen.previous_end[:, 1:3], False)
    first = jax.tree.map(lambda x: x[0, 0], seen)
    np.testing.assert_array_equal(
        [first.previous_action[0], first.previous_reward, first.previous_end], 0
    )
    np.testing.assert_array_equal(seen.previous_action[1:, 0], early.action[:-1, 2])
    np.testing.assert_array_equal(seen.previous_reward[1:, 0], 37)
    np.testing.assert_array_equal(seen.previous_end[1:, 0], True)


def test_a_trial_that_is_parallel_is_the_same_for_an_agent_without_memory():
    def reflex(memory, step_input, key):
        action = jnp.sin(step_input.observation[:1]) + jax.random.normal(key, (1,))
        return memory, action, PolicyOutput(distribution=())

    one, other = (play(3, act=reflex, parallel=parallel) for parallel in (False, True))
    first = lambda trajectory: dataclasses.replace(
        trajectory,
        step_input=trajectory.step_input.observation,
        final_input=trajectory.final_input.observation,
    )
    for a, b in zip(jax.tree.leaves(first(one)), jax.tree.leaves(first(other)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(other.step_input.previous_reward[:, 0], 0)
    np.testing.assert_array_equal(other.step_input.previous_end[:, 0], False)


def test_no_key_is_used_twice():
    def random(memory, step_input, key):
        bits = jax.random.key_data(key).astype(jnp.uint32)
        return memory, jnp.zeros(1), PolicyOutput(distribution=bits)

    for parallel in (False, True):
        keys = play(99, act=random, parallel=parallel, episodes=4).output.distribution
        assert len(np.unique(np.asarray(keys).reshape(-1, 2), axis=0)) == 4 * LENGTH


def test_reset_is_called_once_per_episode():
    """In the program: inside the loop over episodes, and not inside the one over time."""
    jaxpr = jax.make_jaxpr(lambda: play(3))()

    def resets(jaxpr, loops=()):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "lgamma":
                yield loops
            inner = loops
            if equation.primitive.name == "scan":
                inner = (*loops, equation.params["length"])
            for sub in jaxprs_in_params(equation.params):
                yield from resets(sub, inner)

    assert list(resets(jaxpr.jaxpr)) == [(3,)]


# --- check_env -----------------------------------------------------------------------------------

TASK = {"end": jnp.asarray(3), "name": jnp.asarray(7.0)}


def changed(**fields):
    """Return the environment whose step also changes these fields of the state."""
    env = diary()

    def step(state, action):
        new = env.step(state, action)
        return dataclasses.replace(new, **{k: f(getattr(new, k)) for k, f in fields.items()})

    return env._replace(step=step)


def test_a_good_environment_passes():
    check_env(diary(), TASK)
    check_env(diary(space=Discrete(3)), jax.eval_shape(lambda: TASK))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            diary()._replace(observation_size=3),
            r"observation as float32\[4\]; expected floating\[3\]",
        ),
        (changed(reward=lambda x: x[None]), r"state\.reward from float32\[\] to float32\[1\]"),
        (
            changed(observation=lambda x: x.astype(jnp.bfloat16)),
            r"state\.observation from float32\[4\] to bfloat16\[4\]",
        ),
        (changed(simulator=lambda x: x * 2), "changes the structure of its state"),
        (changed(terminated=lambda x: x.astype(int)), r"state\.terminated from bool"),
        (diary()._replace(episode_length=0), "episode length 0 must be at least 1"),
    ],
)
def test_a_broken_environment_is_one_clear_sentence(env, message):
    with pytest.raises(MetajaxError, match=message) as caught:
        check_env(env, TASK)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("field", ["terminated", "truncated"])
def test_ends_must_be_booleans(field):
    env = diary()

    def reset(key, task):
        return dataclasses.replace(env.reset(key, task), **{field: jnp.zeros(())})

    with pytest.raises(MetajaxError, match=rf"{field} as float32\[\]; expected bool\[\]"):
        check_env(env._replace(reset=reset), TASK)
