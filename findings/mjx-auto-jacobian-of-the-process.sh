#!/usr/bin/env bash
# mujoco-mjx 3.17.0 with jax 0.10.2: "auto" Jacobians follow the process, not the platform that is
# lowered for.
#
# MJX documents that a model whose option `jacobian` is auto (the default) has sparse mass matrices on
# a TPU, dense ones elsewhere if it has fewer than 60 degrees of freedom. It asks
# `jax.default_backend()` while it is traced. JAX can lower a program for a platform that the process
# does not have (`lowering_platforms`, `jax.export`); a step lowered for a TPU by a process on a CPU is
# then the dense one, not the program that a process on a TPU compiles: what is measured, counted or
# exported that way is another program. Setting `jacobian` to sparse or dense says it once for both.
#
# Seen: the state that is lowered for "tpu" holds the mass matrix as 2 x 2 with auto and with dense, and
# as a vector of 3 with sparse.
set -euo pipefail

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
"$environment/bin/pip" install -q mujoco==4.0.0 mujoco-mjx==3.17.0 jax==0.10.2
JAX_PLATFORMS=cpu "$environment/bin/python" - <<'PYTHON'
import jax
import mujoco
from mujoco import mjx

XML = """
<mujoco>
  <option jacobian="{}"/>
  <worldbody>
    <body>
      <joint type="hinge" axis="0 1 0"/><geom size=".1 .1" type="capsule"/>
      <body pos="0 0 .5"><joint type="hinge" axis="0 1 0"/><geom size=".1 .1" type="capsule"/></body>
    </body>
  </worldbody>
</mujoco>
"""


def mass_matrix(jacobian):
    """Return the shape of the mass matrix in a step that is lowered for a TPU."""
    model = mjx.put_model(mujoco.MjModel.from_xml_string(XML.format(jacobian)))

    def masses():
        data = mjx.step(model, mjx.make_data(model))
        return data._impl.M

    lowered = jax.jit(masses).trace().lower(lowering_platforms=("tpu",))
    return jax.tree.leaves(lowered.out_info)[0].shape


found = {jacobian: mass_matrix(jacobian) for jacobian in ("auto", "dense", "sparse")}
print(found)
assert found == {"auto": (2, 2), "dense": (2, 2), "sparse": (3,)}
PYTHON
