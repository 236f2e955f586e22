"""Command-line options from dataclasses, and option help from docstrings.

Parsing is tyro's; the message about a mistake is one sentence of ours.
"""

import collections.abc
import contextlib
import dataclasses
import inspect
import io
import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from metajax.errors import MetajaxError, unknown


def summary_of(factory: Callable) -> str:
    """Return the first line of a docstring as a description of what comes back."""
    line = (inspect.getdoc(factory) or "").partition("\n")[0]
    line = line.removeprefix("Return ").replace("`", "")
    return line[:1].upper() + line[1:]


def help_of(factory: Callable) -> dict[str, str]:
    """Return the text of a Google-style docstring on each argument or attribute."""
    doc = inspect.getdoc(factory) or ""
    section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)*)", doc, re.MULTILINE)
    entries = re.finditer(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.M)
    return {entry[1]: re.sub(r"\s+", " ", entry[2]).replace("`", "") for entry in entries}


NONE = "none"  # instead of a value, or of several


def _whole_number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a whole number.") from None


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a number.") from None
    if not math.isfinite(number):
        raise ValueError(f"{word!r} is not a finite number.")
    return number


def _path(word: str) -> Path:
    if not word:
        raise ValueError("a path is missing.")
    return Path(word)


_READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("INT", _whole_number),
    float: ("NUMBER", _number),
    str: ("NAME", str),
    Path: ("PATH", _path),
}


def _read_plain(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Return how tyro reads numbers, names, paths, choices, and several or none of these."""
    kind, optional, several = info.type, False, False
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        optional = len(kinds) < len(typing.get_args(kind))
        kind = kinds[0]
    if typing.get_origin(kind) is dict:
        return _read_ranges(kind)
    if typing.get_origin(kind) in (tuple, collections.abc.Sequence):
        kind, several = typing.get_args(kind)[0], True
    if typing.get_origin(kind) is Literal:
        allowed = typing.get_args(kind)
        metavar = f"{{{','.join(allowed)}}}"

        def read_name(word: str) -> str:
            if word not in allowed:
                raise unknown("value", word, allowed)
            return word

        read: Callable[[str], Any] = read_name

    elif kind in _READERS:
        metavar, read = _READERS[kind]
    else:
        return None
    of_several = f"{metavar} ..." if kind is Path else f"{{{metavar} ...|{NONE}}}"
    none = () if several and kind is not Path else None  # nobody asks for no path at all

    def instance(words: list[str]) -> Any:
        if (optional or none is not None) and [word.lower() for word in words] == [NONE]:
            return none
        if not words:
            hint = "" if none is None else f"; {NONE!r} stands for none at all"
            raise ValueError(f"a value is missing{hint}.")
        return tuple(map(read, words)) if several else read(words[0])

    def words(value: Any) -> list[str]:
        return [str(v) for v in value] or [NONE] if several else [str(value)]

    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=of_several if several else metavar,
        instance_from_str=instance,
        is_instance=lambda _: True,
        str_from_instance=words,
    )


def _read_ranges(kind: Any) -> PrimitiveConstructorSpec:
    """Return how tyro reads a mapping of names to as many numbers each, none by default."""
    count = len(typing.get_args(typing.get_args(kind)[1]))
    numbers = " ".join(["NUMBER"] * count)

    def instance(words: list[str]) -> Any:
        if [word.lower() for word in words] == [NONE]:
            return None
        if not words or len(words) % (1 + count):
            raise ValueError(f"it takes a name and {count} numbers, again and again.")
        entries = [words[at : at + 1 + count] for at in range(0, len(words), 1 + count)]
        return {name: tuple(map(_number, values)) for name, *values in entries}

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"NAME {numbers} ...",
        instance_from_str=instance,
        is_instance=lambda _: True,
        str_from_instance=lambda value: [str(value)],
    )


def parse(
    options: type,
    arguments: Sequence[str],
    program: str,
    hint: Callable[[str], str | None] = lambda word: None,
) -> Any:
    """Return `options` filled in from the command line.

    Args:
        options: a dataclass.
        arguments: what was typed.
        program: the words before them.
        hint: returns the sentence about a word that does not belong here; None for none of its own.

    Raises:
        MetajaxError: an option does not exist, or its value is missing or of the wrong kind.
    """
    registry = ConstructorRegistry()
    registry.primitive_rule(_read_plain)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            chosen, left_over = tyro.cli(
                options,
                prog=program,
                args=arguments,
                registry=registry,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise MetajaxError(_sentence(complaint.getvalue(), program)) from None
    if left_over:
        word = next((w for w in left_over if w.startswith("-")), left_over[0])
        word = word.partition("=")[0]
        if word.startswith("-"):
            word = word.replace("_", "-")
        here = flags(options)
        inner = [flag for flag in here if flag.rpartition(".")[2] == word.removeprefix("--")]
        if inner:
            raise unknown("option", word, inner, see=f"{program} --help")
        if (sentence := hint(word)) is not None:
            raise MetajaxError(sentence)
        if not word.startswith("-"):
            raise MetajaxError(f"unexpected {word!r}; see {program} --help.")
        raise unknown("option", word, here, see=f"{program} --help")
    return chosen


def _sentence(box: str, program: str) -> str:
    """Return the first paragraph of an error box of tyro's, without title and frame."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    body = [line.strip(" │╭╮╰╯") for line in plain.splitlines()[1:]]
    if body and not body[0].strip("-"):  # a rule under the title, where there is no frame
        del body[0]
    paragraph = itertools.takewhile(lambda line: line.strip("─-"), body)
    sentence = " ".join(" ".join(paragraph).split())
    sentence = re.sub(r"Missing value for argument '(\S+)'.*", r"\1: a value is missing", sentence)
    sentence = sentence.removeprefix("Error parsing ").removesuffix("(required)")
    return f"{sentence.rstrip('. ')}; see {program} --help."


def flags(options: type, prefix: str = "--") -> list[str]:
    """Return the options that `parse` would have accepted."""
    found = []
    for field in dataclasses.fields(options):
        kind = field.type
        markers = getattr(kind, "__metadata__", ())
        if Positional in markers:
            continue
        flat = OmitArgPrefixes in markers
        kind = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
        given = [one.name for one in markers if getattr(one, "name", None) is not None]
        name = (given[0] if given else field.name).replace("_", "-")
        if dataclasses.is_dataclass(kind):
            found += flags(kind, prefix if flat or not name else f"{prefix}{name}.")  # type: ignore
        elif kind is bool:
            found.append(f"{prefix}{name}")
            if FlagCreatePairsOff not in markers:
                found.append(f"{prefix}no-{name}")
        else:
            found.append(f"{prefix}{name}")
    return found
