"""The best agent: chosen by validation tasks alone, kept, loaded, and found again after a crash.

The algorithm is a script: after iteration i its agent acts `SCRIPT[i]` in every step, and a task's
reward is its own number in [0, 1] plus the action. So which agent is the best, and what is paid on
whose tasks, is known by hand.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scoreboard import LENGTH, scoreboard

from metajax.envs.splits import MARGIN, uniform_over
from metajax.errors import MetajaxError
from metajax.runs.checkpoint import restore, saved_steps
from metajax.runs.directory import read_metrics
from metajax.runs.recorder import _Directory
from metajax.runs.selection import Selection, scores, validation_score
from metajax.training import Evaluation, train
from metajax.types import (
    Agent,
    Algorithm,
    PolicyOutput,
    TaskDistribution,
    TrainState,
    Trial,
)

STRIPS = 99
# At iterations 2, 4, 6, 8, 10, 12: 3, 9, 5, 7, 8, 1. The best of all, 20, is never validated.
SCRIPT = jnp.array([0, 2, 3, 20, 9, 4, 5, 6, 7, 7, 8, 2, 1], float)
EVALUATION = Evaluation(every=2, tasks=40, rounds=2, episodes=1, final_tasks=80)


def script() -> Algorithm:
    """Return the script; adaptation, which it is not trained for, adds 100."""

    def act(adapted, memory, step_input, key):
        return memory, adapted[None], PolicyOutput(())

    agent = Agent(
        lambda meta_params, key: meta_params["acts"],
        lambda: (),
        act,
        lambda meta_params, adapted, trajectory, key: adapted + 100,
    )

    names = ("return_before", "return_after")

    def init(key, tasks):
        return TrainState({"acts": SCRIPT[0]}, {"done": jnp.zeros((), int)})

    def update(state, tasks, key):
        done = state.learner["done"] + 1
        metrics = {name: jnp.zeros(()) for name in names}
        return TrainState({"acts": SCRIPT[done]}, {"done": done}), metrics

    return Algorithm(init, update, agent, "script", Trial(1, 1, 0), names)


def run(**options):
    options = {"iterations": 12, "tasks": 1, "segment": 1, "evaluation": EVALUATION} | options
    return train(script(), options.pop("family", scoreboard()), **options)


def test_the_rule_by_hand():
    """Two seeds, two tasks, three rounds; of equal scores the first is the best."""
    returns = np.array([[[1.0, 4.0, 9.0], [3.0, 8.0, 1.0]], [[5.0, 2.0, 2.0], [7.0, 2.0, 4.0]]])
    assert validation_score(returns, 0) == 4
    assert validation_score(returns, 1) == 4
    assert validation_score(returns, 7) == 4  # the last there is
    assert validation_score(returns, None) == 4
    returns[0, 0, 0] = 5
    assert [validation_score(returns, k) for k in (0, 1, None)] == [5, 4, 52 / 12]
    returns[0, 0, 0] = np.nan
    assert validation_score(returns, 0) == -np.inf
    selection, seen = Selection(), []
    for iteration, score in enumerate([-np.inf, 1, 1, 0, 2, -np.inf]):
        selection = selection.after(iteration, float(score))
        seen.append(tuple(selection))
    assert seen == [(0, -np.inf, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2), (4, 2, 0), (4, 2, 1)]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(cache):
    del cache


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight") / "run"
    reports = []
    result = run(keep="best", run_directory=directory, report=reports.append, seeds=2)
    return directory, result, reports


def assert_same(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def paid(returns):
    """Return what was paid per step before adaptation, `[seed, task]`."""
    return np.asarray(returns, np.float64)[:, :, 0, 0] / LENGTH


def test_the_best_is_chosen_on_validation_tasks_and_reported_on_held_out_ones(straight):
    _, result, reports = straight
    acts = np.asarray(SCRIPT, np.float64)
    validated = {p.iteration: p for p in reports if p.validation is not None}
    assert list(validated) == [2, 4, 6, 8, 10, 12]
    for iteration, progress in validated.items():
        places = (paid(progress.validation) - acts[iteration]) * STRIPS
        assert np.all(np.abs(places - np.round(places)) < MARGIN)
        assert places.min() > 0.9 and places.max() < STRIPS - 0.9
        assert len(np.unique(np.round(places))) > 40  # another draw for each seed
        assert progress.score == pytest.approx(LENGTH * paid(progress.validation).mean(), abs=1e-5)
    assert [p.selection.iteration for p in validated.values()] == [2, 4, 4, 4, 4, 4]
    assert [p.selection.since for p in validated.values()] == [0, 0, 1, 2, 3, 4]
    assert result.agent_iteration == 4 and int(result.state.iteration) == 12
    assert result.returns.shape == (2, 80, 2, 1)


def test_the_final_table_is_that_of_a_run_which_ends_with_the_best(straight):
    _, result, _ = straight
    short = run(iterations=4, seeds=2)
    newest = run(seeds=2)
    np.testing.assert_array_equal(result.returns, short.returns)
    np.testing.assert_array_equal(result.meta_params(1)["acts"], short.meta_params(1)["acts"])
    assert_same(result.state, newest.state)  # nothing of training changes
    assert newest.agent_iteration == 12
    places = (paid(result.returns) - float(SCRIPT[4])) * STRIPS
    assert set(np.floor(places).astype(int).ravel() % 11) == {5}


def test_the_best_checkpoint_outlives_all_newer_ones(straight):
    directory, result, _ = straight
    assert saved_steps(directory / "checkpoints") == [4, 10, 11, 12]
    record = read_metrics(directory / "metrics.jsonl")[-1]
    assert record["iteration"] == 12 and record["of_iteration"] == 4
    np.testing.assert_allclose(record["final_held_out"], result.returns.mean(axis=-1))
    without = directory.parent / "newest"
    run(run_directory=without)
    assert saved_steps(without / "checkpoints") == [10, 11, 12]
    assert not scores(read_metrics(without / "metrics.jsonl"))


def test_patience_stops_and_stays_stopped(tmp_path, straight):
    options = {"keep": "best", "patience": 3, "run_directory": tmp_path / "run", "seeds": 2}
    stopped = run(**options)
    assert (int(stopped.state.iteration), stopped.agent_iteration) == (10, 4)
    np.testing.assert_array_equal(stopped.returns, straight[1].returns)
    again = run(**options, resume=True)
    assert (int(again.state.iteration), again.agent_iteration) == (10, 4)
    np.testing.assert_array_equal(again.returns, stopped.returns)
    del options["patience"]
    further = run(**options, resume=True)
    assert (int(further.state.iteration), further.agent_iteration) == (12, 4)
    assert further.interrupted is None


class Crash(Exception):
    pass


@pytest.mark.parametrize("iteration", [1, 4, 5, 10])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_before_or_after_saving_changes_nothing(
    tmp_path, straight, monkeypatch, iteration, moment
):
    """The same best agent, the same stop, the same bits."""
    options = {"keep": "best", "patience": 4, "run_directory": tmp_path / "run", "seeds": 2}
    save = _Directory.save

    def crash(self, step, *arguments):
        if step == iteration and moment == "before":
            raise Crash
        save(self, step, *arguments)
        if step == iteration:
            raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(_Directory, "save", crash)
        run(**options)
    resumed = run(**options, resume=True)
    directory, result, _ = straight
    assert resumed.agent_iteration == result.agent_iteration
    np.testing.assert_array_equal(resumed.returns, result.returns)
    assert_same(resumed.state, result.state)
    records = [read_metrics(d / "metrics.jsonl") for d in (tmp_path / "run", directory)]
    assert scores(records[0]) == scores(records[1])
    assert saved_steps(tmp_path / "run" / "checkpoints") == [4, 10, 11, 12]


def test_a_run_goes_on_without_its_best_checkpoint(tmp_path):
    """Then the best of those that are left counts, and so does the patience since."""
    options = {"keep": "best", "patience": 3, "run_directory": tmp_path / "run"}
    run(**options, iterations=8)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert saved_steps(checkpoints) == [4, 6, 7, 8]
    for leaf in (checkpoints / "4" / "state").rglob("*"):
        if leaf.is_file():
            leaf.write_bytes(b"\xff" * leaf.stat().st_size)
    with pytest.warns(UserWarning, match="step 4 is damaged.*restored step 8 instead"):
        result = run(**options, resume=True)
    assert (int(result.state.iteration), result.agent_iteration) == (12, 10)


def test_restore_takes_the_first_good_one_of_several(straight):
    directory, result, _ = straight
    template = jax.eval_shape(lambda: result.state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restore(directory / "checkpoints", template, step=[9, 11, 12])[0] == 11
    with pytest.raises(MetajaxError, match=r"no checkpoint of step 2 or 3 in .*; it has 4, 10, 11"):
        restore(directory / "checkpoints", template, step=[2, 3])


def test_without_validation_tasks_other_episodes_of_training_tasks_choose(capsys):
    both = uniform_over({"score": jnp.array([0.25, 0.75])})
    family = scoreboard()._replace(train=both, test=both, validation=None)
    reports = []
    result = run(family=family, keep="best", report=reports.append)
    said = "board has no validation tasks: the best agent is chosen on training tasks"
    assert said in capsys.readouterr().err
    assert result.agent_iteration == 4
    counts = np.unique(paid(reports[1].validation), return_counts=True)[1]
    assert list(counts) == [20, 20]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep": "worst"}, "keep.* 'worst'"),
        ({"patience": 3}, "patience is 3, which counts .*: it needs keep 'best'"),
        ({"keep": "best", "patience": 0}, "patience is 0; it must be at least 1"),
        ({"keep": "best", "patience": True}, "patience is True; it must be a whole number"),
        ({"keep": "best", "evaluation": None}, "but there is none of 12 iterations"),
        (
            {"keep": "best", "iterations": 1},
            "chooses at evaluations during training, but evaluation.every is 2 of 1 iterations",
        ),
        (
            {
                "keep": "best",
                "family": scoreboard()._replace(
                    validation=TaskDistribution(lambda key: {"score": jnp.zeros(2)})
                ),
            },
            r"validation tasks of board have the leaves .*\[1, 2\]",
        ),
    ],
)
def test_mistakes_are_one_sentence(options, expected):
    with pytest.raises(MetajaxError, match=expected):
        run(**options)
