"""Reference agents: known rules and planners, and oracles, that a memory is measured by.

Each is an `Agent`, so that it is evaluated by the same function as what is learned. For bandits:
`bandit_agent` and the rules that choose an arm. For tabular processes: `process_agent` and the
planners. Where nothing is known of the task and nothing remembered, every policy gets what a random
one gets: half the pulls, and 10 per episode of a process. For locomotion, a learner with more or
less input: `oracle_velocity` and `observations_only`. And `whole_prior`: the tasks that published
numbers are about.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from metajax.envs import make
from metajax.envs.splits import STRIPS
from metajax.replay import all_transitions
from metajax.types import Agent, Policy, PolicyOutput, TaskDistribution, TaskFamily

Choose = Callable[..., jax.Array]


def bandit_agent(arms: int, choose: Choose) -> Agent:
    """Return the agent that counts the rewards of each arm, and chooses by them.

    Args:
        arms: of a Bernoulli bandit whose episodes are single pulls.
        choose: `(wins[arm], losses[arm], key) -> arm`.
    """

    def initial_memory():
        return {"wins": jnp.zeros(arms), "losses": jnp.zeros(arms)}

    def act(adapted, memory, step_input, key):
        del adapted
        pulled = jax.nn.one_hot(step_input.previous_action, arms) * step_input.previous_end
        memory = {
            "wins": memory["wins"] + pulled * step_input.previous_reward,
            "losses": memory["losses"] + pulled * (1 - step_input.previous_reward),
        }
        arm = choose(memory["wins"], memory["losses"], key)
        return memory, arm.astype(jnp.int32), PolicyOutput(())

    return Agent(lambda params, key: (), initial_memory, act, lambda params, a, t, key: a)


def best(values, key):
    """Return the index of the largest value, a random one of those that are equal."""
    return jnp.argmax(jnp.where(values == values.max(), jax.random.uniform(key, values.shape), -1))


def at_random(wins, losses, key):
    """Choose any arm with equal probability."""
    del losses
    return jax.random.randint(key, (), 0, wins.size)


def greedy(wins, losses, key):
    """Choose the largest mean of the posterior under a uniform prior, the first of equal ones.

    A random one of them does better, since it explores: 6.63 for 6.57 in ten pulls of five arms.
    """
    del key
    return jnp.argmax((wins + 1) / (wins + losses + 2))


def thompson(wins, losses, key):
    """Choose by a sample of the posterior (Thompson 1933)."""
    return jnp.argmax(jax.random.beta(key, wins + 1, losses + 1))


def epsilon_greedy(epsilon, wins, losses, key):
    """Choose at random with probability ε, else greedily."""
    coin_key, arm_key = jax.random.split(key)
    arms = (choose(wins, losses, arm_key) for choose in (at_random, greedy))
    return jnp.where(jax.random.bernoulli(coin_key, epsilon), *arms)


def upper_confidence(width, wins, losses, key):
    """Choose by UCB1 (Auer et al. 2002): mean + width √(2 ln t / pulls).

    The uniform prior counts as a win and a loss of every arm; there would be no time to pull each.
    """
    pulls = wins + losses + 2
    return best((wins + 1) / pulls + width * jnp.sqrt(2 * jnp.log(pulls.sum()) / pulls), key)


def index_table(pulls: int, resolution: int = 400) -> np.ndarray:
    """Return Whittle's index `[left, wins, losses]` of an arm of a trial of so many pulls.

    With so many pulls left, it is the sure reward per pull at which going on with the arm, for as
    long as that is better, is worth as much as the sure reward: found on a grid of rewards by
    dynamic programming from the last pull back (Whittle 1988; Gittins 1979 without an end).

    Args:
        pulls: in a trial.
        resolution: intervals of the grid of sure rewards in [0, 1].
    """
    sure = np.linspace(0, 1, resolution + 1)[:, None, None]
    count = np.arange(pulls + 1)
    mean = (count[:, None] + 1) / (count[:, None] + count[None] + 2)  # [wins, losses]
    table = np.zeros((pulls + 1, pulls + 1, pulls + 1), np.float32)
    value = np.zeros((resolution + 1, pulls + 2, pulls + 2))
    for left in range(1, pulls + 1):
        going_on = mean * (1 + value[:, 1:, :-1]) + (1 - mean) * value[:, :-1, 1:]
        # The advantage falls with the sure reward: where it changes sign, between two grid points.
        advantage = going_on - left * sure
        above = np.sum(advantage > 0, axis=0).clip(1, resolution)
        high, low = (np.take_along_axis(advantage, (above - k)[None], axis=0)[0] for k in (1, 0))
        share = high / np.maximum(high - low, 1e-12)
        table[left] = (above - 1 + np.clip(share, 0, 1)) / resolution
        value = np.zeros_like(value)
        value[:, :-1, :-1] = np.maximum(going_on, left * sure)
    return table


def by_index(table, wins, losses, key):
    """Choose the arm with the largest index for the pulls that are left."""
    left = len(table) - 1 - (wins + losses).sum().astype(int)
    return best(table[left, wins.astype(int), losses.astype(int)], key)


def process_agent(states: int, actions: int, horizon: int, plan: Choose) -> Agent:
    """Return the agent that counts a tabular process, and plans before every episode.

    To adapt is to count and to plan, so a round is an episode.

    Args:
        states: of the process.
        actions: of the process.
        horizon: steps per episode.
        plan: `(counts, key) -> action[time, state]`, where counts have `visits[state, action,
            next_state]` and `reward[state, action]`, the sum of rewards.
    """

    def start(params, key):
        del params
        pairs = jnp.zeros((states, actions))
        counts = {"visits": jnp.zeros((states, actions, states)), "reward": pairs}
        return {"counts": counts, "plan": plan(counts, key)}

    def act(adapted, time, step_input, key):
        del key
        action = adapted["plan"][time % horizon, jnp.argmax(step_input.observation)]
        return time + 1, action, PolicyOutput(())

    def adapt(params, adapted, trajectory, key):
        del params
        steps = all_transitions(trajectory)
        pair = jnp.argmax(steps.step_input.observation, axis=-1), steps.action
        after = jnp.argmax(steps.next_input.observation, axis=-1)
        counts = {
            "visits": adapted["counts"]["visits"].at[*pair, after].add(1.0),
            "reward": adapted["counts"]["reward"].at[pair].add(steps.reward),
        }
        return {"counts": counts, "plan": plan(counts, key)}

    return Agent(start, lambda: jnp.zeros((), jnp.int32), act, adapt)


def backward_induction(reward, expected_value, horizon: int):
    """Return the value `[state]` of the first step and the best actions `[time, state]`."""

    def earlier(value, _):
        worth = reward + expected_value(value)
        return worth.max(axis=-1), worth.argmax(axis=-1).astype(jnp.int32)

    return jax.lax.scan(earlier, jnp.zeros(len(reward)), length=horizon, reverse=True)


def psrl(horizon: int, counts, key):
    """Plan for a process of the posterior under the true prior (Osband et al. 2013)."""
    transition_key, reward_key = jax.random.split(key)
    transition = jax.random.dirichlet(transition_key, 1 + counts["visits"])
    pulls = counts["visits"].sum(axis=-1)
    noise = jax.random.normal(reward_key, pulls.shape)
    reward = (1 + counts["reward"] + jnp.sqrt(1 + pulls) * noise) / (1 + pulls)
    return backward_induction(reward, lambda value: transition @ value, horizon)[1]


def ucrl2(horizon: int, scale: float, counts, key):
    """Plan for the best process that is not implausible (Jaksch et al. 2010), intervals scaled.

    Anew in every episode, where they wait until a count has doubled; δ is .05.
    """
    del key
    return backward_induction(*optimistic_process(scale, counts), horizon)[1]


def optimistic_process(scale: float, counts):
    """Return UCRL2's rewards `[state, action]` and `value[state] -> expected[state, action]`."""
    pulls = counts["visits"].sum(axis=-1)
    states, actions = pulls.shape
    confidence = jnp.log(2 * actions * jnp.maximum(1, pulls.sum()) / 0.05)
    known = jnp.maximum(1, pulls)
    of_states = confidence + jnp.log(states)  # that all their rewards are within
    reward = counts["reward"] / known + scale * jnp.sqrt(7 * of_states / (2 * known))
    width = scale * jnp.sqrt(14 * states * confidence / known)
    seen = counts["visits"] / known[..., None]
    estimate = jnp.where(pulls[..., None] > 0, seen, 1 / states)

    def optimistic(value):
        # Up to half the width goes to the best state, and is taken from the worst ones.
        order = jnp.argsort(-value)
        sorted_value, chance = value[order], estimate[..., order]
        chance = chance.at[..., 0].set(jnp.minimum(1.0, chance[..., 0] + width / 2))
        kept = jnp.cumsum(chance, axis=-1)
        chance = jnp.clip(1 - (kept - chance), 0.0, chance)
        return chance @ sorted_value

    return reward, optimistic


