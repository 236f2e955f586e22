"""Updates that were discarded because something in them was not finite."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from metajax.errors import MetajaxError
from metajax.training.program import OnNan


class Discards(NamedTuple):
    """The updates discarded in this call of `train`.

    Attributes:
        row: length of the last unbroken row of them, `[seed]`.
        longest: of the rows so far, `[seed]`.
        first: what was not finite in the first of them, and in which; None without any.
    """

    row: Int[np.ndarray, "seed"]
    longest: Int[np.ndarray, "seed"]
    first: str | None = None

    def after(self, done: int, not_finite: np.ndarray, names: list[str]) -> "Discards":
        """Return these and those of the iterations after `done`, given `[iteration, seed]`."""
        row, longest, first = *self[:2], self.first
        for iteration, indices in enumerate(not_finite, done + 1):
            row = np.where(indices >= 0, row + 1, 0)
            longest = np.maximum(longest, row)
            if first is None and (bad := np.flatnonzero(row)).size:
                first = f"{names[indices[bad[0]]]} (iteration {iteration}, seed {bad[0]})"
        return Discards(row, longest, first)


def check_discards(
    before: Discards,
    now: Discards,
    stop: int,
    discarded: Int[np.ndarray, "seed"],
    *,
    on_nan: OnNan,
    max_discarded: int | None,
    saved: str,
) -> None:
    """Warn of the first update that was discarded, and stop training where it is of no use.

    Args:
        before: until the last segment.
        now: the last segment included.
        stop: the iteration that it ended with.
        discarded: updates so far, in this call of `train` and before it.
        on_nan: as in `train`.
        max_discarded: as in `train`.
        saved: where the state is saved, as the end of a clause; "" for nowhere.

    Raises:
        MetajaxError: training is to stop.
    """
    if on_nan == "halt" and discarded.any():
        raise MetajaxError(
            f"an update was not finite before iteration {stop} (seeds "
            f"{np.flatnonzero(discarded).tolist()})"
            + (f": first {now.first}" if now.first else "")
            + f"; halted with the state before it{saved}."
        )
    if max_discarded is not None and now.longest.max() >= max_discarded:
        stuck = np.flatnonzero(now.longest >= max_discarded).tolist()
        raise MetajaxError(
            f"{max_discarded} updates in a row were not finite (seeds {stuck}): first "
            f"{now.first}; stopped after iteration {stop} with the state before "
            f"them{saved}. With max_discarded None it goes on whatever happens."
        )
    if before.first is None and now.first is not None:
        warnings.warn(
            f"an update was discarded, it was not finite: first {now.first}.", stacklevel=2
        )
