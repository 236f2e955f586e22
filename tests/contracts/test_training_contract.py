"""What the trainer promises: cutting, watching, sharding and seeding change no result."""

import dataclasses
import itertools
import re
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import presets
from metajax.adaptation import (
    gradient_steps,
    linear,
    policy_gradient,
    q_prop,
    two_phases,
    value_network,
    whole_trials,
)
from metajax.algorithms import ALGORITHMS, maml
from metajax.algorithms.joint import fine_tuning
from metajax.envs import make
from metajax.envs.splits import finite
from metajax.errors import MetajaxError
from metajax.outer import adam, ppo, sac, trpo
from metajax.policies import conditioned, deterministic, gru, mlp, squashed, variational
from metajax.replay import Replay, TaskReplay
from metajax.runs.checkpoint import saved_steps
from metajax.shutdown import Shutdown
from metajax.training import Evaluation, train
from metajax.training.evaluation import Evaluated
from metajax.training.loop import _evaluate_finally
from metajax.training.program import floats_of, guarded, make_segment
from metajax.training.progress import reporter
from metajax.training.sharding import task_mesh
from metajax.types import Algorithm, TrainState, Trial

FAMILY = make("point-goal", episode_length=4)
WITHIN_BOUNDS = {"sac": squashed, "td3": deterministic}
ITERATIONS = 12


def algorithm(family=FAMILY, **options):
    policy = mlp(2, family.env.action_space, hidden=(4,), initial_std=0.1)
    return maml(family.env, policy, **{"episodes": 2} | options)


def over(critic):
    """Return gradient steps with a critic."""
    return gradient_steps(policy_gradient(critic=critic))


VALUES = over(value_network(hidden=(4,)))


def assert_same(one, other, tolerance=0.0):
    """Return the largest difference, relative to the largest value of each array."""
    worst = 0.0
    one, other = (jax.tree_util.tree_leaves_with_path(x) for x in (one, other))
    for (path, a), (_, b) in zip(one, other, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        difference = np.max(np.abs(a - b), initial=0) / max(1.0, np.max(np.abs(a), initial=0))
        assert difference <= tolerance, (jax.tree_util.keystr(path), difference)
        worst = max(worst, difference)
    return worst


# --- cutting and watching ------------------------------------------------------------------------


def run(segment, seeds=1, evaluation=None):
    return train(
        algorithm(outer=ppo(epochs=2), inner=VALUES),
        FAMILY,
        iterations=ITERATIONS,
        tasks=2,
        seeds=seeds,
        segment=segment,
        evaluation=evaluation,
    )


@pytest.fixture(scope="module")
def straight():
    return run(ITERATIONS)


WATCHED = Evaluation(every=5, tasks=2, rounds=2, episodes=2, final_tasks=4)


@pytest.mark.parametrize(
    ("segment", "evaluation"), [pytest.param(4, None, marks=pytest.mark.slow), (1, WATCHED)]
)
def test_neither_cutting_nor_evaluating_changes_a_bit(straight, segment, evaluation):
    cut = run(segment, evaluation=evaluation)
    assert int(cut.state.iteration) == ITERATIONS
    assert_same(cut.state, straight.state)
    assert_same(cut.metrics, straight.metrics)
    assert evaluation is None or cut.returns.shape == (1, 4, 2, 2)


def test_seeds_side_by_side_are_seeds_alone(straight):
    both = run(ITERATIONS, seeds=2)
    first = jax.tree.map(lambda x: x[:1], both.state.train_state)
    difference = assert_same(first, straight.state.train_state, 1e-5)
    print(f"a seed by vmap and alone differ by {difference:.1e}")
    for leaf in jax.tree.leaves(both.state.train_state.meta_params):
        assert not np.any(leaf[0] == leaf[1])


@pytest.mark.parametrize(("final_tasks", "batches"), [(1, 1), (4, 1), (6, 2), (8, 2)])
def test_the_final_evaluation_is_of_as_many_tasks_as_asked_for(final_tasks, batches):
    """Batches of four tasks, whose returns are their number in the order of evaluation."""
    asked = []

    def batch(state, repeat):
        asked.append(repeat)
        each = 4 * repeat + np.arange(4.0)[None, :, None, None]
        return state, None, Evaluated(each, {"half": each / 2})

    evaluation = Evaluation(tasks=4, final_tasks=final_tasks)
    silent = reporter(None)
    _, returns, measured = _evaluate_finally(
        batch, None, FAMILY, evaluation, (1, 1), Shutdown(), silent
    )
    assert asked == list(range(batches))
    np.testing.assert_array_equal(returns, np.arange(final_tasks)[None, :, None, None])
    np.testing.assert_array_equal(measured["half"], returns / 2)


def test_an_interrupted_final_evaluation_is_none():
    shutdown = Shutdown()

    def batch(state, repeat):
        shutdown.requested = 2
        return state, None, Evaluated(np.zeros((1, 4, 1, 1)), {})

    evaluation = Evaluation(tasks=4, final_tasks=8)
    done = _evaluate_finally(batch, None, FAMILY, evaluation, (1, 1), shutdown, reporter(None))
    assert done == (None, None, {})


# --- what is not finite --------------------------------------------------------------------------


def poisoned():
    """Return point-goal where some tasks give NaN or infinity, as reward or as observation."""
    env = FAMILY.env

    def step(state, action):
        new = env.step(state, action)
        x, y = state.task["goal"]
        reward = jnp.where(x > 0.45, jnp.nan, jnp.where(x < -0.45, jnp.inf, new.reward))
        observation = jnp.where(y > 0.45, jnp.nan, new.observation)
        return dataclasses.replace(new, reward=reward, observation=observation)

    return FAMILY._replace(env=env._replace(step=step))


def history(on_nan, **options):
    """Return the states before, between and after iterations, and each iteration's metrics."""
    family = poisoned()
    program = make_segment(algorithm(family, **options), family, length=1, tasks=2, on_nan=on_nan)
    run = jax.jit(program.run)
    states, metrics = [jax.jit(program.init)(jax.random.key(0))], []
    for iteration in range(ITERATIONS):
        stop, no, zero = (jnp.asarray(x) for x in (np.int32(iteration + 1), False, np.int32(0)))
        state, found, _ = run(states[-1], jax.random.key(0), stop, no, zero)
        states.append(state)
        metrics.append(found)
    return states, metrics


@pytest.fixture(scope="module")
def skipped():
    return history("skip", outer=adam(), inner=over(None))


def bad_iterations(metrics):
    return np.array([not np.isfinite(m["return_after"]).all() for m in metrics])


def test_an_update_that_is_not_finite_is_skipped_and_counted(skipped):
    states, metrics = skipped
    bad = bad_iterations(metrics)
    assert 2 <= bad.sum() <= ITERATIONS - 2, "the test needs both kinds of iterations"
    for before, after, is_bad in zip(states, states[1:], bad, strict=False):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))
        assert after.iteration == before.iteration + 1
        assert after.discarded[0] == before.discarded[0] + is_bad
        leaves = (jax.tree.leaves(s.train_state.meta_params) for s in (before, after))
        assert all(np.array_equal(a, b) == is_bad for a, b in zip(*leaves, strict=True))


