"""Speed of SAC and PEARL, learning included, beside other libraries and bare matrix products.

    python benchmarks/off_policy_speed.py [--peers PYTHON] [--repeats 3]

SAC: environment steps per second on HalfCheetah (C MuJoCo), a gradient step for each, batch 256,
two hidden layers of 256, beside Stable-Baselines3 and SBX. PEARL: gradient steps per second on 16
tasks x 256 steps, three hidden layers of 300, beside the same step in PyTorch. PYTHON is an
interpreter with `stable-baselines3`, `sbx-rl` and `torch`; without it nothing is put beside. Rates
are taken in turn, of whole segments as a run reports them, the first two of which are left out. The
share of bare products is the time of a gradient step's matrix products alone, called one by one,
over the time that a step takes in all.
"""

import argparse
import collections
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import off_policy

import metajax
from metajax import presets
from metajax.envs.splits import finite, sample_tasks

Shape = tuple[int, int, int]  # rows, inner and columns of a product
OBSERVATION, ACTION = 17, 6


def seconds_of_segments(config: dict[str, Any], segments: int) -> list[float]:
    """Return what each of a run's last segments took, of one meta-iteration each."""
    experiment = presets.build(config)
    moments: list[float] = []
    metajax.train(
        experiment.algorithm,
        experiment.family,
        **experiment.training,
        report=lambda progress: moments.append(time.perf_counter()),
    )
    taken = [end - start for start, end in itertools.pairwise(moments)]
    return taken[-segments:]


def sac_steps_per_second(seeds: int) -> float:
    config = off_policy.configuration("sac-halfcheetah", seeds, 9 * off_policy.EPISODE)
    config["algorithm"]["random_steps"] = off_policy.EPISODE
    config["training"]["segment"] = 1
    del config["evaluation"]
    taken = statistics.median(seconds_of_segments(config, 6))
    return seeds * off_policy.EPISODE / taken


def pearl_steps_per_second() -> float:
    """Return gradient steps per second: what many take longer than few, in equal runs."""
    few, many, tasks = 5, 35, 16

    def seconds(updates: int) -> float:
        config = presets.default_config("pearl", "halfcheetah-vel")
        config["family"]["backend"] = "mujoco"
        config["algorithm"] |= {"updates": updates, "initial_episodes": 5}
        config["training"] |= {"tasks": tasks, "training_tasks": tasks}
        config["training"] |= {"iterations": 8, "segment": 1}
        del config["evaluation"]
        return statistics.median(seconds_of_segments(config, 5))

    return (many - few) / (seconds(many) - seconds(few))


def forward(batch: int, sizes: list[int]) -> list[Shape]:
    return [(batch, *layer) for layer in itertools.pairwise(sizes)]


def to_weights(batch: int, sizes: list[int]) -> list[Shape]:
    return [(inputs, batch, outputs) for _, inputs, outputs in forward(batch, sizes)]


def to_inputs(batch: int, sizes: list[int]) -> list[Shape]:
    return [(rows, outputs, inputs) for rows, inputs, outputs in forward(batch, sizes)]


def trained(batch: int, sizes: list[int]) -> list[Shape]:
    """Return the products of a network's loss and of its gradient."""
    backward = to_weights(batch, sizes) + to_inputs(batch, sizes)[1:]
    return forward(batch, sizes) + backward


def sac_products() -> list[Shape]:
    critic, policy = [OBSERVATION + ACTION, 256, 256, 1], [OBSERVATION, 256, 256, 2 * ACTION]
    target = forward(256, policy) + 2 * forward(256, critic)
    of_policy = trained(256, policy) + 2 * (forward(256, critic) + to_inputs(256, critic))
    return target + 2 * trained(256, critic) + of_policy


def pearl_products() -> list[Shape]:
    rows, latent, wide = 16 * 256, 5, [300] * 3
    critic = [OBSERVATION + ACTION + latent, *wide, 1]
    value = [OBSERVATION + latent, *wide, 1]
    policy = [OBSERVATION + latent, *wide, 2 * ACTION]
    encoder = trained(16 * 100, [OBSERVATION + ACTION + 1, *[200] * 3, 2 * latent])
    of_critics = 2 * (trained(rows, critic) + to_inputs(rows, critic)[:1])
    of_policy = trained(rows, policy) + 2 * (forward(rows, critic) + to_inputs(rows, critic))
    return encoder + forward(rows, value) + of_critics + of_policy + trained(rows, value)


