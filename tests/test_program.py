"""One program: compiled once per run, and free of host callbacks where physics is pure JAX."""

import re

import jax
import jax.numpy as jnp
import pytest

import metajax
from metajax.training.program import make_segment

COMPILATION = "/jax/core/compile/backend_compile_duration"


def tiny(family, **options):
    policy = metajax.mlp(family.env.observation_size, family.env.action_space, hidden=(8,))
    return metajax.maml(family.env, policy, episodes=2, **options)


@pytest.fixture
def compilations():
    """The number of compilations so far, as a list that grows by one each time."""
    seen: list[str] = []

    def listen(event, duration, **_):
        if event == COMPILATION:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_compiles_after_the_first_segment(tmp_path, compilations):
    """Not for segments of other lengths, evaluations or saves, nor for the end of the run."""
    family = metajax.make("point-goal", episode_length=5)
    counts = []

    def run(iterations, resume):
        counts.clear()
        metajax.train(
            tiny(family, outer=metajax.outer.ppo()),
            family,
            iterations=iterations,
            tasks=2,
            seeds=2,
            segment=3,
            evaluation=metajax.Evaluation(every=5, tasks=2, episodes=2, rounds=2, final_tasks=5),
            keep="best",
            run_directory=tmp_path / "run",
            resume=resume,
            report=lambda progress: counts.append(len(compilations)),
        )
        assert len(counts) >= 4
        assert counts[0] > 0, "the listener is never called"
        assert counts[-1] == counts[0] == len(compilations)

    run(11, resume=False)
    run(23, resume=True)


def optimized(family, **options):
    """Return the optimized HLO of a whole segment, evaluation included."""
    program = make_segment(
        tiny(family, **options),
        family,
        length=2,
        tasks=2,
        evaluation=metajax.Evaluation(tasks=2, episodes=2, rounds=2),
    )
    key, stop = jax.random.key(0), jnp.asarray(1, jnp.int32)
    state = jax.eval_shape(program.init, key)
    return jax.jit(program.run).lower(state, key, stop, jnp.asarray(True), stop).compile().as_text()


def callbacks(text):
    """Return the calls of the host, and of LAPACK, which can wait for ever on several devices."""
    targets = re.findall(r'custom_call_target="([^"]+)"', text)
    return [t for t in targets if "callback" in t.lower() or "lapack" in t.lower()]


STEPS = [pytest.param(metajax.outer.ppo(), marks=pytest.mark.slow), metajax.outer.trpo()]


@pytest.mark.parametrize("outer", STEPS, ids=repr)
def test_no_host_callback_without_physics(outer):
    text = optimized(metajax.make("point-goal", episode_length=5), outer=outer)
    assert "while" in text
    assert not callbacks(text)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mjx", "spring", "positional", "generalized"])
def test_no_host_callback_with_physics_in_jax(backend):
    family = metajax.make("halfcheetah-dir", backend=backend, episode_length=2)
    assert not callbacks(optimized(family, outer=metajax.outer.adam()))


def test_the_c_engine_is_the_one_host_callback():
    """Once in training and once in evaluation: each has one traced rollout."""
    family = metajax.make("halfcheetah-dir", backend="mujoco", episode_length=2)
    assert len(callbacks(optimized(family, outer=metajax.outer.adam()))) == 2
