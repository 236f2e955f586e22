"""What every algorithm computes, to the bit: record it, rebuild something, and compare.

    python tests/digests/record.py tests/digests/recorded.json          # before
    python tests/digests/record.py after.json                           # after
    python tests/digests/record.py --compare tests/digests/recorded.json after.json

Every variant of the algorithm contract, on a family with continuous actions, one with discrete ones
and one on C MuJoCo, wherever the algorithm learns there: the leaves of the state after three
updates, and the metrics of each. Leaves are compared as a collection, so that a state may be
arranged anew. Bits are those of one processor, one version of JAX and one optimization level; the
file names them. `--float64` and `--arrays FILE.npz` keep the numbers themselves, to tell a sum that
is made in another order from another sum.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
from collections import Counter
from functools import partial
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))

import jax
import numpy as np

import metajax
from metajax.envs.splits import sample_tasks

UPDATES, TASKS, LENGTH = 3, 3, 4


def families():
    """Return the environments that everything is recorded on, by their kind."""
    return {
        "continuous": metajax.make("point-goal", episode_length=LENGTH),
        "discrete": metajax.make("tabular", states=3, actions=2, episode_length=LENGTH),
        "mujoco": metajax.make("reacher-goal", backend="mujoco", episode_length=LENGTH),
    }


def kinds(name: str, variant: str) -> tuple[str, ...]:
    """Return what an algorithm can learn on."""
    if "dqn" in name:
        return ("discrete",)
    if "pathwise" in variant:
        return ("continuous",)
    if "control_variate" in variant or name == "q-prop":
        return ("continuous", "mujoco")
    return ("continuous", "discrete", "mujoco")


def digest(leaf) -> str:
    """Return the type, the shape and a digest of the bytes of an array."""
    array = np.asarray(leaf)
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def machine() -> dict[str, str]:
    """Return what bits depend on beside the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = next((line.partition(": ")[2] for line in lines if "model name" in line), "")
    return {
        "processor": processor or platform.processor(),
        "jax": jax.__version__,
        "xla_flags": os.environ["XLA_FLAGS"],
    }


def cases():
    """Yield the name of each case, what makes its algorithm, and its family."""
    import test_algorithm_contract as contract

    made = families()
    for name, variants in contract.VARIANTS.items():
        for variant, options in variants.items():
            for kind in kinds(name, variant):
                case = " ".join([name, *variant.split(), f"on {kind}"])
                yield case, partial(contract.build, name, options, made[kind].env), made[kind]


def record(only: str, file: Path) -> dict[str, np.ndarray]:
    """Write the digests of all cases whose name holds `only`, and return the numbers themselves."""
    digests, arrays = {}, {}
    for case, build, family in cases():
        if only not in case:
            continue
        algorithm = build()
        tasks = sample_tasks(family.train, jax.random.key(0), TASKS)
        state, update = algorithm.init(jax.random.key(1), tasks), jax.jit(algorithm.update)
        history = []
        for i in range(UPDATES):
            state, metrics = update(state, tasks, jax.random.key(2 + i))
            history.append(metrics)
        leaves = jax.tree.leaves(state)
        digests[case] = {
            "state": sorted(map(digest, leaves)),
            "metrics": {n: [float(metrics[n]).hex() for metrics in history] for n in history[0]},
        }
        arrays |= {f"{case} {i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        content = {"machine": machine(), "cases": digests}
        file.write_text(json.dumps(content, indent=1) + "\n")
        print(case, flush=True)
    return arrays


def compare(before: dict, after: dict) -> int:
    """Print every case that differs, and return how many do."""
    if before["machine"] != after["machine"]:
        print(f"not the same machine: {before['machine']} and {after['machine']}")
    different = 0
    for case, old in before["cases"].items():
        new = after["cases"].get(case)
        if new is None:
            print(f"{case}: is not there")
        else:
            lost = Counter(old["state"]) - Counter(new["state"])
            changed = [n for n, v in old["metrics"].items() if new["metrics"].get(n) != v]
            if not lost and not changed:
                continue
            print(f"{case}: {sum(lost.values())} of {len(old['state'])} leaves; metrics {changed}")
        different += 1
    print(f"{different} of {len(before['cases'])} cases differ")
    return different


def main() -> int:
    """Record into a file, or compare two."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--arrays", type=Path)
    arguments = parser.parse_args()
    if arguments.compare:
        before, after = (json.loads(path.read_text()) for path in arguments.files)
        return int(compare(before, after) > 0)
    jax.config.update("jax_enable_x64", arguments.float64)
    arrays = record(arguments.only, arguments.files[0])
    if arguments.arrays:
        np.savez(arguments.arrays, **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(main())
