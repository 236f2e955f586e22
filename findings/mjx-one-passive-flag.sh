#!/usr/bin/env bash
# mujoco-mjx 3.17.0 beside mujoco 4.0.0: with one of the flags "spring" and "damper" disabled, MJX
# leaves out both springs and dampers.
#
# C MuJoCo has two flags and obeys each: without dampers, springs still pull. In MJX the passive
# forces are 0 as soon as either flag is disabled, so a model whose dampers are off loses its
# springs, too, and nothing says so.
#
# Seen: a slide of 1 kg with stiffness 10 and damping 2, at 0.5 m and 1 m/s. Acceleration (m/s²):
# both flags on -7 and -7; damper off: C -5, MJX 0; spring off: C -2, MJX 0; both off: 0 and 0.
set -euo pipefail

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
"$environment/bin/pip" install -q mujoco==4.0.0 mujoco-mjx==3.17.0 jax==0.10.2
"$environment/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import mujoco
from mujoco import mjx

MODEL = """
<mujoco>
  <option gravity="0 0 0"><flag spring="{}" damper="{}"/></option>
  <worldbody>
    <body>
      <joint type="slide" axis="1 0 0" stiffness="10" damping="2"/>
      <geom size=".1" mass="1"/>
    </body>
  </worldbody>
</mujoco>
"""

for spring, damper, in_c, in_jax in (
    ("enable", "enable", -7, -7),
    ("enable", "disable", -5, 0),
    ("disable", "enable", -2, 0),
    ("disable", "disable", 0, 0),
):
    model = mujoco.MjModel.from_xml_string(MODEL.format(spring, damper))
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = 0.5, 1.0
    mujoco.mj_forward(model, data)
    ported = mjx.put_model(model)
    state = mjx.make_data(ported).replace(qpos=jnp.array([0.5]), qvel=jnp.array([1.0]))
    found = float(mjx.forward(ported, state).qacc[0])
    print(f"spring {spring}, damper {damper}: C MuJoCo {data.qacc[0]:.4f}, MJX {found:.4f}")
    assert abs(data.qacc[0] - in_c) < 1e-4 and abs(found - in_jax) < 1e-4
PYTHON
