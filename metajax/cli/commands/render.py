"""`metajax render`."""

import jax

from metajax import presets
from metajax._text import plural, show
from metajax.cli.commands.saved import check_positive, check_writable, key_of, step_of, which_of
from metajax.cli.display import at_work
from metajax.cli.options import RenderOptions, modules_in
from metajax.errors import MetajaxError
from metajax.runs.directory import open_run
from metajax.runs.load import load_run
from metajax.training.evaluation import has_memory


def run(options: RenderOptions) -> int:
    """Draw the agents of a run; return the exit status."""
    from metajax import rendering  # Matplotlib takes long to import

    check_positive("tasks", options.tasks)
    with open_run(options.run, lock=False) as opened:
        config = presets.described(opened.config, opened.path)
    allow = modules_in(options.allow_import)
    name = config["family_name"]
    drawing = presets.family_spec(name, allow_import=allow).drawing
    asked = [f".{kind}" for kind in ("html", "gif") if getattr(options, kind)]
    wanted = asked or rendering.formats(drawing)[:1]
    for suffix in wanted:
        rendering.check_picture(suffix, drawing, name)
    experiment, state = load_run(
        options.run, step=step_of(options.step), backend=options.backend, allow_import=allow
    )
    seeds = state.discarded.shape[0]
    if not 0 <= options.seed < seeds:
        raise MetajaxError(f"--seed is {options.seed}; the run has seeds 0 to {seeds - 1}.")
    meta_params = jax.tree.map(lambda x: x[options.seed], state.train_state.meta_params)
    algorithm, env = experiment.algorithm, experiment.family.env
    rounds, episodes = experiment.evaluation.sizes(algorithm, env).values()
    adaptations = algorithm.trial.adaptations or 1
    if has_memory(algorithm.agent):  # its last episode
        adaptations, episodes = rounds * episodes - 1, 1
    outputs = [options.run / f"render{suffix}" for suffix in wanted]
    for output in outputs:
        check_writable(output)
    show(f"drawing {options.run}, {which_of(options.step)} iteration {int(state.iteration)} ...")
    with at_work(f"compiling, playing and drawing {plural(options.tasks, 'held-out task')}"):
        rendering.render(
            drawing,
            algorithm.agent,
            experiment.family,
            meta_params,
            key_of(experiment, "render"),
            outputs,
            tasks=options.tasks,
            adaptations=adaptations,
            episodes=episodes,
            joint=algorithm.joint,
        )
    for output in outputs:
        show(f"written to {output}")
    return 0
