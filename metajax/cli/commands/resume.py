"""`metajax resume`."""

from metajax import presets
from metajax._text import plural, show
from metajax.cli.commands.running import PICTURE, draw, train_and_show
from metajax.cli.display import on_run
from metajax.cli.options import ResumeOptions, modules_in
from metajax.errors import MetajaxError
from metajax.runs.checkpoint import saved_steps
from metajax.runs.directory import open_run, read_metrics


def run(options: ResumeOptions) -> int:
    """Go on with a run; return the exit status."""
    allow = modules_in(options.allow_import)
    with open_run(options.run, lock=False) as opened:
        described = presets.described(opened.config, opened.path)
        config = presets.checked_config(described, allow_import=allow)
        steps = saved_steps(opened.checkpoints)
        records = read_metrics(opened.metrics) if opened.metrics.exists() else []
    done = steps[-1] if steps else 0
    wanted = options.iterations
    finished = any("final_held_out" in r and r["iteration"] == done for r in records)
    if wanted is None:  # it may have been trained further since
        wanted = max(config["training"]["iterations"], done)
        if finished and config["training"].get("patience"):  # it was stopped early
            wanted = done
    else:
        config["training"]["patience"] = None
    if wanted < done:
        raise MetajaxError(
            f"{options.run} has done {done} iterations already; --iterations must be at least that."
        )
    if wanted == done and finished:
        picture = options.run / PICTURE
        newest = (options.run / "metrics.jsonl").stat().st_mtime_ns
        if not picture.exists() or picture.stat().st_mtime_ns < newest:
            draw(options.run)  # what interrupted it came before
        further = on_run("resume", options.run, config, "--iterations", 2 * done)
        show(f"{options.run} is finished: {plural(done, 'iteration')}. To go on: {further}")
        return 0
    config["training"]["iterations"] = wanted
    return train_and_show(config, options.run, resume=True, allow_import=allow)
