"""Environments of gymnax and XLand-MiniGrid as task families."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packages import PACKAGES

import metajax
from metajax.adaptation import gradient_steps, policy_gradient
from metajax.envs.splits import is_held_out, sample_batch
from metajax.errors import MetajaxError

gymnax_only, xland_only = (
    pytest.mark.skipif(importlib.util.find_spec(p) is None, reason=f"needs {p}")
    for p in ("gymnax", "xminigrid")
)


def batch(distribution, count, seed=0):
    return sample_batch(distribution, jax.random.key(seed), count)


def play(family, task, key, actions):
    """States of one episode, from the start on."""
    state = family.env.reset(key, task)
    _, after = jax.lax.scan(lambda s, a: (family.env.step(s, a),) * 2, state, actions)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), state, after)


# --- gymnax ---------------------------------------------------------------------------------------


@gymnax_only
def test_a_varied_parameter_is_the_one_of_gymnax():
    import gymnax

    family = metajax.make("gymnax", environment="CartPole-v1", vary={"gravity": (5.0, 15.0)})
    assert family.name == "gymnax-CartPole-v1-v1" and family.env.episode_length == 500
    game, params = gymnax.make("CartPole-v1")
    key, actions = jax.random.key(1), jnp.array([0, 1] * 10 + [1] * 20)
    for gravity in (5.5, 14.5):
        states = play(family, {"gravity": jnp.asarray(gravity)}, key, actions)
        state = jax.tree.map(lambda x: x[0], states.simulator["state"])
        for time, action in enumerate(actions):
            observation, state, reward, terminated, _ = game.step_env(
                key, state, action, params.replace(gravity=gravity)
            )
            np.testing.assert_allclose(
                states.observation[time + 1], observation, rtol=1e-5, atol=1e-6
            )
            assert states.reward[time + 1] == reward
            assert states.terminated[time + 1] == terminated
            if terminated:
                break
        assert 3 < time < len(actions) - 1  # it has fallen


@gymnax_only
def test_masses_and_lengths_are_those_of_the_family_of_our_own():
    """gymnax keeps sums and products of them, which must follow."""
    ranges = {"masspole": (0.05, 0.5), "length": (0.25, 0.75), "force_mag": (5.0, 15.0)}
    theirs = metajax.make("gymnax", environment="CartPole-v1", vary=ranges)
    ours = metajax.make("cartpole-params")
    length, mass, force = jnp.array(0.7), jnp.array(0.4), jnp.array(12.0)
    key, actions = jax.random.key(1), jnp.array([0, 0, 1] * 4)
    states = play(theirs, {"masspole": mass, "length": length, "force_mag": force}, key, actions)
    task = {"length": length, "mass": mass, "force": force}
    state = ours.env.reset(key, task)
    state = dataclasses.replace(state, simulator=states.observation[0])
    for time, action in enumerate(actions):
        state = ours.env.step(state, action)
        np.testing.assert_allclose(state.observation, states.observation[time + 1], rtol=2e-4)
    moved = []
    for mass in (0.6, 1.9):
        family = metajax.make("gymnax", environment="CartPole-v1", vary={"masscart": (0.5, 2.0)})
        moved.append(play(family, {"masscart": jnp.asarray(mass)}, key, actions).observation[-1])
    assert np.abs(moved[0] - moved[1]).max() > 0.01


@gymnax_only
def test_varied_parameters_are_split():
    ranges = {"gravity": (5.0, 15.0), "masspole": (0.05, 0.2)}
    family = metajax.make("gymnax", environment="CartPole-v1", vary=ranges)
    train, test, beyond = (batch(d, 500) for d in (family.train, family.test, family.extrapolate))
    assert not np.any(is_held_out(train["gravity"], 5.0, 15.0))
    assert np.all(is_held_out(test["gravity"], 5.0, 15.0))
    assert np.all(beyond["gravity"] > 15.0) and np.all(beyond["masspole"] > 0.2)
    for tasks in (train, test):
        assert np.all((tasks["masspole"] >= 0.05) & (tasks["masspole"] <= 0.2))


def drawn(family, tasks):
    """What gymnax draws at the start of every task: all numbers of its state."""
    key = jax.random.key(0)
    states = jax.vmap(lambda task: family.env.reset(key, task).simulator["state"])(tasks)
    leaves = [
        x for x in jax.tree.leaves(states) if not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    ]
    rows = np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in leaves], axis=1)
    return {tuple(row) for row in rows}


@gymnax_only
def test_without_it_a_task_is_what_a_reset_draws():
    family = metajax.make("gymnax", environment="Reacher-misc")
    assert family.name == "gymnax-Reacher-misc-v1"
    train, test = (batch(d, 500) for d in (family.train, family.test))
    assert np.all(test["seed"] % 11 == 0) and np.all(train["seed"] % 11 != 0)
    assert len(drawn(family, train)) == len(drawn(family, test)) == 500
    task = jax.tree.map(lambda x: x[0], train)
    starts = [family.env.reset(jax.random.key(i), task) for i in range(3)]
    assert len({tuple(np.asarray(s.observation)) for s in starts}) == 1  # in every episode


@gymnax_only
@pytest.mark.parametrize(
    ("environment", "trained", "held_out"),
    # MetaMaze: a 9 x 9 maze has 81 cells less 16 pillars; FourRooms: 104 free cells.
    [("MetaMaze-misc", 59, 6), ("FourRooms-misc", 95, 9)],
)
def test_goals_that_can_be_counted_are_split(environment, trained, held_out):
    family = metajax.make("gymnax", environment=environment)
    assert family.name == f"gymnax-{environment}-v2"
    goals = [drawn(family, d.finite) for d in (family.train, family.test)]
    assert [len(g) for g in goals] == [trained, held_out] and not goals[0] & goals[1]
    assert drawn(family, batch(family.test, 30)) == goals[1]


@gymnax_only
@pytest.mark.parametrize(
    ("environment", "count"), [("BernoulliBandit-misc", 2), ("Catch-bsuite", 5)]
)
def test_the_few_tasks_of_some_environments_are_trained_and_tested_on(environment, count):
    family = metajax.make("gymnax", environment=environment)
    assert len(drawn(family, family.train.finite)) == count == len(family.train.finite["seed"])
    assert drawn(family, family.train.finite) == drawn(family, family.test.finite)


@gymnax_only
@pytest.mark.parametrize(
    ("environment", "rest"),
    [
        ("Asterix-MinAtar", "no parameter can vary"),
        ("Seaquest-MinAtar", "no parameter can vary"),
        ("SpaceInvaders-MinAtar", "no parameter can vary"),
        ("Pong-misc", "no parameter can vary"),
        ("DiscountingChain-bsuite", "vary is empty; it may hold optimal_return"),
    ],
)
def test_environments_with_one_task_are_refused(environment, rest):
    with pytest.raises(MetajaxError, match=f"{environment} has one task only: .*{rest}"):
        metajax.make("gymnax", environment=environment)


@gymnax_only
def test_all_others_have_tasks_that_differ():
    """Two seeds differ, and so do the ends of a parameter's range after a step."""
    import gymnax

    drawn_maps = metajax.make("gymnax", environment="DeepSea-bsuite")
    tasks = batch(drawn_maps.train, 2)
    assert len(drawn(drawn_maps, tasks)) == 2
    chain = metajax.make(
        "gymnax", environment="DiscountingChain-bsuite", vary={"optimal_return": (1.0, 2.0)}
    )
    assert len(drawn(chain, batch(chain.train, 5))) == 5
    refused = []
    for name in ("Acrobot-v1", "MountainCar-v0", "BernoulliBandit-misc", "PointRobot-misc"):
        params = gymnax.make(name)[1]
        for parameter, value in vars(params).items():
            if isinstance(value, float):
                ranges = {parameter: (value, value + 1.0)}
                try:
                    metajax.make("gymnax", environment=name, vary=ranges, episode_length=10)
                except MetajaxError as error:
                    if "changes nothing" in str(error):
                        refused.append(parameter)
    # The height of Acrobot's tip is counted in links of length 1, and its second link's motion
    # depends on where its centre of mass is; time limits are the family's.
    assert refused == ["link_length_2", "max_steps_in_episode"]


