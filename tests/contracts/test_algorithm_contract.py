"""What every algorithm promises, with every combination of its outer step and baseline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.algorithms import ALGORITHMS, maml
from metajax.algorithms.maml import Baseline, Outer
from metajax.envs import make
from metajax.policies import mlp
from metajax.rollout import rollout

LENGTH, TASKS, EPISODES = 4, 3, 3

VARIANTS = {
    "maml": [
        {"outer": outer, "baseline": baseline}
        for outer in Outer.__args__
        for baseline in Baseline.__args__
    ]
}
FAMILY = make("point-goal", episode_length=LENGTH)


def build(name, options):
    env = FAMILY.env
    # Wide enough to be clipped now and then, which no likelihood may notice.
    policy = mlp(env.observation_size, env.action_space, hidden=(4,), initial_std=0.1)
    assert name == "maml"
    return maml(env, policy, episodes=EPISODES, critic_hidden=(4,), **options)


def test_every_algorithm_is_covered():
    assert VARIANTS.keys() == ALGORITHMS.keys()


@pytest.fixture(
    scope="module",
    params=[(name, options) for name in VARIANTS for options in VARIANTS[name]],
    ids=lambda p: "-".join([p[0], *p[1].values()]),
)
def case(request):
    """Return an algorithm, its compiled update, tasks, and what two updates gave."""
    algorithm = build(*request.param)
    tasks = jax.vmap(FAMILY.train.sample)(jax.random.split(jax.random.key(0), TASKS))
    update = jax.jit(algorithm.update)
    states, metrics = [algorithm.init(jax.random.key(1), tasks)], []
    for i in range(2):
        state, found = update(states[-1], tasks, jax.random.key(2 + i))
        states.append(state)
        metrics.append(found)
    return algorithm, update, tasks, states, metrics


def test_update_keeps_the_structure_of_the_state(case):
    _, _, _, states, _ = case
    described = [
        jax.tree.map(lambda x: (x.shape, x.dtype), state, is_leaf=lambda x: x is None)
        for state in states
    ]
    assert described[0] == described[1] == described[2]


def test_update_is_compiled_once(case):
    _, update, tasks, states, _ = case
    update(states[-1], tasks, jax.random.key(9))
    # The first state may be weakly typed, which is another type: at most that one more.
    assert update._cache_size() <= 2
    before = update._cache_size()
    update(states[1], tasks, jax.random.key(10))
    assert update._cache_size() == before


def test_everything_is_finite_and_named(case):
    _, _, _, states, metrics = case
    for leaf in jax.tree.leaves((states, metrics)):
        assert np.all(np.isfinite(leaf))
    for found in metrics:
        assert {"return_before", "return_after", "entropy", "meta_gradient_norm"} <= found.keys()
        assert all(value.shape == () for value in found.values())


def test_every_parameter_is_trained(case):
    _, _, _, states, _ = case
    before, after = (jax.tree_util.tree_leaves_with_path(states[i].meta_params) for i in (0, 2))
    for (path, a), (_, b) in zip(before, after, strict=True):
        assert np.any(a != b), jax.tree_util.keystr(path)


def test_the_same_key_gives_the_same_update(case):
    _, update, tasks, states, _ = case
    again, _ = update(states[0], tasks, jax.random.key(2))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(states[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    other, _ = update(states[0], tasks, jax.random.key(3))
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(other.meta_params), jax.tree.leaves(again.meta_params), strict=True
        )
    )


def test_steps_are_counted(case):
    algorithm, *_ = case
    assert algorithm.steps_per_task == 2 * EPISODES * LENGTH


def test_its_agent_adapts(case):
    """On other episodes than those of training; an adapted agent acts differently."""
    algorithm, _, tasks, states, _ = case
    agent, meta_params = algorithm.agent, states[-1].meta_params
    task = jax.tree.map(lambda x: x[0], tasks)

    @jax.jit
    def trial(key):
        begin_key, play_key, adapt_key = jax.random.split(key, 3)
        adapted = agent.begin(meta_params, begin_key)

        def act(memory, step_input, key):
            return agent.act(adapted, memory, step_input, key)

        trajectory = rollout(
            play_key, FAMILY.env, task, act, agent.initial_memory(), episodes=EPISODES + 2
        )
        first = jax.tree.map(lambda x: x[0, 0], trajectory.step_input)
        new = agent.adapt(meta_params, adapted, trajectory, adapt_key)
        return [agent.act(a, agent.initial_memory(), first, None)[1] for a in (adapted, new)]

    before, after = trial(jax.random.key(5))
    assert jnp.all(jnp.isfinite(after)) and jnp.any(before != after)