def test_halting_keeps_the_state_before(skipped):
    states, metrics = history("halt", outer=adam(), inner=over(None))
    first_bad = int(np.argmax(bad_iterations(metrics)))
    assert_same(states[: first_bad + 1], skipped[0][: first_bad + 1])
    for state in states[first_bad + 1 :]:
        assert_same(guarded(state.train_state), guarded(states[first_bad].train_state))
    with pytest.raises(MetajaxError, match=r"not finite before iteration .* \(seeds \[0\]\)"):
        family = poisoned()
        train(
            algorithm(family, outer=adam(), inner=over(None)),
            family,
            iterations=ITERATIONS,
            tasks=2,
            evaluation=None,
            on_nan="halt",
        )


@pytest.mark.slow
def test_trpo_survives_what_is_not_finite():
    states, metrics = history("skip", outer=trpo())
    bad = bad_iterations(metrics)
    assert states[-1].discarded[0] == bad.sum() > 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(states[-1]))


def unreliable(chance):
    """Return an algorithm whose entropy and weights are NaN with a chance, and train's options."""

    def init(key, tasks):
        return TrainState(
            {"layer": {"kernel": jnp.zeros(2), "steps": jnp.zeros((), jnp.int32)}}, ()
        )

    def update(state, tasks, key):
        nothing = jnp.where(jax.random.bernoulli(key, chance), jnp.nan, 1.0)
        kernel = state.meta_params["layer"]["kernel"] + nothing
        state = TrainState({"layer": {"kernel": kernel, "steps": jnp.ones((), jnp.int32)}}, ())
        return state, {"a_count": jnp.ones((), jnp.int32), "entropy": nothing, "return_after": 1.0}

    options = {"iterations": 30, "tasks": 1, "seeds": 2, "devices": 1, "evaluation": None}
    update_ = lambda *arguments: jax.tree.map(jnp.asarray, update(*arguments))
    metrics = ("a_count", "entropy", "return_after")
    agent = algorithm().agent
    return Algorithm(init, update_, agent, "unreliable", Trial(1, 1, 0), metrics), options


