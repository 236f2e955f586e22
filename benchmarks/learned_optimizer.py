"""A learned optimizer as PPO's optimizer, beside tuned Adam, on held-out tasks and fresh weights.

    python benchmarks/learned_optimizer.py    # reacher-goal on C MuJoCo, half an hour on two cores

An agent begins with random weights and lives through 20 rounds of 20 episodes, each followed by 4
epochs of PPO; the optimizer makes the steps. Adam's rate is tuned on training tasks over a grid,
and so is gradient descent's; the learned optimizers are meta-trained there by persistent evolution
strategies, one beside gradient descent and one beside the tuned Adam. All are then compared
on the same held-out tasks, from the same random weights: return of the last round, and mean over
the life. Errors are standard errors over tasks. Results are kept one by one, and what is there
already is not run again (`--again` runs it).
"""

import argparse
import dataclasses
import time
from typing import Any

import common
import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

import metajax
from metajax.adaptation import gradient_steps, policy_gradient
from metajax.algorithms import learned_optimizer
from metajax.rules import from_optax, learned_mlp, sum_of_rules
from metajax.types import MetaParams

NAME = "learned-optimizer"
LIFETIME, EPISODES, EPOCHS = 20, 20, 4
NOTHING = MetaParams((), (), {})  # is meta-learned where the optimizer is Adam
RATES = (3e-3, 5e-3, 7e-3, 1e-2, 1.5e-2, 2e-2, 3e-2, 5e-2, 1e-1)
TUNED = {"Adam, tuned": optax.adam, "SGD, tuned": optax.sgd}


def steps_of(rule):
    """Return epochs of PPO that a rule makes."""
    return gradient_steps(policy_gradient("clipped", gae_lambda=0.95), rule=rule, epochs=EPOCHS)


def problem():
    family = metajax.make("reacher-goal", backend="mujoco")
    policy = metajax.mlp(family.env.observation_size, family.env.action_space, initial_std=0.5)
    return family, policy


def lives(agent, family, meta_params, key, tasks) -> np.ndarray:
    """Return the learning curves `[task, round]`; random weights depend on the key alone."""
    run = jax.jit(
        lambda meta_params, key: metajax.evaluate(
            agent, family, meta_params, key, tasks=tasks, rounds=LIFETIME, episodes=EPISODES
        )
    )
    return np.asarray(run(meta_params, key)).mean(axis=-1)


def with_optimizer(optimizer):
    """Return an agent that begins with random weights and trains them by `optimizer`."""
    family, policy = problem()
    rule = from_optax(optimizer, second_order=False)
    loop = steps_of(rule).build(family.env, policy)

    def init(meta_params, key):
        return loop.agent.init(dataclasses.replace(NOTHING, policy=policy.init(key)), key)

    return loop.agent._replace(init=init)


def tuned(name, make, tasks) -> tuple[Any, Any, dict[str, Any]]:
    """Return the agent with the rate whose last rounds are best on training tasks."""
    family, _ = problem()
    training = family._replace(test=family.train)
    last = {}
    for rate in RATES:
        curve = lives(with_optimizer(make(rate)), training, NOTHING, jax.random.key(7), tasks)
        last[rate] = float(curve[:, -5:].mean())
        print(f"{name} {rate:g}: {last[rate]:.2f} in the last five rounds", flush=True)
    best = max(last, key=last.__getitem__)
    return with_optimizer(make(best)), NOTHING, {"rate": best, "tried": last}


def learned(rule, iterations, tasks) -> tuple[Any, Any, dict[str, Any]]:
    family, policy = problem()
    options = {"inner": steps_of(rule), "episodes": EPISODES, "lifetime": LIFETIME}
    algorithm = learned_optimizer(family.env, policy, **options)
    began = time.perf_counter()
    result = metajax.train(
        algorithm,
        family,
        iterations=iterations,
        tasks=tasks,
        segment=10,
        evaluation=None,
        report=None,
    )
    meta_params = jax.tree.map(lambda x: x[0], result.state.train_state.meta_params)
    after = np.asarray(result.metrics["return_after"])[:, 0]
    record = {
        "iterations": iterations,
        "tasks": tasks,
        "seconds": time.perf_counter() - began,
        "return_after": after.tolist(),
    }
    return algorithm.agent, meta_params, record


def draw(rows, path):
    figure, axis = plt.subplots(figsize=(6.5, 4))
    for row in rows:
        mean, error = np.array(row["curve"]), np.array(row["curve_error"], float)
        (line,) = axis.plot(mean, label=row["optimizer"])
        axis.fill_between(
            range(LIFETIME), mean - error, mean + error, alpha=0.2, color=line.get_color()
        )
    axis.set(xlabel="rounds of 20 episodes", ylabel="return", title="reacher-goal, held-out tasks")
    axis.set_xticks(range(0, LIFETIME, 5))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=300, help="of meta-training")
    parser.add_argument("--tasks", type=int, default=20, help="per meta-iteration")
    parser.add_argument("--test-tasks", type=int, default=100)
    parser.add_argument("--again", action="store_true", help="also what is there already")
    arguments = parser.parse_args()
    family, _ = problem()
    rows = {} if arguments.again else common.saved_rows(NAME, "optimizer")

    def compare(name, agent, meta_params, record):
        curves = lives(agent, family, meta_params, jax.random.key(11), arguments.test_tasks)
        last, whole = curves[:, -1], curves.mean(axis=1)
        rows[name] = {
            "optimizer": name,
            "last": float(last.mean()),
            "last_error": common.standard_error(last),
            "life": float(whole.mean()),
            "life_error": common.standard_error(whole),
            "curve": curves.mean(axis=0).tolist(),
            "curve_error": common.standard_error(curves),
            **record,
        }
        common.save(NAME, {"rows": list(rows.values())})

    for name, make in TUNED.items():
        if name not in rows:
            compare(name, *tuned(name, make, arguments.tasks))
    adam = optax.adam(rows["Adam, tuned"]["rate"])
    for name, rule in {
        "learned-mlp beside SGD": learned_mlp(0.03),
        "learned-mlp beside Adam": sum_of_rules(
            learned_mlp(), from_optax(adam, second_order=False)
        ),
    }.items():
        if name not in rows:
            compare(name, *learned(rule, arguments.iterations, arguments.tasks))
    for row in rows.values():
        last, life = (common.plus_minus(row[x], row[f"{x}_error"], 2) for x in ("last", "life"))
        print(f"{row['optimizer']:24s} last round {last}, whole life {life}")
    path = common.RESULTS / f"{NAME}.png"
    draw(rows.values(), path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
