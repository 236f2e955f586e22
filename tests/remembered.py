"""What off-policy learners are given in tests, and how what they made of it is compared."""

import jax
import numpy as np

from metajax.replay import Steps
from metajax.types import ActionSpace, Discrete, Env

OBSERVED, BATCH = 3, 7


def env_of(space: ActionSpace) -> Env:
    """Return sizes: learners do not play."""
    nothing = lambda *_: None
    return Env(nothing, nothing, OBSERVED, space, 10)


def steps_of(index: int, space: ActionSpace, *, stretched: float = 1.0) -> Steps:
    """Return a batch of random steps, one in four the end of a task.

    Continuous actions are uniform within their bounds, then stretched, and clipped to them.
    """
    random = np.random.default_rng(index)
    if isinstance(space, Discrete):
        action = random.integers(0, space.size, BATCH)
    else:
        drawn = random.uniform(*space.bounds, (BATCH, space.size))
        action = np.clip(drawn * stretched, *space.bounds)
    return Steps(
        random.normal(size=(BATCH, OBSERVED)),
        action,
        random.normal(size=BATCH),
        random.random(BATCH) < 0.25,
        random.normal(size=(BATCH, OBSERVED)),
    )


def assert_equal(found, expected, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)
