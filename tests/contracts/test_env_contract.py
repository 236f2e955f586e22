"""What every task family promises."""

import importlib.util
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packages import PACKAGES, is_missing

from metajax.envs import FAMILIES, make
from metajax.envs.families.reacher import GOAL_RADIUS
from metajax.envs.rollouts import check_env, rollout
from metajax.envs.splits import BLOCKS, MARGIN, STRIPS, is_held_out
from metajax.errors import MetajaxError
from metajax.physics import BACKENDS
from metajax.types import Continuous, Discrete, PolicyOutput, TaskFamily, Trajectory

LENGTH, EPISODES, TASKS = 4, 2, 3

# The number whose range is split into training and held-out strips; None where all tasks are both;
# a function of the task that is True for held-out ones.
DIRECTION = lambda task: (
    jnp.arctan2(task["direction"][..., 1], task["direction"][..., 0]) % (2 * jnp.pi),
    0.0,
    2 * jnp.pi,
)
DISK = lambda task: (jnp.sum(task["goal"] ** 2, axis=-1), 0.0, 9.0)
MASS = lambda task: (jnp.log(task["mass"][..., 1]) / jnp.log(1.5), -3.0, 3.0)
SPLIT = {
    "ant-dir": None,
    "ant-goal": lambda task: (task["goal"][..., 0], -3.0, 3.0),
    "ant-params": MASS,
    "ant-vel": lambda task: (task["velocity"], 0.0, 3.0),
    "bernoulli-bandit": lambda task: (task["probability"][..., 0], 0.0, 1.0),
    "cartpole-params": lambda task: (task["length"], 0.25, 0.75),
    "dark-key-door": "finite",
    "gaussian-bandit": lambda task: (task["mean"][..., 0], 0.0, 1.0),
    "gridnav": "finite",
    "gymnax": "finite",
    "halfcheetah-dir": None,
    "halfcheetah-vel": lambda task: (task["velocity"], 0.0, 2.0),
    "hopper-params": MASS,
    "humanoid-dir": DIRECTION,
    "pendulum-params": lambda task: (task["length"], 0.75, 1.25),
    "point-goal": lambda task: (task["goal"][..., 0], -0.5, 0.5),
    "point-sparse": lambda task: (
        jnp.arctan2(task["goal"][..., 1], task["goal"][..., 0]),
        0.0,
        jnp.pi,
    ),
    "reacher-goal": lambda task: (jnp.sum(task["goal"] ** 2, axis=-1), 0.0, GOAL_RADIUS**2),
    "swimmer-vel": lambda task: (task["velocity"], 0.1, 0.2),
    "tabular": lambda task: (jax.scipy.stats.norm.cdf(task["reward"][..., 0, 0] - 1), 0.0, 1.0),
    "walker2d-dir": None,
    "walker2d-params": MASS,
    "walker2d-vel": lambda task: (task["velocity"], 0.0, 10.0),
    "xland-minigrid": "finite",
}
# Where a variant splits in another way than the first one.
SPLIT_OF_VARIANT = {
    ("ant-goal", "promp"): DISK,
    ("ant-goal", "varibad"): DISK,
    ("ant-goal", "pearl"): "finite",
    ("ant-params", "pearl"): "finite",
    ("gridnav", "varibad"): None,
    ("halfcheetah-vel", "promp"): lambda task: (task["velocity"], 0.0, 3.0),
    ("halfcheetah-vel", "varibad"): lambda task: (task["velocity"], 0.0, 3.0),
    ("halfcheetah-vel", "pearl"): "finite",
    ("halfcheetah-vel", "mql"): lambda task: (task["velocity"], 0.0, 2.5),
    ("halfcheetah-dir", "gymnasium"): None,
    ("hopper-params", "gymnasium"): None,
    ("hopper-params", "pearl"): "finite",
    ("humanoid-dir", "pearl"): "finite",
    ("point-sparse", "pearl"): "finite",
    ("walker2d-params", "gymnasium"): None,
    ("walker2d-params", "pearl"): "finite",
}
SMALL = {"tabular": {"states": 3, "actions": 2}}
ALWAYS_STARTS_ALIKE = {
    "bernoulli-bandit",
    "gaussian-bandit",
    "gridnav",
    "gymnax",
    "point-goal",
    "point-sparse",
    "tabular",
}