def seconds_of_products(shapes: list[Shape]) -> float:
    """Return what matrix products take by themselves, in a loop of each size inside a program."""
    times = 100

    def repeated(shape: Shape):
        rows, inner, columns = shape

        @jax.jit
        def run(a, b):
            def step(_, carry):
                small, product = carry
                # Another operand each time, or the product would be taken once, before the loop.
                small = small.at[0, 0].add(product[0, 0])
                return small, (small @ b if rows < columns else a @ small)

            small = a if rows < columns else b
            return jax.lax.fori_loop(0, times, step, (small, jnp.zeros((rows, columns))))

        a, b = jnp.zeros((rows, inner)), jnp.zeros((inner, columns))
        return lambda: run(a, b)

    total = 0.0
    for shape, count in collections.Counter(shapes).items():
        total += count * min(common.timed(repeated(shape), repeats=5)[0]) / times
    return total


def by_peer(python: str | None, *arguments: str) -> Any:
    """Return what `off_policy_peers.py` prints, None where there is no interpreter for it."""
    if python is None:
        return None
    script = Path(__file__).with_name("off_policy_peers.py")
    found = subprocess.run(
        [python, "-W", "ignore", script, *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def replay_of_100_tasks() -> dict[str, float]:
    """Return the bytes of PEARL's replay by its sizes, and those by which the process grows."""
    config = presets.default_config("pearl", "halfcheetah-vel")
    config["family"]["backend"] = "mujoco"
    experiment = presets.build(config)
    tasks = sample_tasks(finite(experiment.family.train, 100), jax.random.key(0), 5)
    page = os.sysconf("SC_PAGE_SIZE")
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * page
    init = jax.jit(experiment.algorithm.init).lower(jax.random.key(0), tasks).compile()
    before = resident()
    state = jax.block_until_ready(init(jax.random.key(0), tasks))
    grown = resident() - before
    del state
    of_step = 4 * (2 * OBSERVATION + ACTION + 1) + 1  # a byte says whether the task is over
    return {"computed": 100 * (50_000 + 10 * 200) * of_step, "grown": grown}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a peer, per try")
    of = parser.parse_args()
    measure = {
        "sac": lambda: sac_steps_per_second(1),
        "sac, 2 seeds": lambda: sac_steps_per_second(2),
        "sb3": lambda: by_peer(of.peers, "sb3", f"--seconds={of.seconds}"),
        "sbx": lambda: by_peer(of.peers, "sbx", f"--seconds={of.seconds}"),
        "pearl": pearl_steps_per_second,
        "torch-pearl": lambda: by_peer(of.peers, "torch-pearl", f"--seconds={of.seconds}"),
    }
    rates: dict[str, list[float]] = {name: [] for name in measure}
    products: dict[str, list[float]] = {"sac": [], "pearl": []}
    for _ in range(of.repeats):
        for name, call in measure.items():
            rate = call()
            if rate is not None:
                rates[name].append(rate)
                print(f"{name}: {rate:,.2f} per second", flush=True)
        products["sac"].append(seconds_of_products(sac_products()))
        products["pearl"].append(seconds_of_products(pearl_products()))
    share = {name: common.ratio(rates[name], [1 / x for x in products[name]]) for name in products}
    beside = {"sac": ("sb3", "sbx"), "pearl": ("torch-pearl",)}
    over = {
        f"{name} / {peer}": common.ratio(rates[name], rates[peer])
        for name, peers in beside.items()
        for peer in peers
        if rates[peer]
    }
    replay = replay_of_100_tasks()
    result = {
        "command": "python " + " ".join(["benchmarks/off_policy_speed.py", *sys.argv[1:]]),
        "versions_of_peers": by_peer(of.peers, "versions"),
        "per_second": rates,
        "over": over,
        "seconds_of_products": products,
        "share_of_products": share,
        "bytes_of_replay": replay,
    }
    path = common.save("off-policy-speed", result)
    for name, value in (over | {f"products' share, {n}": x for n, x in share.items()}).items():
        print(f"{name}: {value:.2f}")
    print(f"replay: {replay['grown'] / replay['computed']:.3f} of the bytes computed; wrote {path}")


if __name__ == "__main__":
    main()
