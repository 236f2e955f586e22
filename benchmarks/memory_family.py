"""The memory family beside the Bayes optimum: bandits and tabular processes of Duan et al. 2016.

    python benchmarks/memory_family.py                                  # everything, hours on a CPU
    python benchmarks/memory_family.py --problems "bandit 10, 5" --methods rl2
    python benchmarks/memory_family.py --problems "bandit 10, 5" --methods off-policy-rl2
    python benchmarks/memory_family.py --redraw                         # table and picture only
    taskset -c 0 python benchmarks/memory_family.py ...                 # as here, one core each

SNAIL's hundred pulls and processes are for a GPU: side by side on an H200, each got as far in eight
minutes as is saved; what else there is takes an hour of a core.

Every seed's total reward per trial is the mean of 100 000 held-out tasks. Runs are kept in
runs/benchmarks and go on where they were interrupted; results are kept one by one, and what is
there already is not run again (`--again` starts it over). Errors are those over seeds. What is best
is so on average over the whole prior; held-out tasks, the first arm of which pays with one of nine
probabilities, allow .006 less in ten pulls of five arms.
"""

import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import common
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from metajax import presets
from metajax.envs.specs import merged

NAME = "memory-family"
ON_POLICY = ("rl2", "snail")
METHODS = (*ON_POLICY, "off-policy-rl2")
Overrides = dict[str, dict[str, Any]]  # of a preset, by group

# In a long trial, what an early pull is worth shows late: a critic of its own sees it sooner. A
# memory that begins as long as the trial holds counts early on, a hidden layer makes more of them
# than a weighted sum, and a large learning rate finds in time what a small one then keeps.
LONG: Overrides = {
    "policy": {"critic": "separate", "initial_span": 100, "hidden": [64]},
    "algorithm": {"outer": {"minibatches": 10, "learning_rate": 4e-3, "half_life": 100}},
    "training": {"tasks": 500, "iterations": 300},
}
# With fifty arms, less of what is far ahead in a step's advantage lets learning begin sooner.
MANY: Overrides = merged(
    LONG,
    {
        "algorithm": {"objective": {"gae_lambda": 0.85}, "outer": {"half_life": 125}},
        "training": {"iterations": 500},
    },
)
# Of a process, many small iterations at a smaller rate learn more than few large ones.
PROCESS: Overrides = merged(
    LONG,
    {
        "algorithm": {
            "objective": {"gae_lambda": 0.8},
            "outer": {"learning_rate": 1.5e-3, "half_life": 250},
        },
        "training": {"tasks": 200, "iterations": 750},
    },
)
# The paper takes TRPO's steps; PPO's four epochs learn more from each trial, and fewer filters than
# its 32 learn more per second of a CPU.
SNAIL: Overrides = {
    "policy": {"critic": "shared", "filters": 16},
    "algorithm": {
        "outer": {
            "name": "ppo",
            "learning_rate": 1e-3,
            "epochs": 4,
            "minibatches": 4,
            "clip": 0.2,
            "max_gradient_norm": 1.0,
        }
    },
}
# Less of what is far ahead in a step's advantage lets learning begin sooner. For a GPU's size.
LONG_SNAIL: Overrides = {
    "policy": {"critic": "separate", "filters": 16, "hidden": [64]},
    "algorithm": merged(
        SNAIL["algorithm"],
        {
            "objective": {"gae_lambda": 0.85},
            "outer": {"minibatches": 10, "learning_rate": 2e-3, "half_life": 125},
        },
    ),
    "training": {"tasks": 1000, "iterations": 500},
}
# What a hundred sums over fifty arms are read from.
MANY_SNAIL: Overrides = merged(LONG_SNAIL, {"policy": {"value_size": 64}})
# A process is learned at a smaller rate, or not at all, and with still less of what is ahead.
PROCESS_SNAIL: Overrides = merged(
    LONG_SNAIL,
    {"algorithm": {"objective": {"gae_lambda": 0.7}, "outer": {"learning_rate": 1.5e-3}}},
)
# Double Q-learning on remembered trials. Over many pulls the behaviour must be near to the agent's
# own, or its memory is of trials that no agent has.
OFF_POLICY: Overrides = {
    "algorithm": {
        "learner": {"name": "double-q", "learning_rate": 1e-3, "tau": 0.01, "epsilon": 0.1},
        "updates_per_step": 0.02,
        "batch": 128,
        "replay_capacity": 100_000,
        "random_trials": 200,
    },
    "training": {"tasks": 100, "iterations": 1000},
}
LONG_OFF_POLICY: Overrides = merged(
    OFF_POLICY,
    {
        "policy": {"initial_span": 100, "hidden": [64]},
        "algorithm": {
            "learner": {"tau": 0.005, "epsilon": 0.02},
            "updates_per_step": 0.01,
            "replay_capacity": 10_000,
        },
        "training": {"iterations": 100},
    },
)


