"""The command line as a user meets it, in this process where possible: a start costs seconds."""

import contextlib
import dataclasses
import inspect
import io
import itertools
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

import metajax as package
from metajax import _text, cli, presets
from metajax._named_parts import Choice, paths
from metajax.adaptation import gradient_steps, policy_gradient
from metajax.algorithms import ALGORITHMS
from metajax.cli import app, arguments, display
from metajax.cli import options as options_of
from metajax.cli.commands import evaluate as evaluate_command
from metajax.cli.commands import running
from metajax.cli.commands import train as train_command
from metajax.envs import FAMILIES, make
from metajax.envs.specs import merged
from metajax.errors import MetajaxError
from metajax.runs.directory import MetricsLog, create_run, open_run, read_metrics
from metajax.runs.load import load
from metajax.runs.recorder import Progress
from metajax.runs.records import read_record, write_record
from metajax.runs.selection import scores
from metajax.training import progress as progress_lines
from metajax.training.progress import held_out_course
from metajax.types import Agent, Algorithm, TaskDistribution, TaskFamily, Trial

CORES = len(os.sched_getaffinity(0))


def on_a_cpu():
    return os.environ | {"COLUMNS": "80", "JAX_PLATFORMS": "cpu"}


TINY = [
    *("--episode-length", "10", "--episodes", "2", "--tasks", "2", "--segment", "2"),
    *("--seeds", "2", "--policy.hidden", "4", "--outer", "adam", "--evaluation.every", "2"),
    *("--evaluation.tasks", "4", "--evaluation.final-tasks", "6", "--evaluation.episodes", "3"),
]


@pytest.fixture(scope="module", autouse=True)
def no_clock():
    """However slow this machine is, no stage takes so long that a line says so."""
    former = progress_lines.SECONDS_OF_SILENCE
    progress_lines.SECONDS_OF_SILENCE = 1000.0
    yield
    progress_lines.SECONDS_OF_SILENCE = former


