"""Learning results beside the published ones.

    python benchmarks/learning.py NAME [NAME ...] [--as-it-stands]

Trains (or resumes, if it was interrupted) the run `runs/benchmarks/NAME`, evaluates it on held-out
tasks with sampled and with mean actions, and writes benchmarks/results/NAME.json and NAME.png.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import common
import jax
import numpy as np

from metajax import plotting, presets
from metajax.runs.load import load_run
from metajax.runs.recorder import training_returns
from metajax.training.evaluation import adaptation_curve, evaluate

SAMPLED, MEAN = "sampled actions", "mean actions"


class Benchmark(NamedTuple):
    """A run and what it is compared with.

    Attributes:
        family: its name.
        overrides: of the pair's preset, by group.
        published: return after 0, 1, ... gradient steps.
        source: of the published numbers.
        algorithm: its name.
    """

    family: str
    overrides: dict[str, dict[str, Any]]
    published: list[float] | None
    source: str
    algorithm: str = "maml"


# The paper's horizon of 200; 2 seeds of 750 x 10 tasks x 10 episodes x 2 rounds: 60 million steps.
_LONG = {
    "family": {"episode_length": 200},
    "algorithm": {"episodes": 10},
    "training": {"iterations": 750, "tasks": 10, "seeds": 2},
    "evaluation": {"every": 150, "final_tasks": 40},
}

BENCHMARKS = {
    "halfcheetah-dir-quick": Benchmark(
        "halfcheetah-dir", {"training": {"seeds": 3}}, None, "(100 steps per episode)"
    ),
    "point-goal": Benchmark(
        "point-goal",
        {"training": {"seeds": 3}},
        [-40.41, -11.68, -3.33, -3.23],
        "Finn et al. 2017, table 1",
    ),
    "halfcheetah-dir": Benchmark(
        "halfcheetah-dir",
        _LONG,
        [-50.69, 293.19, 313.48, 315.65],
        "Finn et al. 2017, table 1",
    ),
    "halfcheetah-vel": Benchmark(
        "halfcheetah-vel", _LONG, None, "doing nothing: -200 (Finn et al. 2017 print a figure only)"
    ),
    "dqn-cartpole": Benchmark(
        "cartpole-params", {"training": {"seeds": 3}}, None, "at most 200", "dqn"
    ),
}


def configuration(benchmark: Benchmark) -> dict[str, Any]:
    config = presets.default_config(benchmark.algorithm, benchmark.family)
    for group, values in benchmark.overrides.items():
        config[group] |= values
    return config


def train(name: str) -> tuple[Path, float]:
    """Train or resume a run; return its directory and the wall seconds this took."""
    directory = common.RUNS / name
    began = time.perf_counter()

    def say(progress):
        return " -> ".join(f"{x:.1f}" for x in training_returns(progress.metrics))

    common.train_or_resume(directory, configuration(BENCHMARKS[name]), say)
    return directory, time.perf_counter() - began


def held_out(directory: Path) -> dict[str, np.ndarray]:
    """Return held-out returns `[seed, task, round, episode]`, sampled and mean actions."""
    experiment, state = load_run(directory)
    evaluation = experiment.evaluation

    def run(deterministic):
        return jax.jit(
            jax.vmap(
                lambda meta_params, key: evaluate(
                    experiment.algorithm.agent,
                    experiment.family,
                    meta_params,
                    key,
                    tasks=evaluation.final_tasks,
                    **evaluation.sizes(experiment.algorithm, experiment.family.env),
                    deterministic=deterministic,
                )
            )
        )

    meta_params = state.train_state.meta_params
    keys = jax.random.split(jax.random.key(2**20), state.discarded.shape[0])
    return {
        SAMPLED: np.asarray(run(False)(meta_params, keys)),
        MEAN: np.asarray(run(True)(meta_params, keys)),
    }


def describe(returns: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "steps": k,
            "per_seed": returns[:, :, k].mean(axis=(1, 2)).tolist(),
            **summary._asdict(),
        }
        for k, summary in enumerate(adaptation_curve(returns))
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=BENCHMARKS)
    parser.add_argument("--fresh", action="store_true", help="start over instead of resuming")
    parser.add_argument("--as-it-stands", action="store_true", help="report without training on")
    arguments = parser.parse_args()
    for name in arguments.names:
        benchmark = BENCHMARKS[name]
        if arguments.fresh:
            shutil.rmtree(common.RUNS / name, ignore_errors=True)
        directory, seconds = (common.RUNS / name, None) if arguments.as_it_stands else train(name)
        curves = plotting.load_curves(directory)
        result = {
            "command": f"python benchmarks/learning.py {name}",
            "config": configuration(benchmark),
            "wall_seconds_of_last_part": seconds,
            "environment_steps_per_seed": float(curves.environment_steps[-1]),
            "held_out": {k: describe(v) for k, v in held_out(directory).items()},
            "published": {"source": benchmark.source, "returns": benchmark.published},
            "learning_curve": {
                "environment_steps_per_seed": np.asarray(curves.environment_steps)[::5].tolist(),
                "before": np.asarray(curves.before)[::5].round(2).tolist(),
                "after": np.asarray(curves.after)[::5].round(2).tolist(),
            },
        }
        path = common.save(name, result)
        plotting.plot_run(directory, path.with_suffix(".png"))
        for row in result["held_out"][SAMPLED]:
            print(f"{name} after {row['steps']} steps: {row['mean']:.1f} {row['per_seed']}")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
