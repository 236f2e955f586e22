"""A picture of all task families, each under random actions on one of its tasks.

python benchmarks/contact_sheet.py
"""

import importlib.util
import math

import common
import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import mujoco
import numpy as np

import metajax
from metajax.envs import FAMILIES
from metajax.envs.drawings import Body
from metajax.rendering import bodies, plots
from metajax.rendering.recording import Recording

COLUMNS = 6
SECONDS = 0.4  # after which robots are drawn


def play(name):
    """Return a task and `Recording`s of random actions on it: `[episode, time]`."""
    family = metajax.make(name)
    env, space = family.env, family.env.action_space
    drawing = FAMILIES[name].drawing
    if isinstance(drawing, Body):
        position, episodes = lambda state: state.simulator.qpos, 1
    else:
        position, episodes = drawing.position, drawing.shown
    task = family.train.sample(jax.random.key(4))

    def episode(key):
        reset_key, action_key = jax.random.split(key)
        shape = (min(env.episode_length, 200),)
        if isinstance(space, metajax.Discrete):
            actions = jax.random.randint(action_key, shape, 0, space.size)
        else:
            shape = (*shape, space.size)
            low, high = (0.5 * x for x in space.bounds)
            actions = jax.random.uniform(action_key, shape, minval=low, maxval=high)
        start = env.reset(reset_key, task)

        def step(state, action):
            after = env.step(state, action)
            over = after.terminated | after.truncated
            return after, (position(after), after.reward, over)

        _, (positions, reward, over) = jax.lax.scan(step, start, actions)
        valid = jax.numpy.cumsum(over) - over == 0
        positions = jax.numpy.concatenate([position(start)[None], positions])
        return Recording(positions, actions, jax.numpy.where(valid, reward, 0), valid)

    recording = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(2), episodes))
    return jax.tree.map(np.asarray, (task, recording))


def main():
    names = [
        name
        for name, spec in FAMILIES.items()
        if spec.package is None or importlib.util.find_spec(spec.package) is not None
    ]
    rows = math.ceil(len(names) / COLUMNS)
    with matplotlib.rc_context({"font.size": 8}):
        figure, grid = plt.subplots(rows, COLUMNS, figsize=(15, 2.6 * rows), layout="constrained")
        for axes, name in zip(grid.flat, names, strict=False):
            task, recording = play(name)
            drawing = FAMILIES[name].drawing
            if isinstance(drawing, Body):
                model = drawing.model()
                data = mujoco.MjData(model)
                step = round(SECONDS / drawing.seconds)
                data.qpos[:] = recording.positions[0, step]
                mujoco.mj_kinematics(model, data)
                axes.imshow(bodies.panel(drawing, model, data, task, SECONDS))
                axes.set_axis_off()
                axes.set_title(f"{name}\n{drawing.task(task)}", fontsize=9)
            else:
                axes.grid(color="#e6e6e6")
                plots.draw_plot(drawing, axes, task, [recording], ["random"])
                axes.set_title(name, fontsize=9)
            print(f"  {name}", flush=True)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        path = common.RESULTS / "families.png"
        figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
