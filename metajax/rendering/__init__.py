"""Pictures of an agent before and after adaptation, on held-out tasks.

Nothing here needs OpenGL or refers to the network: what is drawn plays on any machine.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from metajax._checks import checked
from metajax._memory import check_memory, experience_bytes
from metajax.envs.drawings import Body, Drawing, Plot
from metajax.envs.splits import sample_batch
from metajax.errors import MetajaxError, unknown
from metajax.rendering import films, plots
from metajax.rendering.bodies import MOST_FRAMES_PER_SECOND, frames
from metajax.rendering.recording import record
from metajax.training.evaluation import has_memory
from metajax.types import Agent, EnvState, TaskFamily


@checked
def render(
    drawing: Drawing,
    agent: Agent,
    family: TaskFamily,
    meta_params: PyTree[Array],
    key: Key[Array, ""],
    outputs: Sequence[str | Path],
    *,
    tasks: int,
    adaptations: int,
    episodes: int,
    joint: bool = False,
) -> None:
    """Draw an agent before and after adaptation on held-out tasks.

    Args:
        drawing: how the family is drawn: that of its spec, or one of `metajax.envs.drawings`, of
            which `REWARDS` fits any family.
        agent: of the algorithm that trained `meta_params`.
        family: the family.
        meta_params: what was trained.
        key: consumed.
        outputs: the pictures: .html or .gif for a body in motion, .png for anything else.
        tasks: how many; of finitely many, each at most once.
        adaptations: adaptation steps between before and after; of a memory, parts of the trial.
        episodes: per adaptation step or part.
        joint: the agent did not adapt in training; its steps are called fine-tuning.

    Raises:
        MetajaxError: there is no such picture of this family, or it cannot be written, or the
            episodes do not fit into memory.
    """
    for output in outputs:
        check_picture(Path(output).suffix.lower(), drawing, family.name)
    if family.test.finite is not None:
        tasks = min(tasks, jax.tree.leaves(family.test.finite)[0].shape[0])
    steps = tasks * episodes * family.env.episode_length
    check_memory(the_episodes_of_all_tasks=experience_bytes(family.env, steps))
    task_key, record_key = jax.random.split(key)
    held_out = sample_batch(family.test, task_key, tasks)
    moves = isinstance(drawing, Body)
    position, shown = (_qpos, 1) if moves else (drawing.position, drawing.shown)

    @jax.jit
    def record_all(meta_params, held_out, keys):
        def one(task, key):
            return record(
                agent,
                family,
                meta_params,
                task,
                key,
                position,
                adaptations=adaptations,
                episodes=episodes,
                shown=shown,
            )

        return jax.vmap(one)(held_out, keys)

    recordings = record_all(meta_params, held_out, jax.random.split(record_key, tasks))
    held_out, recordings = jax.tree.map(np.asarray, (held_out, recordings))
    titles = (
        f"before {'fine-tuning' if joint else 'adaptation'}",
        f"after {adaptations} step{'s' * (adaptations != 1)}",
    )
    if has_memory(agent):
        played = adaptations * episodes
        titles = ("first episode", f"after {played} episode{'s' * (played != 1)}")
    if isinstance(drawing, Body):
        stride = max(1, math.ceil(1 / (drawing.seconds * MOST_FRAMES_PER_SECOND)))
        drawn = list(frames(drawing, held_out, recordings, titles, stride))
        milliseconds = round(1000 * drawing.seconds * stride)
        encoders = {".html": films.page, ".gif": films.gif}
        for output in outputs:
            _write(output, encoders[Path(output).suffix.lower()](drawn, milliseconds))
    else:
        picture = plots.draw_plots(drawing, held_out, recordings, titles)
        for output in outputs:
            _write(output, picture)


def formats(drawing: Drawing) -> tuple[str, ...]:
    """Return the picture formats there are for a family that is drawn so, the usual one first."""
    return (".html", ".gif") if isinstance(drawing, Body) else (".png",)


def check_picture(suffix: str, drawing: Drawing, name: str) -> None:
    """Check that there are pictures of a format, and plots of the drawing's kind.

    Args:
        suffix: of the picture, with its dot.
        drawing: how the family is drawn.
        name: of the family, for the message.

    Raises:
        MetajaxError: there are none.
    """
    if suffix not in formats(drawing):
        raise unknown(f"picture format of {name}", suffix, formats(drawing))
    if isinstance(drawing, Plot) and drawing.kind not in plots.KINDS:
        raise unknown(f"kind of plot of {name}", drawing.kind, plots.KINDS)


def _write(output: str | Path, content: bytes) -> None:
    try:
        Path(output).write_bytes(content)
    except OSError as error:
        raise MetajaxError(f"cannot write {output}: {error.strerror}.") from None


def _qpos(state: EnvState) -> Float[Array, "nq"]:
    return state.simulator.qpos