def test_training_stops_after_a_row_of_discarded_updates(tmp_path):
    """The row, its seed and what was not finite first, from the metrics by hand."""
    broken, options = unreliable(0.6)
    reports = []
    with pytest.warns(UserWarning, match="an update was discarded") as warned:
        result = train(broken, FAMILY, max_discarded=None, report=reports.append, **options)
    bad = ~np.isfinite(result.metrics["entropy"])
    assert len(warned) == 1 and set(result.metrics) == {"a_count", "entropy", "return_after"}
    np.testing.assert_array_equal(result.state.discarded, bad.sum(axis=0))
    iteration, seed = np.argwhere(bad)[0]
    first = f"metrics/entropy (iteration {iteration + 1}, seed {seed})"
    assert first in str(warned[0].message) and reports[-1].not_finite == first
    rows = [[len(list(g)) for is_bad, g in itertools.groupby(b) if is_bad] for b in bad.T]
    longest = max(map(max, rows))
    where = [s for s in range(2) if max(rows[s]) == longest]
    ends = [
        t + 1
        for t in range(longest - 1, 30)
        for s in where
        if bad[t + 1 - longest : t + 1, s].all()
    ]
    for segment in (4, 30):
        directory, stop = tmp_path / str(segment), min(-(-ends[0] // segment) * segment, 30)
        said = rf"{longest} updates in a row .* \(seeds \[{where[0]}.*first {re.escape(first)}; "
        with warnings.catch_warnings(), pytest.raises(MetajaxError, match=said) as error:
            warnings.simplefilter("ignore")
            kept = {"segment": segment, "run_directory": directory}
            train(broken, FAMILY, max_discarded=longest, **kept, **options)
        assert f"after iteration {stop} " in str(error.value)
        assert (
            str(directory) in str(error.value)
            and saved_steps(directory / "checkpoints")[-1] == stop
        )


def test_what_is_not_finite_first_has_a_name():
    """Rewards before other metrics, metrics before parameters; whole numbers are always finite."""
    state = TrainState(
        {"layer": {"kernel": jnp.zeros(2), "steps": jnp.zeros((), jnp.int32)}}, (jnp.zeros(1),)
    )
    metrics = {"entropy": jnp.zeros(()), "return_before": jnp.zeros(()), "n": jnp.zeros((), int)}
    assert [name for name, _ in floats_of(state, metrics)] == [
        "metrics/return_before",
        "metrics/entropy",
        "meta_params/layer/kernel",
        "learner/0",
    ]


# --- devices -------------------------------------------------------------------------------------

COLLECTIVE = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter"
    r"|collective-permute|collective-broadcast)(?:-start)?\("
)


def on_devices(count, **options):
    """Return the optimized program and what two iterations give, on this many devices."""
    mesh = task_mesh(count) if count > 1 else None
    # Five episodes: with fewer samples than features the critic leaves nothing but rounding.
    program = make_segment(
        algorithm(episodes=5, **options),
        FAMILY,
        length=2,
        tasks=8,
        evaluation=Evaluation(tasks=4, rounds=2, episodes=5),
        mesh=mesh,
    )
    key, stop, yes, zero = jax.random.key(0), jnp.int32(2), jnp.asarray(True), jnp.int32(0)
    shardings = program.out_shardings(jax.eval_shape(program.init, key))
    state = jax.jit(program.init, out_shardings=shardings and shardings[0])(key)
    compiled = (
        jax.jit(program.run, out_shardings=shardings).lower(state, key, stop, yes, zero).compile()
    )
    return compiled.as_text(), compiled(state, key, stop, yes, zero)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"outer": adam(), "inner": over(linear())}, marks=pytest.mark.slow),
        pytest.param({"outer": ppo(), "inner": VALUES}, marks=pytest.mark.slow),
        pytest.param({"outer": trpo(), "inner": over(None)}, marks=pytest.mark.slow),
    ],
    ids=lambda options: repr(options["outer"]),
)
def test_four_devices_give_the_result_of_one(options):
    _, one = on_devices(1, **options)
    text, four = on_devices(4, **options)
    difference = assert_same(one, four, 1e-5)
    collectives = [match.groupdict() for match in COLLECTIVE.finditer(text)]
    assert {c["kind"] for c in collectives} == {"all-reduce"}
    sizes = [
        sum(
            int(np.prod([int(n) for n in dimensions.split(",") if n]))
            for dimensions in re.findall(r"\w+\[([\d,]*)\]", c["shape"])
        )
        for c in collectives
    ]
    parameters = sum(x.size for x in jax.tree.leaves(one[0].train_state.meta_params))
    print(f"{options}: {difference:.1e}; all-reduce of {sizes} numbers, {parameters} parameters")
    assert max(sizes) <= parameters + 16  # a handful of metrics may travel with them


