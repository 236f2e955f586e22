"""Meta-training: the program, the loop on the host that runs it, and the evaluation of agents."""

from metajax.training.evaluation import adaptation_curve, evaluate
from metajax.training.loop import Result, train
from metajax.training.plan import Evaluation

__all__ = ["Evaluation", "Result", "adaptation_curve", "evaluate", "train"]