@gymnax_only
@pytest.mark.parametrize(
    ("environment", "size", "actions"),
    [
        ("Pendulum-v1", 3, metajax.Continuous(1, -2.0, 2.0)),
        ("MountainCarContinuous-v0", 2, metajax.Continuous(1, -1.0, 1.0)),
        ("Catch-bsuite", 50, metajax.Discrete(3)),
        ("BernoulliBandit-misc", 4, metajax.Discrete(2)),
        ("Breakout-MinAtar", 400, metajax.Discrete(3)),
    ],
)
def test_all_kinds_of_environments(environment, size, actions):
    family = metajax.make("gymnax", environment=environment)
    env = family.env
    assert (env.observation_size, env.action_space) == (size, actions)
    task = family.train.sample(jax.random.key(0))
    metajax.check_env(env, task)
    key, space = jax.random.key(1), env.action_space
    chosen = (
        jax.random.randint(key, (30,), 0, space.size)
        if isinstance(space, metajax.Discrete)
        else jax.random.uniform(key, (30, space.size), minval=-1)
    )
    states = play(family, task, key, chosen)
    assert np.all(np.isfinite(states.observation)) and np.all(np.isfinite(states.reward))


@gymnax_only
def test_mistakes_about_gymnax():
    with pytest.raises(
        MetajaxError, match="unknown environment of gymnax 'CartPole'; did you mean"
    ):
        metajax.make("gymnax", environment="CartPole")
    with pytest.raises(
        MetajaxError, match="unknown parameter of CartPole-v1 'gravitation'; did you"
    ):
        metajax.make("gymnax", environment="CartPole-v1", vary={"gravitation": (1.0, 2.0)})
    with pytest.raises(MetajaxError, match=r"must be \(lowest, highest\). The default is 9.8"):
        metajax.make("gymnax", environment="CartPole-v1", vary={"gravity": (2.0, 1.0)})
    for wrong in (9.8, ("a", "b"), (1.0, 2.0, 3.0)):
        with pytest.raises(MetajaxError, match="each value 2 values, each a finite number"):
            metajax.make("gymnax", environment="CartPole-v1", vary={"gravity": wrong})
    with pytest.raises(MetajaxError, match="unknown parameter of CartPole-v1 'total_mass'"):
        metajax.make("gymnax", environment="CartPole-v1", vary={"total_mass": (1.0, 2.0)})
    with pytest.raises(MetajaxError, match="max_torque bounds the actions of Pendulum-v1"):
        metajax.make("gymnax", environment="Pendulum-v1", vary={"max_torque": (1.0, 4.0)})
    with pytest.raises(MetajaxError, match="observations of FrozenLake-misc are a Discrete; they"):
        metajax.make("gymnax", environment="FrozenLake-misc")
    with pytest.raises(MetajaxError, match="MNISTBandit-bsuite fetches its data"):
        metajax.make("gymnax", environment="MNISTBandit-bsuite")
    with pytest.raises(MetajaxError, match="episode_length is 0"):
        metajax.make("gymnax", episode_length=0)


