"""Inner gradients through the simulator beside score-function ones: accuracy, spread, cost.

    python benchmarks/pathwise.py                            # point-goal and Brax's half-cheetah
    python benchmarks/pathwise.py --cases halfcheetah-dir

The gradient of one adaptation step, of the undiscounted return of short episodes, from as many
episodes as an adaptation step has. The truth is the mean of many score-function gradients, which
is unbiased whatever the physics; its own error is given beside. Milliseconds and memory are those
of one gradient of all tasks, after and in the compiled program, and of its derivative in one
direction (what second order adds), sampling included in neither.
"""

import argparse
import statistics
from typing import Any

import common
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree

import metajax
from metajax.adaptation import Experience, policy_gradient
from metajax.diagnostics import estimator_error

LENGTH, EPISODES = 20, 20
CASES: dict[str, dict[str, Any]] = {
    "point-goal": {"family": {}, "std": 0.045, "reference": 4000},
    "halfcheetah-dir": {"family": {"backend": "spring"}, "std": 0.5, "reference": 1000},
}
METHODS = {
    "score function": {"estimator": "likelihood_ratio"},
    "pathwise, whole episode": {"estimator": "pathwise", "truncation": LENGTH},
    "pathwise, 10 steps": {"estimator": "pathwise", "truncation": 10},
    "pathwise, 5 steps": {"estimator": "pathwise", "truncation": 5},
    "pathwise, 1 step": {"estimator": "pathwise", "truncation": 1},
}
PLAIN = {"discount": 1.0, "normalize_advantages": False}


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    case = CASES[name]
    family = metajax.make(name, episode_length=LENGTH, **case["family"])
    env = family.env
    policy = metajax.mlp(env.observation_size, env.action_space, initial_std=case["std"])
    params = policy.init(jax.random.key(0))
    flat, unravel = ravel_pytree(params)
    task = family.train.sample(jax.random.key(1))

    def play(key):
        def act(memory, step_input, key):
            memory, output = policy.step(params, memory, step_input)
            return memory, output.distribution.sample(key), output

        return metajax.rollout(key, env, task, act, (), episodes=EPISODES, parallel=True)

    def gradient_of(method):
        objective = policy_gradient(**PLAIN, **METHODS[method]).build(env, policy)

        def gradient(flat, trajectory):
            experience = Experience(trajectory, objective.estimate({}, trajectory))
            return jax.grad(lambda flat: -objective.loss(unravel(flat), unravel(flat), experience))(
                flat
            )

        return gradient

    def along_of(method):
        gradient = gradient_of(method)

        def along(flat, trajectory):
            return jax.vjp(lambda flat: gradient(flat, trajectory), flat)[1](jnp.ones_like(flat))

        return along

    def many(method, count, key):
        """Return the gradients `[count, parameter]` of fresh episodes."""
        step = lambda key: gradient_of(method)(flat, play(key))
        return jax.jit(lambda keys: jax.lax.map(step, keys))(jax.random.split(key, count))

    reference = many("score function", case["reference"], jax.random.key(2))
    truth = jnp.mean(reference, axis=0)
    uncertain = float(estimator_error(reference, truth).std) / len(reference) ** 0.5
    trajectory = jax.jit(play)(jax.random.key(3))
    rows = []
    for method in METHODS:
        found = estimator_error(many(method, repeats, jax.random.key(4)), truth)
        programs = [
            jax.jit(of(method)).lower(flat, trajectory).compile() for of in (gradient_of, along_of)
        ]
        calls = [lambda program=program: program(flat, trajectory) for program in programs]
        once, again = (1e3 * statistics.median(x) for x in common.timed(*calls, repeats=10))
        memory = [program.memory_analysis().temp_size_in_bytes for program in programs]
        rows.append(
            {
                "case": name,
                "method": method,
                "bias": float(found.bias),
                "bias_error": float(np.hypot(uncertain, float(found.std) / repeats**0.5)),
                "spread": float(found.std),
                "cosine": float(found.cosine),
                "milliseconds": once,
                "milliseconds_second_order": again,
                "temporary_bytes": memory[0],
                "temporary_bytes_second_order": memory[1],
            }
        )
        print(
            "{case:16s} {method:24s} bias {bias:5.2f} ± {bias_error:4.2f}  spread {spread:6.2f}  "
            "cosine {cosine:5.2f}  {milliseconds:7.1f} ms, second order "
            "{milliseconds_second_order:7.1f} ms".format(**rows[-1]),
            flush=True,
        )
    return rows


def draw(rows: list[dict[str, Any]], path) -> None:
    names = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = plt.subplots(len(names), 3, figsize=(11, 2.6 * len(names)), squeeze=False)
    for line, name in zip(axes, names, strict=True):
        chosen = [row for row in rows if row["case"] == name][::-1]
        labels = [row["method"] for row in chosen]
        for axis, key, title in zip(
            line,
            ("cosine", "spread", "milliseconds"),
            ("cosine with the truth", "spread ÷ length of the truth", "milliseconds"),
            strict=True,
        ):
            axis.barh(labels, [row[key] for row in chosen], color="#4477aa")
            if key == "milliseconds":
                left = [row[key] for row in chosen]
                more = [row["milliseconds_second_order"] for row in chosen]
                axis.barh(labels, more, left=left, color="#bbccee", label="second order")
                axis.legend(frameon=False)
            axis.set_title(f"{name}: {title}" if key == "cosine" else title, fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
            if key != "cosine":
                axis.set_yticklabels([])
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--repeats", type=int, default=100, help="gradients per method")
    arguments = parser.parse_args()
    rows = common.saved("pathwise").get("rows", [])
    for name in arguments.cases:
        rows = [row for row in rows if row["case"] != name] + measure(name, arguments.repeats)
        path = common.save("pathwise", {"rows": rows})
    draw(rows, path.with_suffix(".png"))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
