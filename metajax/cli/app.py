"""The command line: `metajax train`, `resume`, `evaluate`, `render`, `plot` and `list`.

Names and options are checked before anything is compiled. A user's mistake is a `MetajaxError`:
its message goes to stderr and the exit status is 2.
"""

import io
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from metajax._text import show, silence
from metajax._version import __version__
from metajax.cli.arguments import parse
from metajax.cli.commands import evaluate, plot, render, resume, train
from metajax.cli.commands import list as list_
from metajax.cli.hints import of_other_commands
from metajax.cli.options import DEFAULT_ALGORITHM, DEFAULT_FAMILY, OPTIONS
from metajax.errors import MetajaxError, unknown


class Command(NamedTuple):
    """What a word on the command line does: `run(options)` or, for train, `run(arguments)`."""

    run: Callable[[Any], int]
    options: type | None = None


COMMANDS = {
    "train": Command(train.run),
    **{
        name: Command(module.run, OPTIONS[name])
        for name, module in {
            "resume": resume,
            "evaluate": evaluate,
            "render": render,
            "plot": plot,
            "list": list_,
        }.items()
    },
}


def _usage() -> str:
    about = {
        "train": "Meta-train an algorithm on a task family.",
        **{
            name: (command.options.__doc__ or "").partition("\n")[0]
            for name, command in COMMANDS.items()
            if command.options is not None
        },
    }
    return "\n".join(
        [
            "usage: metajax COMMAND [ARGUMENTS]",
            "",
            "Meta-reinforcement learning, compiled by JAX.",
            "",
            *(f"  {name:<9} {text}" for name, text in about.items()),
            "",
            f"metajax train is metajax train {DEFAULT_ALGORITHM} {DEFAULT_FAMILY}.",
            "metajax COMMAND --help shows its options; metajax --version the version.",
        ]
    )


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        show(_usage())
        return 0
    if arguments[0] == "--version":
        show(f"metajax {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command = COMMANDS[name]
    if command.options is None:
        return command.run(rest)
    program = f"metajax {name}"
    hint = lambda word: of_other_commands(word, program)
    return command.run(parse(command.options, rest, program, hint))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 is success, 2 a mistake of the user's (one sentence on stderr), 128 + n a stop by signal n.

    Args:
        arguments: without the program's name; those of this process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has ASCII alone
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(
                f"warning: {message}", file=sys.stderr
            )
            return _dispatch(sys.argv[1:] if arguments is None else list(arguments))
    except MetajaxError as error:
        print(error, file=sys.stderr)
        return 2
    except SystemExit as stop:  # tyro has shown its help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            silence()
