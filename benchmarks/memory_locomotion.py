"""What a memory is worth on half-cheetahs that have to find out how fast to run.

    python benchmarks/memory_locomotion.py                         # everything, hours on a CPU
    python benchmarks/memory_locomotion.py --agents rl2 --seeds 1
    taskset -c 0 python benchmarks/memory_locomotion.py ...        # as here, one core each

RL² on `halfcheetah-vel` with the velocities of Rakelly et al. 2019, two episodes of 200 steps,
beside two agents trained on as many steps by the same PPO: the same one told the velocity, and a
perceptron that remembers nothing and hears of no reward. Standing still earns -300. Runs are kept
in runs/benchmarks and go on where they were interrupted; results are kept one by one. The physics
is this machine's default, C MuJoCo on a CPU and MJX on a GPU; `--backends` takes another.
"""

import math
from pathlib import Path
from typing import Any

import common
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import metajax
from metajax import presets
from metajax.algorithms import rl2
from metajax.envs.specs import merged
from metajax.reference_agents import observations_only, oracle_velocity

NAME = "memory-locomotion"
FAMILY = "halfcheetah-vel"
# By agent, the policy it is.
AGENTS = {"rl2": "gru", "told the velocity": "gru", "without memory": "window"}
BACKENDS = ("mujoco", "mjx")
STEPS = 50e6
STANDING_STILL = -300.0
# Few iterations on thousands of environments, which is what a GPU is fast at, and more learned
# from each.
WIDE: dict[str, dict[str, Any]] = {
    "algorithm": {
        "objective": {"chunk": 50},
        "outer": {"minibatches": 128, "learning_rate": 1e-3},
    },
    "training": {"tasks": 2048, "segment": 1},
    "evaluation": {"tasks": 400},
}


def configuration(agent: str, backend: str, seeds: int) -> dict[str, Any]:
    config = presets.default_config("rl2", FAMILY, AGENTS[agent])
    config["family"] |= {"variant": "pearl", "backend": backend}
    if agent == "without memory":
        config["policy"] |= {"steps": 1}
    trial = config["algorithm"]["episodes"] * 200
    config["training"] |= {"seeds": seeds, "segment": 20}
    config["evaluation"] |= {"tasks": 60, "final_tasks": 400}
    if backend == "mjx":
        config = merged(config, WIDE)
    training = config["training"]
    training["iterations"] = math.ceil(STEPS / (trial * training["tasks"]))
    every = math.ceil(training["iterations"] / 20)
    # A trial is one round.
    episodes = config["algorithm"]["episodes"]
    config["evaluation"] |= {"every": every, "rounds": 1, "episodes": episodes}
    return config


def experiment(agent: str, config: dict[str, Any]) -> presets.Experiment:
    """Return what the configuration describes, changed to what the agent may know."""
    built = presets.build(config)
    told = agent == "told the velocity"
    family = oracle_velocity(built.family) if told else built.family
    policy = presets.POLICIES[config["policy_name"]](
        family.env.observation_size, family.env.action_space, **config["policy"]
    )
    policy = observations_only(policy) if agent == "without memory" else policy
    known = presets.known_options(config)["algorithm"]
    options = presets.built(known, presets.checked_config(config)["algorithm"])
    algorithm = rl2(family.env, policy, **options)
    return built._replace(algorithm=algorithm, family=family)


def run(agent: str, backend: str, seeds: int, again: bool) -> dict[str, Any]:
    config = configuration(agent, backend, seeds)
    say = lambda progress: _said(progress.returns)
    result, curves, of_run = common.kept_run(
        f"locomotion {agent} {backend}", config, again, say, experiment(agent, config)
    )
    assert result.returns is not None
    each = result.returns.mean(axis=(1, 2))  # [seed, episode]
    return {
        "agent": agent,
        "backend": backend,
        "returns": each.mean(axis=0).tolist(),
        "returns_per_seed": each.tolist(),
        "standard_error": common.standard_error(each),
        "curve": {
            "steps_per_seed": np.asarray(curves.held_out_steps).tolist(),
            "returns": [x.mean(axis=(1, 2)).round(2).tolist() for x in curves.held_out],
        },
    } | of_run


def _said(returns) -> str | None:
    return None if returns is None else str(returns.mean(axis=(1, 2)).round(1).tolist())


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    header = ["agent", "physics", "episode 1", "episode 2", "seeds", "steps per seed"]
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    for row in rows:
        pairs = zip(row["returns"], row["standard_error"], strict=True)
        cells = [row["agent"], row["backend"]]
        cells += [common.plus_minus(mean, error, 1) for mean, error in pairs]
        cells += [str(row["seeds"]), f"{row['steps_per_seed'] / 1e6:.0f} M"]
        lines.append(" | ".join(cells))
    lines.append(f"standing still | | {STANDING_STILL:g} | {STANDING_STILL:g} | | ")
    return "\n".join(f"| {line} |" for line in lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure, (over_time, by_episode) = plt.subplots(
        1, 2, figsize=(9, 3.4), width_ratios=(2, 1), layout="constrained"
    )
    colors = dict(zip(AGENTS, ("#1f77b4", "#222222", "#d95f02"), strict=True))
    for row in rows:
        color, label = colors[row["agent"]], row["agent"]
        style = "-"
        if row["backend"] != BACKENDS[0]:
            style, label = ":", f"{label}, {row['backend']}"
        steps = np.array(row["curve"]["steps_per_seed"]) / 1e6
        for curve in np.array(row["curve"]["returns"]).T:
            over_time.plot(steps, curve, color=color, ls=style, lw=1.2, label=label)
            label = None
        episodes = 1 + np.arange(len(row["returns"]))
        by_episode.plot(episodes, row["returns"], color=color, ls=style, marker="o")
    for axis in (over_time, by_episode):
        axis.axhline(STANDING_STILL, color="#888888", lw=1, ls="--", label="standing still")
        axis.grid(color="#e6e6e6")
    over_time.set(xlabel="million steps per seed", ylabel="return per episode, held-out velocities")
    over_time.legend(frameon=False, fontsize=8)
    by_episode.set(xlabel="episode of the trial", xticks=episodes, xlim=(0.7, 2.3))
    figure.savefig(path, dpi=150)


def main() -> None:
    axes = {"agents": ("agent", list(AGENTS)), "backends": ("backend", BACKENDS)}
    here = {"backends": [metajax.make(FAMILY).backend]}
    common.fill_table(NAME, __doc__, axes, run, table, draw, here)


if __name__ == "__main__":
    main()
