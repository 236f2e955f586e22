"""Algorithms, families, policies and parts of the user's own: in new files, not in the package."""

import contextlib
import io
import json
import sys

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metajax import cli, presets
from metajax.envs.splits import sample_tasks
from metajax.errors import MetajaxError
from metajax.runs.load import load

FAMILY = '''
"""A line."""

import jax.numpy as jnp

import metajax
from metajax.envs import FamilySpec
from metajax.envs.builders import Moved, make_env
from metajax.envs.drawings import GOALS
from metajax.envs.splits import two_splits, uniform


def line(*, length: float = 1.0, episode_length: int = 4):
    """Return a point that must find a goal to the right.

    Args:
        length: of the line, in metres.
        episode_length: steps per episode.
    """

    def sample(key, *, split):
        return {"goal": jnp.array([1.0, 0.0]) * uniform(key, 0.0, length, split=split)}

    def move(position, action, task):
        position = position + actions.to_control(action)
        return Moved(position, -jnp.sum((position - task["goal"]) ** 2))

    actions = metajax.Continuous(2, -0.1, 0.1)
    env = make_env(
        lambda key, task: jnp.zeros(2),
        move,
        lambda position, task: position,
        observation_size=2,
        action_space=actions,
        episode_length=episode_length,
    )
    return metajax.TaskFamily(env, name="line-v1", **two_splits(sample))


TUNED = {"algorithm": {"rate": 0.02}, "training": {"tasks": 2}}
SPEC = FamilySpec(
    "line", line, "a test", drawing=GOALS, presets={"my_algorithm:climb": TUNED}
)
'''
ALGORITHM = '''
"""Joint training."""

from typing import Literal

import metajax


def climb(
    env,
    policy,
    *,
    rate: float = 0.01,
    episodes: int = 2,
    kind: Literal["reinforce", "a2c"] = "reinforce",
):
    """Return joint training under another name.

    Args:
        rate: learning rate of Adam.
        episodes: per task.
        kind: of joint training.
    """
    makers = {"reinforce": metajax.reinforce, "a2c": metajax.a2c}
    return makers[kind](env, policy, outer=metajax.outer.adam(rate), episodes=episodes)
'''
POLICY = '''
"""A small perceptron."""

import metajax


def narrow(observation_size, action_space, *, width: int = 3):
    """Return a perceptron with one hidden layer.

    Args:
        width: of the layer.
    """
    return metajax.mlp(observation_size, action_space, hidden=(width,))
'''
PARTS = '''
"""An outer step, a critic and a rule."""

import jax
import jax.numpy as jnp
import optax

import metajax
from metajax.adaptation import Critic
from metajax.outer import OuterStep
from metajax.parts import part
from metajax.types import Part, UpdateRule


@part
def signs(rate: float = 0.01, *, sign: int = 1) -> OuterStep:
    """Return steps of one length along every coordinate.

    Args:
        rate: their length.
        sign: 1 to improve.
    """

    def improve(problem, params, state, batch):
        gradient, metrics = jax.grad(problem.loss, has_aux=True)(params, batch, None)
        params = jax.tree.map(lambda p, g: p - sign * rate * jnp.sign(g), params, gradient)
        metrics |= {"meta_gradient_norm": optax.tree.norm(gradient)}
        return params, state, jax.tree.map(lambda x: x[None], metrics)

    return OuterStep(lambda params: (), improve, ("meta_gradient_norm",))


@part
def constant(*, value: float = 0.0) -> Part[Critic]:
    """Return the same value for all states.

    Args:
        value: of a state.
    """

    def values(params, trajectory, discount):
        every = jnp.full(trajectory.reward.shape, value)
        return every, every[:, 0]

    return Part(lambda env, policy: Critic(values))


def halved(learning_rate: float = 0.1) -> UpdateRule:
    """Return gradient descent with half a rate.

    Args:
        learning_rate: twice the rate.
    """
    return metajax.sgd(learning_rate / 2)
'''
MISTAKES = """
from my_family import SPEC, line

NUMBER = 3


def needy(size, *, length: float = 1.0):
    return line(length=length)


def of_another_kind(*, length: float = 1.0):
    return [length]


def untold(*, length=None):
    return line()


def with_callback(*, call: type(print) = print, length: float = 2.0):
    return line(length=length)
"""
NAMES = ("my_algorithm:climb", "my_family:SPEC")
POLICY_NAME = ("--policy-name", "my_policy:narrow")
LEAVE = ("--allow-import", "my_algorithm,my_family,my_policy")
TINY = [
    *("--segment", 2, "--devices", 1, "--evaluation.every", 2, "--evaluation.tasks", 2),
    *("--evaluation.final-tasks", 2, "--evaluation.episodes", 1, "--policy.width", 2),
]


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """A directory with five modules, which is the current one and on nobody's path."""
    directory = tmp_path_factory.mktemp("mine")
    files = {"family": FAMILY, "algorithm": ALGORITHM, "policy": POLICY, "parts": PARTS}
    files["mistakes"] = MISTAKES
    for name, text in files.items():
        (directory / f"my_{name}.py").write_text(text)
    (directory / "my_broken.py").write_text("def half(:\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sys, "path", list(sys.path))
        yield directory
    forget()


def forget():
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def metajax(*words) -> str:
    """Run a command that succeeds, and return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main([str(word) for word in words]) == 0
    return printed.getvalue()


def complaint(words, capsys) -> str:
    assert cli.main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    message = captured.err.removesuffix("\n")
    assert captured.out == "" and message and "\n" not in message
    return message


def leaves(directory, step):
    """The digests of a saved state."""
    manifest = directory / "checkpoints" / str(step) / "manifest.json"
    return json.loads(manifest.read_text())["leaves"]


@pytest.fixture(scope="module")
def trained(here, cache):
    """A run of four iterations, and what it printed."""
    words = [*NAMES, *POLICY_NAME, *TINY, "--length", 0.5, "--run-directory", here / "run"]
    return here / "run", metajax("train", *words, "--iterations", 4)


def test_they_are_trained_from_the_command_line_with_their_options(trained):
    directory, printed = trained
    assert "my_algorithm:climb on line-v1" in printed
    config = json.loads((directory / "config.json").read_text())["config"]
    assert [config[f"{part}_name"] for part in ("algorithm", "family")] == [*NAMES]
    assert config["policy_name"] == "my_policy:narrow" and config["policy"] == {"width": 2}
    assert config["algorithm"] == {"rate": 0.02, "episodes": 2, "kind": "reinforce"}
    assert config["family"] == {"length": 0.5, "episode_length": 4}
    assert config["training"]["tasks"] == 2  # of the family's preset
    for command in ("evaluate", "render"):
        assert f"metajax {command} {directory} {' '.join(LEAVE)}\n" in printed


def test_a_run_is_resumed_to_the_same_bits(trained, here, cache):
    words = [*NAMES, *POLICY_NAME, *TINY, "--length", 0.5, "--run-directory", here / "pieces"]
    metajax("train", *words, "--iterations", 2)
    metajax("resume", here / "pieces", "--iterations", 4, *LEAVE)
    assert leaves(here / "pieces", 4) == leaves(trained[0], 4) != leaves(here / "pieces", 2)


def test_a_run_is_evaluated_rendered_and_deployed(trained, cache):
    directory, _ = trained
    printed = metajax("evaluate", directory, "--tasks", 2, *LEAVE)
    assert "2 held-out tasks" in printed
    assert "render.png" in metajax("render", directory, "--tasks", 1, *LEAVE)
    agent = load(directory, allow_import=["my_algorithm", "my_family", "my_policy"])
    assert agent.act([0.0, 0.0]).shape == (2,)


@pytest.mark.parametrize("command", ["resume", "evaluate", "render"])
def test_a_run_directory_alone_imports_nothing(command, trained, capsys):
    directory, _ = trained
    forget()
    leave = ("--allow-import", "my_algorithm,my_policy")
    for words, refused in (((), "algorithm"), (leave, "family")):
        message = complaint([command, directory, *words], capsys)
        if command == "render":  # which looks at the drawing first
            refused = "family"
        assert f"to import 'my_{refused}' is to run its code" in message
        assert f"--allow-import my_{refused}" in message
        assert "my_family" not in sys.modules
    with pytest.raises(MetajaxError, match="is not part of metajax"):
        load(directory, allow_import=["my_"])


# --- parts ----------------------------------------------------------------------------------------

OF_PARTS = [
    *("--outer", "my_parts:signs", "--outer.rate", 0.05),
    *("--inner.rule", "my_parts:halved", "--inner.rule.learning-rate", 0.25),
    *("--inner.objective.critic", "my_parts:constant", "--inner.objective.critic.value", -0.5),
]


@pytest.fixture(scope="module")
def of_parts(here, cache):
    """A run of two iterations of MAML with three parts from outside, and what it printed."""
    size = ["--tasks", 2, "--episodes", 2, "--policy.hidden", 2, "--iterations", 2, *TINY[:-2]]
    words = ["maml", "my_family:SPEC", *OF_PARTS, *size, "--run-directory", here / "of parts"]
    return here / "of parts", metajax("train", *words)


def test_parts_are_chosen_on_the_command_line_with_their_options(of_parts, capsys):
    directory, printed = of_parts
    config = json.loads((directory / "config.json").read_text())["config"]
    inner = config["algorithm"]["inner"]
    assert config["algorithm"]["outer"] == {"name": "my_parts:signs", "rate": 0.05, "sign": 1}
    assert inner["rule"] == {"name": "my_parts:halved", "learning_rate": 0.25}
    assert inner["objective"]["critic"] == {"name": "my_parts:constant", "value": -0.5}
    assert "--allow-import my_family,my_parts\n" in printed
    words = ["train", "maml", "my_family:line", *OF_PARTS]
    assert "length of the step" not in printed
    text = " ".join(metajax(*words, "--help").split())
    assert "--outer.rate NUMBER" in text and "their length. (default: 0.01)" in text
    message = complaint([*words, "--outer.rat", 3], capsys)
    assert "'--outer.rat'; did you mean '--outer.rate'?" in message


def test_their_options_reach_them(here, of_parts, monkeypatch):
    """A step of signs has one length; values and rates are those that were asked for."""
    monkeypatch.syspath_prepend(here)
    config = json.loads((of_parts[0] / "config.json").read_text())["config"]
    experiment = presets.build(config, allow_import=["my_family", "my_parts"])
    algorithm, family = experiment.algorithm, experiment.family
    tasks = sample_tasks(family.train, jax.random.key(0), 2)
    state = algorithm.init(jax.random.key(1), tasks)
    new, _ = algorithm.update(state, tasks, jax.random.key(2))
    before, after = (ravel_pytree(s.meta_params.policy)[0] for s in (state, new))
    moved = np.abs(after - before)
    assert np.all(np.isclose(moved, 0.05, rtol=1e-4) | (moved == 0)) and np.any(moved)


def test_a_run_of_parts_is_used_with_leave_alone(of_parts, cache, capsys):
    directory, _ = of_parts
    leave = ("--allow-import", "my_family,my_parts")
    assert "2 held-out tasks" in metajax("evaluate", directory, "--tasks", 2, *leave)
    assert "4/4" in metajax("resume", directory, "--iterations", 4, *leave)
    assert load(directory, allow_import=["my_family", "my_parts"]).act([0.0, 0.0]).shape == (2,)
    forget()
    for command in ("evaluate", "resume"):
        message = complaint([command, directory, "--allow-import", "my_family"], capsys)
        assert "to import 'my_parts' is to run its code" in message
        assert "--allow-import my_parts" in message
        assert "my_parts" not in sys.modules


def test_a_bare_factory_is_a_family_too(here, monkeypatch):
    monkeypatch.syspath_prepend(here)
    allow = ["my_family"]
    bare, spec = (
        presets.default_config("maml", f"my_family:{name}", allow_import=allow)
        for name in ("line", "SPEC")
    )
    assert bare | {"family_name": None} == spec | {"family_name": None}
    assert presets.family_spec("my_family:SPEC", allow_import=allow).name == "my_family:SPEC"


def test_what_plain_data_cannot_express_is_no_option(here, monkeypatch):
    monkeypatch.syspath_prepend(here)
    known = presets.options("maml", "my_mistakes:with_callback", allow_import=["my_mistakes"])
    assert [*known["family"]] == ["length"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train nowhere:climb point-goal", "cannot import 'nowhere' for the algorithm 'nowhere:cl"),
        (
            "train maml my_broken:line",
            "cannot import 'my_broken' for the family 'my_broken:lin",
        ),
        ("train maml my_family:lime", "attribute of my_family 'lime'; did you mean 'line'?"),
        ("train my_algorithm:climb my_family:", "unknown attribute of my_family ''"),
        ("train maml :line", "cannot import '' for the family ':line'"),
        ("train maml point-goal --policy-name my_policy:wide", "attribute of my_policy 'wide'"),
        ("train maml point-goal --policy-name gru", "unknown policy for maml 'gru'"),
        ("train my_family:SPEC point-goal", "my_family:SPEC cannot make an algorithm"),
        ("train maml my_mistakes:NUMBER", "my_mistakes:NUMBER cannot make a family"),
        ("train maml my_mistakes:needy", "called with (**options), where every option has a def"),
        ("train maml my_mistakes:untold", "the option 'length' of my_mistakes:untold has no annot"),
        ("train maml my_mistakes:of_another_kind", "made a list; it must make a TaskFamily"),
        ("train my_family:line point-goal", "it must be a function that is called with (env, pol"),
        ("train maml my_family:line --lenght 2", "'--lenght'; did you mean '--length'?"),
        ("train --episodes 2 maml my_family:line", "comes too late"),
        ("train --outer nowhere:step", "cannot import 'nowhere' for the outer step 'nowhere:step'"),
        ("train --outer my_parts:sings", "attribute of my_parts 'sings'; did you mean 'signs'?"),
        ("train --outer my_parts:halved", "halved made an UpdateRule; it must make an OuterStep"),
        ("train --outer my_mistakes:needy", "my_mistakes:needy cannot make an outer step"),
        ("train --outer my_mistakes:untold", "the option 'length' of my_mistakes:untold has no an"),
        ("train --inner.objective my_parts:constant", "constant(); it must be a Part[Objective]"),
    ],
)
def test_a_mistake_is_one_sentence(command, expected, capsys):
    assert expected in complaint(command.split(), capsys)
