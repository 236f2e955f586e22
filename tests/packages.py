"""Families that need a package which metajax does not."""

import importlib.util

from metajax.envs import FAMILIES

PACKAGES = {name: spec.package for name, spec in FAMILIES.items() if spec.package is not None}


def is_missing(name: str) -> bool:
    """Return whether a family's package is not installed."""
    return name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None
