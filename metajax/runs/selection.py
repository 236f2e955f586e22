"""Which agent of a run is its best: the one with the highest return on validation tasks.

Validation tasks are neither training nor held-out tasks, so neither the choice nor what is reported
of the chosen agent gains by luck. Seeds are trained side by side and saved together: the best
iteration is that of all seeds at once.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Keep = Literal["newest", "best"]


class Selection(NamedTuple):
    """What the validations of a run have come to so far.

    Attributes:
        iteration: of the best agent; None before the first validation.
        score: its validation score.
        since: validations since then, none of them better.
    """

    iteration: int | None = None
    score: float = -math.inf
    since: int = 0

    def after(self, iteration: int, score: float) -> "Selection":
        """Return what they have come to after one more; of equal ones the earliest is the best."""
        if self.iteration is None or score > self.score:
            return Selection(iteration, score)
        return self._replace(since=self.since + 1)


def validation_score(
    returns: Float[np.ndarray, "seed task round"], adaptations: int | None
) -> float:
    """Return the mean return over seeds and tasks that training is there to raise.

    Args:
        returns: on validation tasks, mean over episodes.
        adaptations: of the algorithm: the round that counts, the last one if there are fewer;
            None for all of them.

    Returns:
        The score, minus infinity where a return is not finite.
    """
    if adaptations is not None:
        returns = returns[:, :, min(adaptations, returns.shape[2] - 1)]
    score = float(np.mean(returns, dtype=np.float64))
    return score if math.isfinite(score) else -math.inf


def scores(records: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Return the validation scores in a run's metrics, by iteration."""
    found = {r["iteration"]: r["score"] for r in records if "score" in r}
    return {iteration: -math.inf if s is None else s for iteration, s in found.items()}


def ranked(scores: Mapping[int, float]) -> list[int]:
    """Return the iterations that have a score, the best one first."""
    return sorted(scores, key=lambda iteration: (-scores[iteration], iteration))
