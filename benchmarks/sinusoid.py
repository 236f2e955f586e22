"""Few-shot sinusoid regression: the update rules where adaptation is not clouded by sampling.

    python benchmarks/sinusoid.py                    # all methods, 3 seeds, 70 000 meta-iterations
    python benchmarks/sinusoid.py --methods maml cavia --iterations 10000

Tasks, network and protocol are those of Finn et al. 2017, section 5.1: y = A sin(x - φ), A from
[0.1, 5], φ from [0, π], x from [-5, 5]; 5 labelled points; two hidden layers of 40; 25 tasks per
meta-iteration; Adam with 1e-3. The error is on 100 fresh points of 2000 fresh tasks. Repeated steps
of a rule that was trained for one may diverge, on a task in some thousand for one rate, on a
quarter of them for Meta-SGD's: those with an error above 100 are counted, and left out of the mean.
Every method is saved as soon as it is through.
"""

import argparse
import time
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

from metajax.policies.mlp import value_network
from metajax.rules import from_optax, meta_lstm, meta_sgd, sgd
from metajax.types import UpdateRule

SHOTS, TASKS, STEPS = 5, 25, (0, 1, 5, 10)
PUBLISHED = {"maml": {1: 0.67, 5: 0.38, 10: 0.35}}  # Finn et al. 2017, table 4


DIVERGED = 100.0


class Method(NamedTuple):
    """How a meta-learner differs from the others.

    Attributes:
        rule: of the inner steps.
        inner_steps: in training.
        context: inputs that are parameters; where there are any, nothing else adapts.
        first_order: inner gradients are constants.
        reptile: move towards the adapted parameters, by this fraction at first, then less and less.
        share: of the meta-iterations that it gets, where one takes much longer than the others'.
    """

    rule: UpdateRule
    inner_steps: int = 1
    context: int = 0
    first_order: bool = False
    reptile: float | None = None
    share: float = 1.0


METHODS = {
    "maml": Method(sgd(0.01)),
    "maml, 5 inner steps": Method(sgd(0.01), inner_steps=5),
    "fomaml": Method(sgd(0.01), first_order=True),
    "meta-sgd": Method(meta_sgd(0.01)),
    "meta-lstm": Method(meta_lstm(0.01), inner_steps=5, first_order=True, share=1 / 28),
    "cavia": Method(sgd(1.0), context=5),
    # Steps of plain gradients diverge on some task in the end, and take the mean with them.
    "reptile": Method(
        from_optax(optax.adam(0.01, b1=0.0), second_order=False), inner_steps=8, reptile=1.0
    ),
}


def sample_task(key):
    amplitude_key, phase_key = jax.random.split(key)
    return {
        "amplitude": jax.random.uniform(amplitude_key, minval=0.1, maxval=5.0),
        "phase": jax.random.uniform(phase_key, maxval=jnp.pi),
    }


def sample_points(key, task, count):
    """Return x and y, `[point]` each."""
    x = jax.random.uniform(key, (count,), minval=-5.0, maxval=5.0)
    return x, task["amplitude"] * jnp.sin(x - task["phase"])


class Learner(NamedTuple):
    """Meta-training of one method, and its errors after each of `STEPS`."""

    init: Any
    update: Any
    errors: Any


def make_learner(method: Method, iterations: int) -> Learner:
    network = value_network(1 + method.context, hidden=(40, 40), activation="relu")
    adam = optax.adam(1e-3)

    def error(params, points):
        x, y = points
        inputs = jnp.broadcast_to(params["context"], (len(x), method.context))
        return jnp.mean((network.apply(params["network"], jnp.c_[x, inputs]) - y) ** 2)

    def adapt(meta_params, support, steps):
        """Return the parameters after 0, 1, ... `steps` steps, `[step, ...]`."""
        params, rule_params = meta_params
        part = "context" if method.context else "network"
        optimizer = optax.with_extra_args_support(method.rule.optimizer(rule_params))

        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(lambda p: error(params | {part: p}, support))(
                params[part]
            )
            if method.first_order:
                value, gradient = jax.lax.stop_gradient((value, gradient))
            updates, state = optimizer.update(gradient, state, params[part], value=value)
            new = params | {part: optax.apply_updates(params[part], updates)}
            return (new, state), new

        path = jax.lax.scan(step, (params, optimizer.init(params[part])), length=steps)[1]
        return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), params, path)

    def init(key):
        network_key, rule_key = jax.random.split(key)
        params = {"network": network.init(network_key), "context": jnp.zeros(method.context)}
        part = params["context"] if method.context else params["network"]
        meta_params = params, method.rule.init(rule_key, part)
        return meta_params, adam.init(meta_params)

    def last(params):
        return jax.tree.map(lambda x: x[-1], params)

    def update(state, key, iteration):
        meta_params, adam_state = state
        task_key, support_key, query_key = (
            jax.random.split(k, TASKS) for k in jax.random.split(key, 3)
        )
        tasks = jax.vmap(sample_task)(task_key)
        support, query = (
            jax.vmap(lambda key, task: sample_points(key, task, SHOTS))(keys, tasks)
            for keys in (support_key, query_key)
        )
        if method.reptile:
            adapted = jax.vmap(lambda s: last(adapt(meta_params, s, method.inner_steps)))(support)
            epsilon = method.reptile * (1 - iteration / iterations)
            move = lambda old, new: old + epsilon * (jnp.mean(new, axis=0) - old)
            return (jax.tree.map(move, meta_params[0], adapted), meta_params[1]), adam_state

        def loss(meta_params):
            def of_task(support, query):
                return error(last(adapt(meta_params, support, method.inner_steps)), query)

            return jnp.mean(jax.vmap(of_task)(support, query))

        gradient = jax.grad(loss)(meta_params)
        if method.context:  # it begins at 0 in every task
            gradient[0]["context"] = jnp.zeros(method.context)
        updates, adam_state = adam.update(gradient, adam_state)
        return optax.apply_updates(meta_params, updates), adam_state

    def errors(state, key, tasks):
        def of_task(key):
            task_key, support_key, query_key = jax.random.split(key, 3)
            task = sample_task(task_key)
            path = adapt(state[0], sample_points(support_key, task, SHOTS), max(STEPS))
            query = sample_points(query_key, task, 100)
            return jax.vmap(lambda params: error(params, query))(path)[jnp.array(STEPS)]

        return jax.vmap(of_task)(jax.random.split(key, tasks))

    return Learner(init, update, errors)


