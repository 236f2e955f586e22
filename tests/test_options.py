"""Options that one function takes over from another: in its signature and in its docstring."""

import inspect

import pytest
from metajax._options import options_of

from metajax._arguments import help_of
from metajax.algorithms import ALGORITHMS
from metajax.errors import MetajaxError


def parent(*, kept: int = 1, changed: float = 2.0, settled: bool = True):
    """Do something.

    Args:
        kept: first,
            on two lines.
        changed: second.
        settled: third.

    Raises:
        ValueError: of the parent.
    """
    return kept, changed, settled


@options_of(parent, without=("settled",))
def child(argument, *, changed: float = 3.0, **options):
    """Do less.

    Args:
        argument: its own.
        changed: its own too.
    """
    return argument, parent(changed=changed, settled=False, **options)


def test_the_signature_is_both():
    parameters = inspect.signature(child).parameters
    assert list(parameters) == ["argument", "changed", "kept"]
    assert parameters["changed"].default == 3.0 and parameters["kept"].default == 1
    assert parameters["kept"].annotation is int


def test_so_is_the_documentation():
    assert help_of(child) == {
        "argument": "its own.",
        "changed": "its own too.",
        "kept": "first, on two lines.",
    }
    doc = inspect.getdoc(child)
    assert doc and doc.startswith("Do less.") and doc.endswith("ValueError: of the parent.")


def test_it_still_works():
    assert child("x", kept=5) == ("x", (5, 3.0, False))
    for name in ("other", "settled"):
        with pytest.raises(
            MetajaxError, match=f"unknown option of child '{name}'.*argument, changed, kept"
        ):
            child("x", **{name: 1})


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_option_of_an_algorithm_is_documented(name):
    factory = ALGORITHMS[name]
    options = [
        p.name for p in inspect.signature(factory).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    assert len(options) > 5
    assert set(options) <= help_of(factory).keys()