class Problem(NamedTuple):
    """A table's row.

    Attributes:
        family: its name.
        options: of the family.
        episodes: of a trial.
        overrides: of the preset, by method.
        best: what the best agent that is known gets: for bandits the optimum (ten pulls, by dynamic
            programming) or Whittle's index, for processes an agent that knows the process.
        random: what acting at random gets.
        published: by method, from Duan et al. 2016 (tables 1 and 2) and Mishra et al. 2018.
    """

    family: str
    options: dict[str, Any]
    episodes: int
    overrides: dict[str, Overrides]
    best: float
    random: float
    published: dict[str, float]

    @property
    def short(self) -> bool:
        """Whether a trial is ten pulls, which are evaluated and told more finely."""
        return self.family == "bernoulli-bandit" and self.episodes == 10


def _bandit(pulls: int, arms: int, best: float, rl2: float, snail: float) -> Problem:
    if pulls == 10:
        short: Overrides = {"training": {"tasks": 1000, "iterations": 1000}}
        overrides = {"rl2": short, "snail": SNAIL | short, "off-policy-rl2": OFF_POLICY}
    elif arms == 50:
        overrides = {"rl2": MANY, "snail": MANY_SNAIL}
    else:
        overrides = {"rl2": LONG, "snail": LONG_SNAIL, "off-policy-rl2": LONG_OFF_POLICY}
    published = {"rl2": rl2, "snail": snail}
    options = {"arms": arms}
    return Problem("bernoulli-bandit", options, pulls, overrides, best, pulls / 2, published)


def _process(episodes: int, rl2: float, snail: float) -> Problem:
    overrides = {}
    for method, options in (("rl2", PROCESS), ("snail", PROCESS_SNAIL)):
        # As many steps in an iteration, however long a trial.
        tasks = 10 * options["training"]["tasks"] // episodes
        overrides[method] = options | {"training": options["training"] | {"tasks": tasks}}
    # SNAIL's numbers are shares of value iteration's, which are 20.76 per episode: what Duan et al.
    # give RL² and others, divided by the shares of the same agents beside SNAIL's.
    published = {"rl2": rl2, "snail": round(snail * 20.76 * episodes, 1)}
    return Problem("tabular", {}, episodes, overrides, 21.84 * episodes, 10.0 * episodes, published)


PROBLEMS = {
    "bandit 10, 5": _bandit(10, 5, 6.660, 6.7, 6.6),
    "bandit 10, 10": _bandit(10, 10, 6.714, 6.7, 6.7),
    "bandit 100, 5": _bandit(100, 5, 78.65, 78.7, 79.1),
    "bandit 100, 10": _bandit(100, 10, 83.78, 83.5, 83.5),
    "bandit 100, 50": _bandit(100, 50, 85.58, 84.9, 85.1),
    "process 10": _process(10, 156.2, 0.766),
    "process 25": _process(25, 445.7, 0.862),
}