def run(method: Method, seeds: int, iterations: int, points: int = 50):
    """Return errors `[point, seed, task, step]` and the seconds without compiling."""
    learner = make_learner(method, iterations)
    length = iterations // points

    def segment(state, key, first):
        def iterate(state, iteration):
            return learner.update(state, jax.random.fold_in(key, iteration), iteration), None

        state = jax.lax.scan(iterate, state, first + jnp.arange(length))[0]
        return state, learner.errors(state, jax.random.fold_in(key, iterations), 2000)

    keys = jax.random.split(jax.random.key(0), seeds)
    state = jax.vmap(learner.init)(keys)
    program = jax.jit(jax.vmap(segment, in_axes=(0, 0, None)))
    program = program.lower(state, keys, jnp.int32(0)).compile()
    began, found = time.perf_counter(), []
    for point in range(points):
        state, errors = program(state, keys, jnp.int32(point * length))
        found.append(np.asarray(errors))
    return np.stack(found), time.perf_counter() - began


def mean_error(errors):
    """Return the mean over the tasks (the second last axis) that did not diverge."""
    return np.nanmean(np.where(errors < DIVERGED, errors, np.nan), axis=-2)


def draw(rows, path):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for index, row in enumerate(rows):
        curve = row["learning_curve_after_5_steps"]
        x = np.linspace(0, row["iterations"], len(curve) + 1)[1:]
        axes[0].plot(x, curve, label=row["method"], color=f"C{index}")
        axes[1].plot(STEPS, row["error"], "o-", label=row["method"], color=f"C{index}")
    published = PUBLISHED["maml"]
    axes[1].plot(list(published), list(published.values()), "kx", label="maml, published")
    axes[0].set(xlabel="meta-iterations", ylabel="error after 5 steps", yscale="log")
    axes[1].set(xlabel="steps", ylabel="error", yscale="log", xticks=STEPS)
    for ax in axes:
        ax.grid(color="#e6e6e6")
    axes[1].legend(fontsize=8)
    figure.suptitle("Sinusoid regression, 5 shots: mean squared error", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=70_000)
    parser.add_argument("--name", default="sinusoid")
    arguments = parser.parse_args()
    for name in arguments.methods:
        iterations = round(METHODS[name].share * arguments.iterations)
        errors, seconds = run(METHODS[name], arguments.seeds, iterations)
        final = mean_error(errors[-1])
        by_name = common.saved_rows(arguments.name, "method")
        by_name[name] = {
            "method": name,
            "iterations": iterations,
            "seeds": arguments.seeds,
            "steps": STEPS,
            "error": final.mean(axis=0).tolist(),
            "error_per_seed": final.tolist(),
            "diverged": np.mean(~(errors[-1] < DIVERGED), axis=(0, 1)).tolist(),
            "published": PUBLISHED.get(name),
            "seconds": seconds,
            "learning_curve_after_5_steps": mean_error(errors)
            .mean(axis=1)[:, STEPS.index(5)]
            .tolist(),
        }
        numbers = "  ".join(f"{k}: {e:.3f}" for k, e in zip(STEPS, final.mean(axis=0), strict=True))
        print(f"{name:<20} error after steps {numbers}   {seconds:.0f} s", flush=True)
        rows = [by_name[name] for name in METHODS if name in by_name]
        path = common.save(arguments.name, {"rows": rows})
        draw(rows, path.with_suffix(".png"))
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
