"""Environment steps, counted inside the program without ever running over.

A count is two words of 32 bits, `[high, low]`: it is exact to 2^64, without 64-bit numbers, which
JAX has only where they are enabled.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from metajax.types import Env, Scalar, Trial

WORD = 2**32


def count_steps(count: UInt32[Array, "2"], steps: int) -> UInt32[Array, "2"]:
    """Return a count after `steps` more environment steps.

    Args:
        count: so far, such as `TrainState.environment_steps`.
        steps: at least 0, a constant of the program.
    """
    high, low = (jnp.uint32(word) for word in divmod(steps, WORD))
    sum_low = count[1] + low
    carry = (sum_low < low).astype(jnp.uint32)
    return jnp.stack([count[0] + high + carry, sum_low])


def count_update(
    count: UInt32[Array, "2"], tasks: int, trial: Trial, env: Env
) -> UInt32[Array, "2"]:
    """Return a count after one update that plays a trial on each of so many tasks."""
    return count_steps(count, tasks * trial.steps(env))


def share_of(count: UInt32[Array, "2"], steps: Scalar) -> Float[Array, ""]:
    """Return which share of so many steps a count is, 1 at most."""
    kind = jnp.result_type(float)
    high, low = count[0].astype(kind), count[1].astype(kind)
    return jnp.minimum((float(WORD) * high + low) / steps, 1.0)


def counted(count: UInt32[Array | np.ndarray, "*batch 2"]) -> Int[np.ndarray, "*batch"]:
    """Return counts as ordinary whole numbers, on the host."""
    high, low = np.moveaxis(np.asarray(count, np.int64), -1, 0)
    return high * WORD + low