def metajax(*arguments: object) -> str:
    """Run a command that succeeds, and return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main([str(word) for word in arguments]) == 0
    return printed.getvalue()


def start(*arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "metajax", *map(str, arguments)],
        env=on_a_cpu(),
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """A run of four iterations, and what training it printed."""
    directory = tmp_path_factory.mktemp("runs") / "tiny run"
    options = [*TINY, "--iterations", 4, "--run-directory", directory]
    return directory, metajax("train", "maml", "point-goal", *options)


# --- training -------------------------------------------------------------------------------------


def test_training_says_what_it_runs_on_before_it_starts(trained):
    directory, printed = trained
    lines = printed.splitlines()
    assert lines[0].endswith(f"JAX {jax.__version__} on 2 CPU devices of 4")
    assert "maml on point-goal-v1" in lines[0]
    assert lines[1] == "physics: none (pure JAX)"
    assert lines[2] == f"run: {directory}"


def test_training_says_what_is_compiled_and_how_long_it_took(trained):
    lines = trained[1].splitlines()
    assert "compiling maml on point-goal-v1: XLA ..." in lines[3:]
    took = r"compiled in \d:\d\d \(tracing \d:\d\d, XLA \d:\d\d\)"
    assert any(re.fullmatch(took, line) for line in lines)


def test_the_final_evaluation_says_how_much_it_takes(trained):
    # Two batches of 4 tasks x 2 seeds x 4 rounds x 3 episodes x 10 steps, though 6 tasks are asked.
    expected = "evaluating 6 held-out tasks (192 episodes, 1.92k steps) ..."
    assert expected in trained[1].splitlines()


def test_progress_lines_carry_the_metrics(trained):
    directory, printed = trained
    records = [r for r in read_metrics(directory / "metrics.jsonl") if "return_after" in r]
    last = records[-2:]  # a segment
    before, after = (np.mean([r[f"return_{when}"] for r in last]) for when in ("before", "after"))
    # 4 iterations x 2 seeds x 2 tasks x 2 rounds x 2 episodes x 10 steps
    expected = f"4/4: 640 steps, [0-9.]+k?/s, return {before:.2f} -> {after:.2f}, 0:00 left"
    assert re.search(f"^{expected}$", printed, re.MULTILINE)
    assert [r["environment_steps"] for r in records] == [160, 320, 480, 640]


def interquartile_mean(values):
    """The mean of the middle half, for a number of values that four divides."""
    values = np.sort(np.ravel(values))
    quarter = len(values) // 4
    return np.mean(values[quarter:-quarter])


def table_rows(printed):
    pattern = r"^ +(\d+) +(-?[\d.]+) +(-?[\d.]+) \.\.\. (-?[\d.]+) +(-?[\d.]+) *$"
    return [tuple(map(float, row)) for row in re.findall(pattern, printed, re.MULTILINE)]


def test_training_ends_with_the_held_out_adaptation_curve(trained):
    directory, printed = trained
    record = read_metrics(directory / "metrics.jsonl")[-1]
    returns = np.array(record["final_held_out"])
    assert returns.shape == (2, 6, 4)
    assert "2 seeds x 6 held-out tasks x 3 episodes" in printed
    rows = table_rows(printed)
    assert [row[0] for row in rows] == [0, 1, 2, 3]
    for k, (_, middle, low, high, mean) in enumerate(rows):
        assert middle == pytest.approx(interquartile_mean(returns[:, :, k]), abs=0.051)
        assert mean == pytest.approx(returns[:, :, k].mean(), abs=0.051)
        assert returns[:, :, k].min() - 0.06 < low < middle < high < returns[:, :, k].max() + 0.06
    assert re.search(r"wall time: \d+:\d\d, \d+:\d\d of it compiling", printed)


def test_training_ends_with_a_picture_and_the_next_commands(trained):
    directory, printed = trained
    assert f"picture:   {directory}/curves.png" in printed
    with Image.open(directory / "curves.png") as picture:
        assert picture.format == "PNG"
    for command in ("evaluate", "render", "resume"):
        line = re.search(f"^{command}: +metajax (.*)$", printed, re.MULTILINE)
        assert line
        words = shlex.split(line[1])  # the directory has a space in its name
        assert words[:2] == [command, str(directory)]


def test_the_run_keeps_the_whole_configuration(trained):
    directory, _ = trained
    with open_run(directory, lock=False) as run:
        config = run.config
    expected = presets.default_config("maml", "point-goal")
    expected["family"]["episode_length"] = 10
    expected["policy"]["hidden"] = [4]
    expected["algorithm"] |= {"episodes": 2}
    assert expected["algorithm"]["outer"]["name"] == "adam"
    expected["training"] |= {"iterations": 4, "tasks": 2, "segment": 2, "seeds": 2}
    expected["training"]["devices"] = 2  # as many as the tasks can be sharded over
    expected["evaluation"] |= {"every": 2, "tasks": 4, "final_tasks": 6, "episodes": 3}
    assert config == expected
    preset = FAMILIES["point-goal"].presets["maml"]["policy"]
    assert preset.items() <= config["policy"].items()
    assert presets.build(config).training == config["training"]


def test_a_finished_run_says_so_and_can_be_trained_further(trained, cache):
    directory, _ = trained
    assert "is finished: 4 iterations" in metajax("resume", directory)
    printed = metajax("resume", directory, "--iterations", 6)
    assert "\n6/6: 960 steps" in printed
    records = read_metrics(directory / "metrics.jsonl")
    assert [r["iteration"] for r in records if "return_after" in r] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["iteration"] == 6
    assert len(table_rows(printed)) == 4
    assert "is finished: 6 iterations" in metajax("resume", directory, "--iterations", 6)
    assert "is finished: 6 iterations" in metajax("resume", directory)


def test_a_run_interrupted_while_drawing_is_drawn_by_resume(trained, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(trained[0], directory)
    picture = directory / "curves.png"
    drawn = f"picture:   {picture}\n"
    for interrupt in (picture.unlink, lambda: os.utime(picture, (0, 0))):  # before, or an older one
        interrupt()
        assert metajax("resume", directory).startswith(drawn)
        with Image.open(picture) as image:
            assert image.format == "PNG"
    assert drawn not in metajax("resume", directory)
    assert not list(directory.glob(".curves*"))


def test_training_from_python_prints_unless_it_is_to_be_silent(cache, capsys):
    family = make("point-goal", episode_length=5)
    policy = package.mlp(2, family.env.action_space, hidden=(4,))
    inner = gradient_steps(policy_gradient(critic=None))
    options = {"inner": inner, "outer": package.outer.adam(), "episodes": 2}
    algorithm = package.maml(family.env, policy, **options)
    printed = []
    for report in ({}, {"report": None}):
        package.train(algorithm, family, iterations=1, tasks=2, evaluation=None, **report)
        printed.append(capsys.readouterr().out)
    assert printed[0].startswith("compiling maml on point-goal-v1: XLA ...\n")
    assert "\n1/1: 40 steps, " in printed[0]  # 2 tasks x 2 rounds x 2 episodes x 5 steps
    assert printed[1] == ""
    with pytest.raises(MetajaxError, match="report 'prnt'; did you mean 'print'"):
        package.train(algorithm, family, report="prnt")


@pytest.mark.slow
def test_the_best_agent_is_kept_reported_and_loaded(tmp_path, cache):
    directory = tmp_path / "run"
    options = [*TINY, "--iterations", 6, "--run-directory", directory, "--seed", 3]
    options += ["--keep", "best", "--evaluation.every", 1, "--outer.learning-rate", 1.0]
    printed = metajax("train", "maml", "point-goal", *options)
    found = scores(read_metrics(directory / "metrics.jsonl"))
    assert list(found) == [1, 2, 3, 4, 5, 6]
    best = max(found, key=lambda iteration: found[iteration])
    assert best < 6, "the test needs a run that gets worse"
    assert f"validation tasks after {best} iteration" in printed
    assert f"{found[best]:.2f}, the best so far" in printed
    assert f"The best agent, of iteration {best} of 6.\n" in printed
    for step, expected in (("best", f"best iteration {best} "), (None, "newest iteration 6 ")):
        chosen = [] if step is None else ["--step", step]
        printed = metajax("evaluate", directory, "--tasks", 4, "--split", "validation", *chosen)
        assert f"evaluating {directory}, {expected}" in printed
        assert "2 seeds x 4 validation tasks x 3 episodes" in printed
        record = json.loads((directory / "evaluation-validation.json").read_text())
        assert record["iteration"] == (6 if step is None else best)
    assert f"{directory}, best iteration {best} ..." in metajax(
        "render", directory, "--step", "best", "--tasks", 1
    )
    kept, newest = (load(directory, step=step).adapted.policy for step in ("best", 6))
    assert not np.array_equal(kept["log_std"], newest["log_std"])


@pytest.mark.slow
def test_a_run_that_patience_stopped_is_finished(tmp_path, cache):
    directory = tmp_path / "run"
    options = [*TINY, "--iterations", 20, "--run-directory", directory, "--seed", 3]
    options += ["--keep", "best", "--evaluation.every", 1, "--outer.learning-rate", 1.0]
    printed = metajax("train", "maml", "point-goal", *options, "--patience", 2)
    found = list(scores(read_metrics(directory / "metrics.jsonl")).values())
    since = len(found) - 1 - int(np.argmax(found))
    assert since == 2 and len(found) < 20
    done = len(found)
    stopped = f"The best agent, of iteration {done - 2}; stopped after {done}, 2 evaluations"
    assert stopped in printed
    assert f"is finished: {done} iterations" in metajax("resume", directory)
    printed = metajax("resume", directory, "--iterations", done + 3)
    assert re.search(rf"The best agent, of iteration (\d+ of )?{done + 3}\.\n", printed)


# --- evaluation, pictures -------------------------------------------------------------------------


def test_evaluate_writes_what_it_prints(trained, cache):
    directory, _ = trained
    printed = metajax("evaluate", directory, "--step", 4, "--rounds", 3, "--tasks", 6)
    record = json.loads((directory / "evaluation-test.json").read_text())
    expected = {"iteration": 4, "backend": "jax", "tasks": 6, "rounds": 3, "episodes": 3}
    assert {name: record[name] for name in expected} == expected
    rows = table_rows(printed)
    assert [row[0] for row in rows] == [0, 1, 2] * 2
    for acting, rows_of in (("sampled", rows[:3]), ("deterministic", rows[3:])):
        returns = np.array(record[acting]["returns_per_seed_task_round"])
        assert returns.shape == (2, 6, 3)
        for k, (_, middle, low, high, mean) in enumerate(rows_of):
            summary = record[acting]["adaptation_curve"][k]
            assert summary["iqm"] == pytest.approx(interquartile_mean(returns[:, :, k]))
            assert summary["mean"] == pytest.approx(returns[:, :, k].mean())
            assert summary["not_finite"] == 0
            assert [middle, low, high, mean] == [
                pytest.approx(summary[name], abs=0.051) for name in ("iqm", "low", "high", "mean")
            ]
    sampled, deterministic = (
        record[acting]["returns_per_seed_task_round"] for acting in ("sampled", "deterministic")
    )
    assert not np.allclose(sampled, deterministic)
    assert np.ptp(np.array(deterministic)[0, :, 0]) > 0  # tasks differ
    distance = np.array(record["sampled"]["metrics"]["distance"]["per_seed_task_round"])
    means = [f"{x:.3f}" for x in distance.mean(axis=(0, 1))]
    assert re.search(rf"distance +{' +'.join(map(re.escape, means))}", printed)


def test_evaluate_writes_null_for_what_is_not_finite(trained, cache, tmp_path, monkeypatch):
    directory = tmp_path / "copy"
    shutil.copytree(trained[0], directory)
    returns = np.arange(12.0).reshape(4, 3, 1)
    returns[0, 1:, 0] = np.nan, np.inf
    returns[:, 2] = np.nan
    found_instead = returns, {"distance": returns}
    monkeypatch.setattr(evaluate_command, "evaluate_with_metrics", lambda *_, **__: found_instead)
    printed = metajax("evaluate", directory)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (directory / "evaluation-test.json").read_text()
    found = json.loads(text, parse_constant=refuse)["sampled"]
    assert found["returns_per_seed_task_round"][0] == [
        *([0, None, None], [3, 4, None], [6, 7, None], [9, 10, None])
    ]
    assert [s["not_finite"] for s in found["adaptation_curve"]] == [0, 2, 8]
    assert [s["mean"] for s in found["adaptation_curve"]] == [4.5, 7, None]
    of_distance = found["metrics"]["distance"]
    assert of_distance["per_seed_task_round"] == found["returns_per_seed_task_round"]
    assert [s["mean"] for s in of_distance["adaptation_curve"]] == [4.5, 7, None]
    assert "adaptation steps 1: the return of 2 of 8 tasks is not finite" in printed
    assert "adaptation steps 2: the return of 8 of 8 tasks is not finite" in printed


def test_evaluate_again_gives_the_same_and_another_checkpoint_does_not(trained, cache):
    directory, _ = trained
    records = []
    for step in (4, 4, 2):
        metajax("evaluate", directory, "--step", step, "--rounds", 3, "--tasks", 6)
        records.append(json.loads((directory / "evaluation-test.json").read_text()))
    assert records[0] == records[1]
    assert records[2]["iteration"] == 2
    assert records[0]["deterministic"] != records[2]["deterministic"]


@pytest.mark.filterwarnings("default")
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(trained, cache, tmp_path, capsys):
    directory = tmp_path / "copy"
    shutil.copytree(trained[0], directory)
    for step in (directory / "checkpoints").iterdir():
        if step.name not in ("2", "4"):
            shutil.rmtree(step)
    damaged = directory / "checkpoints" / "4" / "manifest.json"
    damaged.write_text(damaged.read_text().replace("state", "stale", 1))
    printed = metajax("evaluate", directory, "--rounds", 3, "--tasks", 6)
    assert "iteration 2 " in printed
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and error.count("\n") == 1
    assert "step 4 is damaged" in error


def test_a_run_without_checkpoints_starts_over_and_says_so(trained, cache, tmp_path, capsys):
    directory = tmp_path / "copy"
    shutil.copytree(trained[0], directory)
    for step in (directory / "checkpoints").iterdir():
        shutil.rmtree(step)
    recorded = (directory / "metrics.jsonl").read_text()
    printed = metajax("resume", directory, "--iterations", 2)
    assert "\n2/2: 320 steps" in printed
    assert "no good checkpoint: starting over" in capsys.readouterr().err
    assert (directory / "metrics-before.jsonl").read_text() == recorded


def test_a_run_from_python_can_be_drawn_and_says_what_it_lacks(tmp_path, capsys):
    with create_run(tmp_path / "run", {}) as run, MetricsLog(run.metrics, iteration=-1) as log:
        values = {"return_before": [0.0], "return_after": [1.0]}
        log.write(1, {"environment_steps": 10, **values})
    for command in ("resume", "render", "evaluate"):
        assert "trained from Python" in complaint([command, tmp_path / "run"], capsys)
    assert "written to" in metajax("plot", tmp_path / "run", "--output", tmp_path / "a.svg")


def test_render_and_plot(trained, tmp_path):
    directory, _ = trained
    assert str(directory / "render.png") in metajax("render", directory, "--tasks", 2)
    output = tmp_path / "both.svg"
    assert str(output) in metajax("plot", directory, directory, "--output", output)
    assert output.read_text().startswith("<?xml")
    with Image.open(directory / "render.png") as picture:
        assert picture.width > picture.height  # two panels side by side


def test_list_names_everything():
    printed = metajax("list")
    for name in (*ALGORITHMS, *FAMILIES):
        assert f"\n  {name} " in printed
    _, _, listed = printed.partition("\n  halfcheetah-vel ")
    lines = [line.strip() for line in listed.split("\n  hopper")[0].splitlines()]
    assert lines[0] == "Finn et al. 2017"
    assert lines[1] == "observation: 17 numbers, action: 6 numbers, episode: 200 steps"
    assert re.fullmatch(r"[\d.]+k steps per second", lines[2])
    assert lines[3] == "--backend auto, mjx, mujoco, warp, spring, positional, generalized"
    assert lines[4] == "--variant maml, promp, pearl, varibad, mql"
    assert all(spec.source and f"\n  {name:<19}{spec.source}\n" in printed
               for name, spec in FAMILIES.items())  # fmt: skip


def test_list_says_which_package_a_family_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    printed = metajax("list")
    assert "needs the package gymnax (" in printed and 'pip install -e ".[gymnax]"' in printed
    assert "\n  xland-minigrid " in printed


# --- help -----------------------------------------------------------------------------------------

PAIRS = list(itertools.product(ALGORITHMS, FAMILIES))


@pytest.mark.parametrize(
    "pair",
    # One of each; the longest names together.
    [
        *(("maml", family) for family in FAMILIES),
        *((algorithm, "point-goal") for algorithm in ALGORITHMS if algorithm != "maml"),
        (max(ALGORITHMS, key=len), max(FAMILIES, key=len)),
    ],
    ids="-".join,
)
def test_help_shows_every_option_with_its_meaning_and_default(pair, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    printed = metajax("train", *pair, "--help")
    assert max(map(len, printed.splitlines())) <= 80
    text = " ".join(re.sub("[│─╭╮╰╯]", " ", printed).split())
    flags = arguments.flags(options_of.train_options(*pair))
    assert len(set(flags)) == len(flags)  # groups without a prefix share no name
    for group, options in presets.options(*pair).items():
        prefix = f"{group}." if group in ("policy", "evaluation") else ""
        for path, option in paths(options).items():
            flag = f"--{prefix}{path.replace('_', '-')}"
            assert flag in flags
            entry = re.search(f"{flag}[, ].*?(?= --[a-z]|$)", text)
            assert entry, flag
            default = (option.name or "none") if isinstance(option, Choice) else option.default
            if default is not None and not isinstance(default, bool):
                several = isinstance(default, tuple)
                value = " ".join(map(str, default)) or "none" if several else default
                assert f"(default: {value})" in entry[0], flag
            part, _, name = path.rpartition(".")
            factory = paths(options)[part].factory if part else presets.factories(*pair)[group]
            meaning = arguments.help_of(factory)
            assert meaning.get(name), f"no docstring says what {group} option {path} is"


def by(outer):
    return {"outer": {"name": outer}}


def values_of(chosen):
    """Return the algorithm's options of a parsed command line, as configurations have them."""
    return options_of.values_of(chosen.algorithm)


