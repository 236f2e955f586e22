#!/usr/bin/env bash
# gymnax 1.0.1, Acrobot-v1: the parameter link_length_2 changes nothing.
#
# The equations of motion know the second link by its mass, its inertia and where its centre of mass
# is, and the height that ends an episode is counted in links of length 1 for both links. So a
# benchmark that varies link_length_2 varies nothing, while link_length_1 does change the motion.
#
# Seen: 200 steps from one start under the same actions, with link_length_1 and then with
# link_length_2 doubled: the largest difference of a state from that of the default parameters is
# above 1 in the first case and exactly 0 in the second, ends of episodes included.
set -euo pipefail

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
"$environment/bin/pip" install -q gymnax==1.0.1 jax==0.10.2 six==1.17.0
"$environment/bin/python" - <<'PYTHON'
import gymnax
import jax
import jax.numpy as jnp

game, params = gymnax.make("Acrobot-v1")
key = jax.random.key(0)
actions = jax.random.randint(jax.random.key(1), (200,), 0, 3)


def play(params):
    def step(state, action):
        _, state, _, terminated, _ = game.step_env(key, state, action, params)
        angles = state.joint_angle1, state.joint_angle2, state.velocity_1, state.velocity_2
        return state, (jnp.stack(angles), terminated)

    return jax.lax.scan(step, game.reset_env(key, params)[1], actions)[1]


states, ends = play(params)
for name, matters in (("link_length_1", True), ("link_length_2", False)):
    other_states, other_ends = play(params.replace(**{name: 2.0}))
    difference = float(jnp.abs(other_states - states).max())
    same_ends = bool(jnp.all(other_ends == ends))
    print(f"{name} doubled: states differ by up to {difference:.3g}, ends are the same: {same_ends}")
    assert (difference > 1) == matters and (matters or (difference == 0 and same_ends))
PYTHON
