"""The command line."""

from metajax.cli.app import main

__all__ = ["main"]
