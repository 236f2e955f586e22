"""How held-out tasks are evaluated during training."""

import dataclasses
import math

from metajax._checks import checked_fields
from metajax.envs.splits import even_count
from metajax.errors import check_at_least
from metajax.training.evaluation import has_memory
from metajax.types import Algorithm, Env, TaskFamily


@checked_fields("evaluation.")
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How held-out tasks are evaluated during training.

    Attributes:
        every: meta-iterations between evaluations; there is one at the end in any case.
        tasks: held-out tasks per evaluation and seed; of finitely many, each equally often: rounded
            up to a multiple of their number, if that is within twice as many or `final_tasks`.
        rounds: adaptation steps + 1; may exceed what training uses. None for 4; of an agent with a
            memory, for at most ten rounds, of at least five steps, that are together a trial as in
            training.
        episodes: episodes per task and round; None for 20, or for that trial.
        final_tasks: held-out tasks per seed of the evaluation at the end, which repeats evaluations
            of `tasks` tasks; those of the last one that are too many are left out, unless there
            are finitely many.
        deterministic: whether separate episodes of deterministic actions are scored: of the
            distribution's mode, of a Q-network's most valuable action; adaptation always learns
            from sampled actions.
    """

    every: int = 50
    tasks: int = 20
    rounds: int | None = None
    episodes: int | None = None
    final_tasks: int = 40
    deterministic: bool = False

    def __post_init__(self):
        """Check that counts are at least 1."""
        counts = dataclasses.asdict(self)
        del counts["deterministic"]
        check_at_least(1, **{f"evaluation.{k}": v for k, v in counts.items() if v is not None})

    def batch(self, family: TaskFamily) -> int:
        """Return how many held-out tasks an evaluation takes: `tasks`, or as many as are even."""
        return even_count(family.test, self.tasks, most=self.final_tasks)

    def sizes(self, algorithm: Algorithm, env: Env) -> dict[str, int]:
        """Return the number of "rounds" and of "episodes" in each, for an algorithm's agent."""
        rounds, episodes = self.rounds or 4, self.episodes or 20
        if has_memory(algorithm.agent):
            trial = algorithm.trial.rounds * algorithm.trial.episodes
            # The middle half of single pulls, whose reward is 0 or 1, is far from their mean.
            fewest = math.ceil(5 / env.episode_length)
            rounds = self.rounds or max(
                n for n in range(1, 11) if n == 1 or (trial % n == 0 and trial // n >= fewest)
            )
            episodes = self.episodes or max(1, trial // rounds)
        return {"rounds": rounds, "episodes": episodes}
