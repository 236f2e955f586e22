"""Parts of algorithms: values that remember how they were made.

An algorithm takes its outer step, its inner steps or its critic as values. A configuration is data,
and says the same by the name of a factory and its options; so that one can be had from the other, a
part made by a factory that is decorated with `part` keeps both.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from metajax._checks import checked
from metajax.errors import MetajaxError, brief
from metajax.types import Made

Factory = TypeVar("Factory", bound=Callable)


def part(factory: Factory) -> Factory:
    """Return a factory whose parts know how they were made; its arguments are checked.

    Args:
        factory: returns a `metajax.types.Part`, or another bundle with the field `made`.

    Raises:
        MetajaxError: when it is called, an argument is unknown, missing or not what its annotation
            says.
    """
    signature = inspect.signature(factory)

    @checked
    @functools.wraps(factory)
    def make(*arguments: Any, **options: Any) -> Any:
        value = factory(*arguments, **options)
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        return value._replace(made=Made(make, bound.arguments))

    return cast(Factory, make)


def made_with(part: Any, *names: str) -> Any:
    """Return an option that a part was made with; of parts within it for several names.

    None where nobody knows: the part, or one on the way, was made by hand.
    """
    for name in names:
        made = getattr(part, "made", None)
        if made is None:
            return None
        part = made.options.get(name)
    return part


def check_made(algorithm: str, part: Any, *path: str, be: str | Callable[..., Any]) -> None:
    """Check what an algorithm's name promises of one of its parts.

    Args:
        algorithm: by name.
        part: that it was given.
        path: the argument's name, and the names of options within it.
        be: the value there; or the factory, where it is a part itself.

    Raises:
        MetajaxError: it is something else, as far as anyone knows.
    """
    found = made_with(part, *path[1:])
    if callable(be):
        made = getattr(found, "made", None)
        found, be = (None if made is None else made.factory.__name__), be.__name__
    if found is not None and found != be:
        raise MetajaxError(
            f"{'.'.join(path)} is {brief(found)}; in {algorithm} it must be {be!r}, or it would be "
            "another algorithm: metajax.maml takes all of them."
        )
