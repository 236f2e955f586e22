"""Environment steps per second of every family, engine and batch, beside the bare engine.

    python benchmarks/environments.py --publish                # every family, this machine's engine
    python benchmarks/environments.py --families ant-goal halfcheetah-vel --backends mjx mujoco
    python benchmarks/environments.py --batches 1 64 4096 65536

One step of a family is physics, observation, reward and end, under random actions that were drawn
before. Beside it, in turn with it: the engine's own step at the same batch and nothing else (on C
MuJoCo `mujoco.rollout` on all threads), where the task is the model itself that step with and
without a model per environment, and one environment of Gymnasium's stepped in Python. Rows of an
earlier run under the same name are kept where they are not measured again.
"""

import argparse
import importlib.util
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import common
import gymnasium
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import metajax
from metajax.envs import FAMILIES
from metajax.envs.rollouts import over_tasks
from metajax.envs.splits import sample_batch
from metajax.physics import load_model, make_physics
from metajax.training.sharding import default_devices, task_mesh


class Body(NamedTuple):
    """What to make the bare engine of: the arguments of `make_physics`, and Gymnasium's name."""

    model: str
    frame_skip: int
    brax_substeps: int
    gymnasium: str
    without: str | None = None


_WALKER = Body("walker2d", 8, 16, "Walker2d-v5")
_CHEETAH = Body("half_cheetah", 5, 16, "HalfCheetah-v5")
_ANT = Body("ant", 5, 10, "Ant-v5")
BODIES = {
    "ant-dir": _ANT,
    "ant-goal": _ANT,
    "ant-params": _ANT,
    "ant-vel": _ANT,
    "halfcheetah-dir": _CHEETAH,
    "halfcheetah-vel": _CHEETAH,
    "hopper-params": Body("hopper", 4, 8, "Hopper-v5"),
    "humanoid-dir": Body("humanoid", 5, 10, "Humanoid-v5"),
    "reacher-goal": Body("reacher", 2, 4, "Reacher-v5", without="target"),
    "swimmer-vel": Body("swimmer", 4, 1, "Swimmer-v5"),
    "walker2d-dir": _WALKER,
    "walker2d-params": _WALKER._replace(frame_skip=4, brax_substeps=8),
    "walker2d-vel": _WALKER,
}


# Environment steps per measured program: about a second of an engine on two cores.
STEPS = {"jax": 500_000, "mujoco": 20_000, "spring": 8_000}
FEWER = 3_000  # of the other engines; on an accelerator, all take the most
MOST = 1_000_000
PUBLISHED = 512  # environments, for `metajax list`


def compiled(mesh, function, *arguments):
    """Return (a call without arguments, compile seconds, bytes of temporary memory)."""
    with jax.set_mesh(mesh):
        by_world = jax.NamedSharding(mesh, jax.P("task"))
        arguments = jax.device_put(arguments, by_world)
        began = time.perf_counter()
        of_all = lambda *x: over_tasks(lambda _, *x: function(*x), (), *x)
        program = jax.jit(of_all).lower(*arguments).compile()
        seconds = time.perf_counter() - began
    temporary = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
    return lambda: program(*arguments), seconds, temporary * mesh.size


def environment(mesh, family, actions, batch):
    tasks = sample_batch(family.train, jax.random.key(0), batch)
    keys = jax.random.split(jax.random.key(1), batch)

    def play(key, task, actions):
        def step(state, action):
            state = family.env.step(state, action)
            return state, (state.observation, state.reward, state.terminated)

        return jax.lax.scan(step, family.env.reset(key, task), actions)[1]

    return compiled(mesh, play, keys, tasks, actions)


def bare_engine(mesh, body, backend, controls, dynamics):
    physics = make_physics(
        body.model,
        backend=backend,
        frame_skip=body.frame_skip,
        brax_substeps=body.brax_substeps,
        without=body.without,
    )

    def play(controls, dynamics):
        def step(state, control):
            state = physics.step(state, control, dynamics)
            return state, (physics.qpos(state), physics.qvel(state))

        qpos = jnp.asarray(physics.default_qpos, controls.dtype)
        start = physics.init(qpos, jnp.zeros(physics.model.nv))
        return jax.lax.scan(step, start, controls)[1]

    return compiled(mesh, play, controls, dynamics)[0]


def bare_mujoco(body, controls):
    model = load_model(body.model, without=body.without)
    control = np.repeat(np.asarray(controls, np.float64), body.frame_skip, axis=1)
    return common.bare_mujoco(model, control)


def gymnasium_steps_per_second(body, steps=2000):
    env = gymnasium.make(body.gymnasium)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(steps)]
    began = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    seconds = time.perf_counter() - began
    env.close()
    return steps / seconds


