"""The gradient family in one table: every algorithm on the same tasks with the same budget.

    python benchmarks/gradient_family.py                                # everything, hours on a CPU
    python benchmarks/gradient_family.py --families point-goal --algorithms maml promp
    python benchmarks/gradient_family.py --redraw                       # table and picture only
    taskset -c 0 python benchmarks/gradient_family.py ...               # as here, one core each

Budget: environment steps per seed, the same for all algorithms of a family. Results are kept one by
one, and what is there already is not run again (`--again` runs it); commands may run side by side.
Returns are those of fresh held-out tasks after 0 to 3 adaptation steps, sampled actions; a learned
optimizer begins with a random policy, so its are followed for a lifetime. Times are those of all
seeds with compilation and evaluation, steps those of training.
"""

import time
from typing import Any

import common
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import metajax
from metajax import presets
from metajax.algorithms import ALGORITHMS

NAME = "gradient-family"
ROUNDS = 4
# Environment steps per seed, by family; what is another than in MAML's presets for the budget.
# Physics is slow here: a hundred held-out tasks tell enough of a half-cheetah.
BUDGETS: dict[str, dict[str, Any]] = {
    "point-goal": {"steps": 24e6, "training": {"tasks": 20}},
    "reacher-goal": {"steps": 4e6, "training": {"tasks": 20}, "family": {"backend": "mujoco"}},
    "halfcheetah-dir": {
        "steps": 6e6,
        "training": {"tasks": 6},
        "family": {"backend": "mujoco"},
        "evaluation": {"final_tasks": 100},
    },
    "halfcheetah-vel": {
        "steps": 4e6,
        "training": {"tasks": 10},
        "family": {"backend": "mujoco"},
        "evaluation": {"final_tasks": 100},
    },
}
# What the algorithms are compared with. Tasks, horizons and samples differ between papers.
PUBLISHED = {
    ("maml", "point-goal"): ([-40.41, -11.68, -3.33, -3.23], "Finn et al. 2017"),
    ("maml", "halfcheetah-dir"): ([-50.69, 293.19, 313.48, 315.65], "Finn et al. 2017, H = 200"),
    ("anil", "halfcheetah-dir"): ([None, 363.2], "Raghu et al. 2020"),
    ("anil", "halfcheetah-vel"): ([None, -120.9], "Raghu et al. 2020"),
    ("maml", "halfcheetah-vel"): ([None, -139.0], "Raghu et al. 2020"),
}
# Rows beside the algorithms: another name, and the parts that it chooses, with their presets.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml, trpo": ("maml", {"outer": {"name": "trpo"}}),
}
# All families of the table have continuous actions; memories are another family's.
OTHERS = {"dqn", "maml-dqn", *presets.MEMORY_AGENTS}
METHODS = (*(name for name in ALGORITHMS if name not in OTHERS), *VARIANTS)
# Joint training is fine-tuned by ten times the preset's steps: what such steps gain, and what they
# lose, shows within three of them.
FINE_TUNING_KL = 0.1
EVALUATION = {"tasks": 40, "rounds": ROUNDS, "episodes": 20, "final_tasks": 400}


def configuration(method: str, family: str) -> dict[str, Any]:
    """Return the preset of a pair, with as many iterations as the budget pays for."""
    algorithm, parts = VARIANTS.get(method, (method, {}))
    config = presets.default_config(algorithm, family, parts=parts)
    budget = BUDGETS[family]
    if config["algorithm"]["inner"]["max_kl"]:
        config["algorithm"]["inner"]["max_kl"] = FINE_TUNING_KL
    config["evaluation"] |= EVALUATION
    for group in ("family", "training", "evaluation"):
        config[group] |= budget.get(group, {})
    if "lifetime" in config["algorithm"]:  # longer trials, of fewer tasks
        rounds = config["evaluation"]["rounds"] = config["algorithm"]["lifetime"]
        config["evaluation"]["final_tasks"] //= rounds // ROUNDS
    experiment = presets.build(config)
    per_iteration = _steps(experiment) * config["training"]["tasks"]
    iterations = max(1, round(budget["steps"] / per_iteration))
    config["training"]["iterations"] = config["evaluation"]["every"] = iterations
    return config


def _steps(experiment: presets.Experiment) -> int:
    """Return the environment steps of a task in a meta-iteration."""
    return experiment.algorithm.trial.steps(experiment.family.env)


