"""Environment steps are counted exactly, however many there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.envs import make
from metajax.steps import count_steps, count_update, counted
from metajax.types import TrainState, Trial


@pytest.mark.parametrize("steps", [0, 1, 2**31 - 1, 2**32 - 1, 2**32, 3 * 2**32 + 7, 10**15])
def test_a_count_is_exact_beyond_32_bits(steps):
    """Beside Python's whole numbers; int32 runs over at 2e9, float32 is inexact from 2e7."""
    count, expected = TrainState(()).environment_steps, 0
    add = jax.jit(lambda count: count_steps(count, steps))
    for _ in range(5):
        count, expected = add(count), expected + steps
        assert count.dtype == jnp.uint32
        assert int(counted(count)) == expected


def test_counts_of_seeds_are_told_apart():
    counts = np.array([[0, 5], [1, 0], [2, 2**32 - 1]], np.uint32)
    assert counted(counts).tolist() == [5, 2**32, 3 * 2**32 - 1]


def test_an_update_counts_every_step_of_every_task():
    """Three tasks x two rounds x four episodes x seven steps, however soon an episode ends."""
    env = make("point-goal", episode_length=7).env
    count = count_update(TrainState(()).environment_steps, 3, Trial(2, 4, 1), env)
    assert int(counted(count)) == 3 * 2 * 4 * 7
