#!/usr/bin/env bash
# optax 0.2.8 with jax 0.10.2: differentiating through a clipped update gives NaN at a zero gradient.
#
# A meta-gradient differentiates an optimizer's update by the gradient that it is given.
# optax.clip_by_global_norm leaves gradients shorter than its bound as they are, so the derivative
# there is the identity; at a gradient of exactly zero it is NaN, through the square root of the norm
# in the branch that is not taken. One task whose gradient vanishes then spoils the meta-gradient of
# all. optax.adaptive_grad_clip does the same; optax.clip, by value, does not.
#
# Seen: derivative at [3e-3, 4e-3]: the identity; at [0, 0]: NaN, and NaN by adaptive_grad_clip;
# optax.clip at [0, 0]: the identity.
set -euo pipefail

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
"$environment/bin/pip" install -q optax==0.2.8 jax==0.10.2
"$environment/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax


def derivative(transformation, gradient):
    """Return how the update changes with the gradient."""

    def update_of(gradient):
        return transformation.update(gradient, transformation.init(gradient), jnp.ones(2))[0]

    return np.asarray(jax.jacobian(update_of)(jnp.asarray(gradient)))


by_norm = optax.clip_by_global_norm(1.0)
short, zero = derivative(by_norm, [3e-3, 4e-3]), derivative(by_norm, [0.0, 0.0])
print("clip_by_global_norm(1.0), a short gradient:", short.tolist(), "zero:", zero.tolist())
np.testing.assert_allclose(short, np.eye(2), atol=1e-6)
assert np.isnan(zero).any()
by_value = derivative(optax.clip(1.0), [0.0, 0.0])
print("clip(1.0), zero:", by_value.tolist())
np.testing.assert_array_equal(by_value, np.eye(2))
agc = derivative(optax.adaptive_grad_clip(1.0), [0.0, 0.0])
print("adaptive_grad_clip(1.0), zero:", agc.tolist())
assert np.isnan(agc).any()
PYTHON
