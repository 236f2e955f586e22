"""Q-learning: targets by hand, training on a process that is solved, the meta-gradient, replay."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumerated import action_values, meta_gradient_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from trials import batch_of

from metajax.adaptation import gradient_steps, policy_gradient
from metajax.adaptation import q_learning as q_objective
from metajax.adaptation.objectives import double_q_loss
from metajax.algorithms import dqn, maml_dqn
from metajax.envs import make
from metajax.envs.families.tabular import tabular
from metajax.envs.rollouts import rollout
from metajax.envs.splits import sample_tasks
from metajax.errors import MetajaxError
from metajax.losses.temporal_difference import double_q_learning, q_learning
from metajax.outer import adam, trpo
from metajax.policies import mlp
from metajax.policies.epsilon_greedy import epsilon_greedy
from metajax.replay import (
    Transitions,
    empty_replay,
    extend_replay,
    sample_replay,
    transitions,
)
from metajax.rules import sgd
from metajax.types import StepInput, Trajectory

pytestmark = pytest.mark.usefixtures("float64")

STATES, ACTIONS, LENGTH = 3, 2, 4


# --- errors and losses by hand -------------------------------------------------------------------


def test_errors_by_hand():
    q = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    action, reward = jnp.array([1, 0]), jnp.array([0.5, -1.0])
    discount = jnp.array([0.5, 0.0])  # the second step terminated
    next_q, selector = jnp.array([[10.0, 20.0], [7.0, 8.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    # 0.5 + 0.5·20 - 2 and -1 - 3; the selector takes 10 instead of 20.
    np.testing.assert_array_equal(q_learning(q, action, reward, discount, next_q), [8.5, -4.0])
    found = double_q_learning(q, action, reward, discount, next_q, selector)
    np.testing.assert_array_equal(found, [3.5, -4.0])


def sequence(observation, previous=0.0) -> StepInput:
    shape = observation.shape[:-1]
    return StepInput(
        observation, jnp.zeros(shape, int), jnp.full(shape, previous), jnp.zeros(shape, bool)
    )


def test_transitions_of_episodes_that_end_early():
    """Numbers are their own names: 10·episode + time; after the last step comes the final input."""
    names = 10.0 * jnp.arange(1, 4)[:, None] + jnp.arange(3)[None]
    valid = jnp.array([[True, True, True], [True, True, False], [True, False, False]])
    steps = transitions(
        Trajectory(
            step_input=sequence(names[..., None]),
            action=jnp.zeros((3, 3), int),
            output=(),
            reward=names,
            terminated=jnp.zeros((3, 3), bool).at[1, 1].set(True),
            truncated=jnp.zeros((3, 3), bool).at[0, 2].set(True),
            valid=valid,
            final_input=sequence(jnp.array([[13.0], [22.0], [31.0]]), previous=5.0),
        )
    )
    expected = np.asarray(names) + 1
    found = steps.next_input.observation[..., 0]
    np.testing.assert_array_equal(np.where(valid, found, 0), np.where(valid, expected, 0))
    last = np.array([[False, False, True], [False, True, False], [True, False, False]])
    heard = np.where(valid, steps.next_input.previous_reward, 0)
    np.testing.assert_array_equal(heard, 5.0 * last)
    np.testing.assert_array_equal(steps.terminated, [[0, 0, 0], [0, 1, 0], [0, 0, 0]])


class Linear:
    """A Q-table with a bias per action, and episodes of a process to learn it from."""

    def __init__(self):
        self.family = tabular(states=STATES, actions=ACTIONS, episode_length=LENGTH, reward_std=0.0)
        self.env = self.family.env
        self.policy = mlp(STATES, self.env.action_space, hidden=())
        self.behaviour = epsilon_greedy(self.policy, 0.5)
        params = self.policy.init(jax.random.key(0))
        flat, self.unravel = ravel_pytree(params)
        self.flat = flat + jax.random.normal(jax.random.key(1), flat.shape)
        self.other = flat + jax.random.normal(jax.random.key(2), flat.shape)
        self.task = self.family.train.sample(jax.random.key(3))

    def table(self, flat):
        layer = self.unravel(jnp.asarray(flat))["head"]
        return np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

    def play(self, episodes=3):
        params = self.unravel(self.flat)

        def act(memory, step_input, key):
            memory, output = self.behaviour.step(params, memory, step_input)
            return memory, output.distribution.sample(key), output

        return rollout(
            jax.random.key(4), self.env, self.task, act, (), episodes=episodes, parallel=True
        )


@pytest.fixture(scope="module")
def linear():
    return Linear()


def steps_of(trajectory):
    """Return (state, action, reward, terminated, next state) of every step played, in NumPy."""
    seen = np.asarray(trajectory.step_input.observation).argmax(-1)
    final = np.asarray(trajectory.final_input.observation).argmax(-1)
    found = []
    for episode, time in np.argwhere(np.asarray(trajectory.valid)):
        last = time == seen.shape[1] - 1 or not trajectory.valid[episode, time + 1]
        found.append(
            (
                seen[episode, time],
                int(trajectory.action[episode, time]),
                float(trajectory.reward[episode, time]),
                bool(trajectory.terminated[episode, time]),
                final[episode] if last else seen[episode, time + 1],
            )
        )
    return found


def loss_by_hand(table, fixed, steps, discount, bound=1.0):
    """Return the mean Huber loss and its semi-gradient [state, action]."""
    loss, gradient = 0.0, np.zeros_like(table)
    for state, action, reward, terminated, following in steps:
        best = table[following].argmax()
        target = reward + (0 if terminated else discount * fixed[following, best])
        error = target - table[state, action]
        inside = abs(error) <= bound
        loss += 0.5 * error**2 if inside else bound * (abs(error) - 0.5 * bound)
        gradient[state, action] -= np.clip(error, -bound, bound)
    return loss / len(steps), gradient / len(steps)


def cut(trajectory):
    """Return the trajectory with the second episode ended by the task after two steps."""
    return dataclasses.replace(
        trajectory,
        valid=trajectory.valid.at[1, 2:].set(False),
        terminated=trajectory.terminated.at[1, 1].set(True),
    )


@pytest.mark.parametrize("bound", [1.0, 0.3, None])
def test_loss_by_hand(linear, bound):
    trajectory = cut(linear.play())
    loss = lambda flat: double_q_loss(
        linear.behaviour,
        linear.unravel(flat),
        linear.unravel(linear.other),
        transitions(trajectory),
        0.9,
        bound,
    )
    found, gradient = jax.value_and_grad(loss)(linear.flat)
    expected, by_table = loss_by_hand(
        linear.table(linear.flat),
        linear.table(linear.other),
        steps_of(trajectory),
        0.9,
        np.inf if bound is None else bound,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    head = linear.unravel(gradient)["head"]
    np.testing.assert_allclose(head["kernel"], by_table, rtol=1e-12)
    np.testing.assert_allclose(head["bias"], by_table.sum(0), rtol=1e-12)


# --- algorithms ----------------------------------------------------------------------------------


def test_dqn_solves_a_process(linear):
    """Its table becomes that of value iteration, for a discount that makes the length no matter."""
    discount = 0.5
    algorithm = dqn(
        linear.env,
        linear.policy,
        inner=gradient_steps(q_objective(discount=discount)),
        outer=adam(0.01),
        epsilon=1.0,
        updates=200,
        target_period=50,
        episodes=20,
    )
    tasks = batch_of(jax.tree.map(lambda x: x[None], linear.task))
    state = algorithm.init(jax.random.key(0), tasks)
    update = jax.jit(algorithm.update)
    for i in range(40):
        state, _ = update(state, tasks, jax.random.key(i))
    uniform = np.full((STATES, ACTIONS), 1 / ACTIONS)
    found = linear.table(ravel_pytree(state.meta_params.policy)[0])
    best = np.zeros((STATES, ACTIONS))
    for _ in range(100):  # value iteration
        best = linear.task["reward"] + discount * linear.task["transition"] @ best.max(-1)
    assert np.max(np.abs(found - best)) < 0.25, found - best
    # Far from the values of acting at random, and from reward alone.
    at_random = action_values(jnp.asarray(uniform), linear.task, 100, discount)[0]
    assert min(np.max(np.abs(best - at_random)), np.max(np.abs(best - linear.task["reward"]))) > 0.5


@pytest.mark.parametrize(("error_clip", "value"), [(None, 10.0), (0.01, 0.0)])
def test_what_happens_seldom_counts_without_a_bound(linear, error_clip, value):
    """Of targets 100, a tenth of them, and 0 the mean is 10, the median 0."""
    policy = linear.policy
    often = linear.play(episodes=5).step_input.observation[:, :1]
    steps = Transitions(
        sequence(jnp.broadcast_to(often[:1, 0], (10, STATES))),
        jnp.zeros(10, int),
        jnp.zeros(10).at[3].set(100.0),
        jnp.ones(10, bool),
        sequence(jnp.zeros((10, STATES))),
        jnp.ones(10, bool),
    )
    behaviour = epsilon_greedy(policy, 0.1)
    loss = lambda flat: double_q_loss(
        behaviour, linear.unravel(flat), linear.unravel(flat), steps, 0.9, error_clip
    )
    step = 0.2 if error_clip is None else 20.0
    flat = jax.lax.fori_loop(
        0, 3000, lambda _, flat: flat - step * jax.grad(loss)(flat), jnp.zeros_like(linear.flat)
    )
    output = policy.step(linear.unravel(flat), (), jax.tree.map(lambda x: x[0], steps.step_input))[
        1
    ]
    np.testing.assert_allclose(output.distribution.logits[0], value, atol=0.5)


@pytest.mark.parametrize(
    ("inner_steps", "first_order"),
    [pytest.param(*of, marks=pytest.mark.slow) for of in ((1, True), (1, False), (2, False))],
)
def test_the_meta_gradient_of_maml_dqn(linear, inner_steps, first_order):
    """Of one trial: central differences of the same steps by hand, bootstrapped values and all."""
    alpha, discount, size = 2.0, 0.9, 1e-5
    algorithm = maml_dqn(
        linear.env,
        linear.policy,
        inner=gradient_steps(q_objective(discount=discount), rule=sgd(alpha)),
        inner_steps=inner_steps,
        first_order=first_order,
        epsilon=0.5,
        episodes=3,
        updates=1,
        batch=1,
    )
    tasks = jax.tree.map(lambda x: x[None], linear.task)
    state = algorithm.init(jax.random.key(0), batch_of(tasks))
    state = dataclasses.replace(
        state,
        meta_params=dataclasses.replace(state.meta_params, policy=linear.unravel(linear.flat)),
        learner=state.learner | {"target": (linear.unravel(linear.other), ())},
    )
    found = meta_gradient_of(algorithm, state, tasks)

    new, _ = algorithm.update(state, batch_of(tasks), jax.random.key(0))
    trial = jax.tree.map(lambda x: x[0], new.replay.items).trajectory
    rounds = [steps_of(jax.tree.map(lambda x, k=k: x[k], trial)) for k in range(inner_steps + 1)]

    def adapted(flat, constant=None):
        """Return the adapted (kernel + bias) table; gradients at `constant` if there is one."""
        flat = np.array(flat)
        held = flat.copy() if constant is None else np.array(constant)
        for steps in rounds[:-1]:
            _, gradient = loss_by_hand(linear.table(held), linear.table(held), steps, discount)
            step = linear.unravel(linear.flat)
            step["head"] = {"kernel": jnp.asarray(gradient), "bias": jnp.asarray(gradient.sum(0))}
            step = alpha * np.asarray(ravel_pytree(step)[0])
            flat, held = flat - step, held - step
        return linear.table(flat)

    fixed = adapted(linear.other)

    def outer(flat):
        constant = linear.flat if first_order else None
        return loss_by_hand(adapted(flat, constant), fixed, rounds[-1], discount)[0]

    flat = np.asarray(linear.flat)
    numeric = [
        (outer(flat + size * e) - outer(flat - size * e)) / (2 * size) for e in np.eye(len(flat))
    ]
    np.testing.assert_allclose(-found, numeric, rtol=1e-6, atol=1e-9)
    assert np.max(np.abs(numeric)) > 0.01


def test_bad_options():
    point = make("point-goal", episode_length=4)
    policy = mlp(2, point.env.action_space)
    with pytest.raises(MetajaxError, match="discrete"):
        dqn(point.env, policy)
    grid = make("gridnav")
    policy = mlp(2, grid.env.action_space)
    for options, message in [
        ({"epsilon": 0.0}, "epsilon"),
        ({"updates": 0}, "updates"),
        ({"replay_capacity": 0}, "replay_capacity"),
        ({"target_period": 0}, "target_period"),
    ]:
        with pytest.raises(MetajaxError, match=message):
            maml_dqn(grid.env, policy, **options)
    for options in ({"discount": 1.5}, {"error_clip": 0.0}):
        with pytest.raises(MetajaxError, match=next(iter(options))):
            q_objective(**options)
    for factory in (dqn, maml_dqn):
        with pytest.raises(MetajaxError, match=r"inner\.objective must be 'q-learning'"):
            factory(grid.env, policy, inner=gradient_steps(policy_gradient()))
        with pytest.raises(MetajaxError, match="loss of values; take the outer step 'adam'"):
            factory(grid.env, policy, outer=trpo())
    with pytest.raises(MetajaxError, match="no use for a context"):
        dqn(
            grid.env,
            mlp(2, grid.env.action_space, context=2),
            inner=gradient_steps(q_objective(), adapts="context"),
        )
    small = dqn(grid.env, policy, episodes=2, replay_capacity=29)
    tasks = sample_tasks(grid.train, jax.random.key(0), 1)
    with pytest.raises(MetajaxError, match=r"replay_capacity is 29.* 30"):
        small.init(jax.random.key(0), tasks)


# --- replay --------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=6))
def test_replay_is_a_queue(batches):
    """A deque of bounded length keeps the same items, in any order."""
    replay, expected = (
        empty_replay(jax.ShapeDtypeStruct((4,), jnp.int32), 5),
        collections.deque(maxlen=5),
    )
    for number, valid in enumerate(batches):
        items = 10 * number + jnp.arange(4, dtype=jnp.int32)
        replay = extend_replay(replay, items, jnp.array(valid))
        expected.extend(int(x) for x, kept in zip(items, valid, strict=True) if kept)
        assert int(replay.size) == len(expected)
        assert sorted(replay.items[: int(replay.size)].tolist()) == sorted(expected)


def test_replay_is_drawn_from_uniformly():
    replay = empty_replay({"x": jax.ShapeDtypeStruct((5, 2), jnp.float32)}, 8)
    items = {"x": jnp.arange(1.0, 6.0, dtype=jnp.float32)[:, None].repeat(2, 1)}
    replay = extend_replay(replay, items, jnp.ones(5, bool))
    drawn = np.asarray(sample_replay(replay, jax.random.key(0), 10_000)["x"])
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    values, counts = np.unique(drawn[:, 0], return_counts=True)
    np.testing.assert_array_equal(values, np.arange(1.0, 6.0))  # never an empty slot
    assert np.all(np.abs(counts - 2000) < 5 * np.sqrt(2000 * 0.8))


def test_what_is_not_finite_is_not_kept():
    replay = empty_replay({"x": jax.ShapeDtypeStruct((4, 2), float)}, 8)
    items = {"x": jnp.array([[1.0, 2.0], [jnp.nan, 0.0], [3.0, -jnp.inf], [4.0, 5.0]])}
    replay = extend_replay(replay, items, jnp.array([True, True, True, False]))
    assert int(replay.size) == int(replay.next) == 1
    np.testing.assert_array_equal(replay.items["x"][0], [1.0, 2.0])
    assert np.all(np.isfinite(replay.items["x"]))


def test_an_empty_replay_gives_nothing_that_looks_like_something():
    shapes = {"x": jax.ShapeDtypeStruct((2, 3), float), "valid": jax.ShapeDtypeStruct((2,), bool)}
    replay = empty_replay(shapes, 5)
    with pytest.raises(MetajaxError, match="the replay is empty"):
        sample_replay(replay, jax.random.key(0), 4)
    drawn = jax.jit(lambda replay: sample_replay(replay, jax.random.key(0), 4))(replay)
    assert np.all(np.isnan(drawn["x"])) and np.all(drawn["valid"])  # no mask hides it