def test_values_go_with_the_outer_step_that_is_chosen():
    """On the command line, in its help and in configurations; what a user asks for comes last."""
    pair = ("maml", "point-goal")

    def values(config):
        """Return the standard deviation at the start, the inner rate and the outer step."""
        rate = config["algorithm"]["inner"]["rule"]["learning_rate"]
        return config["policy"]["initial_std"], rate, config["algorithm"]["outer"]["name"]

    assert values(presets.default_config(*pair)) == (0.045, 0.04, "adam")
    assert values(presets.default_config(*pair, parts=by("adam"))) == (0.045, 0.04, "adam")
    config = presets.default_config(*pair, parts=by("trpo"))
    assert values(config) == (1.0, 0.1, "trpo")
    assert config["algorithm"]["outer"]["max_kl"] == 0.01
    assert presets.build(config).training["tasks"] == config["training"]["tasks"] == 20
    # They are shared with what is akin to MAML; what an algorithm needs anyway is its own.
    relative = presets.default_config("cavia", "point-goal", parts=by("trpo"))
    assert values(relative) == (1.0, 1.0, "trpo")
    printed = " ".join(metajax("train", *pair, "--outer", "trpo", "--help").split())
    assert re.search(r"--policy.initial-std NUMBER[^-]*\(default: 1.0\)", printed)
    options = options_of.train_options(*pair, parts=by("trpo"))
    words = ["--outer=trpo", "--inner.rule.learning-rate", "0.3"]
    chosen = arguments.parse(options, words, "metajax train")
    assert chosen.policy.initial_std == 1.0
    assert values_of(chosen)["inner"]["rule"] == {"name": "sgd", "learning_rate": 0.3}
    config = presets.default_config("rl2", "tabular", parts=by("trpo"))
    assert config["policy"]["critic"] == "separate"
    with pytest.raises(MetajaxError, match="unknown outer step 'adm'; did you mean 'adam'"):
        presets.default_config("rl2", "tabular", parts=by("adm"))


