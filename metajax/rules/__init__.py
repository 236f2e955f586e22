"""Update rules: how an inner loop learns."""

from metajax.rules.fixed import fixed, sgd

__all__ = ["fixed", "sgd"]
