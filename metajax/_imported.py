"""What is not part of metajax, by the names "module:attribute" that a user gives it.

To import a module is to run its code, so nothing is imported but what was allowed: names in data,
such as the configuration of a run directory, allow nothing.
"""

import functools
import importlib
import inspect
import operator
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from metajax.errors import MetajaxError, unknown, with_article

Kind = TypeVar("Kind")

_PLAIN = (int, float, bool, str, Path, type(None))


def module_of(name: str) -> str | None:
    """Return the module of "module:attribute"; None for the name of a part of metajax."""
    module, colon, _ = name.partition(":")
    return module if colon else None


def imported(kind: str, name: str, allowed: Collection[str]) -> Any:
    """Return what "module:attribute" names.

    Args:
        kind: of thing, for example "family".
        name: of it.
        allowed: modules that may be imported.

    Raises:
        MetajaxError: the module is not among them, cannot be imported or has no such attribute.
    """
    module, _, attribute = name.partition(":")
    if module not in ([allowed] if isinstance(allowed, str) else allowed):
        raise MetajaxError(
            f"the {kind} {name!r} is not part of metajax, and to import {module!r} is to run its "
            f"code: if you trust it, allow it by --allow-import {module}, in Python by "
            f"allow_import=[{module!r}]."
        )
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise MetajaxError(f"cannot import {module!r} for the {kind} {name!r}: {reason}.") from None
    if not hasattr(found, attribute):
        known = [one for one in vars(found) if not one.startswith("_")]
        raise unknown(f"attribute of {module}", attribute, known)
    return getattr(found, attribute)


def check_factory(kind: str, name: str, factory: Any, arguments: Sequence[str]) -> None:
    """Check that something can be called with its arguments and no options.

    Args:
        kind: of thing that it makes.
        name: of it.
        factory: the candidate.
        arguments: names of those that it is called with.

    Raises:
        MetajaxError: it cannot.
    """
    try:
        inspect.signature(factory).bind(*arguments)
    except (TypeError, ValueError):
        call = ", ".join((*arguments, "**options"))
        raise MetajaxError(
            f"{name} cannot make {with_article(kind)}: it must be a "
            f"function that is called with ({call}), where every option has a default."
        ) from None


def of_type(kind: type[Kind], name: str, made: Any) -> Kind:
    """Return what a factory made, if it is what it should be.

    Raises:
        MetajaxError: it is something else.
    """
    if not isinstance(made, kind):
        found, wanted = with_article(type(made).__name__), with_article(kind.__name__)
        raise MetajaxError(f"{name} made {found}; it must make {wanted}.")
    return made


def options_of(
    name: str,
    factory: Callable[..., Any],
    *,
    positional: bool = False,
    also: Callable[[Any], bool] = lambda annotation: False,
) -> Mapping[str, inspect.Parameter]:
    """Return the keyword arguments of a factory that plain data can express, with annotations.

    Numbers that may be traced are numbers.

    Args:
        name: of the factory.
        factory: whose signature is read.
        positional: whether arguments that are not only keywords count.
        also: other annotations that can be expressed.

    Raises:
        MetajaxError: nothing says of which type one of them is.
    """
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters.values()
    except Exception as error:
        raise MetajaxError(f"the annotations of {name} cannot be read: {error}.") from None
    found = {}
    for parameter in parameters:
        if parameter.kind not in (
            parameter.KEYWORD_ONLY,
            *([parameter.POSITIONAL_OR_KEYWORD] if positional else []),
        ):
            continue
        if parameter.annotation is parameter.empty:
            if type(parameter.default) not in (int, float, bool, str):
                raise MetajaxError(
                    f"the option {parameter.name!r} of {name} has no annotation, which would say "
                    "what its values are."
                )
            parameter = parameter.replace(annotation=type(parameter.default))
        own = also(parameter.annotation)
        annotation = parameter.annotation if own else _untraced(parameter.annotation)
        if own or _is_plain(annotation):
            found[parameter.name] = parameter.replace(annotation=annotation)
    return found


def _untraced(annotation: Any) -> Any:
    """Return a union without what only Python can pass, such as arrays and schedules."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    plain = [kind for kind in typing.get_args(annotation) if _is_plain(kind)]
    return functools.reduce(operator.or_, plain) if plain else annotation


def _is_plain(kind: Any) -> bool:
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _is_plain(of[0])
    if origin is Literal:
        return all(isinstance(value, str) for value in of)
    if origin in (typing.Union, types.UnionType, tuple, Sequence):
        return all(one is ... or _is_plain(one) for one in of)
    if origin is dict:  # names with as many numbers each
        numbers = typing.get_args(of[1])
        return of[0] is str and bool(numbers) and all(one is float for one in numbers)
    return kind in _PLAIN
