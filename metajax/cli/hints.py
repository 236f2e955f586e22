"""The sentence about an option that does not exist where it was typed, but does elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from metajax import presets
from metajax._earlier import EVALUATION, MOVED, moved
from metajax._named_parts import NONE, Options, kind_name, paths, with_option
from metajax.algorithms import ALGORITHMS
from metajax.cli.arguments import flags
from metajax.cli.options import (
    DEFAULT_ALGORITHM,
    DEFAULT_FAMILY,
    OPTIONS,
    PREFIXED,
    train_options,
)
from metajax.envs import FAMILIES


def of_another(
    flag: str,
    names: Mapping[str, str],
    parts: Mapping[str, Any],
    program: str,
    *,
    allow_import: Sequence[str] = (),
) -> str | None:
    """Return the sentence about an option that something else has than what was chosen, or None.

    Args:
        flag: the option.
        names: of the "algorithm", "family" and "policy" that were chosen.
        parts: the algorithm's parts that were chosen, as in `presets.options`.
        program: the words before it.
        allow_import: modules outside metajax that may be imported.
    """
    option = flag.replace("--no-", "--", 1).replace(".no-", ".", 1)
    chosen = (names[name] for name in ("algorithm", "family", "policy"))
    known = presets.options(*chosen, parts=parts, allow_import=allow_import)
    of_part = _of_another_part(option.removeprefix("--"), known["algorithm"])
    sentence = (
        _of_earlier(flag, option, known)
        or (of_part and f"{flag} is {of_part}")
        or _of_another_name(flag, option, names)
    )
    if sentence is None:
        return of_other_commands(flag, program)
    return f"{sentence} See {program} --help."


def _of_earlier(flag: str, option: str, known: Mapping[str, Options]) -> str | None:
    """Return the sentence about an option that earlier versions had under another name."""
    name = option.removeprefix("--").replace("-", "_")
    place = moved(name, paths(known["algorithm"]))
    if place is not None:
        return f"{flag} is now {flag_of('algorithm', place)}."
    for place in MOVED.get(name, ()):
        if (of_part := _of_another_part(place, known["algorithm"])) is not None:
            return f"{flag} is now {flag_of('algorithm', place)}, {of_part}"
    group, _, name = name.partition(".")
    if group == "evaluation" and name in EVALUATION:
        return f"{flag} is now {flag_of(group, EVALUATION[name])}."
    return None


def _of_another_part(option: str, known: Options) -> str | None:
    """Return whose option it is, as the rest of a sentence, if it is one of a part not chosen.

    Args:
        option: its dotted name.
        known: the options of the algorithm, with the parts that were chosen.
    """
    found = with_option(known, option.replace("-", "_"))
    if found is None:
        return None
    choice, owners = found
    if not owners or choice.name in owners:
        return None
    named = _listed([repr(name) for name in owners])
    return (
        f"an option of the {kind_name(choice.kind)} {named}; this one is {choice.name or NONE!r}."
    )


def _of_another_name(flag: str, option: str, names: Mapping[str, str]) -> str | None:
    """Return the sentence about an option of another algorithm, family or policy."""
    trainers = {policy: name for name in ALGORITHMS for policy in presets.policies(name)}
    groups = {
        "algorithm": {name: (name, DEFAULT_FAMILY) for name in ALGORITHMS},
        "family": {name: (DEFAULT_ALGORITHM, name) for name in FAMILIES},
        "policy": {name: (trainers[name], DEFAULT_FAMILY, name) for name in presets.POLICIES},
    }
    for group, candidates in groups.items():
        owners = [
            name
            for name, chosen in candidates.items()
            if option in (flag_of(group, known) for known in paths(presets.options(*chosen)[group]))
        ]
        if owners:
            mine = f"the policy {names[group]}" if group == "policy" else names[group]
            return f"{mine} has no {flag}; it is an option of {_listed(owners)}."
    return None


def of_other_commands(flag: str, program: str) -> str | None:
    """Return the sentence about an option that other commands have, or None."""
    known = OPTIONS | {"train": train_options(DEFAULT_ALGORITHM, DEFAULT_FAMILY)}
    owners = [f"metajax {name}" for name, options in known.items() if flag in flags(options)]
    if not owners:
        return None
    return f"{program} has no {flag}; it is an option of {_listed(owners)}. See {program} --help."


def flag_of(group: str, option: str) -> str:
    """Return an option of a group as it is typed."""
    return f"--{f'{group}.' if group in PREFIXED else ''}{option.replace('_', '-')}"


def _listed(names: Sequence[str]) -> str:
    most = 6
    if len(names) > most + 1:
        names = [*names[:most], f"{len(names) - most} others"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
