"""Task families by name."""

from collections.abc import Callable
from typing import Any

from metajax._checks import checked
from metajax.envs import (
    ant,
    dynamics,
    episodes,
    foreign,
    grid,
    halfcheetah,
    humanoid,
    locomotion,
    point,
    splits,
)
from metajax.envs.bandit import bernoulli_bandit, gaussian_bandit
from metajax.envs.classic import cartpole_params, pendulum_params
from metajax.envs.reacher import reacher_goal
from metajax.envs.swimmer import swimmer_vel
from metajax.envs.tabular import tabular
from metajax.envs.walker import walker2d_dir, walker2d_vel
from metajax.errors import unknown
from metajax.types import TaskFamily

__all__ = [
    "ENGINES",
    "EXTRAS",
    "FAMILIES",
    "SOURCES",
    "VARIANTS",
    "episodes",
    "locomotion",
    "make",
    "splits",
]

FAMILIES: dict[str, Callable[..., TaskFamily]] = {
    "ant-dir": ant.ant_dir,
    "ant-goal": ant.ant_goal,
    "ant-params": dynamics.ant_params,
    "ant-vel": ant.ant_vel,
    "bernoulli-bandit": bernoulli_bandit,
    "cartpole-params": cartpole_params,
    "dark-key-door": grid.dark_key_door,
    "gaussian-bandit": gaussian_bandit,
    "gridnav": grid.gridnav,
    "gymnax": foreign.gymnax,
    "halfcheetah-dir": halfcheetah.halfcheetah_dir,
    "halfcheetah-vel": halfcheetah.halfcheetah_vel,
    "hopper-params": dynamics.hopper_params,
    "humanoid-dir": humanoid.humanoid_dir,
    "pendulum-params": pendulum_params,
    "point-goal": point.point_goal,
    "point-sparse": point.point_sparse,
    "reacher-goal": reacher_goal,
    "swimmer-vel": swimmer_vel,
    "tabular": tabular,
    "walker2d-dir": walker2d_dir,
    "walker2d-params": dynamics.walker2d_params,
    "walker2d-vel": walker2d_vel,
    "xland-minigrid": foreign.xland_minigrid,
}

# The packages that families are made of, where they are no requirement of this one.
EXTRAS: dict[str, str] = {"gymnax": "gymnax", "xland-minigrid": "xminigrid"}

# Where a family comes from; its docstring says more.
SOURCES: dict[str, str] = {
    "ant-dir": "Finn et al. 2017",
    "ant-goal": "Finn et al. 2017",
    "ant-params": "the dynamics of walker2d-params on an ant",
    "ant-vel": "Finn et al. 2017",
    "bernoulli-bandit": "Duan et al. 2016",
    "cartpole-params": "Packer et al. 2018",
    "dark-key-door": "Laskin et al. 2022",
    "gaussian-bandit": "the Gaussian twin of bernoulli-bandit",
    "gridnav": "Zintgraf et al. 2020",
    "gymnax": "Lange 2022",
    "halfcheetah-dir": "Finn et al. 2017",
    "halfcheetah-vel": "Finn et al. 2017",
    "hopper-params": "Rakelly et al. 2019",
    "humanoid-dir": "Rothfuss et al. 2019",
    "pendulum-params": "Packer et al. 2018",
    "point-goal": "Finn et al. 2017",
    "point-sparse": "Rakelly et al. 2019",
    "reacher-goal": "Gymnasium's Reacher with a hidden goal",
    "swimmer-vel": "Rothfuss et al. 2019",
    "tabular": "Duan et al. 2016",
    "walker2d-dir": "Rothfuss et al. 2019",
    "walker2d-params": "Rakelly et al. 2019",
    "walker2d-vel": "Rothfuss et al. 2019",
    "xland-minigrid": "Nikulin et al. 2024",
}

# The engines of families that do not run on all of them.
ENGINES: dict[str, tuple[str, ...]] = {
    "ant-params": ("mjx", "mujoco", "warp", "generalized"),
    "hopper-params": ("mjx", "mujoco", "warp", "generalized"),
    "swimmer-vel": ("mjx", "mujoco", "warp"),
    "walker2d-params": ("mjx", "mujoco", "warp", "generalized"),
}

# What the option `variant` of a family accepts; the others have none.
VARIANTS: dict[str, tuple[str, ...]] = {
    "ant-dir": tuple(ant.DIR_VARIANTS),
    "ant-goal": tuple(ant.GOAL_VARIANTS),
    "ant-params": tuple(dynamics.VARIANTS),
    "ant-vel": tuple(ant.VEL_VARIANTS),
    "gridnav": grid.VARIANTS,
    "halfcheetah-dir": tuple(halfcheetah.VARIANTS),
    "halfcheetah-vel": tuple(halfcheetah.VARIANTS),
    "hopper-params": tuple(dynamics.VARIANTS),
    "humanoid-dir": tuple(humanoid.VARIANTS),
    "point-sparse": tuple(point.SPARSE_VARIANTS),
    "walker2d-params": tuple(dynamics.VARIANTS),
}


@checked
def make(name: str, **options: Any) -> TaskFamily:
    """Return the task family called `name`.

    Example:
        >>> import metajax
        >>> family = metajax.make("ant-goal", backend="mujoco", variant="pearl")
        >>> family.name, family.env.observation_size
        ('ant-goal-v1', 113)

    Args:
        name: one of `FAMILIES`.
        **options: of its factory: `backend` and `variant`, for example.

    Raises:
        MetajaxError: no family has this name, or one of its options is wrong.
    """
    if name not in FAMILIES:
        raise unknown("family", name, FAMILIES)
    return FAMILIES[name](**options)


def __dir__() -> list[str]:
    return __all__