# --- XLand-MiniGrid -------------------------------------------------------------------------------


@xland_only
def test_the_wanted_object_is_there_and_reaching_it_pays():
    family = metajax.make("xland-minigrid", episode_length=60)
    tasks = batch(family.train, 64)
    for goal, tiles in zip(tasks["goal"], tasks["init_tiles"], strict=True):
        rows = {tuple(tile) for tile in np.asarray(tiles)}
        assert tuple(np.asarray(goal[1:3])) in rows and len(rows) == 4

    @jax.jit
    @jax.vmap
    def wander(key, task):
        return play(family, task, key, jax.random.randint(key, (60,), 0, 6))

    states = wander(jax.random.split(jax.random.key(0), 64), tasks)
    first = np.argmax(states.terminated, axis=1)
    reached = np.flatnonzero(states.terminated.any(axis=1))
    assert len(reached) > 10
    for world in reached:
        time = first[world]
        np.testing.assert_allclose(states.reward[world, time], 1 - 0.9 * time / 60, rtol=1e-6)
        np.testing.assert_array_equal(states.reward[world, :time], 0)
        agent = states.simulator.state.agent
        grid = np.asarray(states.simulator.state.grid[world, time])
        kind, tile = tasks["goal"][world, 0], np.asarray(tasks["goal"][world, 1:3])
        if kind == 1:
            np.testing.assert_array_equal(agent.pocket[world, time], tile)
        else:
            y, x = np.asarray(agent.position[world, time])
            around = [grid[y + dy, x + dx] for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))]
            assert any(np.array_equal(tile, cell) for cell in around)


