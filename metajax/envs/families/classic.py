"""Classic control with other masses, lengths and forces in every task."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from metajax._checks import checked
from metajax.envs.builders import Moved, make_env
from metajax.envs.drawings import Plot
from metajax.envs.specs import FamilySpec
from metajax.envs.splits import Split, three_splits, uniform
from metajax.types import Continuous, Discrete, TaskFamily

# Packer et al. 2018, table 1: low and high of "random" tasks, then of "extreme" ones around them.
CARTPOLE = {
    "length": (0.25, 0.75, 0.05, 1.0),  # m, from the joint to the middle of the pole
    "mass": (0.05, 0.5, 0.01, 1.0),  # kg, of the pole
    "force": (5.0, 15.0, 1.0, 20.0),  # N
}
PENDULUM = {
    "length": (0.75, 1.25, 0.2, 1.5),  # m
    "mass": (0.75, 1.25, 0.2, 1.5),  # kg
}


@checked
def cartpole_params(*, episode_length: int = 500) -> TaskFamily:
    """Return `cartpole-params-v1`: balance poles of unknown length and mass.

    CartPole-v1 of Gymnasium (Barto, Sutton and Anderson 1983): every 0.02 s the cart of 1 kg is
    pushed with a constant force to the left (action 0) or right (1). The observation [4] is
    position, velocity, angle and angular velocity, U(-0.05, 0.05) at a reset. The reward of every
    step is 1; beyond 2.4 m or 12° the episode terminates.

    The task is {"length", "mass", "force"}, uniform in the "random" ranges of Packer et al.
    (2018); held-out tasks have their length in the held-out strips, and tasks to extrapolate to
    are the paper's "extreme" ones.

    Args:
        episode_length: steps per episode.
    """

    def start(key: Key[Array, ""], task) -> Float[Array, "4"]:
        del task
        return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)

    def move(state: Float[Array, "4"], action: Int[Array, ""], task) -> Moved:
        _, x_dot, angle, angle_dot = state
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        force = jnp.where(action == 1, task["force"], -task["force"])
        moment, total = task["mass"] * task["length"], task["mass"] + 1.0
        push = (force + moment * angle_dot**2 * sin) / total
        inertia = task["length"] * (4 / 3 - task["mass"] * cos**2 / total)
        angle_acceleration = (9.8 * sin - cos * push) / inertia
        acceleration = push - moment * angle_acceleration * cos / total
        rate = jnp.stack([x_dot, acceleration, angle_dot, angle_acceleration])
        new = state + 0.02 * rate
        fallen = (jnp.abs(new[0]) > 2.4) | (jnp.abs(new[2]) > 12 * jnp.pi / 180)
        return Moved(new, jnp.ones((), state.dtype), fallen)

    env = make_env(
        start,
        move,
        lambda state, task: state,
        observation_size=4,
        action_space=Discrete(2),
        episode_length=episode_length,
    )
    return TaskFamily(env, name="cartpole-params-v1", **three_splits(_sampler(CARTPOLE)))


@checked
def pendulum_params(*, episode_length: int = 200) -> TaskFamily:
    """Return `pendulum-params-v1`: swing up pendulums of unknown length and mass.

    Pendulum-v1 of Gymnasium: every 0.05 s a torque of at most 2 N·m on a rod under a gravity of
    10 m/s². The observation [3] is the cosine and sine of the angle from upright and the angular
    velocity, at most 8 rad/s; a reset draws U(-π, π) and U(-1, 1). Reward of a step: -(angle² +
    0.1·velocity² + 0.001·torque²), before the move; nothing terminates.

    The task is {"length", "mass"}, split as in `cartpole-params-v1`.

    Args:
        episode_length: steps per episode.
    """
    actions = Continuous(1, -2.0, 2.0)

    def start(key: Key[Array, ""], task) -> Float[Array, "2"]:
        del task
        return jax.random.uniform(key, (2,), minval=-1) * jnp.array([jnp.pi, 1.0])

    def move(state: Float[Array, "2"], action: Float[Array, "1"], task) -> Moved:
        angle, velocity = state
        torque = actions.to_control(action)[0]
        from_upright = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
        cost = from_upright**2 + 0.1 * velocity**2 + 0.001 * torque**2
        inertia = task["mass"] * task["length"] ** 2 / 3
        acceleration = 15 / task["length"] * jnp.sin(angle) + torque / inertia
        velocity = jnp.clip(velocity + 0.05 * acceleration, -8, 8)
        return Moved(jnp.stack([angle + 0.05 * velocity, velocity]), -cost)

    env = make_env(
        start,
        move,
        lambda state, task: jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]]),
        observation_size=3,
        action_space=actions,
        episode_length=episode_length,
    )
    return TaskFamily(env, name="pendulum-params-v1", **three_splits(_sampler(PENDULUM)))


def _sampler(ranges):
    def sample(key: Key[Array, ""], *, split: Split):
        keys = dict(zip(ranges, jax.random.split(key, len(ranges)), strict=True))
        if split == "extrapolate":
            return {name: _around(keys[name], *ranges[name]) for name in ranges}
        task = {n: jax.random.uniform(keys[n], minval=r[0], maxval=r[1]) for n, r in ranges.items()}
        low, high = ranges["length"][:2]
        return task | {"length": uniform(keys["length"], low, high, split=split)}

    return sample


def _around(key: Key[Array, ""], low: float, high: float, lowest: float, highest: float):
    """Draw from U[lowest, highest] without [low, high]."""
    below = low - lowest
    draw = jax.random.uniform(key, maxval=below + highest - high)
    return jnp.where(draw < below, lowest + draw, high + draw - below)


_BALANCING = {
    "policy": {"activation": "relu"},
    "family": {"episode_length": 200},
    "algorithm": {
        "episodes": 1,
        "updates": 100,
        "batch": 128,
        "outer": {"learning_rate": 5e-4},
        "target_period": 200,
        "replay_capacity": 300_000,
        "inner": {
            # Of the steps that look alike few end in a fall: clipped errors leave them out.
            "objective": {"error_clip": None},
            # Fine-tuning an agent that balances can only hurt it.
            "rule": {"learning_rate": 1e-4},
        },
    },
    "training": {"iterations": 200, "tasks": 16},
    "evaluation": {"every": 50, "tasks": 40, "episodes": 10, "deterministic": True},
}

SPECS = (
    FamilySpec(
        "cartpole-params",
        cartpole_params,
        "Packer et al. 2018",
        drawing=Plot(
            "time",
            lambda state: 180 / jnp.pi * state.simulator[2:3],
            "the pole over time, and mean returns",
            label="angle of the pole (°)",
        ),
        presets={"dqn": _BALANCING},
    ),
    FamilySpec(
        "pendulum-params",
        pendulum_params,
        "Packer et al. 2018",
        drawing=Plot(
            "time",
            lambda state: state.observation[:1],
            "the pendulum over time, and mean returns",
            label="height of the tip ÷ length",
        ),
    ),
)
