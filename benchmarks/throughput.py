"""What meta-learning costs on top of simulating: one meta-iteration against its rollouts alone.

    python benchmarks/throughput.py                        # this machine's default backends
    python benchmarks/throughput.py --backends mjx --tasks 512 --episodes 64
    python benchmarks/throughput.py --backends mjx --widths 400 1600 6400 25600 65536
    python benchmarks/throughput.py --backends mujoco --inner      # rules, and inner steps

For every backend: the seconds of a whole meta-iteration (sampling, adaptation, outer step) divided
by those of simulating the same environment steps with the same policy and nothing else, the two
run in turn. On C MuJoCo also the bare engine: `mujoco.rollout` with as many threads and steps.
Tasks are shared out over devices as in training; `--devices` sets another number.
"""

import argparse
import resource
import statistics
import time

import common
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import metajax
from metajax import rules
from metajax.adaptation import gradient_steps
from metajax.envs.rollouts import over_tasks
from metajax.envs.splits import sample_tasks
from metajax.outer import OUTER_STEPS
from metajax.physics import load_model
from metajax.training.program import make_segment
from metajax.training.sharding import default_devices, task_mesh

OUTERS = ("adam", "ppo", "trpo")


def experiment(backend, episodes, horizon, *, outer="adam", rule="sgd", **options):
    family = metajax.make("halfcheetah-dir", backend=backend, episode_length=horizon)
    policy = metajax.mlp(family.env.observation_size, family.env.action_space, initial_std=0.5)
    parts = {
        "inner": gradient_steps(rule=rules.RULES[rule](0.1)),
        "outer": OUTER_STEPS[outer](),
    }
    algorithm = metajax.maml(family.env, policy, **parts, episodes=episodes, **options)
    return family, algorithm


def simulation(mesh, backend, tasks, episodes, horizon, rounds=2):
    """Return the rollouts of a meta-iteration, without learning."""
    family, algorithm = experiment(backend, episodes, horizon)
    agent = algorithm.agent

    def simulate(state, batch, key):
        def trial(meta_params, task, key):
            adapted = agent.init(meta_params, key)

            def act(memory, step_input, key):
                return agent.act(adapted, memory, step_input, key)

            def round_(total, key):
                trajectory = metajax.rollout(
                    key, family.env, task, act, (), episodes=episodes, parallel=True
                )
                return total + jnp.sum(trajectory.reward), None

            return jax.lax.scan(round_, jnp.zeros(()), jax.random.split(key, rounds))[0]

        return over_tasks(trial, state.meta_params, batch.task, jax.random.split(key, tasks))

    return compiled(mesh, simulate, family, algorithm, tasks)


def meta_iteration(mesh, backend, tasks, episodes, horizon, **options):
    family, algorithm = experiment(backend, episodes, horizon, **options)
    return compiled(mesh, algorithm.update, family, algorithm, tasks)


def compiled(mesh, function, family, algorithm, tasks):
    """Return (a call without arguments, compile seconds, bytes of temporary memory per device)."""
    key = jax.random.key(0)
    batch = sample_tasks(family.train, key, tasks)
    state = algorithm.init(key, batch)
    with jax.set_mesh(mesh):
        replicated, by_task = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((), ("task",)))
        arguments = jax.device_put((state, batch, key), (replicated, by_task, replicated))
        began = time.perf_counter()
        program = jax.jit(function).lower(*arguments).compile()
        seconds = time.perf_counter() - began
    temporary = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
    return lambda: program(*arguments), seconds, temporary


def segment_compile_seconds(mesh, backend, tasks, episodes, horizon):
    """Return the seconds to compile all of training: meta-iterations and evaluation."""
    family, algorithm = experiment(backend, episodes, horizon)
    program = make_segment(
        algorithm, family, length=10, tasks=tasks, evaluation=metajax.Evaluation(), mesh=mesh
    )
    key, stop = jax.random.key(0), jnp.asarray(1, jnp.int32)
    state = jax.eval_shape(program.init, key)
    run = jax.jit(program.run, out_shardings=program.out_shardings(state))
    began = time.perf_counter()
    run.lower(state, key, stop, jnp.asarray(True), stop).compile()
    return time.perf_counter() - began


def mesh_of(backend, tasks, arguments):
    family, _ = experiment(backend, 1, 1)
    return task_mesh(arguments.devices or default_devices(family, tasks))


def bare_engine(environments, steps):
    """Return a call of `mujoco.rollout` with as many environments and steps, on all threads."""
    model = load_model("half_cheetah")
    random = np.random.default_rng(0)
    control = np.repeat(random.uniform(-1, 1, (environments, steps, model.nu)), 5, axis=1)
    return common.bare_mujoco(model, control)