LAMBDA = ("--inner.objective.gae-lambda", "0.9")


def test_the_outer_step_on_the_command_line_brings_its_values(monkeypatch):
    seen = []
    keep = lambda config, *_, **__: seen.append(config) or 0
    monkeypatch.setattr(train_command, "train_and_show", keep)
    metajax("train", "maml", "point-goal", "--outer", "trpo", *LAMBDA)
    expected = presets.default_config("maml", "point-goal", parts=by("trpo"))
    expected["algorithm"]["inner"]["objective"]["gae_lambda"] = 0.9
    assert [*map(presets.checked_config, seen)] == [presets.checked_config(expected)]
    metajax("train", "maml", "point-goal", "--outer=trpo", "--outer", "adam")
    expected = presets.default_config("maml", "point-goal", parts=by("adam"))
    assert presets.checked_config(seen[1]) == presets.checked_config(expected)


def test_presets_are_the_defaults():
    for family, spec in FAMILIES.items():
        for algorithm, preset in spec.presets.items():
            own = {group: values for group, values in preset.items() if group != "outer"}
            for outer, extra in ((None, {}), *preset.get("outer", {}).items()):
                parts = by(outer) if outer else {}
                config = presets.default_config(algorithm, family, parts=parts)
                for group, values in merged(own, extra).items():
                    if outer and group == "algorithm":
                        values = merged(values, by(outer))
                    assert held_by(values, config[group]), (algorithm, family, group)


def held_by(some, values):
    """Return whether nested values hold these, a trust region those that it has a use for."""
    if isinstance(some, str) and isinstance(values, dict):
        return values["name"] == some
    if not isinstance(some, dict) or not isinstance(values, dict):
        return some == values
    if some.get("name") == "trpo":
        some = {name: one for name, one in some.items() if name in values}
    return all(name in values and held_by(one, values[name]) for name, one in some.items())


def test_an_algorithm_has_the_presets_that_were_written_for_it_and_no_others():
    """MAML's on a half-cheetah are none of deep Q-learning's, nor of an algorithm of the user's."""
    tuned = {"halfcheetah-dir", "halfcheetah-vel", "point-goal", "reacher-goal"}
    for algorithm in ALGORITHMS:
        named = {family for family, spec in FAMILIES.items() if algorithm in spec.presets}
        memory = {name: {"halfcheetah-vel"} for name in ("rl2", "off-policy-rl2")}
        memory |= {"snail": set(), "varibad": set()}
        nowhere = {name: set() for name in ("maml-dqn", "sac", "td3")}
        pearl = {"halfcheetah-dir", "halfcheetah-vel", "ant-dir", "ant-goal", "humanoid-dir"}
        pearl |= {"walker2d-params", "hopper-params", "point-sparse", "point-goal", "gridnav"}
        others = {"dqn": {"cartpole-params"}, "mql": {"halfcheetah-vel"}, "pearl": pearl}
        expected = (nowhere | others).get(algorithm, tuned)
        if algorithm in memory:
            expected = memory[algorithm] | {"bernoulli-bandit"}
        assert named == expected, algorithm
        plain = presets.default_config(algorithm, "swimmer-vel")  # nothing was tuned there
        for family in FAMILIES.keys() - named:
            config = presets.default_config(algorithm, family)
            for group in {*presets.GROUPS} - {"family"}:
                assert config[group] == plain[group], (algorithm, family, group)


def test_what_a_preset_sets_must_exist(monkeypatch):
    spec = FAMILIES["tabular"]
    for preset, expected in (
        ({"algorithm": {"episods": 2}}, "algorithm option in tabular's preset for maml 'episods'"),
        ({"outer": {"ppo": {"training": {"taks": 2}}}}, "preset for maml 'taks'; did you mean 'ta"),
        (
            {"algorithm": {"inner": {"rule": {"lerning_rate": 2.0}}}},
            "for maml 'inner.rule.lerning_rate'; did you mean 'inner.rule.learning_rate'",
        ),
        ({"outer": {"ppo": {"algorithm": {"outer": {"epoch": 2}}}}}, "for maml 'outer.epoch'; did"),
        ({"algoritm": {}}, "group of options in tabular's presets 'algoritm'; did you mean 'algor"),
    ):
        monkeypatch.setitem(FAMILIES, "tabular", spec._replace(presets={"maml": preset}))
        with pytest.raises(MetajaxError, match=expected):
            presets.default_config("maml", "tabular")


def test_help_without_names_is_that_of_the_default_pair():
    assert metajax("train", "--help") == metajax("train", "maml", "halfcheetah-dir", "--help")
    assert metajax("train", "maml", "--help").startswith(
        "usage: metajax train maml halfcheetah-dir"
    )


@pytest.mark.parametrize("command", ["resume", "evaluate", "render", "plot", "list"])
def test_help_of_the_other_commands(command):
    printed = metajax(command, "--help")
    assert printed.startswith(f"usage: metajax {command}")
    options = app.COMMANDS[command].options
    assert options is not None
    for field in dataclasses.fields(options):
        if field.name not in ("run", "runs"):
            assert f"--{field.name.replace('_', '-')}" in printed
            assert arguments.help_of(options)[field.name]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_all_commands(arguments):
    printed = metajax(*arguments)
    assert max(map(len, printed.splitlines())) <= 80
    for command in app.COMMANDS:
        assert f"\n  {command} " in printed


def test_version():
    assert metajax("--version") == f"metajax {package.__version__}\n"


# --- options --------------------------------------------------------------------------------------


def parsed(*words):
    options = options_of.train_options("maml", "halfcheetah-vel")
    return arguments.parse(options, words, "metajax train maml halfcheetah-vel")


def test_options_reach_their_group_with_their_type():
    chosen = parsed(
        *("--episodes", "7", "--policy.hidden", "8", "9", "--outer.clip=0.5", "--first-order"),
        *("--inner.objective.no-normalize-advantages", "--episode-length", "None"),
        *("--variant", "promp", "--inner.objective.critic", "none"),
        *("--evaluation.every", "3", "--run-directory", "here", "--outer.learning-rate", "1e-4"),
    )
    assert chosen.algorithm.episodes == 7
    assert chosen.policy.hidden == (8, 9)
    algorithm = values_of(chosen)
    preset = presets.default_config("maml", "halfcheetah-vel")["algorithm"]["outer"]
    assert algorithm["outer"] == preset | {"clip": 0.5, "learning_rate": 1e-4}
    assert chosen.algorithm.first_order is True
    assert algorithm["inner"]["objective"]["normalize_advantages"] is False
    assert algorithm["inner"]["objective"]["critic"] == "none"
    assert chosen.family.episode_length is None
    assert chosen.family.variant == "promp"
    assert chosen.evaluation.every == 3
    assert str(chosen.run_directory) == "here"


