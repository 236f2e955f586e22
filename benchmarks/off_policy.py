"""Off-policy methods beside published learning curves: SAC and TD3 on one task, PEARL on many.

    python benchmarks/off_policy.py sac-halfcheetah [NAME ...] [--seeds 3] [--steps 300000]

Trains (or resumes) the run `runs/benchmarks/NAME` on C MuJoCo and writes
benchmarks/results/NAME.json and NAME.png. SAC and TD3 take a gradient step for every step that was
played; returns are of deterministic actions. PEARL's are those of the last episode of its
evaluation, the first by the posterior.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from metajax import plotting, presets
from metajax.envs.rollouts import rollout, undiscounted_returns
from metajax.runs.directory import read_metrics
from metajax.runs.load import load_run, meta_params_of

EPISODE = 1000
ROBOTS = {
    "halfcheetah": "halfcheetah-dir",
    "hopper": "hopper-params",
    "walker2d": "walker2d-params",
}
# Fujimoto et al. 2018: returns after so many steps, mean of ten seeds (github.com/sfujim/TD3,
# learning_curves), on the first versions of Gym's robots.
STEPS = (100_000, 300_000, 500_000, 1_000_000)
AUTHORS = {
    "halfcheetah": (5519, 7681, 8511, 9497),
    "hopper": (698, 2509, 2962, 3435),
    "walker2d": (818, 3358, 4166, 4517),
}
# github.com/x35f/meta_rl, results/pearl: held-out returns of the last episode, one seed.
PEARL = {
    "pearl-halfcheetah-vel": {
        "steps": (205_000, 240_000, 275_000, 350_000, 495_000, 780_000),
        "returns": (-281, -148, -60, -45, -42, -37),
    },
    "pearl-halfcheetah-dir": {
        "steps": (100_000, 372_000, 732_000, 1_090_000, 1_440_000),
        "returns": (601, 741, 1371, 1570, 1674),
    },
}
# Remembered steps of each task in a gradient step; the paper's 256 take a day on two cores.
BATCH_ON_TWO_CORES = 64
BENCHMARKS = [f"{name}-{robot}" for name in ("sac", "td3") for robot in ROBOTS] + list(PEARL)


def pearl_configuration(name: str, seeds: int, steps: int) -> dict[str, Any]:
    family = name.removeprefix("pearl-")
    config = presets.default_config("pearl", family)
    config["family"]["backend"] = "mujoco"
    config["algorithm"]["batch"] = BATCH_ON_TWO_CORES
    of, training = config["algorithm"], config["training"]
    episodes = sum(of[f"{phase}_episodes"] for phase in ("prior", "posterior", "extra"))
    config["training"] |= {
        "iterations": steps // (training["tasks"] * episodes * 200),
        "seeds": seeds,
        "segment": 1,
    }
    config["evaluation"]["every"] = 10
    return config


def configuration(name: str, seeds: int, steps: int) -> dict[str, Any]:
    if name in PEARL:
        return pearl_configuration(name, seeds, steps)
    algorithm, robot = name.split("-")
    config = presets.default_config(algorithm, ROBOTS[robot])
    config["family"] |= {"variant": "gymnasium", "backend": "mujoco"}
    config["algorithm"] |= {"random_steps": 5000 if algorithm == "sac" else 25_000}
    config["training"] |= {"iterations": steps // EPISODE, "seeds": seeds, "segment": 5}
    config["evaluation"] |= {"every": 25, "tasks": 1, "final_tasks": 1}
    return config


class Published(NamedTuple):
    """Returns by others after so many environment steps, and what they are."""

    source: str
    label: str
    axis: str
    steps: Sequence[int]
    returns: Sequence[float]


def published(name: str) -> Published:
    if name in PEARL:
        return Published(
            "github.com/x35f/meta_rl, results/pearl, one seed",
            "PEARL by x35f/meta_rl, one seed",
            "held-out return of the last episode",
            **PEARL[name],
        )
    return Published(
        "Fujimoto et al. 2018, ten seeds, github.com/sfujim/TD3",
        "TD3 by its authors, mean of 10 seeds",
        "return, deterministic actions",
        STEPS,
        AUTHORS[name.partition("-")[2]],
    )


def curve(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps that were played until each evaluation, and the returns `[point, seed]`.

    Returns are those of the last round, PEARL's first by the posterior. An episode that is over
    early counts what was played of it, where that is measured.
    """
    records = read_metrics(directory / "metrics.jsonl")
    training = {r["iteration"]: r for r in records if "environment_steps" in r}
    evaluated = [
        (r["iteration"], np.array(r.get("held_out", r.get("final_held_out"))))
        for r in records
        if "held_out" in r or "final_held_out" in r
    ]
    seeds = len(evaluated[0][1])
    counted = [training[iteration] for iteration in sorted(training)]
    if "valid_steps" in counted[0]:
        total = np.cumsum([r["valid_steps"] for r in counted], axis=0)
    else:
        total = np.array([[r["environment_steps"] / seeds] * seeds for r in counted])
    steps = np.array([total[iteration - 1] for iteration, _ in evaluated])
    return steps, np.array([np.mean(found[:, :, -1], axis=1) for _, found in evaluated])


