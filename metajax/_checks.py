"""Arguments against their annotations: one place for factories, configurations, command line."""

import collections.abc
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.core import Tracer

from metajax.errors import MetajaxError, brief, unknown, with_article

Checked = TypeVar("Checked", bound=Callable)
Kind = TypeVar("Kind", bound=type)

COUNTS = range(-(2**31), 2**31)  # indices of JAX's arrays are of 32 bits
Seed = Annotated[int, range(2**32)]  # a key's other bits are dropped in single precision
MOST_LAYERS = 1000  # each is a part of the program of its own, which takes time to trace
_SINGLE = jnp.finfo(jnp.float32)
_MANY = 12  # names that still fit into one sentence
_REFUSED = object()


def checked(function: Checked) -> Checked:
    """Return a function that refuses arguments which do not fit its signature.

    Numbers are passed on as Python's own, whatever library they come from; those that JAX traces
    are passed on as they are.

    Raises:
        MetajaxError: an argument is unknown, missing or not what its annotation says.
    """
    return with_signature(function, inspect.signature(function))


def with_signature(function: Checked, signature: inspect.Signature, *, prefix: str = "") -> Checked:
    """Return `function`, called with arguments that fit another signature than its own.

    Args:
        function: what is called.
        signature: with the annotations that arguments must fit.
        prefix: of the arguments' names, in what is said of them.
    """
    name = function.__name__
    if name == "__init__":
        name = function.__qualname__.split(".")[-2]

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        bound = _bound(name, signature, arguments, options, prefix)
        return function(*bound.args, **bound.kwargs)

    setattr(call, "__signature__", signature)  # noqa: B010 (no type checker knows it)
    return cast(Checked, call)


def checked_fields(prefix: str) -> Callable[[Kind], Kind]:
    """Return a decorator for dataclasses whose fields are checked as `checked` does arguments.

    Args:
        prefix: of the fields' names, in what is said of them.
    """

    def decorate(kind: Kind) -> Kind:
        init: Any = kind.__init__
        setattr(kind, "__init__", with_signature(init, inspect.signature(init), prefix=prefix))  # noqa: B010
        return kind

    return decorate


def check_options(
    parameters: Mapping[str, inspect.Parameter],
    values: Mapping[str, Any],
    what: str,
    *,
    prefix: str = "",
) -> dict[str, Any]:
    """Return values as their parameters have them.

    Args:
        parameters: by name.
        values: of some of them, by name.
        what: a name that is not among them would have been the name of.
        prefix: of the parameters' names, in what is said of values.

    Raises:
        MetajaxError: a name is unknown, or a value is not what its parameter's annotation says.
    """
    fitting = {}
    for name, value in values.items():
        if name not in parameters:
            raise _unknown(what, name, parameters)
        fitting[name] = _fit(parameters[name].annotation, value, f"{prefix}{name}")
    return fitting


def _bound(name: str, signature: inspect.Signature, arguments, options, prefix: str):
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            if option not in parameters:
                raise _unknown(f"option of {name}", option, parameters)
    try:
        bound = signature.bind(*arguments, **options)
    except TypeError as error:
        raise MetajaxError(f"{name}: {error}.") from None
    for argument, value in bound.arguments.items():
        parameter = parameters[argument]
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            fitting = _fit(parameter.annotation, value, f"{prefix}{argument}")
            bound.arguments[argument] = fitting
    return bound


def _unknown(what: str, name: object, known: Iterable[str]) -> MetajaxError:
    known = [other for other in known if other != "self"]
    if len(known) <= _MANY:
        return unknown(what, name, known)
    return unknown(what, name, known, see="its documentation")


