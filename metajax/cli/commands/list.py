"""`metajax list`."""

import json
from pathlib import Path

from metajax import envs, presets
from metajax._text import count, plural, show
from metajax.algorithms import ALGORITHMS
from metajax.cli.arguments import summary_of
from metajax.cli.options import ListOptions
from metajax.envs import FAMILIES
from metajax.errors import MetajaxError
from metajax.types import Discrete

_SPEEDS = Path(envs.__file__).parent / "speeds.json"  # by benchmarks/environments.py


def run(options: ListOptions) -> int:
    """List the algorithms and the task families; return the exit status."""
    del options
    show("algorithms")
    for name, factory in sorted(ALGORITHMS.items()):
        show(f"  {name:<19}{summary_of(factory)}")
    speeds = json.loads(_SPEEDS.read_text())
    show("\nfamilies")
    for name, spec in sorted(FAMILIES.items()):
        show(f"  {name:<19}{spec.source}")
        try:
            env = spec.factory().env
        except MetajaxError as error:  # its package is not installed
            show(f"{'':<21}{error}")
            continue
        space = env.action_space
        discrete = isinstance(space, Discrete)
        acts = f"1 of {space.size}" if discrete else plural(space.size, "number")
        show(
            f"{'':<21}observation: {plural(env.observation_size, 'number')}, "
            f"action: {acts}, episode: {plural(env.episode_length, 'step')}"
        )
        if name in speeds["steps_per_second"]:
            show(f"{'':<21}{count(speeds['steps_per_second'][name])} steps per second")
        for option, names in presets.choices(name).items():
            show(f"{'':<21}--{option} {', '.join(names)}")
        if spec.references:
            show(f"{'':<21}reference agents: {', '.join(spec.references)}")
    show(f"\nsteps per second: {speeds['measured']}")
    return 0
