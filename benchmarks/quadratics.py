"""Learned optimizers on random quadratics, beside tuned ones.

    python benchmarks/quadratics.py

The problem is that of Andrychowicz et al. 2016: ‖Wθ - y‖², W and y from N(0, 1), 10 dimensions,
100 steps from 0. The learned optimizers see other quadratics in training than in the test (1000
of them), and are unrolled 20 steps at a time. All numbers are of the loss before each of the 100
steps, averaged, and of the loss after the last.
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

from metajax.outer.evolution import (
    init_particles,
    persistent_evolution_strategies,
    restart,
    truncated_gradient,
)
from metajax.rules import from_optax, learned_lstm, learned_mlp
from metajax.types import UpdateRule, pytree_dataclass

DIMENSIONS, STEPS, UNROLL, HELD_OUT, LONG = 10, 100, 20, 1000, 1000
PUBLISHED = 0.935  # mean loss of tuned Nesterov momentum on these problems


@pytree_dataclass
class Inner:
    """A quadratic that is being minimised."""

    problem: Any
    params: Any
    memory: Any
    steps: Any


class Training(NamedTuple):
    """How a learned optimizer is trained."""

    rule: UpdateRule
    estimator: str
    iterations: int
    learning_rate: float
    problems: int


LEARNED = {
    "LSTM, backpropagation": Training(learned_lstm(), "truncated", 6000, 3e-3, 128),
    "LSTM, PES": Training(learned_lstm(), "pes", 6000, 3e-3, 128),
    "MLP, PES": Training(learned_mlp(0.01, scale=1e-3), "pes", 6000, 3e-3, 128),
}
TUNED = {
    "SGD": (optax.sgd, (0.005, 0.01, 0.015, 0.02, 0.025, 0.03)),
    "Adam": (optax.adam, (0.05, 0.1, 0.15, 0.215, 0.3, 0.4)),
    "Nesterov": (
        lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
        (0.002, 0.004, 0.006, 0.008, 0.01, 0.012, 0.015, 0.02),
    ),
}


def sample_problem(key):
    w_key, y_key = jax.random.split(key)
    matrix = jax.random.normal(w_key, (DIMENSIONS, DIMENSIONS))
    return {"matrix": matrix, "target": jax.random.normal(y_key, (DIMENSIONS,))}


def loss_of(params, problem):
    return jnp.sum((problem["matrix"] @ params - problem["target"]) ** 2)


def begin(rule, rule_params, key) -> Inner:
    params = jnp.zeros(DIMENSIONS)
    memory = rule.optimizer(rule_params).init(params)
    return Inner(sample_problem(key), params, memory, jnp.zeros((), jnp.int32))


def advance(rule, rule_params, inner: Inner, steps: int):
    """Take steps; return the new state and the loss before each, `[step]`."""
    optimizer = rule.optimizer(rule_params)

    def step(inner, _):
        loss, gradient = jax.value_and_grad(loss_of)(inner.params, inner.problem)
        # As in the paper, the optimizer is not credited for the gradients that it meets later.
        updates, memory = optimizer.update(
            jax.lax.stop_gradient(gradient), inner.memory, inner.params
        )
        params = optax.apply_updates(inner.params, updates)
        return Inner(inner.problem, params, memory, inner.steps + 1), loss

    return jax.lax.scan(step, inner, length=steps)


def trajectories(rule, rule_params, key, steps):
    """Return the loss before each step and after the last `[problem, step + 1]`."""

    def of_problem(key):
        inner, losses = advance(rule, rule_params, begin(rule, rule_params, key), steps)
        return jnp.append(losses, loss_of(inner.params, inner.problem))

    return jax.vmap(of_problem)(jax.random.split(key, HELD_OUT))


def train(training: Training, key):
    """Return the rule parameters that were best on other quadratics, and the curve on them."""
    rule = training.rule
    adam = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(training.learning_rate, training.iterations)),
    )

    def advance_some(rule_params, inner, key):
        del key
        inner, losses = advance(rule, rule_params, inner, UNROLL)
        return inner, jnp.mean(losses)

    def begin_all(rule_params, key):
        keys = jax.random.split(key, training.problems)
        return jax.vmap(lambda key: begin(rule, rule_params, key))(keys)

    def iterate(carry, key):
        rule_params, adam_state, particles = carry
        begin_key, step_key = jax.random.split(key)
        over = particles.plus.steps >= STEPS
        particles = restart(particles, over, begin_all(rule_params, begin_key))
        if training.estimator == "pes":
            gradient, particles, losses = persistent_evolution_strategies(
                advance_some, rule_params, particles, step_key, std=0.01
            )
        else:
            gradient, states, losses = truncated_gradient(
                advance_some, rule_params, particles.plus, step_key
            )
            particles = init_particles(rule_params, states)
        updates, adam_state = adam.update(gradient, adam_state)
        return (optax.apply_updates(rule_params, updates), adam_state, particles), jnp.mean(losses)

    init_key, begin_key, validation_key, train_key = jax.random.split(key, 4)
    rule_params = rule.init(init_key, jnp.zeros(DIMENSIONS))
    particles = init_particles(rule_params, begin_all(rule_params, begin_key))
    # The problems are at different steps, so that every meta-iteration sees early and late ones.
    ages = jnp.arange(training.problems) % (STEPS // UNROLL) * UNROLL
    fields = vars(particles.plus) | {"steps": ages}
    particles = init_particles(rule_params, Inner(**fields))
    carry = rule_params, adam.init(rule_params), particles

    @jax.jit
    def segment(carry, keys):
        carry, _ = jax.lax.scan(iterate, carry, keys)
        held_out = trajectories(rule, carry[0], validation_key, STEPS)
        return carry, jnp.mean(held_out[:, :-1])

    best, curve = (np.inf, rule_params), []
    for keys in jnp.split(jax.random.split(train_key, training.iterations), 60):
        carry, validation = segment(carry, keys)
        curve.append(float(validation))
        if curve[-1] < best[0]:
            best = curve[-1], carry[0]
    return best[1], curve


def measure(rule, rule_params, key, steps=STEPS):
    """Return the losses `[problem, step + 1]` of `trajectories`."""
    run = jax.jit(lambda key: trajectories(rule, rule_params, key, steps))
    return np.asarray(run(key))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=list(LEARNED), choices=LEARNED)
    parser.add_argument("--name", default="quadratics")
    arguments = parser.parse_args()
    test_key, tune_key, train_key = jax.random.split(jax.random.key(0), 3)
    rows, paths = [], {}

    def add(name, losses, **more):
        row = {
            "optimizer": name,
            "mean_loss": float(losses[:, :-1].mean()),
            "final_mean": float(losses[:, -1].mean()),
            "final_median": float(np.median(losses[:, -1])),
            **more,
        }
        rows.append(row)
        paths[name] = losses.mean(axis=0)
        print(
            f"{name:<22} mean loss {row['mean_loss']:.3f}  after {STEPS} steps "
            f"{row['final_mean']:.3f}, median {row['final_median']:.4f}",
            flush=True,
        )

    for name, (make, rates) in TUNED.items():
        rules = {rate: from_optax(make(rate), second_order=False) for rate in rates}
        tuned = {r: measure(rule, (), tune_key)[:, :-1].mean() for r, rule in rules.items()}
        rate = min(tuned, key=tuned.__getitem__)
        add(name, measure(rules[rate], (), test_key), learning_rate=rate)
    for index, name in enumerate(arguments.names):
        training = LEARNED[name]
        began = time.perf_counter()
        rule_params, curve = train(training, jax.random.fold_in(train_key, index))
        seconds = time.perf_counter() - began
        finite = bool(np.isfinite(measure(training.rule, rule_params, test_key, LONG)).all())
        losses = measure(training.rule, rule_params, test_key)
        add(name, losses, curve=curve, seconds=seconds, finite_after_1000_steps=finite)
    path = common.save(arguments.name, {"published_nesterov": PUBLISHED, "rows": rows})
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, losses in paths.items():
        axes.semilogy(losses, label=name, linestyle="-" if name in LEARNED else "--")
    axes.set(xlabel="step", ylabel="loss, mean of 1000 quadratics")
    axes.grid(color="#e6e6e6")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=150)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
