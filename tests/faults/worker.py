"""A tiny training run in a process of its own, to be killed.

    python worker.py RUN_DIRECTORY ITERATIONS [save] [pearl]

Resumes if the directory holds a run. Prints a line at each stage; `save` makes saving slow enough
to be hit; `pearl` trains PEARL, which has a replay, in place of MAML. Exits with 128 + the signal's
number if it was asked to stop.
"""

import os
import sys
import time
from pathlib import Path

import metajax
from metajax import presets
from metajax.runs.checkpoint import Checkpointer
from metajax.training import Evaluation, train


def say(line):
    os.write(sys.stdout.fileno(), f"{line}\n".encode())  # at once: two threads speak


def experiment(iterations):
    config = presets.default_config("maml", "point-goal")
    config["policy"] |= {"hidden": [8]}
    config["family"] |= {"episode_length": 5}
    config["algorithm"] |= {"episodes": 2}
    config["algorithm"]["inner"]["objective"]["critic"] = "value-network"
    config["training"] |= {
        "iterations": iterations,
        "tasks": 2,
        "seeds": 2,
        "segment": 2,
        "keep": "best",
    }
    config["evaluation"] |= {"every": 10, "tasks": 2, "final_tasks": 2, "episodes": 2, "rounds": 2}
    return config, presets.build(config)


def with_replay(iterations):
    config = presets.default_config("pearl", "point-goal")
    config["policy"] |= {"hidden": [8], "latent": 2}
    config["family"] |= {"episode_length": 5}
    config["algorithm"] |= {"initial_episodes": 2, "prior_episodes": 1, "extra_episodes": 2}
    config["algorithm"] |= {"updates": 3, "meta_batch": 2, "batch": 4, "context": 5}
    config["algorithm"] |= {"replay_capacity": 40}
    config["algorithm"]["encoder"]["hidden"] = config["algorithm"]["learner"]["hidden"] = [8]
    config["training"] |= {"iterations": iterations, "tasks": 2, "training_tasks": 4}
    config["training"] |= {"seeds": 2, "segment": 2}
    config["evaluation"] |= {"every": 10, "tasks": 2, "final_tasks": 2}
    return config, presets.build(config)


def slow_saves():
    write = Checkpointer._write

    def slow(self, *arguments):
        say("saving")
        time.sleep(0.3)
        write(self, *arguments)

    Checkpointer._write = slow


def main():
    directory, iterations = Path(sys.argv[1]), int(sys.argv[2])
    if "save" in sys.argv[3:]:
        slow_saves()
    config, built = (with_replay if "pearl" in sys.argv[3:] else experiment)(iterations)
    say("training")
    try:
        result = train(
            built.algorithm,
            built.family,
            evaluation=Evaluation(**config["evaluation"]),
            **built.training,
            run_directory=directory,
            resume=(directory / "config.json").exists(),
            config=config,
            report=lambda progress: say(f"iteration {progress.iteration}"),
        )
    except metajax.MetajaxError as error:
        sys.exit(f"error: {error}")
    say("done")
    if result.interrupted is not None:
        sys.exit(128 + result.interrupted)


if __name__ == "__main__":
    main()
