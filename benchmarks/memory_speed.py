"""What a memory costs: learning beside simulating, bare matrix products, unrolling beside scanning.

    python benchmarks/memory_speed.py          # two minutes on two CPU cores

Everything that is compared runs in turn; learning and simulating on all devices that training
would take, long trials on one. A step of acting is one of a compiled scan over steps.
"""

import functools
import math
import statistics

import common
import jax
import jax.numpy as jnp
from throughput import compiled

import metajax
from metajax import presets
from metajax.envs.rollouts import first_previous, over_tasks
from metajax.policies import gru, lstm, snail, transformer, window
from metajax.training.sharding import default_devices, task_mesh
from metajax.types import StepInput

NAME = "memory-speed"
REPEATS = 5
LONG = 1000  # steps of a trial
MEMORIES = (gru, lstm, snail, transformer, window)
BANDIT = metajax.make("bernoulli-bandit", arms=5).env


def learning_beside_simulating(episodes: int, tasks: int, family: str, **options):
    """Return what a meta-iteration of RL² takes, and how often its trials alone fit into it."""
    config = presets.default_config("rl2", family)
    config["family"] |= options
    config["algorithm"] |= {"episodes": episodes}
    experiment = presets.build(config)
    env, agent = experiment.family.env, experiment.algorithm.agent

    def simulate(state, batch, key):
        def trial(meta_params, task, key):
            def act(memory, step_input, key):
                return agent.act(meta_params, memory, step_input, key)

            memory = agent.initial_memory()
            return jnp.sum(metajax.rollout(key, env, task, act, memory, episodes=episodes).reward)

        return over_tasks(trial, state.meta_params, batch.task, jax.random.split(key, tasks))

    mesh = task_mesh(default_devices(experiment.family, tasks))
    of = (experiment.family, experiment.algorithm, tasks)
    iterate, compile_seconds, temporary = compiled(mesh, experiment.algorithm.update, *of)
    simulation, *_ = compiled(mesh, simulate, *of)
    programs = [iterate, simulation]
    if family == "bernoulli-bandit":
        programs.append(bare_products(mesh, experiment.algorithm, config, tasks))
    seconds = common.timed(*programs, repeats=REPEATS)
    steps = tasks * experiment.algorithm.trial.steps(experiment.family.env)
    row = {
        "family": family,
        "options": options,
        "episodes": episodes,
        "tasks": tasks,
        "devices": mesh.size,
        "policy": config["policy"],
        "algorithm": config["algorithm"],
        "seconds": statistics.median(seconds[0]),
        "steps_per_second": steps / statistics.median(seconds[0]),
        "over_simulation": common.ratio(seconds[0], seconds[1]),
        "compile_seconds": compile_seconds,
        "temporary_bytes": temporary,
    }
    print(
        f"RL² on {family}: {row['steps_per_second']:,.0f} steps/s, "
        f"{row['over_simulation']:.2f} x simulation, compile {compile_seconds:.1f} s",
        flush=True,
    )
    if len(programs) > 2:
        row["share_of_matrix_products"] = common.ratio(seconds[2], seconds[0])
        print(f"  of that, bare matrix products {row['share_of_matrix_products']:.2f}", flush=True)
    return row