def _fit(annotation: Any, value: Any, name: str) -> Any:
    fitting = _fitting(annotation, value)
    if fitting is not _REFUSED:
        return fitting
    names = [n for kind in _alternatives(annotation) for n in _literals(kind)]
    if isinstance(value, str) and names:
        raise unknown(f"value of {name}", value, names)
    limits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    must = _described(annotation, limits=limits)
    raise MetajaxError(f"{name} is {brief(value)}; it must be {must}.")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _parts(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what a generic type is of, for example (dict, (str, int))."""
    return typing.get_origin(annotation), typing.get_args(annotation)


def _literals(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def _fitting(annotation: Any, value: Any) -> Any:
    """Return the value as its annotation has it, or `_REFUSED`."""
    kind, allowed = annotation, COUNTS
    if typing.get_origin(kind) is Annotated:
        kind, allowed = typing.get_args(kind)[:2]
    if len(kinds := _alternatives(kind)) > 1:
        each = (_fitting(one, value) for one in kinds)
        return next((fitting for fitting in each if fitting is not _REFUSED), _REFUSED)
    origin, of = _parts(kind)
    if kind is int:
        return _whole(value, allowed)
    if kind is float:
        return _real(value)
    if origin is Literal:
        return value if isinstance(value, str) and value in of else _REFUSED
    if origin in (tuple, collections.abc.Sequence):
        return _sequence(of, value)
    if origin in (dict, collections.abc.Mapping):
        return _mapping(of, value)
    if origin is collections.abc.Callable:
        return value if callable(value) else _REFUSED
    if _is_ours(origin):  # a generic class of ours
        return value if isinstance(value, origin) and _may_be_of(kind, value) else _REFUSED
    if kind in (bool, str, Path, None, type(None)) or _is_ours(kind):
        kind = type(None) if kind is None else kind
        return value if isinstance(value, kind) else _REFUSED
    if (array := getattr(kind, "array_type", None)) is not None:
        return value if isinstance(value, array) else _REFUSED
    return value  # pytrees: nobody's option


def _may_be_of(kind: Any, value: Any) -> bool:
    """Return whether a value may be of a generic type: its factory, if it is known, says so."""
    made = getattr(value, "made", None)
    if made is None:
        return True
    says = inspect.signature(made.factory).return_annotation
    return says == kind or typing.get_origin(says) is not typing.get_origin(kind)


def _is_ours(kind: Any) -> TypeGuard[type]:
    return isinstance(kind, type) and kind.__module__.partition(".")[0] == "metajax"


def _whole(value: Any, allowed: range) -> Any:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return _REFUSED
    return int(value) if int(value) in allowed else _REFUSED


def _real(value: Any) -> Any:
    if isinstance(value, jax.Array) and value.ndim == 0 and value.dtype != bool:
        return value if isinstance(value, Tracer) or jnp.isfinite(value) else _REFUSED
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return _REFUSED
    try:
        number = float(value)
    except OverflowError:
        return _REFUSED
    size = abs(number)
    single = number == 0 or float(_SINGLE.tiny) <= size <= float(_SINGLE.max)
    return number if math.isfinite(number) and single else _REFUSED


def _is_fixed(of: tuple[Any, ...]) -> bool:
    """Return whether elements of a sequence have a kind each, for example (str, int)."""
    return len(of) > 1 and of[-1] is not ...


def _sequence(of: tuple[Any, ...], value: Any) -> Any:
    if isinstance(value, str) or not isinstance(value, collections.abc.Sequence):
        return _REFUSED
    kinds = of if _is_fixed(of) else of[:1] * len(value)
    if len(kinds) != len(value):
        return _REFUSED
    fitting = tuple(_fitting(kind, one) for kind, one in zip(kinds, value, strict=True))
    return _REFUSED if any(one is _REFUSED for one in fitting) else fitting


def _mapping(of: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _REFUSED
    fitting = {_fitting(of[0], name): _fitting(of[1], one) for name, one in value.items()}
    refused = any(one is _REFUSED for pair in fitting.items() for one in pair)
    return _REFUSED if refused else fitting


def _described(annotation: Any, *, limits: bool) -> str:
    """Return what a value of an annotation must be.

    Args:
        annotation: of the parameter.
        limits: whether to say how far numbers go.
    """
    described = lambda kind: _described(kind, limits=limits)
    if typing.get_origin(annotation) is Annotated:
        kind, allowed = typing.get_args(annotation)[:2]
        return f"{_described(kind, limits=False)} from {allowed.start} to {allowed.stop - 1}"
    kinds = _alternatives(annotation)
    if len(kinds) > 1:
        return " or ".join(map(described, kinds))
    origin, of = _parts(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, of))
    if origin in (tuple, collections.abc.Sequence):
        if _is_fixed(of):
            return f"{len(of)} values, each {described(of[0])}"
        return f"a sequence, each element {described(of[0])}"
    if origin in (dict, collections.abc.Mapping):
        return f"a mapping, each key {described(of[0])} and each value {described(of[1])}"
    if origin is collections.abc.Callable:
        return "a function"
    if hasattr(annotation, "array_type"):
        return "an array"
    plain = {
        int: "a whole number below 2³¹" if limits else "a whole number",
        float: "a finite number in single precision" if limits else "a finite number",
        bool: "True or False",
        str: "a string",
        Path: "a path",
        type(None): "None",
    }
    if _is_ours(origin):
        return f"a {origin.__name__}[{of[0].__name__}]"
    name = getattr(annotation, "__name__", str(annotation))
    return plain.get(annotation) or with_article(name)