def test_hyphens_and_underscores_are_the_same():
    for flag in ("--inner-steps", "--inner_steps"):
        assert parsed(flag, "3").algorithm.inner_steps == 3
        assert parsed(f"{flag}=4").algorithm.inner_steps == 4
    for flag in ("--evaluation.final-tasks", "--evaluation.final_tasks"):
        assert parsed(flag, "3").evaluation.final_tasks == 3


def test_without_options_the_preset_is_chosen():
    chosen, config = parsed(), presets.default_config("maml", "halfcheetah-vel")
    found = config | {
        group: options_of.values_of(getattr(chosen, group)) for group in presets.GROUPS
    }
    assert presets.checked_config(found) == presets.checked_config(config)


# --- mistakes -------------------------------------------------------------------------------------


def complaint(arguments, capsys) -> str:
    """Return the one line that a mistaken command writes to stderr."""
    assert cli.main([str(word) for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith("\n")
    assert captured.out == ""  # it comes before anything else
    message = captured.err.removesuffix("\n")
    assert message and "\n" not in message and "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
        ("train mamll", "unknown algorithm 'mamll'; did you mean 'maml'?"),
        ("train point-goal", "name an algorithm first: metajax train maml point-goal"),
        ("train maml halfchetah-dir", "did you mean 'halfcheetah-dir'?"),
        ("train maml point-goal --episods 3", "'--episods'; did you mean '--episodes'?"),
        ("train --policy.hiden 3", "'--policy.hiden'; did you mean '--policy.hidden'?"),
        ("train --inner_stps=3", "'--inner-stps'; did you mean '--inner-steps'?"),
        ("train --backend mujco", "--backend: unknown value 'mujco'; did you mean 'mujoco'?"),
        ("train --variant promb", "--variant: unknown value 'promb'; did you mean 'promp'?"),
        ("train --outer trp", "did you mean 'trpo'? Known: adam, ppo, trpo"),
        ("train maml point-goal --backend mjx", "point-goal has no --backend"),
        ("train --episodes 3 maml point-goal", "'maml' comes too late"),
        ("train maml point-goal twice", "unexpected 'twice'"),
        ("train --episodes x", "--episodes: 'x' is not a whole number"),
        ("train --episodes 1.5", "--episodes: '1.5' is not a whole number"),
        ("train --episodes", "--episodes: a value is missing"),
        ("train --policy.hidden", "--policy.hidden: a value is missing; 'none' stands for none"),
        ("train --policy.hidden --episodes 3", "--policy.hidden: a value is missing"),
        ("train --policy.hidden none 3", "--policy.hidden: 'none' is not a whole number"),
        ("train --inner.rule", "--inner.rule: a value is missing"),
        (
            "train --inner.objective.critic value-network --inner.objective.critic.hidden",
            "--inner.objective.critic.hidden: a value is missing",
        ),
        ("train --inner.rule.lerning-rate 3", "did you mean '--inner.rule.learning-rate'?"),
        ("train --inner.rule meta-sgt", "unknown update rule 'meta-sgt'; did you mean 'meta-sgd'?"),
        ("train --inner.objective none", "unknown objective 'none'. Known: policy-gradient, q-lea"),
        (
            "train --outer trpo --outer.epochs 5",
            "--outer.epochs is an option of the outer step 'adam' and 'ppo'; this one is 'trpo'.",
        ),
        (
            "train --inner.objective.critic.hidden 3",
            "is an option of the critic 'value-network'; this one is 'linear'. See metajax train",
        ),
        (
            "train --inner.objective.control-variate.kind standard",
            "is an option of the control variate 'q-prop'; this one is 'none'. See metajax train",
        ),
        (
            "train anil point-goal --inner.adapts all",
            "inner.adapts is 'all'; in ANIL it must be 'h",
        ),
        ("train promp point-goal --outer trpo", "outer is 'trpo'; in ProMP it must be 'ppo'"),
        ("train dqn gridnav --outer trpo", "a loss of values; take the outer step 'adam'"),
        ("train maml point-goal --inner.objective q-learning", "needs a policy of action values"),
        # Flags of earlier versions.
        (
            "train --inner.objective.critic none --inner.objective.critic.hidden 3",
            "is an option of the critic 'value-network'; this one is 'none'. See metajax train",
        ),
        (
            "train dqn gridnav --inner.objective.critic.hidden 3",
            "is an option of the objective 'policy-gradient'; this one is 'q-learning'. See metaj",
        ),
        ("train --outer.step 3", "unknown option '--outer.step'; did you mean '--outer."),
        ("train --trace 0.9", "--trace is now --inner.objective.gae-lambda. See metajax train"),
        (
            "train --outer trpo --clip 0.2",
            "--clip is now --outer.clip, an option of the outer step 'adam' and 'ppo'; this one",
        ),
        ("train --evaluation.mode", "--evaluation.mode is now --evaluation.deterministic. See"),
        ("train --evaluation.no-mode", "no-mode is now --evaluation.deterministic. See metajax"),
        ("train rl2 --trace 0.9", "--trace is now --objective.gae-lambda. See metajax train rl2"),
        ("train --outer-epochs 3", "--outer-epochs is now --outer.epochs. See metajax train"),
        ("train --inner-learning-rate 1", "is now --inner.rule.learning-rate. See metajax train"),
        ("train reptile --outer-learning-rate 1", "--outer-learning-rate is now --step-size. See"),
        (
            "train --critic-hidden 3",
            "--critic-hidden is now --inner.objective.critic.hidden, an option of the critic",
        ),
        (
            "train --q-updates 3",
            "is now --inner.objective.control-variate.updates, an option of the control v",
        ),
        ("train --baseline none", "--baseline is now --inner.objective.critic. See metajax train"),
        ("train --rule meta-sgd", "unknown option '--rule'; did you mean '--inner.rule'?"),
        ("train --variant", "--variant: a value is missing"),
        ("train --episode-length", "--episode-length: a value is missing"),
        ("train --run-directory", "--run-directory: a value is missing"),
        ("train --run-directory=", "--run-directory: a path is missing"),
        ("train rl2 gymnax --vary", "--vary: it takes a name and 2 numbers"),
        ("train rl2 gymnax --vary gravity 1", "--vary: it takes a name and 2 numbers"),
        ("train rl2 gymnax --vary gravity 1 x", "--vary: 'x' is not a number"),
        ("train rl2 --inner-steps 3", "rl2 has no --inner-steps; it is an option of maml, fomaml,"),
        ("train maml --no-bfloat16", "unknown option '--no-bfloat16'"),
        ("train maml --policy.no-bfloat16", "the policy mlp has no --policy.no-bfloat16; it is an"),
        (
            "train maml --policy.width 3",
            "it is an option of gru, lstm, transformer and variational",
        ),
        ("train maml point-goal --arms 3", "option of bernoulli-bandit and gaussian-bandit"),
        ("train maml --rounds 3", "'--rounds'; did you mean '--evaluation.rounds'?"),
        ("train --gif", "has no --gif; it is an option of metajax render"),
        (
            "evaluate here --seeds 3",
            "metajax evaluate has no --seeds; it is an option of metajax tr",
        ),
        ("render here --htm", "'--htm'; did you mean '--html'?"),
        ("train --outer.clip wide", "--outer.clip: 'wide' is not a number"),
        ("train --outer.clip nan", "--outer.clip: 'nan' is not a finite number"),
        ("train --policy.hidden 8 x", "--policy.hidden: 'x' is not a whole number"),
        ("train --inner.objective.discount 1.5", "discount is 1.5; it must lie in [0, 1]"),
        ("train --outer.epochs 0", "epochs is 0; it must be at least 1"),
        ("train --policy.hidden 0", "a width in hidden is 0"),
        ("train --policy.initial-std -1", "initial_std is -1.0; it must be above 0"),
        ("train maml tabular --states 0", "states is 0"),
        ("train maml point-goal --seeds 0 --run-directory R", "seeds is 0"),
        ("train maml point-goal --evaluation.every -1 --run-directory R", "evaluation.every is -1"),
        ("train maml point-goal --devices 9 --run-directory R", "9 devices asked for, 4 available"),
        ("train maml point-goal --devices 4 --tasks 6 --run-directory R", "6 tasks cannot be"),
        ("train maml point-goal --run-directory R --seed 99999999999999999999", "seed is 999"),
        (
            "train maml point-goal --run-directory R --seed -1",
            "seed is -1; it must be a whole number from 0 to 4294967295",
        ),
        (
            "train rl2 bernoulli-bandit --tasks 6 --run-directory R",
            "6 tasks cannot be split into 4",
        ),
        (
            "train maml point-goal --run-directory R --policy.hidden 1000000000 9",
            "GB for the train",
        ),
        ("train maml point-goal --run-directory R --tasks 1000000000", "for the episodes of an it"),
        ("train maml point-goal --run-directory R --episodes 1000000000000000000", "below 2³¹"),
        ("train meta-sgd point-goal --inner-steps 0", "inner_steps is 0"),
        ("train meta-sgd point-goal --inner.rule sgd", "inner.rule is 'sgd'; in Meta-SGD it must"),
        ("train dqn gridnav --replay-capacity 9 --run-directory R", "replay_capacity is 9"),
        ("evaluate", "RUN"),
        ("evaluate nowhere", "there is no run directory"),
        ("resume nowhere", "there is no run directory"),
        ("render nowhere", "there is no run directory"),
        ("plot nowhere", "there is no run directory"),
        ("plot", "RUN ...: a value is missing"),
        ("evaluate here there", "unexpected 'there'"),
        ("list all", "unexpected 'all'"),
    ],
)
def test_a_mistake_is_one_sentence(command, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in complaint(command.split(), capsys)
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_hints_name_no_option_that_is_none(capsys):
    message = complaint(["plot", "here", "--csv", "there"], capsys)
    assert "'--csv'" in message and "--runs" not in message
    message = complaint(["render", "here", "--no-htm"], capsys)  # --html has no opposite
    assert "--no-html" not in message
    assert arguments.flags(options_of.PlotOptions) == ["--output"]


def test_none_stands_for_no_hidden_layer():
    assert parsed("--policy.hidden", "none").policy.hidden == ()
    parts = {"inner": {"objective": {"critic": {"name": "value-network"}}}}
    options = options_of.train_options("maml", "halfcheetah-vel", parts=parts)
    words = ["--inner.objective.critic.hidden", "None"]
    algorithm = values_of(arguments.parse(options, words, "metajax train"))
    assert algorithm["inner"]["objective"]["critic"]["hidden"] == ()
    options = options_of.train_options("rl2", "gymnax")
    chosen = arguments.parse(options, ["--vary", "a", "0", "1", "b", "2", "3.5"], "metajax")
    assert chosen.family.vary == {"a": (0.0, 1.0), "b": (2.0, 3.5)}


def test_mistakes_about_a_run(trained, capsys, tmp_path):
    directory, _ = trained
    for words, expected in (
        (["evaluate", directory, "--step", 3], "there is no checkpoint of step 3"),
        (["evaluate", directory, "--tasks", 0], "--tasks is 0"),
        (["evaluate", directory, "--backend", "mjx"], "unknown family option 'backend'"),
        (["resume", directory, "--iterations", 1], "iterations already"),
        (["render", directory, "--gif"], "'.gif'"),
        (["render", directory, "--seed", 2], "--seed is 2; the run has seeds 0 to 1"),
        (["plot", directory, "--output", tmp_path / "a.bmp"], "'.bmp'"),
        (["plot", directory, "--output", tmp_path / "no" / "a.png"], "cannot write"),
        (["train", "maml", "point-goal", "--run-directory", directory], "holds a run already"),
    ):
        assert expected in complaint(words, capsys)


def test_a_directory_that_is_not_ours_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    train = ["train", "maml", "point-goal", "--run-directory", tmp_path]
    assert "is not empty and not a metajax run" in complaint(train, capsys)
    assert "is not a metajax run" in complaint(["evaluate", tmp_path], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_in_use_names_its_process(capsys, tmp_path):
    with create_run(tmp_path, presets.default_config("maml", "point-goal")):
        assert f"process {os.getpid()}" in complaint(["resume", tmp_path], capsys)


def test_unknown_parts_of_a_configuration_are_refused(capsys, tmp_path):
    for index, (part, expected) in enumerate(
        (
            ({"optimiser": {}}, "unknown part of the configuration 'optimiser'"),
            ({"policy": {"hiden": [4]}}, "unknown policy option 'hiden'; did you mean 'hidden'?"),
            ({"policy": 3}, "the configuration's policy is 3"),
            ({"family_name": "point-gaol"}, "did you mean 'point-goal'?"),
            ({"algorithm": {"outer": {"name": "adm"}}}, "unknown outer step 'adm'; did you mean"),
            (
                {"algorithm": {"outer": {"name": "ppo", "epoch": 3}}},
                "unknown option of outer 'epoch'; did you mean 'epochs'?",
            ),
            (
                {"algorithm": {"inner": {"rule": {"learning_rate": "x"}}}},
                "inner.rule.learning_rate is 'x'; it must be a finite number.",
            ),
            ({"algorithm": {"outer": None}}, "outer"),
            ({"algorithm_name": None}, "the configuration has no algorithm_name"),
        )
    ):
        directory = tmp_path / str(index)
        create_run(directory, presets.default_config("maml", "point-goal")).close()
        file = directory / "config.json"
        record = read_record(file, "metajax run", 1, 1 << 20)
        record["config"] |= part
        content = {k: v for k, v in record.items() if not k.startswith("format")}
        write_record(file, "metajax run", 1, content)
        assert expected in complaint(["evaluate", directory], capsys)


# --- what is said ---------------------------------------------------------------------------------


def test_the_physics_engine_and_the_reason_for_it(capsys, tmp_path, monkeypatch):
    def interrupted(*_, started, **__):
        started()
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "train", interrupted)
    tail = ["--tasks", "3", "--devices", "2", "--run-directory", str(tmp_path / "run")]
    for backend, reason in (("auto", "no accelerator found"), ("mujoco", "as asked for")):
        assert cli.main(["train", "maml", "halfcheetah-dir", "--backend", backend, *tail]) == 130
        lines = capsys.readouterr().out.splitlines()
        threads = os.cpu_count()
        plural = "s" * (threads != 1)
        assert lines[1] == (
            f'physics: C MuJoCo on {threads} thread{plural} (backend "mujoco": {reason})'
        )
        assert lines[0].endswith("on 2 CPU devices of 4")


def progress(iteration, *, iterations=100, discarded=0, returns=None) -> Progress:
    return Progress(
        iteration=iteration,
        iterations=iterations,
        environment_steps=40_000 * iteration,
        steps_after=40_000 * np.array([iteration - 1, iteration]),
        steps_per_second=27_123.0,
        metrics={"return_before": np.full((2, 1), -10.0), "return_after": np.full((2, 1), 84.25)},
        discarded=np.array([discarded]),
        returns=returns,
        environment_metrics={},
        seconds_left=83.0,
    )


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    now = itertools.count(100.0, 1.0)
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: next(now))  # a second per look
    printing = progress_lines.reporter("print")
    for iteration in range(1, 101):
        printing.segment(progress(iteration))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1/100: 40k steps, 27.1k/s, return -10.0 -> 84.2, 1:23 left"
    assert lines[-1].startswith("100/100: 4M steps")
    assert 10 < len(lines) < 30