@xland_only
def test_held_out_objects_are_never_wanted_in_training():
    family = metajax.make("xland-minigrid")
    wanted = [
        {tuple(row) for row in np.asarray(batch(d, 1000)["goal"][:, 1:3])}
        for d in (family.train, family.test)
    ]
    assert len(wanted[0]) == 60 and len(wanted[1]) == 6 and not wanted[0] & wanted[1]
    assert len({color for _, color in wanted[1]}) == len({shape for shape, _ in wanted[1]}) == 6


@xland_only
def test_rule_sets_from_a_file(tmp_path):
    count = 22
    arrays = {
        "goals": np.tile(np.array([1, 3, 0, 0, 0], np.uint8), (count, 1)),
        "rules": np.zeros((count, 2, 7), np.uint8),
        "init_tiles": np.tile(np.array([[3, 1], [4, 2]], np.uint8), (count, 1, 1)),
    }
    arrays["goals"][:, 2] = np.arange(count) % 11 + 1
    arrays["goals"][:, 0] += np.arange(count, dtype=np.uint8) // 11
    path = tmp_path / "rules.npz"
    np.savez(path, **arrays)
    family = metajax.make("xland-minigrid", rulesets=str(path))
    np.testing.assert_array_equal(family.test.finite["goal"], arrays["goals"][[5, 16]])
    assert len(family.train.finite["goal"]) == 20
    metajax.check_env(family.env, family.train.sample(jax.random.key(0)))
    for wrong in (
        {"goals": arrays["goals"]},
        arrays | {"rules": arrays["rules"][:3]},
        arrays | {"rules": arrays["rules"][:, 0]},
        arrays | {"goals": arrays["goals"][:, :4]},
        {name: x[:5] for name, x in arrays.items()},
        {name: np.uint8(0) for name in arrays},
    ):
        np.savez(path, **wrong)
        with pytest.raises(MetajaxError, match=r"rules\.npz"):
            metajax.make("xland-minigrid", rulesets=str(path))
    again = {name: np.concatenate([x, x[2:3]]) for name, x in arrays.items()}
    np.savez(path, **again)
    with pytest.raises(MetajaxError, match=r"rule sets 2 and 22 of .*rules\.npz are the same"):
        metajax.make("xland-minigrid", rulesets=str(path))
    np.savez(path, **arrays)
    for content in (b"", b"no such thing", path.read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(MetajaxError, match=r"cannot read rule sets from .*rules\.npz"):
            metajax.make("xland-minigrid", rulesets=str(path))
    np.save(tmp_path / "rules.npy", arrays["goals"])
    with pytest.raises(MetajaxError, match=r"cannot read rule sets from .*rules\.npy"):
        metajax.make("xland-minigrid", rulesets=str(tmp_path / "rules.npy"))
    with pytest.raises(MetajaxError, match="has places for 48 objects, not for 49"):
        metajax.make("xland-minigrid", objects=49)
    with pytest.raises(MetajaxError, match=r"cannot read rule sets from nowhere\.npz"):
        metajax.make("xland-minigrid", rulesets="nowhere.npz")
    with pytest.raises(MetajaxError, match="unknown environment of XLand-MiniGrid 'R1-9x9'; did"):
        metajax.make("xland-minigrid", environment="R1-9x9")


@xland_only
@pytest.mark.parametrize("kind", ["near", "hold"])
def test_goals_are_reached_by_one_kind_of_action(kind):
    """A "near" goal by walking, not by turning; what is carried cannot be seen."""
    family = metajax.make("xland-minigrid", episode_length=20)
    tile = jnp.array([3, 1], jnp.uint8)
    task = {
        "goal": jnp.array([3 if kind == "near" else 1, *tile, 0, 0], jnp.uint8),
        "rules": jnp.zeros((1, 7), jnp.uint8),
        "init_tiles": tile[None],
    }
    state = family.env.reset(jax.random.key(0), task)
    timestep = state.simulator
    grid = timestep.state.grid
    (there,) = np.argwhere(np.all(np.asarray(grid) == np.asarray(tile), axis=-1))
    floor = np.asarray(grid)[np.asarray(grid)[..., 0] == 1][0]
    grid = grid.at[tuple(there)].set(floor).at[2, 3].set(tile)
    # Facing up, the tile on its right.
    agent = timestep.state.agent.replace(position=jnp.array([2, 2]), direction=jnp.asarray(0))
    timestep = timestep.replace(state=timestep.state.replace(grid=grid, agent=agent))
    state = dataclasses.replace(state, simulator=timestep)
    turned = family.env.step(state, jnp.asarray(1, jnp.int32))
    assert not turned.terminated
    forward = family.env.step(turned, jnp.asarray(0, jnp.int32))  # the object is in the way
    assert bool(forward.terminated) == (kind == "near")
    held = family.env.step(turned, jnp.asarray(3, jnp.int32))
    assert bool(held.terminated) == (kind == "hold")
    seen = np.asarray(held.simulator.observation).reshape(-1, 2)
    assert not np.any(np.all(seen == np.asarray(tile), axis=1))


@pytest.mark.slow
@xland_only
def test_every_room_can_be_walked_in():
    import xminigrid

    rooms = [n for n in xminigrid.registered_environments() if n.startswith("XLand-MiniGrid")]
    assert len(rooms) == 21
    for room in rooms:
        family = metajax.make("xland-minigrid", environment=room, episode_length=8)
        task = family.train.sample(jax.random.key(0))
        metajax.check_env(family.env, task)
        walk = jax.jit(functools.partial(play, family))  # step by step would compile each operation
        states = walk(task, jax.random.key(1), jnp.arange(6))
        assert np.all(np.isfinite(states.observation)) and states.time[-1] == 6
        assert np.all(states.observation.sum(axis=1) == 2 * 25)  # a tile and a colour of each cell
        jax.clear_caches()


# --- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_sentence(name, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, PACKAGES[name], None)
    extra = {"gymnax": "gymnax", "xland-minigrid": "xland"}[name]
    with pytest.raises(MetajaxError, match=rf'pip install -e "\.\[{extra}\]"'):
        metajax.make(name)


@pytest.mark.parametrize(
    "name",
    [pytest.param("gymnax", marks=gymnax_only), pytest.param("xland-minigrid", marks=xland_only)],
)
def test_maml_trains_on_it(name):
    family = metajax.make(name, episode_length=5)
    policy = metajax.mlp(family.env.observation_size, family.env.action_space, hidden=(8,))
    inner = gradient_steps(policy_gradient(critic=None))
    outer = metajax.outer.adam()
    algorithm = metajax.maml(family.env, policy, inner=inner, outer=outer, episodes=2)
    result = metajax.train(algorithm, family, iterations=2, tasks=2, evaluation=None, report=None)
    assert np.all(np.isfinite(result.metrics["return_after"]))
