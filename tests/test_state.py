"""What the trainer and the checkpoints make of the roles of a state: a replay above all."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import presets
from metajax._memory import bytes_of
from metajax.adaptation import gradient_steps, policy_gradient, q_prop
from metajax.envs import make
from metajax.errors import MetajaxError
from metajax.outer import ppo
from metajax.replay import empty_replay, extend_replay, sample_replay
from metajax.runs.checkpoint import Checkpointer, restore, saved_steps
from metajax.runs.directory import create_run, read_metrics
from metajax.runs.load import load, load_run
from metajax.steps import count_update, counted
from metajax.training import Evaluation, program, train
from metajax.training.program import RunState, make_segment
from metajax.types import Agent, Algorithm, PolicyOutput, TrainState, Trial

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

FAMILY = make("point-goal", episode_length=3)
TASKS = 2


def counting(capacity=16, *, broken=(), metrics=("return", "loss")) -> Algorithm:
    """Return an algorithm that keeps its goals and adds up what it draws of them.

    Args:
        capacity: of its replay.
        broken: "loss" or "goals" that are NaN in every third update, the first of them.
        metrics: that it states.
    """
    trial = Trial(1, 1, 0)
    agent = Agent(
        lambda meta_params, key: meta_params,
        lambda: (),
        lambda adapted, memory, x, key: (memory, jnp.zeros(2) + adapted, PolicyOutput(())),
        lambda meta_params, adapted, trajectory, key: adapted,
    )

    def init(key, tasks):
        counts = {"updates": jnp.zeros((), jnp.int32)}
        return TrainState(jnp.zeros(()), counts, replay=empty_replay(tasks.task["goal"], capacity))

    def update(state, tasks, key):
        bad = state.learner["updates"] % 3 == 0
        nothing = lambda name: jnp.where(bad & (name in broken), jnp.nan, 0.0)
        goals = tasks.task["goal"] + nothing("goals")
        replay = extend_replay(state.replay, goals, jnp.ones(len(goals), bool))
        loss = jnp.mean(sample_replay(replay, key, 4)) + nothing("loss")
        new = dataclasses.replace(
            state,
            meta_params=state.meta_params + loss,
            learner={"updates": state.learner["updates"] + 1},
            replay=replay,
            environment_steps=count_update(state.environment_steps, len(tasks), trial, FAMILY.env),
        )
        return new, {"return": jnp.zeros(()), "loss": loss}

    return Algorithm(init, update, agent, "counting", trial, metrics)


def trained(algorithm, iterations, **options):
    options = {"tasks": TASKS, "evaluation": None, "devices": 1, "report": None} | options
    return train(algorithm, FAMILY, iterations=iterations, **options)


def test_a_discarded_update_keeps_what_was_played():
    """The whole learner stays as it was, so the same update is tried, and fails, for ever."""
    with pytest.warns(UserWarning, match="first metrics/loss"):
        state = trained(counting(broken=("loss",)), 5, seeds=2).state
    assert state.discarded.tolist() == [5, 5]
    assert np.all(state.train_state.meta_params == 0)
    assert np.all(state.train_state.learner["updates"] == 0)
    assert state.train_state.replay.size.tolist() == [5 * TASKS] * 2
    assert np.all(np.isfinite(state.train_state.replay.items))
    assert counted(state.train_state.environment_steps).tolist() == [5 * TASKS * 3] * 2


def test_what_was_played_is_not_kept_where_it_is_not_finite():
    """Then the replay is empty, what is drawn from it is NaN, and the update is discarded."""
    with pytest.warns(UserWarning, match="first metrics/loss"):
        state = trained(counting(broken=("goals",)), 5).state
    assert state.discarded.tolist() == [5]
    assert state.train_state.replay.size.tolist() == [0]
    assert np.all(np.isfinite(state.train_state.replay.items))


def test_metrics_are_those_that_the_algorithm_states():
    with pytest.raises(MetajaxError, match=r"states that it measures return; .* loss, return"):
        trained(counting(metrics=("return",)), 1)


def test_a_run_with_a_replay_resumes_bitwise(tmp_path):
    whole = trained(counting(), 6, segment=2).state
    trained(counting(), 4, segment=2, run_directory=tmp_path / "run")
    resumed = trained(counting(), 6, segment=2, run_directory=tmp_path / "run", resume=True).state
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_replay_is_saved_when_it_was_long_ago_and_at_the_end(tmp_path, monkeypatch):
    """A run that is interrupted between two saves goes on from the one before."""
    rested = iter([True, False, False, True, False])
    monkeypatch.setattr(Checkpointer, "is_rested", lambda self: next(rested))
    whole = trained(counting(), 10, segment=2, run_directory=tmp_path / "run").state
    assert saved_steps(tmp_path / "run" / "checkpoints") == [2, 8, 10]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")
    rested = iter([False])
    resumed = trained(counting(), 10, segment=2, run_directory=tmp_path / "run", resume=True)
    for a, b in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["iteration"] for record in records] == list(range(1, 11))


def test_a_run_that_halts_has_saved_its_replay(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpointer, "is_rested", lambda self: False)
    algorithm, directory = counting(broken=("loss",)), tmp_path / "run"
    with pytest.raises(
        MetajaxError, match=f"halted with the state before it, saved in {directory}"
    ):
        trained(algorithm, 6, segment=2, on_nan="halt", run_directory=directory)
    assert saved_steps(directory / "checkpoints") == [2]


def test_a_best_agent_is_saved_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpointer, "is_rested", lambda self: False)
    evaluation = Evaluation(every=2, tasks=2, rounds=1, episodes=1, final_tasks=2)
    options = {"keep": "best", "evaluation": evaluation, "segment": 1}
    result = trained(counting(), 5, run_directory=tmp_path / "run", **options)
    found = read_metrics(tmp_path / "run" / "metrics.jsonl")
    scores = {r["iteration"]: r["score"] for r in found if "score" in r}
    best_so_far = [
        i for i in scores if scores[i] > max([s for j, s in scores.items() if j < i] + [-np.inf])
    ]
    assert saved_steps(tmp_path / "run" / "checkpoints") == sorted({*best_so_far, 5})
    assert result.agent_iteration == best_so_far[-1]


def test_saving_rests_twenty_times_as_long_as_it_took(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("metajax.runs.checkpoint.time.perf_counter", lambda: now[0])
    written = Checkpointer._write

    def slowly(self, *arguments):
        now[0] += 3.0
        written(self, *arguments)

    monkeypatch.setattr(Checkpointer, "_write", slowly)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.is_rested()
        checkpointer.save(1, {"x": np.zeros(3)})
        checkpointer.wait()
        for now[0], rested in ((3.0, False), (59.9, False), (60.0, True)):
            assert checkpointer.is_rested() == rested


# --- loading -------------------------------------------------------------------------------------


def config_of(algorithm, family, **options):
    config = presets.default_config(algorithm, family)
    config["algorithm"] |= options
    config["training"] |= {"tasks": 2, "devices": 1}
    return config


def saved(directory, config, change=lambda state: state) -> RunState:
    """Return the first state of a run, saved in its directory after `change`."""
    experiment = presets.build(config)
    program = make_segment(experiment.algorithm, experiment.family, length=1, tasks=2)
    state = jax.jit(program.init)(jax.random.key(0))
    with create_run(directory, config) as run, Checkpointer(run.checkpoints) as checkpointer:
        checkpointer.save(3, dataclasses.replace(change(state), iteration=np.int32(3)))
    return state


def test_an_agent_is_loaded_without_its_replay_and_learner(tmp_path):
    """Files of other leaves are lost, and one is damaged: nobody reads them."""
    state = saved(tmp_path / "run", config_of("dqn", "gridnav", replay_capacity=2000))
    leaves = [
        "state" + jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(state)
    ]
    needed = ("state.iteration", "state.discarded", "state.train_state.meta_params")
    lost = [i for i, path in enumerate(leaves) if not path.startswith(needed)]
    assert sum(".replay" in leaves[i] for i in lost) > 5 and len(leaves) > len(lost) + 5
    for i in lost:
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "3" / "state" / str(i))
    agent = load(tmp_path / "run")
    for a, b in zip(
        jax.tree.leaves(agent._meta_params),
        jax.tree.leaves(state.train_state.meta_params),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b[0])
    assert int(load_run(tmp_path / "run")[1].iteration) == 3
    with pytest.raises(MetajaxError, match="no checkpoint left"):
        restore(tmp_path / "run" / "checkpoints", state)


class OldTrainState(NamedTuple):
    """How training states were arranged before they had roles."""

    meta_params: Any
    optimizer_state: Any
    auxiliary: Any


class OldMetaParams(NamedTuple):
    """Of RL², when what training alone needed was part of them."""

    policy: Any
    mean_square_reward: Any
    mean_square_return: Any
    iterations: Any


def test_a_run_of_before_is_loaded_and_not_trained_further(tmp_path):
    def before(state: RunState):
        new = state.train_state
        old = OldMetaParams(
            new.meta_params.policy,
            new.meta_params.mean_square_reward + 2,
            new.statistics.mean_square_return,
            new.statistics.iterations,
        )
        return dataclasses.replace(state, train_state=OldTrainState(old, new.learner, ()))

    config = config_of("rl2", "bernoulli-bandit")
    config["algorithm"]["outer"]["minibatches"] = 1
    state = saved(tmp_path / "run", config, before)
    agent = load(tmp_path / "run")
    assert agent._meta_params.mean_square_reward == 2
    np.testing.assert_array_equal(
        jax.tree.leaves(agent._meta_params.policy)[0],
        jax.tree.leaves(state.train_state.meta_params.policy)[0][0],
    )
    with pytest.raises(MetajaxError, match=r"saved by an earlier metajax.* not be trained further"):
        restore(tmp_path / "run" / "checkpoints", state)


# --- memory --------------------------------------------------------------------------------------


def with_critic_of_actions(capacity):
    variate = q_prop(updates=2, replay_capacity=capacity)
    objective = policy_gradient(critic=None, gae_lambda=0.97, control_variate=variate)
    return {"inner": gradient_steps(objective)}


EPOCHS = ppo(epochs=4, clip=0.2, max_gradient_norm=1.0)
LARGE = {
    "dqn": lambda capacity: {"updates": 2, "batch": 5, "replay_capacity": capacity},
    "maml-dqn": lambda capacity: {"updates": 2, "batch": 2, "replay_capacity": capacity},
    "q-prop": with_critic_of_actions,
    "sac": lambda capacity: {"batch": 5, "random_steps": 10, "replay_capacity": capacity},
    "pearl": lambda capacity: {
        **dict.fromkeys(("initial_episodes", "prior_episodes", "updates"), 1),
        **{"meta_batch": 2, "batch": 2, "context": 2, "replay_capacity": capacity},
    },
    "off-policy-rl2": lambda capacity: {"batch": 2, "replay_capacity": capacity},
    "mql": lambda capacity: {
        "batch": 5,
        "random_steps": 10,
        "history": 2,
        "replay_capacity": capacity,
    },
    "varibad": lambda capacity: {"outer": EPOCHS, "vae_batch": 2, "replay_capacity": capacity},
}


def compiled(algorithm, family, **options):
    """Return the compiled segment, of which nothing runs, and the shapes of its state."""
    evaluation = Evaluation(tasks=2, rounds=1, episodes=2)
    program = make_segment(algorithm, family, length=2, tasks=3, evaluation=evaluation, **options)
    key = jax.random.key(0)
    shapes = jax.eval_shape(program.init, key)
    arguments = shapes, key, jnp.int32(2), jnp.asarray(True), jnp.int32(0)
    return jax.jit(program.run, donate_argnums=0).lower(*arguments).compile(), shapes


def check_in_place(algorithm, family, capacity, **options):
    """Check that a segment neither copies a replay nor needs room beside it."""
    program, shapes = compiled(algorithm, family, **options)
    memory, size = program.memory_analysis(), bytes_of(shapes.train_state.replay)
    print(f"{algorithm.name}: {size:.1e} B kept, {memory.temp_size_in_bytes / size:.1%} beside it")
    assert size > 5e8
    assert memory.temp_size_in_bytes < 0.05 * size
    assert memory.alias_size_in_bytes >= size
    made = re.findall(r"= (\S+) (?:copy|select)\(", program.as_text())
    assert made and not [shape for shape in made if str(capacity) in re.split(r"\W", shape)]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_replay_is_never_copied(seeds):
    capacity = 10**8
    check_in_place(counting(capacity), FAMILY, capacity, seeds=seeds)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_the_replay_of_an_algorithm_is_never_copied(name):
    import test_algorithm_contract as contract

    capacity = 2 * 10**6 if name in ("maml-dqn", "off-policy-rl2", "varibad") else 2 * 10**7
    family = contract.family_of(name)
    algorithm = contract.build(name, LARGE[name](capacity), family.env)
    check_in_place(algorithm, family, capacity)


def test_the_guard_that_looked_at_everything_would_be_noticed(monkeypatch):
    """The check of memory on a trainer that also chooses between two replays."""
    guarded = program.guarded
    everything = lambda state: guarded(state) | {"replay": state.replay}
    monkeypatch.setattr(program, "guarded", everything)
    with pytest.raises(AssertionError, match="temp_size_in_bytes"):
        check_in_place(counting(10**8), FAMILY, 10**8)