def test_a_stage_without_a_terminal_is_a_line_and_another_when_it_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(progress_lines, "SECONDS_OF_SILENCE", 0.05)
    printing = progress_lines.reporter("print")
    printing.stage("compiling")
    time.sleep(0.5)
    printing.stage("evaluating 8 tasks", done=0, total=8)
    printing.close()
    time.sleep(0.2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "compiling ..."
    assert lines[-1] == "evaluating 8 tasks ..."  # and nothing after the end
    assert set(lines[1:-1]) <= {"compiling: 0:00", "compiling: 0:01"}
    assert 2 < len(lines) < 12


def test_parts_of_a_stage_that_are_over_are_a_line_now_and_then(capsys, monkeypatch):
    now = itertools.count(100.0, 1.0)
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: next(now))  # a second per look
    printing = progress_lines.reporter("print")
    for done in range(20):
        printing.stage("evaluating 20 tasks", done=done, total=20)
    printing.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "evaluating 20 tasks ..."
    assert lines[1] == "evaluating 20 tasks: 1 of 20"
    assert 4 <= len(lines) <= 6


def test_progress_tells_of_evaluations_and_discarded_updates(capsys):
    printing = progress_lines.reporter("print")
    printing.segment(progress(50, discarded=2, returns=np.full((1, 4, 2, 3), 7.0)))
    printed = capsys.readouterr().out
    assert "1:23 left, 2 updates discarded" in printed
    assert "held-out tasks after 50 iterations: 7.00 -> 7.00" in printed


