"""The points where capsules meet."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def closest_segment_point(
    a: Float[Array, "3"], b: Float[Array, "3"], point: Float[Array, "3"]
) -> Float[Array, "3"]:
    """Return the point of the segment from a to b that is closest to a point."""
    along = b - a
    squared = jnp.sum(along**2)
    at = jnp.sum((point - a) * along) / jnp.where(squared > 0, squared, 1)
    return a + jnp.clip(at, 0, 1) * along


def closest_segment_to_segment_points(
    a0: Float[Array, "3"], a1: Float[Array, "3"], b0: Float[Array, "3"], b1: Float[Array, "3"]
) -> tuple[Float[Array, "3"], Float[Array, "3"]]:
    """Return the points of two segments that are closest to each other.

    The closest point of the lines, clipped, and then each point in turn the closest to the other
    one: Ericson (2005, section 5.1.9). Of parallel segments any such pair.
    """
    along_a, along_b, between = a1 - a0, b1 - b0, a0 - b0
    aa, bb, ab = (jnp.sum(x * y) for x, y in ((along_a,) * 2, (along_b,) * 2, (along_a, along_b)))
    determinant = aa * bb - ab**2
    crossing = ab * jnp.sum(along_b * between) - bb * jnp.sum(along_a * between)
    at = crossing / jnp.where(determinant > 0, determinant, 1)
    b = closest_segment_point(b0, b1, a0 + jnp.clip(at, 0, 1) * along_a)
    return closest_segment_point(a0, a1, b), b