def configuration(method: str, problem: Problem, seeds: int) -> dict[str, Any]:
    if method not in problem.overrides:
        sys.exit(
            f"{method} has settings for bandits of 10 pulls and of 100 with 5 or 10 arms alone."
        )
    overrides = problem.overrides[method]
    parts = overrides.get("algorithm", {})
    config = presets.default_config(method, problem.family, parts=parts)
    config["family"] |= problem.options
    config["algorithm"] |= {"episodes": problem.episodes}
    config["training"] |= {"seeds": seeds, "segment": 20}
    config = merged(config, overrides)
    # A trial is one round, so that its return is the mean of the round's times its episodes.
    every, tasks = (100, 10_000) if problem.short else (50, 2_000)
    every = min(every, config["training"]["iterations"] // 5)
    evaluated = {"every": every, "tasks": tasks, "final_tasks": 100_000}
    config["evaluation"] |= evaluated | {"rounds": 1, "episodes": problem.episodes}
    return config


def run(name: str, method: str, seeds: int, again: bool) -> dict[str, Any]:
    problem = PROBLEMS[name]
    config = configuration(method, problem, seeds)

    def say(progress):
        if progress.returns is None:
            return None
        return str((problem.episodes * progress.returns.mean(axis=(1, 2, 3))).round(2))

    result, curves, of_run = common.kept_run(f"{method} {name}", config, again, say)
    assert result.returns is not None
    totals = problem.episodes * result.returns.mean(axis=(2, 3), dtype=np.float64)  # [seed, task]
    return {
        "problem": name,
        "method": method,
        "tasks": totals.shape[1],
        "return": float(totals.mean()),
        "returns_per_seed": totals.mean(axis=1).tolist(),
        "standard_error": common.standard_error(totals.mean(axis=1)),
        "standard_error_of_tasks": float(totals[0].std(ddof=1) / math.sqrt(totals.size)),
        "curve": {
            "steps_per_seed": np.asarray(curves.held_out_steps).tolist(),
            "returns": [
                (problem.episodes * x.mean(axis=(1, 2))).round(3).tolist() for x in curves.held_out
            ],
        },
    } | of_run


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    header = [
        "problem",
        "method",
        "return, each seed",
        "best known",
        "published",
        "random",
        "steps",
    ]
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    for row in rows:
        problem = PROBLEMS[row["problem"]]
        digits = 3 if problem.short else 2
        each = ", ".join(f"{x:.{digits}f}" for x in row["returns_per_seed"])
        mean = common.plus_minus(row["return"], row["standard_error"], digits)
        cells = [row["problem"], row["method"], f"{mean} ({each})"]
        cells += [
            f"{problem.best:g}",
            f"{problem.published[row['method']]:g}" if row["method"] in problem.published else "",
        ]
        cells += [f"{problem.random:g}", f"{row['steps_per_seed'] / 1e6:.0f} M"]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    names = [name for name in PROBLEMS if any(row["problem"] == name for row in rows)]
    columns = min(4, len(names))
    height = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(3.4 * columns, 3 * height), squeeze=False, layout="constrained"
    )
    colors = dict(zip(METHODS, ("#1f77b4", "#d95f02", "#1b9e77"), strict=True))
    for axis, name in zip(axes.flat, names, strict=False):
        problem = PROBLEMS[name]
        of_problem = [row for row in rows if row["problem"] == name]
        for row in of_problem:
            steps = np.array(row["curve"]["steps_per_seed"]) / 1e6
            for k, curve in enumerate(np.array(row["curve"]["returns"]).T):
                label = row["method"] if k == 0 else None
                axis.plot(steps, curve, color=colors[row["method"]], lw=1.2, label=label)
        axis.axhline(problem.best, color="black", lw=1, ls="--", label="best known")
        span = problem.best - problem.random
        lowest = min(np.min(row["curve"]["returns"]) for row in of_problem)
        bottom = min(problem.random + 0.3 * span, lowest - 0.05 * span)
        axis.set_ylim(bottom, problem.best + 0.05 * span)
        axis.set(title=name, xlabel="million steps per seed", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(color="#e6e6e6")
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("total reward of a trial")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    axes = {"problems": ("problem", list(PROBLEMS)), "methods": ("method", METHODS)}
    common.fill_table(NAME, __doc__, axes, run, table, draw, {"methods": ON_POLICY})


if __name__ == "__main__":
    main()
