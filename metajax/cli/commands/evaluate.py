"""`metajax evaluate`."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from metajax._text import show
from metajax.cli.commands.saved import check_positive, check_writable, key_of, step_of, which_of
from metajax.cli.display import (
    DETERMINISTIC,
    SAMPLED,
    at_work,
    curve_text,
    metrics_text,
    task_names,
)
from metajax.cli.options import EvaluateOptions, modules_in
from metajax.envs.splits import on_split
from metajax.errors import MetajaxError
from metajax.runs.load import load_run
from metajax.runs.records import plain
from metajax.training.evaluation import (
    adaptation_curve,
    evaluate_with_metrics,
    has_memory,
    trial_total,
)
from metajax.types import Agent


def run(options: EvaluateOptions) -> int:
    """Evaluate a run; return the exit status."""
    experiment, state = load_run(
        options.run,
        step=step_of(options.step),
        backend=options.backend,
        allow_import=modules_in(options.allow_import),
    )
    chosen = {name: getattr(options, name) for name in ("rounds", "episodes")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    for name, value in {"tasks": options.tasks, **chosen}.items():
        check_positive(name, value)
    evaluation = dataclasses.replace(experiment.evaluation, **chosen)
    sizes = evaluation.sizes(experiment.algorithm, experiment.family.env)
    sizes = {"tasks": options.tasks, **sizes}
    algorithm, family = experiment.algorithm, experiment.family
    family = on_split(family, options.split)
    iteration = int(state.iteration)
    output = options.run / f"evaluation-{options.split}.json"
    check_writable(output)

    @jax.jit
    def evaluate_both(meta_params, keys):
        def one_seed(meta_params, key):
            both = [
                evaluate_with_metrics(
                    algorithm.agent, family, meta_params, key, **sizes, deterministic=deterministic
                )
                for deterministic in (False, True)
            ]
            return both

        return jax.vmap(one_seed)(meta_params, keys)

    meta_params = state.train_state.meta_params
    keys = jax.random.split(key_of(experiment, "evaluate"), state.discarded.shape[0])
    jax.eval_shape(evaluate_both, meta_params, keys)  # what is wrong with sizes shows here
    show(
        f"evaluating {options.run}, {which_of(options.step)} iteration {iteration} (physics: "
        f"{family.backend}) ..."
    )
    with at_work("compiling and evaluating"):
        found = jax.tree.map(np.asarray, evaluate_both(meta_params, keys))
    by_acting = dict(zip((SAMPLED, DETERMINISTIC), found, strict=True))
    for acting, (returns, metrics) in by_acting.items():
        show(curve_text(returns, acting, algorithm, family, options.split))
        if metrics:
            show(metrics_text(metrics, algorithm))
        show()
    record = {
        "iteration": iteration,
        "backend": family.backend,
        "split": options.split,
        **sizes,
        "tasks": by_acting[SAMPLED][0].shape[1],
        "task_names": task_names(family.test),
        **{
            acting: _curve_record(returns, metrics, algorithm.agent)
            for acting, (returns, metrics) in by_acting.items()
        },
    }
    try:
        output.write_text(json.dumps(plain(record), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise MetajaxError(f"cannot write {output}: {error.strerror}.") from None
    show(f"written to {output}")
    return 0


def _curve_record(
    returns: np.ndarray, metrics: dict[str, np.ndarray], agent: Agent
) -> dict[str, Any]:
    """Return an adaptation curve as it is saved, and those of the environment's metrics."""
    record: dict[str, Any] = {
        "adaptation_curve": [s._asdict() for s in adaptation_curve(returns)],
        "returns_per_seed_task_round": returns.mean(axis=3),
        "metrics": {
            name: {
                "adaptation_curve": [s._asdict() for s in adaptation_curve(values)],
                "per_seed_task_round": values.mean(axis=3),
            }
            for name, values in metrics.items()
        },
    }
    if has_memory(agent):
        record["trial_total"] = trial_total(returns)._asdict()
    return record