def oracle_velocity(family: TaskFamily) -> TaskFamily:
    """Return the family with the task's velocity at the end of its observations."""

    def privileged(state, task):
        seen = jnp.append(state.observation, task["velocity"])
        return dataclasses.replace(state, observation=seen)

    bare = family.env
    env = bare._replace(
        reset=lambda key, task: privileged(bare.reset(key, task), task),
        step=lambda state, action: privileged(bare.step(state, action), state.task),
        observation_size=bare.observation_size + 1,
    )
    return family._replace(env=env)


def observations_only(policy: Policy) -> Policy:
    """Return the policy whose input is the observation alone: no action, reward or end before."""

    def only_seen(advance):
        def run(params, memory, x):
            nothing = jax.tree.map(jnp.zeros_like, x)
            return advance(params, memory, dataclasses.replace(nothing, observation=x.observation))

        return run

    return policy._replace(step=only_seen(policy.step), unroll=only_seen(policy.unroll))


def whole_prior(name: str, **options) -> TaskFamily:
    """Return a family whose held-out tasks are of all of the range, training's part of it, too."""
    family = make(name, **options)

    def sample(key):
        coin_key, task_key = jax.random.split(key)
        held_out = jax.random.bernoulli(coin_key, 1 / STRIPS)
        tasks = family.test.sample(task_key), family.train.sample(task_key)
        return jax.tree.map(lambda *both: jnp.where(held_out, *both), *tasks)

    return family._replace(test=TaskDistribution(sample))
