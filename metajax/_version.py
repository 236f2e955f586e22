"""The version of metajax."""

__version__ = "0.1.0"