def run(family: str, method: str, seeds: int, again: bool) -> dict[str, Any]:
    del again  # nothing of an earlier run is kept but its row
    config = configuration(method, family)
    experiment = presets.build(config)
    training = experiment.training | {"seeds": seeds}
    began, began_work = time.perf_counter(), time.process_time()
    result = metajax.train(
        experiment.algorithm,
        experiment.family,
        evaluation=experiment.evaluation,
        report=None,
        **training,
    )
    assert result.returns is not None
    per_seed = result.returns.mean(axis=(1, 3))
    steps = _steps(experiment) * training["tasks"] * training["iterations"]
    return {
        "algorithm": method,
        "family": family,
        "backend": experiment.family.backend,
        "seeds": seeds,
        "steps_per_seed": steps,
        "iterations": training["iterations"],
        "returns": per_seed.mean(axis=0).tolist(),
        "standard_error": common.standard_error(per_seed),
        "returns_per_seed": per_seed.tolist(),
        "wall_seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - began_work,
        "compile_seconds": result.compile_seconds,
        "train_and_evaluate_seconds": result.train_seconds,
        "discarded_updates": int(np.sum(result.state.discarded)),
        "config": config,
    }


def busy_seconds(row: dict[str, Any]) -> float:
    """Return what a run takes by itself: on one core, what it kept the core busy.

    Of rows that did not say so, or had several cores or another device, the wall's clock.
    """
    alone = row["machine"]["cores"] == 1
    return row.get("processor_seconds", row["wall_seconds"]) if alone else row["wall_seconds"]


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    header = ["family", "algorithm", *(f"after {k}" for k in range(ROUNDS)), "published"]
    header += ["time", "steps per second"]
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    for row in rows:
        pairs = zip(row["returns"], row["standard_error"], strict=True)
        numbers = [common.plus_minus(mean, error, 1) for mean, error in pairs]
        if (last := len(numbers)) > ROUNDS:
            numbers = [*numbers[: ROUNDS - 1], f"{numbers[ROUNDS - 1]}; {last - 1}: {numbers[-1]}"]
        published, source = PUBLISHED.get((row["algorithm"], row["family"]), ([], ""))
        known = " / ".join("–" if x is None else f"{x:g}" for x in published)
        known += f" ({source})" if source else ""
        seconds = busy_seconds(row)
        speed = f"{row['steps_per_seed'] * row['seeds'] / seconds:,.0f}"
        cost = [f"{seconds / 60:.1f} min", speed]
        lines.append(" | ".join([row["family"], row["algorithm"], *numbers, known, *cost]))
    return "\n".join(f"| {line} |" for line in lines)


def draw(rows: list[dict[str, Any]], path) -> None:
    families = [name for name in BUDGETS if any(row["family"] == name for row in rows)]
    figure, axes = plt.subplots(
        1, len(families), figsize=(4 * len(families) + 2, 4.2), squeeze=False
    )
    colors = {name: plt.get_cmap("tab20")(i % 20) for i, name in enumerate(METHODS)}
    for axis, family in zip(axes[0], families, strict=True):
        for row in rows:
            if row["family"] == family:
                axis.errorbar(
                    range(ROUNDS),
                    row["returns"][:ROUNDS],
                    np.array(row["standard_error"][:ROUNDS], float),
                    marker="o",
                    markersize=3,
                    capsize=2,
                    color=colors[row["algorithm"]],
                    label=row["algorithm"],
                )
        axis.set(title=family, xlabel="adaptation steps", xticks=range(ROUNDS))
        # A row that ran away is in the table; here it would flatten all others.
        returns = np.array([row["returns"][:ROUNDS] for row in rows if row["family"] == family])
        start, best = np.median(returns[:, 0]), returns.max()
        if returns.min() < start - (best - start):
            axis.set_ylim(start - (best - start), best + 0.1 * (best - start))
        axis.grid(color="#e6e6e6")
    axes[0, 0].set_ylabel("return on held-out tasks")
    drawn = {
        label: h for a in axes[0] for h, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    handles = [drawn[name] for name in METHODS if name in drawn]
    figure.legend(handles=handles, loc="center right", frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1 - 1.4 / figure.get_figwidth(), 1))
    figure.savefig(path, dpi=150)


def main():
    axes = {"families": ("family", list(BUDGETS)), "algorithms": ("algorithm", METHODS)}
    common.fill_table(NAME, __doc__, axes, run, table, draw)


if __name__ == "__main__":
    main()
