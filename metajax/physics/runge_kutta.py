"""MuJoCo's fourth-order Runge-Kutta method, for MJX and MuJoCo Warp."""

import sys

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float

from metajax.physics.models import quaternion_addresses
from metajax.physics.mujoco_state import MujocoState, data_at

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)


def runge_kutta(model: mujoco.MjModel, forward):
    """Return a substep of MuJoCo's fourth-order Runge-Kutta method.

    That of MJX and of MuJoCo Warp is another method where the model has quaternions: it adds up the
    velocities of the stages, whereas MuJoCo (since version 4) adds them up in the Lie algebra of
    the rotations, after Munthe-Kaas (1998). This one also compiles the dynamics once instead of
    four times.

    Args:
        model: a compiled MuJoCo model.
        forward: `(engine, compiled model, data) -> data` with accelerations.
    """
    h = float(model.opt.timestep)
    turns = quaternion_addresses(model)
    line_q = np.setdiff1d(np.arange(model.nq), [q + i for q, _ in turns for i in range(4)])
    line_v = np.setdiff1d(np.arange(model.nv), [v + i for _, v in turns for i in range(3)])

    def move(qpos, by):
        moved = qpos.at[line_q].add(by[line_v])
        for q, v in turns:
            quaternion = turn(qpos[q : q + 4], by[v : v + 3])
            moved = moved.at[q : q + 4].set(quaternion)
        return moved

    def rate_of(by, velocity):
        rate = velocity
        for _, v in turns:
            turned = rate_of_turn(by[v : v + 3], velocity[v : v + 3])
            rate = rate.at[v : v + 3].set(turned)
        return rate

    def substep(engine, compiled, data, state: MujocoState, force_of) -> MujocoState:
        def stage(carry, tableau):
            last, sums, warmstart, force, _ = carry
            before, weight, first = tableau
            rate, acceleration, activation = last
            by = h * before * rate
            velocity = state.qvel + h * before * acceleration
            rest = dict(state.rest)
            if "act" in rest:
                rest["act"] += h * before * activation
            here = MujocoState(move(state.qpos, by), velocity, warmstart, rest=rest)
            after = forward(engine, compiled, data_at(data, here))
            if force is not None:
                force += force_of(after, first)
            last = rate_of(by, velocity), after.qacc, after.act_dot
            sums = tuple(x + weight * y for x, y in zip(sums, last, strict=True))
            return (last, sums, after.qacc, force, after.actuator_length), None

        nothing = jnp.zeros_like(state.qvel)
        force = None if state.contact_force is None else jnp.zeros_like(state.contact_force)
        tableau = (
            jnp.array([0, 1 / 2, 1 / 2, 1], nothing.dtype),
            jnp.array([1 / 6, 1 / 3, 1 / 3, 1 / 6], nothing.dtype),
            jnp.arange(4) == 0,
        )
        rates = (nothing, nothing, jnp.zeros_like(data.act_dot))
        carry = (rates, rates, state.warmstart, force, jnp.zeros_like(data.actuator_length))
        carry, _ = jax.lax.scan(stage, carry, tableau)
        _, (rate, acceleration, activation), warmstart, force, length = carry
        qpos, qvel, rest = move(state.qpos, h * rate), state.qvel + h * acceleration, state.rest
        if "act" in rest:  # by MJX, which knows of exact filters, limits and angles
            known = sys.modules["mujoco.mjx._src.forward"]
            here = data_at(data, state).replace(actuator_length=length)
            rest = {**rest, "act": known._next_activation(compiled, here, activation)}
        return MujocoState(qpos, qvel, warmstart, force, rest)

    return substep


def turn(quaternion: Float[Array, "4"], by: Float[Array, "3"]) -> Float[Array, "4"]:
    """Return the unit quaternion turned by a rotation vector (rad) in its own frame."""
    angle = _length(by)
    scalar, vector = jnp.cos(angle / 2), jnp.sinc(angle / (2 * jnp.pi)) / 2 * by
    s, v = quaternion[0], quaternion[1:]
    turned = jnp.append(s * scalar - v @ vector, s * vector + scalar * v + jnp.cross(v, vector))
    return turned / _length(turned)


def rate_of_turn(by: Float[Array, "3"], velocity: Float[Array, "3"]) -> Float[Array, "3"]:
    """Return the rate of the rotation vector `by` at an angular velocity, in the moving frame.

    The inverse of the right-trivialized differential of the exponential map.
    """
    angle = _length(by)
    small = angle < 0.1
    safe = jnp.where(small, 1.0, angle)
    exact = 1 / safe**2 - (1 + jnp.cos(safe)) / (2 * safe * jnp.sin(safe))
    factor = jnp.where(small, 1 / 12 + angle**2 / 720 + angle**4 / 30240, exact)
    across = jnp.cross(by, velocity)
    return velocity + across / 2 + factor * jnp.cross(by, across)


def _length(vector: Float[Array, "n"]) -> Float[Array, ""]:
    """Return the Euclidean norm, with gradient 0 at 0."""
    squared = jnp.sum(vector**2)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