def returns_by_latent(directory: Path) -> dict[str, float]:
    """Return PEARL's mean returns on all held-out tasks, z inferred from two episodes of a task.

    "own" is that of episodes on the task that z was inferred of, "another task's" on another one:
    if z says which task it is, that one is bad.
    """
    experiment, state = load_run(directory)
    agent, env = experiment.algorithm.agent, experiment.family.env
    tasks = experiment.family.test.finite
    keys = jax.random.split(jax.random.key(0), jax.tree.leaves(tasks)[0].shape[0])

    def play(adapted, task, key):
        act = lambda memory, step_input, key: agent.act(adapted, memory, step_input, key)
        return rollout(key, env, task, act, agent.initial_memory(), episodes=1)

    def adapt(meta_params, task, key):
        adapted = agent.init(meta_params, key)
        for turn in range(experiment.algorithm.trial.adaptations):
            turn_key = jax.random.fold_in(key, turn)
            trajectory = play(adapted, task, turn_key)
            adapted = agent.adapt(meta_params, adapted, trajectory, turn_key)
        return adapted

    @jax.jit
    def returns(meta_params):
        adapted = jax.vmap(adapt, in_axes=(None, 0, 0))(meta_params, tasks, keys)
        others = jax.tree.map(lambda x: jax.numpy.roll(x, 1, axis=0), adapted)
        score = lambda adapted: undiscounted_returns(jax.vmap(play)(adapted, tasks, keys)).mean()
        return {"own": score(adapted), "another task's": score(others)}

    return {name: float(x) for name, x in returns(meta_params_of(state, 0)).items()}


def draw(name: str, steps: np.ndarray, returns: np.ndarray, path: Path) -> None:
    other = published(name)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for index, (x, y) in enumerate(zip(steps.T, returns.T, strict=True)):
        axes.plot(x, y, linewidth=1, label=f"{name}, seed {index}")
    axes.plot(other.steps, other.returns, "k.--", label=other.label)
    axes.set_xlim(0, 1.05 * max(steps.max(), other.steps[0]))
    axes.set_xlabel("environment steps")
    axes.set_ylabel(other.axis)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def progress(metrics: dict[str, np.ndarray]) -> str:
    """Return what a segment's last iteration returned, of each seed."""
    return ", ".join(f"{n} {x[-1]}" for n, x in metrics.items() if n.startswith("return"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=BENCHMARKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--as-it-stands", action="store_true", help="report without training on")
    arguments = parser.parse_args()
    for name in arguments.names:
        directory = common.RUNS / name
        config = configuration(name, arguments.seeds, arguments.steps)
        if not arguments.as_it_stands:
            common.train_or_resume(directory, config, lambda p: progress(p.metrics))
        steps, returns = curve(directory)
        result = {
            "command": f"python benchmarks/off_policy.py {name} --seeds {arguments.seeds} "
            f"--steps {arguments.steps}",
            "config": config,
            "steps_per_seed": steps.tolist(),
            "returns_per_seed": returns.round(1).tolist(),
            "published": published(name)._asdict(),
        }
        if name in PEARL:
            result["returns_by_latent"] = returns_by_latent(directory)
        path = common.save(name, result)
        draw(name, steps, returns, path.with_suffix(".png"))
        plotting.plot_run(directory, directory / "curves.png")
        print(f"{name}: {returns[-1]} after {steps[-1]} steps; wrote {path}")


if __name__ == "__main__":
    main()