# --- every algorithm -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_cut_interrupted_and_shared_out(name, tmp_path):
    """Four iterations at once; one by one, and resumed after two; on two devices."""
    factory, family = ALGORITHMS[name], FAMILY
    # Five episodes: with fewer samples than features the critic leaves nothing but rounding.
    options = {"episodes": 5}
    policy = partial(mlp, hidden=(4,), initial_std=0.1, context=2)
    if name in presets.MEMORY_AGENTS:
        family = make("bernoulli-bandit")
        policy = partial(gru, width=4, critic="separate")
        options |= {"outer": ppo(clip=0.2, epochs=1, max_gradient_norm=1.0)}
        if name == "snail":
            critic = adam(max_gradient_norm=1.0)
            options |= {"outer": trpo(), "objective": whole_trials(critic=critic)}
        if name == "varibad":
            policy = partial(variational, width=4, hidden=(4,))
        if name == "off-policy-rl2":
            policy = partial(gru, width=4, critic="none")
            of_replay = {"batch": 4, "replay_capacity": 40, "random_trials": 5}
            options = {"episodes": 5, "learner": sac(hidden=(4,)), **of_replay}
    elif name in WITHIN_BOUNDS:
        policy = partial(WITHIN_BOUNDS[name], hidden=(4,))
        options |= {"batch": 4, "replay_capacity": 1000, "random_steps": 10}
    elif name == "pearl":
        family = family._replace(train=finite(family.train, 4))
        policy = partial(conditioned, latent=2, hidden=(4,))
        options = dict.fromkeys(("initial_episodes", "prior_episodes", "updates"), 1)
        options |= {"meta_batch": 4, "batch": 4, "context": 4}
        options |= {"learner": sac(value_network=True, hidden=(4,))}
    elif name == "mql":
        policy = partial(conditioned, latent=3, actions="deterministic", hidden=(4,))
        options |= {"batch": 4, "replay_capacity": 1000, "random_steps": 10}
        options |= {"history": 2, "adaptation": two_phases(kept_steps=20)}
    elif "dqn" in name:
        family, options = make("gridnav", episode_length=4), options | {"updates": 3, "batch": 4}
    elif name in ("fomaml", "meta-sgd", "anil", "cavia", "e-maml"):
        # MAML's own outer step takes several times as long to compile; but Adam makes a step of
        # every gradient, even of those of Meta-LSTM's that are nothing but rounding.
        options |= {"outer": adam()}
    elif name in ("a2c", "ppo"):
        objective = policy_gradient(critic=value_network(hidden=(4,)), gae_lambda=0.95)
        options |= {"inner": fine_tuning(objective)}
    elif name == "q-prop":
        variate = q_prop(hidden=(4,))
        options |= {"inner": fine_tuning(policy_gradient(gae_lambda=0.97, control_variate=variate))}
    if name == "learned-optimizer":
        options |= {"lifetime": 4, "unroll": 2}
    env = family.env
    learner = factory(env, policy(env.observation_size, env.action_space), **options)

    def state_after(iterations, **options):
        options = {"segment": 4, "devices": 1, "evaluation": None} | options
        return train(learner, family, iterations=iterations, tasks=4, **options).state

    straight = state_after(4)
    state_after(2, segment=1, run_directory=tmp_path / "run")
    assert_same(state_after(4, run_directory=tmp_path / "run", resume=True), straight)
    # Rounding, and what four outer steps make of it; a wrong step would be 1e-3.
    shared = state_after(4, devices=2)
    difference = assert_same(shared, straight, 2e-4)
    is_ring = lambda part: isinstance(part, Replay | TaskReplay)
    for ring in filter(is_ring, jax.tree.leaves(shared, is_leaf=is_ring)):
        for x in jax.tree.leaves(ring.items):
            assert x.size == 2 * x.addressable_shards[0].data.size  # half of it on each
    print(f"{name}: {difference:.1e} on two devices")