def measure(backend, arguments):
    mesh = mesh_of(backend, arguments.tasks, arguments)
    size = (mesh, backend, arguments.tasks, arguments.episodes, arguments.horizon)
    environments = arguments.tasks * arguments.episodes
    steps = 2 * environments * arguments.horizon
    simulate, simulate_compile, simulate_bytes = simulation(*size)
    rows = []
    for outer in arguments.outers:
        for first_order in (False, True) if outer == "adam" else (False,):
            iterate, compile_seconds, temporary = meta_iteration(
                *size, outer=outer, first_order=first_order
            )
            pair = common.timed(iterate, simulate, repeats=arguments.repeats)
            rows.append(
                {
                    "backend": backend,
                    "outer": outer,
                    "order": 1 if first_order else 2,
                    "seconds": statistics.median(pair[0]),
                    "steps_per_second": steps / statistics.median(pair[0]),
                    "over_simulation": common.ratio(*pair),
                    "compile_seconds": compile_seconds,
                    "temporary_bytes": temporary,
                }
            )
            print("  " + describe(rows[-1]), flush=True)
    result = {
        "backend": backend,
        "devices": mesh.size,
        "steps": steps,
        "simulation": {
            "steps_per_second": steps / statistics.median(pair[1]),
            "compile_seconds": simulate_compile,
            "temporary_bytes": simulate_bytes,
        },
        "segment_compile_seconds": segment_compile_seconds(*size),
        "meta_iterations": rows,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if backend == "mujoco":
        # Two rounds of half the steps: as many calls of the pool as there are rollouts.
        engine = bare_engine(environments, 2 * arguments.horizon)
        iterate, _, _ = meta_iteration(*size)
        pair = common.timed(iterate, engine, repeats=arguments.repeats)
        result["bare_engine_steps_per_second"] = steps / statistics.median(pair[1])
        result["adam_over_bare_engine"] = 1 / common.ratio(*pair)
    return result


def describe(row):
    return (
        f"{row['backend']:<12} {row['outer']:<5} order {row['order']}  "
        f"{row['steps_per_second']:>10,.0f} steps/s  "
        f"{row['over_simulation']:.3f} x simulation  compile {row['compile_seconds']:.1f} s"
    )


def measure_width(backend, environments, arguments):
    episodes = min(environments // arguments.tasks, 64)
    tasks = environments // episodes
    mesh = mesh_of(backend, tasks, arguments)
    size = (mesh, backend, tasks, episodes, arguments.horizon)
    iterate, compile_seconds, temporary = meta_iteration(*size)
    seconds = common.timed(iterate, repeats=arguments.repeats)[0]
    steps = 2 * tasks * episodes * arguments.horizon
    row = {
        "backend": backend,
        "tasks": tasks,
        "episodes": episodes,
        "environments": tasks * episodes,
        "steps_per_second": steps / statistics.median(seconds),
        "compile_seconds": compile_seconds,
        "temporary_bytes": temporary,
    }
    print(
        f"  {backend:<12} {row['environments']:>6} environments  "
        f"{row['steps_per_second']:>12,.0f} steps/s  {temporary / 2**20:,.0f} MiB",
        flush=True,
    )
    return row


def measure_memory(backend, arguments):
    """Return the temporary memory of a meta-iteration as its sizes double, one by one."""
    sizes = {name: getattr(arguments, name) for name in ("tasks", "episodes", "horizon")}
    doubled = [sizes] + [sizes | {name: 2 * size} for name, size in sizes.items()]
    rows = []
    for size in doubled:
        mesh = mesh_of(backend, size["tasks"], arguments)
        _, _, temporary = meta_iteration(mesh, backend, *size.values())
        rows.append({"backend": backend, **size, "temporary_bytes": temporary * mesh.size})
        growth = rows[-1]["temporary_bytes"] / rows[0]["temporary_bytes"]
        rows[-1]["growth"] = growth
        print(f"  {backend:<12} {size}  {temporary * mesh.size / 2**20:,.1f} MiB, x {growth:.2f}")
    return rows


RULES = ("meta-sgd", "sgd", "meta-lstm", "learned-mlp", "learned-lstm")
INNER_STEPS = (1, 2, 3, 5)


def measure_inner(backend, arguments):
    """Return what rules cost beside Meta-SGD, and K inner steps beside K + 1 rollouts."""
    mesh = mesh_of(backend, arguments.tasks, arguments)
    size = (mesh, backend, arguments.tasks, arguments.episodes, arguments.horizon)
    calls, rows = {}, []
    for rule in RULES:
        # As the algorithm of that name: what Meta-LSTM's rule reads are constants.
        first_order = rule == "meta-lstm"
        calls[rule], _, temporary = meta_iteration(*size, rule=rule, first_order=first_order)
        rows.append({"backend": backend, "rule": rule, "temporary_bytes": temporary})
    times = common.timed(*calls.values(), repeats=arguments.repeats)
    for row, seconds in zip(rows, times, strict=True):
        row |= {
            "seconds": statistics.median(seconds),
            "over_meta_sgd": common.ratio(seconds, times[0]),
        }
        print(
            f"  {backend:<12} {row['rule']:<13} {row['over_meta_sgd']:.3f} x meta-sgd", flush=True
        )
    per_round = None
    for steps in INNER_STEPS:
        iterate, _, temporary = meta_iteration(*size, inner_steps=steps)
        simulate, _, _ = simulation(*size, rounds=steps + 1)
        pair = common.timed(iterate, simulate, repeats=arguments.repeats)
        seconds = statistics.median(pair[0])
        per_round = per_round or seconds / 2
        rows.append(
            {
                "backend": backend,
                "inner_steps": steps,
                "seconds": seconds,
                "over_simulation": common.ratio(*pair),
                "over_proportional": seconds / (per_round * (steps + 1)),
                "temporary_bytes": temporary,
            }
        )
        print(
            "  {backend:<12} {inner_steps} inner steps: {over_simulation:.3f} x the rollouts, "
            "{over_proportional:.3f} x in proportion".format(**rows[-1]),
            flush=True,
        )
    return rows


def draw(results, widths, path):
    figure, axes = plt.subplots(1, 2 if widths else 1, figsize=(10 if widths else 6, 3.6))
    axes = np.atleast_1d(axes)
    rows = [row for result in results for row in result["meta_iterations"]]
    labels = [f"{r['backend']}\n{r['outer']}{' 1st' if r['order'] == 1 else ''}" for r in rows]
    axes[0].bar(labels, [r["over_simulation"] for r in rows], color="#4477aa")
    axes[0].axhline(1, color="black", linewidth=0.8)
    axes[0].set_ylabel("meta-iteration ÷ simulation alone")
    axes[0].tick_params(axis="x", labelsize=7)
    if widths:
        for backend in dict.fromkeys(row["backend"] for row in widths):
            of_backend = [row for row in widths if row["backend"] == backend]
            axes[1].loglog(
                [row["environments"] for row in of_backend],
                [row["steps_per_second"] for row in of_backend],
                marker="o",
                label=backend,
            )
        axes[1].set_xlabel("environments (tasks × episodes)")
        axes[1].set_ylabel("environment steps per second")
        axes[1].legend()
    figure.suptitle(f"MAML on halfcheetah-dir, {jax.devices()[0].device_kind}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cpu = jax.default_backend() == "cpu"
    parser.add_argument(
        "--backends", nargs="+", default=["mujoco", "spring", "mjx"] if cpu else ["mjx", "spring"]
    )
    parser.add_argument("--outers", nargs="+", choices=OUTERS, default=OUTERS)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--widths", nargs="*", type=int, default=[], help="tasks × episodes")
    parser.add_argument("--devices", type=int, help="as many as training takes by default")
    parser.add_argument("--memory", action="store_true", help="also double every size once")
    parser.add_argument("--inner", action="store_true", help="only rules and inner steps")
    parser.add_argument("--name", default=f"throughput-{'cpu' if cpu else 'gpu'}")
    arguments = parser.parse_args()

    if arguments.inner:
        rows = [row for backend in arguments.backends for row in measure_inner(backend, arguments)]
        print(f"wrote {common.save(f'{arguments.name}-inner', {'rows': rows})}")
        return
    results = [measure(backend, arguments) for backend in arguments.backends]
    widths = [
        measure_width(backend, environments, arguments)
        for backend in arguments.backends
        for environments in arguments.widths
    ]
    memory = [
        row
        for backend in arguments.backends
        if arguments.memory
        for row in measure_memory(backend, arguments)
    ]
    sizes = {"tasks": arguments.tasks, "episodes": arguments.episodes, "horizon": arguments.horizon}
    path = common.save(
        arguments.name,
        {"sizes": sizes, "results": results, "widths": widths, "memory": memory},
    )
    draw(results, widths, path.with_suffix(".png"))
    print(f"wrote {path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
