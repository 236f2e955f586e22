"""Whoever forbids JAX to mix types means their own code, not the libraries beneath it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax


def mixing_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is traced by JAX's standard promotion, whatever is set elsewhere."""

    @functools.wraps(function)
    def mixing(*arguments, **options):
        with jax.numpy_dtype_promotion("standard"):
            return function(*arguments, **options)

    return mixing


def on_own_terms(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer that may mix types, as those of optax do.

    Args:
        optimizer: any; extra arguments that it does not know are kept from it.
    """
    known = optax.with_extra_args_support(optimizer)
    return optax.GradientTransformationExtraArgs(
        mixing_types(known.init), mixing_types(known.update)
    )