def measure(name, backend, batch, arguments):
    has_engine = bool(FAMILIES[name].backends)
    family = metajax.make(name, **({"backend": backend} if has_engine else {}))
    mesh = task_mesh(default_devices(family, batch))
    space = family.env.action_space
    total = STEPS.get(family.backend, FEWER) if jax.default_backend() == "cpu" else MOST
    steps = max(16, min(100, total // batch))  # a reset in 16 steps is little
    shape = (batch, steps)
    if isinstance(space, metajax.Discrete):
        actions = jax.random.randint(jax.random.key(2), shape, 0, space.size)
    else:
        shape = (*shape, space.size)
        low, high = space.bounds
        actions = jax.random.uniform(jax.random.key(2), shape, minval=low, maxval=high)
    play, compile_seconds, temporary = environment(mesh, family, actions, batch)
    programs = [play]
    if has_engine:
        controls = space.to_control(actions)
        bare = (
            bare_mujoco(BODIES[name], controls)
            if backend == "mujoco"
            else bare_engine(mesh, BODIES[name], backend, controls, {})
        )
        programs.append(bare)
        if name.endswith("-params"):
            of_world = sample_batch(family.train, jax.random.key(0), batch)
            for dynamics in (of_world, {}):
                programs.append(bare_engine(mesh, BODIES[name], backend, controls, dynamics))
    seconds = common.timed(*programs, repeats=arguments.repeats)
    row = {
        "family": name,
        "backend": family.backend,
        "batch": batch,
        "devices": mesh.size,
        "steps_per_second": batch * steps / statistics.median(seconds[0]),
        "over_bare_engine": common.ratio(*seconds[:2]) if has_engine else None,
        "model_per_world_over_shared": common.ratio(*seconds[2:]) if len(seconds) > 2 else None,
        "compile_seconds": compile_seconds,
        "temporary_bytes": temporary,
    }
    beside = f"{row['over_bare_engine']:.2f} x bare engine" if has_engine else ""
    if len(seconds) > 2:
        beside += f", a model per environment {row['model_per_world_over_shared']:.2f} x shared"
    print(
        f"  {name:<17} {row['backend']:<12} {batch:>6} environments  "
        f"{row['steps_per_second']:>12,.0f} steps/s  compile {compile_seconds:5.1f} s  {beside}",
        flush=True,
    )
    return row


def draw(rows, path):
    figure, axes = plt.subplots(figsize=(9, 5.5))
    fastest_first = sorted(rows, key=lambda r: (-r["batch"], -r["steps_per_second"]))
    curves = dict.fromkeys((row["family"], row["backend"]) for row in fastest_first)
    for index, (name, backend) in enumerate(curves):
        of_curve = [r for r in rows if (r["family"], r["backend"]) == (name, backend)]
        label = name if backend == "jax" else f"{name} ({backend})"
        x, y = ([r[key] for r in of_curve] for key in ("batch", "steps_per_second"))
        color, marker = plt.get_cmap("turbo")(0.95 * index / len(curves)), "osv^D"[index % 5]
        axes.loglog(x, y, marker=marker, markersize=4, color=color, label=label)
    axes.set_xlabel("environments")
    axes.set_ylabel("environment steps per second")
    axes.grid(color="#e6e6e6")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), title="the fastest first")
    figure.suptitle(f"Task families, {jax.devices()[0].device_kind}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def with_earlier(name, rows, references):
    """Return the rows and references, with those of an earlier run that they do not replace."""
    earlier = common.saved(name)
    of = lambda row: (row["family"], row["backend"], row["batch"])
    by_key = {of(row): row for row in (*earlier.get("rows", ()), *rows)}
    families = list(FAMILIES)
    order = sorted(by_key, key=lambda key: (families.index(key[0]), key[1], key[2]))
    return [by_key[key] for key in order], (
        earlier.get("gymnasium_steps_per_second", {}) | references
    )


def publish(rows):
    machine = common.machine()
    device = f"{machine['cores']} CPU cores" if machine["platform"] == "cpu" else machine["device"]
    backend = next(row["backend"] for row in rows if row["backend"] != "jax")
    speeds = {
        "measured": f"{PUBLISHED} environments on {device}, backend {backend}, by "
        "benchmarks/environments.py",
        "steps_per_second": {
            row["family"]: round(row["steps_per_second"])
            for row in rows
            if row["batch"] == PUBLISHED and row["backend"] in ("jax", backend)
        },
    }
    path = Path(metajax.__file__).parent / "envs" / "speeds.json"
    path.write_text(json.dumps(speeds, indent=1, allow_nan=False) + "\n")
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cpu = jax.default_backend() == "cpu"
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--backends", nargs="+", default=["mujoco" if cpu else "mjx"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64, 512, 8192])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--publish", action="store_true", help="for `metajax list`")
    parser.add_argument("--name", default=f"environments-{jax.default_backend()}")
    arguments = parser.parse_args()
    rows, references = [], {}
    for name in arguments.families:
        spec = FAMILIES[name]
        if spec.package is not None and importlib.util.find_spec(spec.package) is None:
            continue
        has_engine = bool(spec.backends)
        for backend in arguments.backends if has_engine else ("jax",):
            if backend in (spec.backends or ("jax",)):
                rows += [measure(name, backend, batch, arguments) for batch in arguments.batches]
        if has_engine and BODIES[name].gymnasium not in references:
            known = BODIES[name].gymnasium
            references[known] = gymnasium_steps_per_second(BODIES[name])
            print(f"  {known:<17} in Python   {references[known]:>26,.0f} steps/s", flush=True)
    rows, references = with_earlier(arguments.name, rows, references)
    result = {"rows": rows, "gymnasium_steps_per_second": references}
    path = common.save(arguments.name, result)
    draw(rows, path.with_suffix(".png"))
    print(f"wrote {path}")
    if arguments.publish:
        publish(rows)


if __name__ == "__main__":
    main()
