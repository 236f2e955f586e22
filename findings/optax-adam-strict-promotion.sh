#!/usr/bin/env bash
# optax 0.2.8 under JAX's strict type promotion: Adam raises, gradient descent does not.
#
# JAX_NUMPY_DTYPE_PROMOTION=strict forbids arrays of different types in one operation. The bias
# correction of Adam raises a decay rate, a Python number turned into an array, to the power of an
# int32 counter, which is such an operation; so nobody whose own code is strict can call it without
# a context of standard promotion around it.
#
# Seen: optax.sgd takes two steps; optax.adam raises TypePromotionError in the first one.
set -euo pipefail

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
"$environment/bin/pip" install -q optax==0.2.8 jax==0.10.2
"$environment/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import optax


def two_steps(optimizer):
    params = jnp.ones(3)
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jnp.ones(3), state, params)
        params = optax.apply_updates(params, updates)
    return params


two_steps(optax.adam(1e-3))  # with standard promotion
with jax.numpy_dtype_promotion("strict"):
    print("sgd, strict:", two_steps(optax.sgd(1e-3)))
    try:
        two_steps(optax.adam(1e-3))
    except Exception as error:
        print(f"adam, strict: {type(error).__name__}: {str(error).splitlines()[0][:90]}")
        assert "promotion" in str(error)
    else:
        raise SystemExit("adam, strict: it works now")
PYTHON