# One family of every body: engines take a minute to compile, and see nothing but the body.
BODIES = {
    "ant-goal",
    "halfcheetah-vel",
    "hopper-params",
    "humanoid-dir",
    "reacher-goal",
    "swimmer-vel",
    "walker2d-dir",
}


def on_one_engine():
    """Every family in every variant, on one engine."""
    for name, spec in FAMILIES.items():
        engine = {"backend": "mujoco"} if spec.backends else {}
        for index, variant in enumerate(spec.variants or (None,)):
            chosen = {"variant": variant} if variant else {}
            quick = not engine or (name in BODIES and name != "humanoid-dir" and not index)
            yield pytest.param(
                (name, engine | chosen),
                id="-".join([name, *chosen.values()]),
                marks=[
                    *([] if quick else [pytest.mark.slow]),
                    pytest.mark.skipif(is_missing(name), reason=f"needs {spec.package}"),
                ],
            )


def on_other_engines():
    """Every body on every other engine."""
    for name in sorted(BODIES):
        for backend in FAMILIES[name].backends:
            if backend not in ("mujoco", "warp"):  # warp needs a card: tests/test_warp.py
                yield pytest.param(
                    (name, {"backend": backend}),
                    id=f"{name}-{backend}",
                    marks=pytest.mark.slow,
                )


FAMILY_CASES = list(on_one_engine())
for_every_family = pytest.mark.parametrize("played", FAMILY_CASES, indirect=True, scope="module")
# What an engine might spoil; the rest is the same on all of them.
for_every_engine = pytest.mark.parametrize(
    "played", FAMILY_CASES + list(on_other_engines()), indirect=True, scope="module"
)


class Played(NamedTuple):
    name: str
    split: object
    family: TaskFamily
    tasks: dict
    play: object  # jitted, batched over tasks
    trajectory: Trajectory  # [task, episode, time]
    reset: object  # jitted, of one task
    step: object


def random_action(space, key):
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.size)
    low, high = space.bounds
    return jax.random.uniform(key, (space.size,), minval=low, maxval=high)


@pytest.fixture(scope="module")
def played(request):
    name, options = request.param
    split = SPLIT_OF_VARIANT.get((name, options.get("variant")), SPLIT[name])
    family = make(name, episode_length=LENGTH, **options, **SMALL.get(name, {}))

    def act(memory, step_input, key):
        action = random_action(family.env.action_space, key)
        return memory, action, PolicyOutput(distribution=())

    @jax.jit
    def play(key, tasks):
        def trial(key, task):
            return rollout(key, family.env, task, act, (), episodes=EPISODES)

        return jax.vmap(trial)(jax.random.split(key, TASKS), tasks)

    tasks = jax.vmap(family.train.sample)(jax.random.split(jax.random.key(0), TASKS))
    trajectory = plain(play(jax.random.key(1), tasks))
    reset, step = jax.jit(family.env.reset), jax.jit(family.env.step)
    return Played(name, split, family, tasks, play, trajectory, reset, step)


