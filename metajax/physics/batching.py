"""How the step of an engine is batched and differentiated.

An engine takes about as long to trace as to compile. `jax.jit` around its steps is there for its
cache alone: traced once, whatever program, loop or `vmap` they are part of.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.flatten_util import ravel_pytree

from metajax.errors import MetajaxError

CHUNK = 16  # beyond one vector register of single precision, XLA's code for MJX is half as fast


def by_jacobians(function, batch=lambda function: function):
    """Return `function` with derivatives in both modes, where it has them in forward mode only.

    Its Jacobian is made in forward mode, and has derivatives in the same way.

    Args:
        function: of pytrees of floating-point arrays.
        batch: how `function` itself is to be computed: see `in_chunks_on_cpu`.
    """
    computed = jax.custom_jvp(batch(function))

    @computed.defjvp
    def jvp(primals, tangents):
        flat, unravel = ravel_pytree(primals)

        def of_flat(flat):
            after = function(*unravel(flat))
            return ravel_pytree(after)[0], after

        jacobian, after = by_jacobians(jax.jacfwd(of_flat, has_aux=True))(flat)
        return after, ravel_pytree(after)[1](jacobian @ ravel_pytree(tangents)[0])

    return computed


def in_chunks_on_cpu(step, most: int = CHUNK):
    """Return `step` so that `vmap`, however nested, takes at most so many environments at once.

    One chunk after the other; so there is forward-mode differentiation, but no reverse mode. That
    is in a program for a CPU; in one for another platform `vmap` takes all of them.

    Args:
        step: of one environment.
        most: environments in a chunk.
    """
    step_each = jax.vmap(jax.jit(step))

    def step_chunks(*arguments):
        count = len(jax.tree.leaves(arguments)[0])
        chunks = -(-count // most)
        size = -(-count // chunks)

        def cut(x):
            fill = [(0, chunks * size - count)] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(x, fill, mode="edge").reshape(chunks, size, *x.shape[1:])

        after = jax.lax.map(lambda chunk: step_each(*chunk), jax.tree.map(cut, arguments))
        return jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2)[:count], after)

    def step_all(*arguments):
        if len(jax.tree.leaves(arguments)[0]) <= most:
            return step_each(*arguments)
        return jax.lax.platform_dependent(*arguments, cpu=step_chunks, default=step_each)

    return all_at_once(step_all)


def all_at_once(step_all):
    """Return the step of one environment that `vmap`, however nested, computes by `step_all`.

    Args:
        step_all: takes and returns arrays with a leading axis of environments.
    """
    step_all = custom_vmap(step_all)

    @step_all.def_vmap
    def step_batches(size, batched, *arguments):
        def flat(x, is_batched):
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return jax.lax.collapse(x, 0, 2)

        after = step_all(*jax.tree.map(flat, arguments, tuple(batched)))
        after = jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]), after)
        return after, jax.tree.map(lambda _: True, after)

    def step_one(*arguments):
        after = step_all(*jax.tree.map(lambda x: x[None], arguments))
        return jax.tree.map(lambda x: x[0], after)

    return step_one


def without_gradient(function: Callable[..., Any], engine: str) -> Any:
    """Return a function that refuses to be differentiated.

    Args:
        function: whose step has no derivative.
        engine: what it is, for the message.
    """
    refusing = jax.custom_jvp(function)

    @refusing.defjvp
    def no_gradient(primals, tangents):
        raise MetajaxError(
            f"{engine}, which has no gradient: to differentiate through the physics take backend "
            "'mjx', 'spring', 'positional' or 'generalized'."
        )

    return refusing