def test_returns_are_told_as_finely_as_they_are_small():
    assert _text.course(-10.04, 84.25) == "-10.0 -> 84.2"
    assert _text.course(0.512, 0.668) == "0.51 -> 0.67"
    assert _text.course(-0.5, 84.25) == "-0.5 -> 84.2"  # all alike


@pytest.mark.parametrize(
    ("tasks", "memory", "told"),
    [
        (20, (), "below that before; after 1 on 100% of the tasks. A smaller inner learning rate"),
        (20, np.zeros(3), "below that before; after 1 on 100% of the tasks.\n"),
        (1, (), None),  # nothing is beyond doubt
    ],
)
def test_adaptation_that_hurts(tasks, memory, told, capsys):
    returns = np.array([5.0, 1.0])[None, None, :, None] + np.linspace(0, 1, tasks)[:, None, None]
    printed = shown(returns, memory=memory)
    assert (told in printed) if told else ("hurts" not in printed)
    assert re.search("x [0-9]+ training tasks? x", shown(returns, split="train"))


@pytest.mark.parametrize(
    ("episodes", "labels"), [(1, ["1", "2", "3"]), (4, ["1-4", "5-8", "9-12"])]
)
def test_rows_of_an_agent_with_a_memory_are_episodes_of_its_trial(episodes, labels):
    returns = np.broadcast_to([[10.0], [20.0], [30.0]], (2, 8, 3, episodes))
    printed = shown(returns, memory=np.zeros(3))
    row = r"^ +([\d-]+) +([\d.]+) +[\d.]+ \.\.\. [\d.]+ +[\d.]+ *$"
    rows = re.findall(row, printed, re.MULTILINE)
    assert rows == list(zip(labels, ["10.0", "20.0", "30.0"], strict=True))
    assert "episode of the trial   interquartile mean" in printed
    header = next(line for line in printed.splitlines() if "mean by episode of the trial" in line)
    assert header.split()[-3:] == labels
    assert [*part_rows(printed)] == ["seed 0", "seed 1"]
    assert f"Total reward of a trial ({3 * episodes} episodes): mean {60 * episodes}.0" in printed


def test_a_diverged_task_is_hurt():
    returns = np.full((1, 8, 2, 1), [[5.0], [1.0]])
    returns[0, :2, 1] = np.nan
    assert "after 1 on 100% of the tasks" in shown(returns)


def shown(returns, *, memory=(), tasks=None, split="test", joint=False) -> str:
    """Return what is printed of `returns` of a family with these tasks, None for uncounted ones."""
    agent = Agent(*(None,) * 4)._replace(initial_memory=lambda: memory)
    trial = Trial(1, 1, 0 if joint else 1)
    algorithm = Algorithm(None, None, agent, "fake", trial, ())  # type: ignore[arg-type]
    distribution = TaskDistribution(lambda key: {}, tasks)
    family = TaskFamily(None, distribution, distribution, "fake-v1")  # type: ignore[arg-type]
    return display.curve_text(returns, "sampled", algorithm, family, split) + "\n"


def part_rows(printed) -> dict[str, list[float]]:
    """Return the rows of the table of seeds and tasks."""
    rows = re.findall(r"^ +([a-z]\S*(?: \d)?) ((?: +-?[\d.]+)+) *$", printed, re.MULTILINE)
    return {name: [float(x) for x in numbers.split()] for name, numbers in rows}


def test_an_interval_says_what_it_is_of_and_seeds_have_their_means():
    """Of three seeds, of which one failed, the interval is no narrow one around the others."""
    returns = np.repeat([[200.0], [153.0], [200.0]], 40, axis=1)[:, :, None, None]
    printed = shown(returns)
    assert table_rows(printed) == [(0, 192.2, 153.0, 200.0, 184.3)]
    assert "over seeds and tasks" in printed
    assert part_rows(printed) == {"seed 0": [200], "seed 1": [153], "seed 2": [200]}
    of_one = shown(returns[1:2])
    assert table_rows(of_one) == [(0, 153.0, 153.0, 153.0, 153.0)]
    assert "over tasks" in of_one and "seed 0" not in of_one


def test_few_tasks_have_a_row_each():
    """They come in their order, as often as each other."""
    direction = {"direction": np.array([1.0, -1.0])}
    returns = np.repeat([[100.0, 300.0], [-100.0, 500.0]], 10, axis=0)[None, ..., None]
    printed = shown(returns, tasks=direction)
    assert part_rows(printed) == {"direction=1": [100, 300], "direction=-1": [-100, 500]}
    assert "20 held-out tasks (10 of each) x" in printed
    named = lambda tasks: display.task_names(TaskDistribution(lambda key: {}, tasks))
    assert named({"at": np.eye(2), "w": np.array([0.5, 2])}) == [
        *("at=(1, 0), w=0.5", "at=(0, 1), w=2")
    ]
    assert named({"map": np.ones((3, 40))}) == ["task 0", "task 1", "task 2"]
    assert named({"x": np.arange(7)}) == named({"x": np.arange(1)}) == named(None) == []


