"""Agents come back from run directories as they were trained, with a configuration or without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax import presets
from metajax.deployment import simulate
from metajax.runs.checkpoint import Checkpointer
from metajax.runs.directory import create_run
from metajax.runs.load import load_run
from metajax.training.program import make_segment

FAMILY = metajax.make("point-goal", episode_length=4)


def algorithm(hidden=(4,)):
    """Return joint training whose updates are noise: it compiles at once."""
    policy = metajax.mlp(2, FAMILY.env.action_space, hidden=hidden)
    trained = metajax.reinforce(FAMILY.env, policy, episodes=2)

    def update(state, tasks, key):
        noise = jax.random.normal(key, ())
        meta_params = jax.tree.map(lambda x: x + noise, state.meta_params)
        metrics = {name: jnp.zeros(()) for name in trained.metrics}
        return dataclasses.replace(state, meta_params=meta_params), metrics

    return trained._replace(update=update)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two seeds trained from Python, without a configuration."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    options = {"iterations": 2, "segment": 1, "tasks": 2, "seeds": 2, "evaluation": None}
    result = metajax.train(algorithm(), FAMILY, run_directory=directory, report=None, **options)
    return directory, result


def actions(agent) -> list[list[float]]:
    """Return what an agent does in eight steps, which nobody simulates."""
    taken = []
    for step in range(8):
        taken.append(agent.act(np.full(2, 0.1 * step)).tolist())
        agent.observe(np.full(2, 0.1 * step), -1.0, False, step % 4 == 3)
    return taken


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_without_a_configuration_is_loaded_with_its_algorithm_and_family(trained, seed):
    directory, result = trained
    env, agent = FAMILY.env, algorithm().agent
    expected = actions(simulate(agent, env, result.meta_params(seed), seed=seed))
    options = {"algorithm": algorithm(), "family": FAMILY, "seed": seed}
    assert actions(metajax.load(directory, **options)) == expected
    assert actions(simulate(agent, env, result.meta_params(1 - seed), seed=seed)) != expected
    assert actions(metajax.load(directory, **options, step=1)) != expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {},
            r"no configuration .* by metajax\.load\(run, algorithm=\.\.\., family=\.\.\.\)",
        ),
        ({"algorithm": algorithm()}, "algorithm is given without family; give both or neither"),
        ({"family": FAMILY}, "family is given without algorithm; give both or neither"),
        (
            {"algorithm": algorithm(hidden=(5,)), "family": FAMILY},
            r"is of another state: .*\['bias'\]: expected float32\[2,5\], found float32\[2,4\]",
        ),
        ({"algorithm": algorithm(), "family": FAMILY, "seed": 2}, "seeds 0 to 1, not 2"),
        ({"algorithm": algorithm(), "family": FAMILY, "step": 7}, "no checkpoint of step 7"),
        ({"algorithm": algorithm(), "family": FAMILY, "step": "best"}, "has no best agent yet"),
        ({"algorithm": "reinforce", "family": FAMILY}, "it must be an Algorithm or None"),
    ],
)
def test_a_run_without_a_configuration_is_refused_in_one_sentence(trained, options, expected):
    with pytest.raises(metajax.MetajaxError, match=expected) as refused:
        metajax.load(trained[0], **options)
    assert "\n" not in str(refused.value)


def test_a_run_of_an_earlier_version_keeps_its_evaluation(tmp_path):
    config = presets.default_config("reinforce", "point-goal")
    assert config["evaluation"].pop("deterministic") is False
    config["evaluation"]["mode"] = True
    built = presets.build(presets.described(config, tmp_path))
    program = make_segment(built.algorithm, built.family, length=1, tasks=2)
    with create_run(tmp_path / "run", config) as run, Checkpointer(run.checkpoints) as checkpoints:
        checkpoints.save(3, jax.jit(program.init)(jax.random.key(0)))
    experiment, _ = load_run(tmp_path / "run")
    assert experiment.evaluation.deterministic is True
    # What is given stands for the configuration.
    given = {"algorithm": built.algorithm, "family": built.family}
    assert actions(metajax.load(tmp_path / "run")) == actions(
        metajax.load(tmp_path / "run", **given)
    )
