"""`metajax train`."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from metajax import presets
from metajax._imported import module_of
from metajax.algorithms import ALGORITHMS
from metajax.cli.arguments import parse
from metajax.cli.commands.running import train_and_show
from metajax.cli.hints import of_another
from metajax.cli.options import (
    DEFAULT_ALGORITHM,
    DEFAULT_FAMILY,
    allowed,
    directory_of,
    last_value,
    parts_chosen,
    train_options,
    values_of,
)
from metajax.envs import FAMILIES
from metajax.errors import MetajaxError


def run(arguments: Sequence[str]) -> int:
    """Train what the words after `metajax train` name; return the exit status."""
    first = []
    for word in arguments[:2]:
        if word.startswith("-"):
            break
        first.append(word)
    algorithm, family = [*first, *(DEFAULT_ALGORITHM, DEFAULT_FAMILY)[len(first) :]]
    if algorithm in FAMILIES:
        raise MetajaxError(
            f"{algorithm!r} is a family; name an algorithm first: metajax train "
            f"{DEFAULT_ALGORITHM} {algorithm}."
        )
    program = f"metajax train {algorithm} {family}"
    policy = last_value(arguments, "--policy-name") or presets.policies(algorithm)[0]
    modules = map(module_of, (algorithm, family, policy))
    allow = allowed([module for module in modules if module is not None])
    parts = parts_chosen(arguments, algorithm, family, allow)
    options = train_options(algorithm, family, policy, parts, allow_import=allow)

    def hint(word: str) -> str | None:
        if word in (*ALGORITHMS, *FAMILIES) or module_of(word) is not None:
            return f"{word!r} comes too late: metajax train ALGORITHM FAMILY --option value ..."
        names = {"algorithm": algorithm, "family": family, "policy": policy}
        return of_another(word, names, parts, program, allow_import=allow)

    chosen = parse(options, arguments[len(first) :], program, hint)
    names = {"algorithm_name": algorithm, "family_name": family, "policy_name": policy}
    config = names | {group: values_of(getattr(chosen, group)) for group in presets.GROUPS}
    directory = chosen.run_directory
    if directory is None:
        directory = Path(f"{directory_of(algorithm, family)}-{datetime.now():%Y%m%d-%H%M%S}")
    return train_and_show(config, directory, resume=False, allow_import=allow)