def test_the_total_reward_of_a_trial_can_be_read():
    """Five rounds of two pulls: what is published is what all ten pay together."""
    pulls = (np.random.default_rng(0).random((2, 500, 5, 2)) < 0.66).astype(float)
    of_seeds = pulls.sum(axis=(2, 3)).mean(axis=1)
    printed = shown(pulls, memory=np.zeros(3))
    assert f"Total reward of a trial (10 episodes): mean {of_seeds.mean():.2f}, " in printed
    assert printed.rstrip().endswith("; means of the seeds {:.2f}, {:.2f}".format(*of_seeds))
    assert "Total reward" not in shown(pulls)


def test_joint_training_says_return_once_and_fine_tuning_by_its_name(capsys):
    joint = progress(100)._replace(metrics={"return": np.full((2, 1), 84.25)})
    assert progress_lines.status(joint).split(", ")[2] == "return 84.2"
    held_out = joint._replace(returns=np.repeat([[[[20.0], [30.0], [40.0]]]], 8, axis=1))
    assert progress_lines.held_out(held_out).endswith(": 20.0, fine-tuned 30.0 -> 40.0")
    printed = shown(np.full((1, 8, 2, 1), [[20.0], [10.0]]), joint=True)
    assert "fine-tuning steps" in printed and "adaptation" not in printed
    assert "Fine-tuning hurts" in printed


def test_progress_shows_the_mean_where_the_interquartile_mean_hides_it():
    """One goal in twenty is found: the middle half knows nothing of it."""
    returns = np.full((1, 20, 2, 3), -1.5)
    returns[0, 0, 1] = 29.9
    text = held_out_course(returns, joint=False)
    assert text == "-1.50 -> -1.50 (mean -1.50 -> 0.07)"
    spread = np.random.default_rng(0).normal(size=(1, 40, 2, 3))
    assert "mean" not in held_out_course(spread, joint=False)
    spread[0, :3, 1] = np.nan
    assert held_out_course(spread, joint=False).endswith(", 3 of 40 tasks not finite")


def test_progress_on_a_terminal_is_one_live_line(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    printing = progress_lines.reporter("print")
    printing.stage("compiling something")
    time.sleep(0.2)  # it draws some ten times a second
    for iteration in range(1, 101):
        printing.segment(progress(iteration))
    printing.close()
    printed = capsys.readouterr().out
    assert "compiling something" in printed
    assert printed.count("\n") < 4
    assert printed.count("\x1b[?25l") == printed.count("\x1b[?25h") == 1  # the cursor is back
    assert "4M steps, 27.1k/s, return -10.0 -> 84.2, 1:23 left" in re.sub(
        r"\x1b\[[0-9;]*m", "", printed
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (83, "1:23"), (3723, "1:02:03")]
)
def test_durations(seconds, text):
    assert _text.duration(seconds) == text


def test_every_option_of_a_factory_is_on_the_command_line():
    for algorithm, family in PAIRS:
        config = presets.default_config(algorithm, family)
        for group, factory in presets.factories(algorithm, family).items():
            keywords = {
                name
                for name, parameter in inspect.signature(factory).parameters.items()
                if parameter.kind is parameter.KEYWORD_ONLY
            }
            # What says where a run is kept is no option of the experiment; a trial is as long as
            # its episodes.
            keywords -= {"evaluation", "run_directory", "resume", "config", "report"}
            keywords -= {"started", "trial_length"}
            assert keywords <= set(config[group])


# --- processes ------------------------------------------------------------------------------------


def finish(process, status, *, timeout=120):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == status, (out, err)
    return out, err


@pytest.mark.parametrize(
    "arguments",
    ["train --backend mujco", "train --inner.objective.discount 2", "resume nowhere"],
)
def test_mistakes_are_told_within_three_seconds(arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, err = finish(start(*arguments.split()), 2)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert err.count("\n") == 1
    # Processor time: other processes may be busy.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_a_closed_pipe_is_no_mistake():
    reader, writer = os.pipe()
    os.close(reader)
    process = start("list", stdout=writer)
    os.close(writer)
    assert finish(process, 0)[1] == ""


def test_a_terminal_that_knows_ascii_alone(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    out, err = finish(start("train", "maml", "point-goal", "--help"), 0)
    assert err == "" and "--inner.rule.learning-rate NUMBER" in out
    err = finish(start("train", "--episodes", "x"), 2)[1]
    assert err.startswith("--episodes: 'x' is not a whole number; see metajax train")


def test_devices_are_made_on_a_cpu(tmp_path):
    words = ["--devices", 3, "--tasks", 4, "--run-directory", tmp_path / "run"]
    out, err = finish(start("train", "maml", "point-goal", *words), 2)
    assert "4 tasks cannot be sharded evenly over 3 devices" in err
    assert out == ""


# Training that is interrupted as soon as it starts.
STOPPED = """
import sys
from metajax import cli
from metajax.cli.commands import running

def train(*_, started, **__):
    started()
    raise KeyboardInterrupt

running.train = train
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "words, devices",
    [
        (["point-goal", "--tasks", 4 * CORES], CORES),
        (["point-goal", "--tasks", 1], 1),
        (["halfcheetah-dir", "--tasks", 4], 1),  # the C engine has threads of its own
    ],
)
def test_tasks_are_sharded_over_the_cores_of_a_cpu(tmp_path, words, devices):
    words = [*words, "--evaluation.tasks", 4, "--run-directory", tmp_path]
    arguments = [sys.executable, "-c", STOPPED, "train", "maml", *map(str, words)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=on_a_cpu(), check=False)
    assert done.returncode == 130, done.stderr
    assert f"on {devices} CPU device" in done.stdout


def test_ctrl_c_before_training_is_quiet(monkeypatch, capsys):
    def interrupted(config, *, allow_import):
        raise KeyboardInterrupt

    monkeypatch.setattr(presets, "build", interrupted)
    assert cli.main(["train", "maml", "point-goal"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_the_run_and_says_how_to_go_on(
    number, trained, cache, tmp_path, monkeypatch, capsys
):
    status = progress_lines.status

    def status_and_signal(progress):
        if progress.iteration == 4:
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # the signal is taken by another thread
        return status(progress)

    monkeypatch.setattr(progress_lines, "status", status_and_signal)
    monkeypatch.setattr(progress_lines, "SECONDS_BETWEEN_LINES", 0.0)
    directory = tmp_path / "run"
    options = [*TINY, "--iterations", "8", "--run-directory", str(directory)]
    assert cli.main(["train", "maml", "point-goal", *options]) == 128 + number
    out, err = capsys.readouterr()
    name = signal.Signals(number).name
    assert name in err
    expected = (
        f"stopped by {name} after 4 iterations, saved. To go on:\n  metajax resume {directory}"
    )
    assert out.endswith(f"\n{expected}\n")
    monkeypatch.undo()
    assert "\n8/8: " in metajax("resume", directory)
    records = read_metrics(directory / "metrics.jsonl")
    assert [r["iteration"] for r in records if "return_after" in r] == list(range(1, 9))


def test_ctrl_c_while_compiling_ends_at_once_and_the_run_can_be_resumed(trained, cache, tmp_path):
    directory = tmp_path / "run"
    options = [*TINY, "--iterations", 2, "--run-directory", directory]
    with start("train", "maml", "point-goal", *options) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line == "compiling maml on point-goal-v1: XLA ...\n":
                break
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""  # nothing was compiled or trained
        assert process.wait(60) == 130
        assert process.stderr.read() == (
            "SIGINT: stopped while compiling, with nothing new to save; to go on, resume "
            f"{directory}\n"
        )
    assert "\n2/2: 320 steps" in metajax("resume", directory)
