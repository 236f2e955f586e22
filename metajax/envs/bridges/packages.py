"""What the bridges to other packages share."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp

from metajax.errors import MetajaxError

HELD_OUT_EVERY = 11  # of seeds, of objects and of given rule sets


def typed_like(x, like):
    """Return an array of the dtype of `like`, never weakly typed: a state keeps its types."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return x
    return jax.lax.convert_element_type(x, like.dtype)


def require(module: str, extra: str) -> Any:
    """Return a module of another package.

    Args:
        module: its name.
        extra: the optional dependencies of metajax that it belongs to.

    Raises:
        MetajaxError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MetajaxError(
            f"this family needs the package {module.partition('.')[0]} ({error}): "
            f'in a clone, pip install -e ".[{extra}]".'
        ) from None
