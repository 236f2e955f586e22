"""Functions whose options are their own and another function's."""

import inspect
import re
from collections.abc import Callable, Collection
from typing import TypeVar

from metajax._checks import with_signature

Factory = TypeVar("Factory", bound=Callable)


def options_of(parent: Callable, *, without: Collection[str] = ()) -> Callable[[Factory], Factory]:
    """Return a decorator for functions that pass `**options` on to `parent`.

    Their signature and docstring then hold the parent's keyword arguments too, with the parent's
    defaults, except those that the function has itself, and its arguments are checked against it.

    Args:
        parent: its docstring has an `Args:` section.
        without: options of the parent that the function settles.
    """

    def decorate(function: Factory) -> Factory:
        own = inspect.signature(function)
        named = {n: p for n, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
        inherited = {
            name: parameter
            for name, parameter in inspect.signature(parent).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in {*named, *without}
        }
        merged = own.replace(parameters=[*named.values(), *inherited.values()])

        bare = inspect.unwrap(function)  # of options it has of yet another parent
        checked = with_signature(bare, merged)
        checked.__doc__ = _merged_doc(function, parent, inherited)
        return checked

    return decorate


def _merged_doc(function: Callable, parent: Callable, inherited: Collection[str]) -> str:
    doc, parent_doc = (inspect.getdoc(f) or "" for f in (function, parent))
    entries = re.findall(r"^    (\w+): (.*\n(?: {8}.*\n)*)", _section(parent_doc, "Args"), re.M)
    added = "".join(f"    {name}: {text}" for name, text in entries if name in inherited)
    raises = _section(doc, "Raises") or _section(parent_doc, "Raises")
    body = doc.partition("\nRaises:\n")[0].rstrip()
    if "\nArgs:\n" not in body:
        body += "\n\nArgs:"
    return f"{body}\n{added}" + (f"\nRaises:\n{raises}" if raises else "")


def _section(doc: str, title: str) -> str:
    found = re.search(rf"^{title}:\n((?:    .*\n?)*)", doc + "\n", re.M)
    return found[1] if found else ""
