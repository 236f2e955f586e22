"""Meta-learning algorithms, one file per paper."""

from collections.abc import Callable

from metajax.algorithms.anil import anil
from metajax.algorithms.cavia import cavia
from metajax.algorithms.dqn import dqn, maml_dqn
from metajax.algorithms.e_maml import e_maml
from metajax.algorithms.fomaml import fomaml
from metajax.algorithms.joint import a2c, ppo, q_prop, reinforce, trpo
from metajax.algorithms.learned_optimizer import learned_optimizer
from metajax.algorithms.maml import maml
from metajax.algorithms.meta_lstm import meta_lstm
from metajax.algorithms.meta_sgd import meta_sgd
from metajax.algorithms.mql import mql
from metajax.algorithms.off_policy_rl2 import off_policy_rl2
from metajax.algorithms.pearl import pearl
from metajax.algorithms.promp import promp
from metajax.algorithms.reptile import reptile
from metajax.algorithms.rl2 import rl2, snail
from metajax.algorithms.sac import sac
from metajax.algorithms.td3 import td3
from metajax.algorithms.tunable import tunable
from metajax.algorithms.varibad import varibad
from metajax.types import Algorithm

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "maml": maml,
    "fomaml": fomaml,
    "meta-sgd": meta_sgd,
    "meta-lstm": meta_lstm,
    "anil": anil,
    "cavia": cavia,
    "e-maml": e_maml,
    "promp": promp,
    "reptile": reptile,
    "learned-optimizer": learned_optimizer,
    "maml-dqn": maml_dqn,
    "rl2": rl2,
    "snail": snail,
    "off-policy-rl2": off_policy_rl2,
    "varibad": varibad,
    "pearl": pearl,
    "mql": mql,
    "reinforce": reinforce,
    "a2c": a2c,
    "ppo": ppo,
    "trpo": trpo,
    "q-prop": q_prop,
    "dqn": dqn,
    "sac": sac,
    "td3": td3,
}

__all__ = [
    "ALGORITHMS",
    "a2c",
    "anil",
    "cavia",
    "dqn",
    "e_maml",
    "fomaml",
    "learned_optimizer",
    "maml",
    "maml_dqn",
    "meta_lstm",
    "meta_sgd",
    "mql",
    "off_policy_rl2",
    "pearl",
    "ppo",
    "promp",
    "q_prop",
    "reinforce",
    "reptile",
    "rl2",
    "sac",
    "snail",
    "td3",
    "trpo",
    "tunable",
    "varibad",
]


def __dir__() -> list[str]:
    return __all__