def plain(trajectory):
    """Return the trajectory with numbers for the keys that simulators may carry."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        trajectory,
    )


def assert_same(one, other):
    one, other = (jax.tree_util.tree_leaves_with_path(x) for x in (one, other))
    for (path, a), (_, b) in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_every_family_says_how_its_tasks_are_split():
    assert SPLIT.keys() == FAMILIES.keys()


@for_every_engine
def test_it_keeps_its_shapes_and_sizes(played):
    env, task = played.family.env, jax.tree.map(lambda x: x[0], played.tasks)
    check_env(env, task)
    seen = played.trajectory.step_input.observation
    assert seen.shape == (TASKS, EPISODES, LENGTH, env.observation_size)
    assert seen.dtype == played.trajectory.reward.dtype == jnp.float32
    assert played.family.name.rpartition("-v")[2].isdigit()


@for_every_engine
def test_it_stays_finite(played):
    for leaf in jax.tree.leaves(played.trajectory):
        assert np.all(np.isfinite(leaf))


@for_every_engine
def test_the_same_key_and_tasks_give_the_same_trajectory_without_compiling_again(played):
    again = played.play(jax.random.key(1), played.tasks)
    assert_same(plain(again), played.trajectory)
    other = played.play(jax.random.key(2), played.tasks)
    assert not np.array_equal(other.action, played.trajectory.action)
    assert played.play._cache_size() == 1


@for_every_engine
def test_an_episode_ends_on_time_and_once(played):
    trajectory = played.trajectory
    ends = trajectory.terminated | trajectory.truncated
    assert not np.any(trajectory.terminated & trajectory.truncated)
    np.testing.assert_array_equal(np.sum(ends, axis=-1), 1)
    lengths = np.sum(trajectory.valid, axis=-1)
    np.testing.assert_array_equal(np.argmax(ends, axis=-1), lengths - 1)
    np.testing.assert_array_equal(lengths[np.any(trajectory.truncated, axis=-1)], LENGTH)


@for_every_engine
def test_episodes_start_differently_where_the_start_is_random(played):
    first = np.asarray(played.trajectory.step_input.observation[:, :, 0])
    distinct = len(np.unique(first.reshape(TASKS * EPISODES, -1), axis=0))
    if played.name == "dark-key-door":  # the start belongs to the task
        assert distinct == TASKS
    elif played.name == "xland-minigrid":  # a small part is seen: two may look alike
        assert distinct > TASKS
    else:
        assert distinct == (1 if played.name in ALWAYS_STARTS_ALIKE else TASKS * EPISODES)


@for_every_family
def test_the_state_carries_its_task_and_counts_its_time(played):
    env = played.family.env
    task = jax.tree.map(lambda x: x[0], played.tasks)
    step = played.step
    state = played.reset(jax.random.key(0), task)
    assert state.time == 0 and state.reward == 0 and not (state.terminated | state.truncated)
    for time in range(1, 4):
        state = step(state, random_action(env.action_space, jax.random.key(time)))
        assert_same(state.task, task)
        assert state.time == time
    assert step._cache_size() == 1


@for_every_family
def test_the_task_matters(played):
    """The same start and the same actions lead elsewhere, or earn something else, on another."""
    env, finite = played.family.env, played.family.test.finite
    tasks = played.tasks if finite is None else jax.tree.map(lambda x: x[:2], finite)
    if played.name in {"gridnav", "dark-key-door", "point-sparse", *PACKAGES}:
        pytest.skip("nothing shows in so few steps; each has a test of its own")

    found = []
    for task in unstacked(tasks):
        state = played.reset(jax.random.key(0), task)
        rows = []
        for time in range(3):
            action = random_action(env.action_space, jax.random.key(time))
            state = played.step(state, action)
            rows.append(np.append(state.observation, state.reward))
        found.append(np.concatenate(rows))
    if played.name == "bernoulli-bandit":
        return  # a payment of 0 or 1 may be the same by chance
    assert len(np.unique(found, axis=0)) == len(found)


@for_every_family
def test_actions_beyond_their_bounds_are_clipped(played):
    env = played.family.env
    if not isinstance(env.action_space, Continuous):
        return
    task = jax.tree.map(lambda x: x[0], played.tasks)
    state = played.reset(jax.random.key(0), task)
    bound = jnp.asarray(env.action_space.bounds[1], float)
    assert_same(played.step(state, bound), played.step(state, 10 * bound))


@for_every_family
def test_no_training_task_is_held_out(played):
    family, split = played.family, played.split
    count = 2000
    keys = jax.random.split(jax.random.key(3), count)
    train, test = (jax.jit(jax.vmap(d.sample))(keys) for d in (family.train, family.test))
    if split is None:
        assert_same(family.train.finite, family.test.finite)
        return
    if split == "finite":
        rows = [rows_of(tasks) for tasks in (train, test)]
        assert rows[0] and rows[1] and not rows[0] & rows[1]
        return
    assert not np.any(is_held_out(*split(train)))
    assert np.all(is_held_out(*split(test)))
    for distribution in (train, test):  # held-out tasks are spread evenly over the whole range
        value, low, high = split(distribution)
        counts = np.histogram(value, bins=9, range=(low, high))[0]
        np.testing.assert_allclose(counts / count, 1 / 9, atol=0.03)


@for_every_family
def test_validation_tasks_are_neither_training_nor_held_out_tasks(played):
    family, split = played.family, played.split
    if family.validation is None:
        assert not callable(split)
        return
    keys = jax.random.split(jax.random.key(3), 2000)
    names = ("train", "test", "validation")
    train, test, tasks = (jax.jit(jax.vmap(getattr(family, name).sample))(keys) for name in names)
    assert_structure(tasks, test)
    if callable(split):
        value, low, high = split(tasks)
        places = (value - low) / (high - low) * BLOCKS * STRIPS
        assert np.all(np.abs(places - np.round(places)) < 0.9 * MARGIN)
        return
    assert len(rows_of(tasks)) > 1000
    assert not rows_of(tasks) & (rows_of(train) | rows_of(test))


def rows_of(tasks):
    return {
        tuple(np.concatenate([np.ravel(x) for x in jax.tree.leaves(task)]).tolist())
        for task in unstacked(without_start(tasks))
    }


def without_start(tasks):
    # A held-out start may be one of training: the rest of the task is not.
    return {name: x for name, x in tasks.items() if name != "start"}


def unstacked(tasks):
    count = len(jax.tree.leaves(tasks)[0])
    tasks = jax.tree.map(np.asarray, tasks)
    return [jax.tree.map(lambda x, i=i: x[i], tasks) for i in range(count)]


@for_every_family
def test_tasks_to_extrapolate_to_are_beyond_the_range(played):
    beyond, split = played.family.extrapolate, played.split
    if beyond is None:
        return
    keys = jax.random.split(jax.random.key(4), 500)
    tasks = jax.jit(jax.vmap(beyond.sample))(keys)
    assert_structure(tasks, played.tasks)
    if callable(split) and played.name != "point-sparse":
        value, low, high = split(tasks)
        assert np.all((value < low) | (value > high))
        assert np.all((value > low - 1.2 * (high - low)) & (value < high + 2.2 * (high - low)))


def assert_structure(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.shape[1:] == b.shape[1:] and a.dtype == b.dtype


ROBOTS = {name: spec for name, spec in FAMILIES.items() if spec.backends}


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, b) for name, spec in ROBOTS.items() for b in BACKENDS if b not in spec.backends],
)
def test_an_engine_that_a_family_lacks_is_one_sentence(name, backend):
    with pytest.raises(MetajaxError, match=f"backend '{backend}' (cannot change|has no water)"):
        make(name, backend=backend)


def test_what_a_spec_offers_is_what_its_factory_takes():
    for name, spec in FAMILIES.items():
        taken = inspect.signature(spec.factory).parameters
        offered = (bool(spec.backends), bool(spec.variants))
        assert ("backend" in taken, "variant" in taken) == offered, name


def offered():
    """Every family with every backend that it offers; to make them all takes minutes."""
    for name, spec in FAMILIES.items():
        for backend in spec.backends or (None,):
            quick = backend is None or name == "swimmer-vel"
            yield pytest.param(name, backend, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("name", "backend"), list(offered()))
def test_all_that_a_family_offers_is_made_or_lacks_a_package(name, backend):
    spec = FAMILIES[name]
    needed = {"warp": "warp-lang"}.get(backend or "", spec.package)
    for variant in spec.variants or (None,):
        chosen = {"backend": backend, "variant": variant}
        try:
            family = make(name, **{key: value for key, value in chosen.items() if value})
        except MetajaxError as error:
            assert f"needs the package {needed}" in str(error)
            assert is_missing(name) or importlib.util.find_spec("warp") is None
        else:
            assert family.backend == (backend or "jax")