def bare_products(mesh, algorithm, config, tasks: int):
    """Return a call of the products of matrices in a meta-iteration with a GRU, and little else.

    A linear network of the same shapes plays the trials once, and is differentiated once in every
    minibatch of every epoch.
    """
    width, inputs = (
        config["policy"]["width"],
        BANDIT.observation_size + BANDIT.action_space.size + 2,
    )
    outputs, steps = BANDIT.action_space.size + 1, algorithm.trial.steps(BANDIT)
    epochs, minibatches = (config["algorithm"]["outer"][k] for k in ("epochs", "minibatches"))
    shapes = ((inputs, 3 * width), (width, 3 * width), (width, outputs))
    weights = [jax.random.normal(jax.random.key(i), s) / s[0] for i, s in enumerate(shapes)]

    def network(weights, x):
        def step(h, x):
            parts = jnp.split(x + h @ weights[1], 3, axis=-1)
            h = parts[0] + parts[1] + parts[2]
            return h, h

        h = jax.lax.scan(step, jnp.zeros((x.shape[1], width)), x @ weights[0])[1]
        return jnp.sum((h @ weights[2]) ** 2)

    def products(weights, x):
        batches = x.reshape(steps, -1, minibatches, inputs).swapaxes(0, 2).swapaxes(1, 2)

        def descend(weights, batch):
            gradient = jax.grad(network)(weights, batch)
            return jax.tree.map(lambda w, g: w - 1e-9 * g, weights, gradient), None

        def epoch(weights, _):
            return jax.lax.scan(descend, weights, batches)[0], None

        return network(weights, x), jax.lax.scan(epoch, weights, length=epochs)[0]

    with jax.set_mesh(mesh):
        by_task = jax.NamedSharding(mesh, jax.P(None, "task"))
        x = jax.device_put(jax.random.normal(jax.random.key(9), (steps, tasks, inputs)), by_task)
        weights = jax.device_put(weights, jax.NamedSharding(mesh, jax.P()))
        program = jax.jit(products).lower(weights, x).compile()
    return lambda: program(weights, x)


def heard(*shape: int) -> StepInput:
    """Return what a policy hears in so many steps of the bandit."""
    first = StepInput(jnp.zeros(BANDIT.observation_size), *first_previous(BANDIT))
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), first)


def long_trials(factory, trials: int = 8):
    """Return what unrolling and acting take in trials of `LONG` steps."""
    options = {"trial_length": LONG} if factory in (snail, transformer) else {}
    policy = factory(BANDIT.observation_size, BANDIT.action_space, **options)
    params, memory = policy.init(jax.random.key(0)), policy.initial_memory()

    def values(advance):
        def of_trial(x):
            return advance(params, policy.initial_memory(), x)[1].value

        return jax.jit(jax.vmap(of_trial))

    def scanned(params, memory, x):
        return jax.lax.scan(functools.partial(policy.step, params), memory, x)

    x = heard(trials, LONG)
    unroll, scan = values(policy.unroll), values(scanned)
    seconds = common.timed(lambda: unroll(x), lambda: scan(x), repeats=REPEATS)

    acts = 100
    act = jax.jit(functools.partial(scanned, params))
    early, late = heard(LONG - acts), heard(acts)
    played = jax.jit(policy.unroll)(params, memory, early)[0]
    acting = common.timed(lambda: act(memory, late), lambda: act(played, late), repeats=REPEATS)
    row = {
        "policy": factory.__name__,
        "trial_length": LONG,
        "trials": trials,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "memory_bytes": sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(memory)),
        "unroll_seconds": statistics.median(seconds[0]),
        "scan_over_unroll": common.ratio(seconds[1], seconds[0]),
        "first_act_microseconds": 1e6 * statistics.median(acting[0]) / acts,
        "last_act_microseconds": 1e6 * statistics.median(acting[1]) / acts,
    }
    print(
        "{policy:<12} {parameters:>7,} parameters, memory {memory_bytes:>9,} bytes, a step "
        "{first_act_microseconds:.0f} µs at first, {last_act_microseconds:.0f} µs at the end; "
        "scan {scan_over_unroll:.1f} x unroll".format(**row),
        flush=True,
    )
    return row


def main() -> None:
    learning = [
        learning_beside_simulating(2, 40, "halfcheetah-vel", variant="pearl"),
        learning_beside_simulating(10, 1000, "bernoulli-bandit", arms=5),
    ]
    result = {"learning": learning, "policies": [long_trials(factory) for factory in MEMORIES]}
    print(f"wrote {common.save(NAME, result)}")


if __name__ == "__main__":
    main()
