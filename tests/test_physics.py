"""The engines: against plain MuJoCo, against each other, and under everything JAX does to them."""

import pathlib
import re
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from metajax.envs import physics
from metajax.errors import MetajaxError

FRAME_SKIP = 5
STEPS = 200


@pytest.fixture(scope="module")
def model():
    return physics.gymnasium_model("half_cheetah")


@pytest.fixture(scope="module")
def engine(model):
    return physics.mujoco_c(model, frame_skip=FRAME_SKIP)


def starts(model, worlds, *, seed=0):
    rng = np.random.default_rng(seed)
    qpos = model.qpos0 + rng.uniform(-0.1, 0.1, (worlds, model.nq))
    return qpos, 0.1 * rng.standard_normal((worlds, model.nv))


def controls(model, worlds, steps, *, size, seed=1):
    return size * np.random.default_rng(seed).uniform(-1, 1, (worlds, steps, model.nu))


def plain_mujoco(model, qpos, qvel, control, *, frame_skip=FRAME_SKIP):
    """Positions and velocities `[world, time, nq + nv]` by a loop of `mj_step`."""
    rows = np.zeros((*control.shape[:2], model.nq + model.nv))
    data = mujoco.MjData(model)
    for world in range(len(qpos)):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = qpos[world], qvel[world]
        for time, now in enumerate(control[world]):
            data.ctrl[:] = now
            mujoco.mj_step(model, data, nstep=frame_skip)
            rows[world, time] = np.concatenate([data.qpos, data.qvel])
    return rows


def play(bundle, qpos, qvel, control):
    """The same through a bundle: one world, `[time, nq + nv]`."""

    def step(state, now):
        state = bundle.step(state, now)
        return state, jnp.concatenate([bundle.qpos(state), bundle.qvel(state)])

    return jax.lax.scan(step, bundle.init(qpos, qvel), control)[1]


def in_double(bundle, qpos, qvel, control):
    arguments = [jnp.asarray(x, jnp.float64) for x in (qpos, qvel, control)]
    return np.asarray(jax.jit(jax.vmap(lambda *x: play(bundle, *x)))(*arguments))


# ---------------------------------------------------------------------------------------------
# The same physics
# ---------------------------------------------------------------------------------------------


def test_the_c_engine_gives_the_bits_of_a_loop_of_mj_step(model):
    # Full controls: contacts make the motion chaotic, so the smallest difference would show.
    start, control = starts(model, 4), controls(model, 4, STEPS, size=1.0)
    with jax.enable_x64(True):
        bundle = physics.mujoco_c(model, frame_skip=FRAME_SKIP)
        played = in_double(bundle, *start, control)
    np.testing.assert_array_equal(played, plain_mujoco(model, *start, control))


def test_mjx_and_the_c_engine_agree_with_plain_mujoco(model):
    # Small controls: the cheetah stands and leans, in contact but never tumbling. As shipped, C
    # MuJoCo stops solving at 1e-8, which one world in ten shows; here all solve to the end.
    exact = physics.gymnasium_model("half_cheetah")
    exact.opt.tolerance = 0
    start, control = starts(model, 4), controls(model, 4, STEPS, size=0.1)
    plain = plain_mujoco(exact, *start, control)
    with jax.enable_x64(True):
        for maker in (physics.mjx, physics.mujoco_c):
            played = in_double(maker(exact, frame_skip=FRAME_SKIP), *start, control)
            assert played.dtype == np.float64
            np.testing.assert_allclose(played, plain, rtol=0, atol=1e-9)
    np.testing.assert_allclose(plain_mujoco(model, *start, control), plain, rtol=0, atol=1e-5)


def test_a_geom_is_where_mujoco_puts_it(model, engine):
    qpos, qvel = starts(model, 1, seed=3)
    data = mujoco.MjData(model)
    data.qpos[:] = qpos[0]
    mujoco.mj_forward(model, data)
    state = engine.init(jnp.asarray(qpos[0], jnp.float32), jnp.asarray(qvel[0], jnp.float32))
    for name in ("head", "ffoot"):
        expected = data.geom(name).xpos
        position = jax.jit(lambda name=name: engine.geom_position(state, name))()
        np.testing.assert_allclose(position, expected, atol=1e-6)


def test_facts_of_the_model(engine):
    assert engine.dt == pytest.approx(0.05)
    assert engine.default_qpos.shape == (9,)
    np.testing.assert_array_equal(engine.control_low, -np.ones(6))
    np.testing.assert_array_equal(engine.control_high, np.ones(6))


# ---------------------------------------------------------------------------------------------
# The C engine inside a program
# ---------------------------------------------------------------------------------------------


def test_every_batch_layout_gives_the_same_bits(model, engine):
    qpos, qvel = (jnp.asarray(x, jnp.float32) for x in starts(model, 12))
    control = jnp.asarray(controls(model, 12, 20, size=1.0), jnp.float32)
    run = lambda *x: play(engine, *x)
    flat = jax.jit(jax.vmap(run))(qpos, qvel, control)
    assert flat.dtype == jnp.float32

    nested = [x.reshape(2, 3, 2, *x.shape[1:]) for x in (qpos, qvel, control)]
    nested = jax.jit(jax.vmap(jax.vmap(jax.vmap(run))))(*nested)
    np.testing.assert_array_equal(nested.reshape(flat.shape), flat)

    alone = jax.jit(run)(qpos[7], qvel[7], control[7])
    np.testing.assert_array_equal(alone, flat[7])

    one_start = jax.jit(jax.vmap(run, in_axes=(None, None, 0)))(qpos[0], qvel[0], control)
    repeated = jax.jit(jax.vmap(run))(
        jnp.repeat(qpos[:1], 12, axis=0), jnp.repeat(qvel[:1], 12, axis=0), control
    )
    np.testing.assert_array_equal(one_start, repeated)

    nobody = jax.jit(jax.vmap(run))(qpos[:0], qvel[:0], control[:0])
    assert nobody.shape == (0, *flat.shape[1:])


def test_sharded_over_devices_gives_the_same_bits(model, engine):
    qpos, qvel = (jnp.asarray(x, jnp.float32) for x in starts(model, 8))
    control = jnp.asarray(controls(model, 8, 10, size=1.0), jnp.float32)
    run = jax.jit(jax.vmap(lambda *x: play(engine, *x)))
    mesh = jax.make_mesh((4,), ("world",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("world"))
    sharded = run(*jax.device_put((qpos, qvel, control), sharding))
    np.testing.assert_array_equal(sharded, run(qpos, qvel, control))


def test_programs_on_several_threads_do_not_disturb_each_other(model, engine):
    sizes = (1, 3, 17, 64)
    programs, expected = {}, {}
    for worlds in sizes:
        start = [jnp.asarray(x, jnp.float32) for x in starts(model, worlds)]
        control = jnp.asarray(controls(model, worlds, 20, size=1.0), jnp.float32)
        program = jax.jit(jax.vmap(lambda *x: play(engine, *x))).lower(*start, control).compile()
        programs[worlds] = lambda program=program, x=(*start, control): program(*x)
        expected[worlds] = np.asarray(programs[worlds]())
    wrong = []

    def call(worlds):
        for _ in range(10):
            if not np.array_equal(programs[worlds](), expected[worlds]):
                wrong.append(worlds)

    threads = [threading.Thread(target=call, args=(worlds,), daemon=True) for worlds in sizes * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e20])
def test_a_world_that_diverges_is_nan_and_alone(model, engine, broken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    qpos, qvel = (jnp.asarray(x, jnp.float32) for x in starts(model, 3))
    control = jnp.zeros((3, 2, 6), jnp.float32)
    run = jax.jit(jax.vmap(lambda *x: play(engine, *x)))
    whole = run(qpos, qvel, control)
    for sick in (
        run(qpos.at[1, 2].set(broken), qvel, control),
        run(qpos, qvel.at[1, 2].set(broken), control),
        run(qpos, qvel, control.at[1, 0, 2].set(broken)),
    ):
        assert np.isnan(sick[1]).all()
        np.testing.assert_array_equal(sick[np.array([0, 2])], whole[np.array([0, 2])])
    assert not list(tmp_path.iterdir())  # where MuJoCo would have left its log


def test_a_world_that_diverges_within_a_step_is_nan(model, engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log here
    qpos, qvel = (jnp.asarray(x[0], jnp.float32) for x in starts(model, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mujoco, "mjMAXVAL", np.inf)  # let it start from where MuJoCo would not
        rows = jax.jit(lambda: play(engine, qpos, qvel.at[3].set(1e9), jnp.zeros((1, 6))))()
        jax.block_until_ready(rows)
    assert np.isnan(rows).all()


def test_a_gradient_through_the_c_engine_is_refused(engine):
    def loss(control):
        state = engine.init(jnp.asarray(engine.default_qpos, jnp.float32), jnp.zeros(9))
        return engine.qpos(engine.step(state, control))[0]

    with pytest.raises(MetajaxError, match="no gradient"):
        jax.grad(loss)(jnp.zeros(6))
    assert jax.grad(lambda x: loss(jax.lax.stop_gradient(x)) + jnp.sum(x**2))(jnp.ones(6))[0] == 2


# ---------------------------------------------------------------------------------------------
# Chunks of worlds
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worlds", [1, 5, 8, 9, 30])
def test_chunks_change_nothing(worlds):
    def step(state, control):
        return {"x": jnp.sin(state["x"]) + control.sum(), "n": state["n"] + 1}

    chunked = physics._in_chunks(step, 8)
    state = {"x": jnp.arange(3.0 * worlds).reshape(worlds, 3), "n": jnp.arange(worlds)}
    control = jnp.ones((2, 2))
    layouts = [(None, 0), (0, None)]  # every world under both controls

    def both(step):
        inner = jax.vmap(step, in_axes=layouts[0])
        return jax.jit(jax.vmap(inner, in_axes=layouts[1]))(state, control)

    jax.tree.map(np.testing.assert_array_equal, both(chunked), both(step))
    scans = re.findall(
        r"length=(\d+)",
        str(jax.make_jaxpr(jax.vmap(chunked))(state, control[:1].repeat(worlds, 0))),
    )
    assert scans == [str(-(-worlds // 8))]


def test_chunks_can_be_differentiated_forwards():
    chunked = physics._in_chunks(lambda state, control: jnp.sin(state) * control, 8)
    state, control = jnp.linspace(0, 1, 20), jnp.linspace(1, 2, 20)
    _, tangent = jax.jvp(jax.vmap(chunked), (state, control), (jnp.ones(20), jnp.zeros(20)))
    np.testing.assert_allclose(tangent, jnp.cos(state) * control, rtol=1e-6)


# ---------------------------------------------------------------------------------------------
# Choosing an engine
# ---------------------------------------------------------------------------------------------


def test_the_default_follows_the_machine(monkeypatch):
    assert physics.resolve_backend("auto") == "mujoco"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert physics.resolve_backend("auto") == "mjx"
    assert physics.resolve_backend("spring") == "spring"
    with pytest.raises(MetajaxError, match="runs on a CPU only, but JAX runs on gpu"):
        physics.resolve_backend("mujoco")


def test_an_unknown_engine_is_named_with_the_nearest_one():
    with pytest.raises(MetajaxError, match="unknown backend 'mujco'; did you mean 'mujoco'"):
        physics.resolve_backend("mujco")


def test_engines_are_made_without_a_word(tmp_path):
    script = "from metajax.envs.physics import BACKENDS, make_physics\n" + "".join(
        f"make_physics('reacher', without='target', backend={backend!r}, frame_skip=2,"
        " brax_substeps=4)\n"
        for backend in physics.BACKENDS
    )
    command = [sys.executable, "-W", "error", "-c", script]
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------
# Linear algebra that cannot hang
# ---------------------------------------------------------------------------------------------


def test_factors_and_solutions_are_those_of_jax():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((9, 9))
    right = rng.standard_normal((9, 4))
    with jax.enable_x64(True):
        matrix = jnp.asarray(root @ root.T + np.eye(9))
        for lower in (False, True):
            expected = np.linalg.cholesky(matrix)
            factor, flag = physics._cho_factor(matrix, lower)
            np.testing.assert_allclose(factor, expected if lower else expected.T, atol=1e-12)
            assert flag == lower
            for columns in (right, right[:, 0]):
                solved = physics._cho_solve((factor, lower), jnp.asarray(columns))
                np.testing.assert_allclose(matrix @ solved, columns, atol=1e-12)
        solved = physics._solve(matrix, jnp.asarray(right), assume_a="pos")
        np.testing.assert_allclose(matrix @ solved, right, atol=1e-12)


@pytest.mark.parametrize("backend", ["mjx", "spring", "positional", "generalized"])
def test_programs_in_pure_jax_call_neither_lapack_nor_the_host(backend):
    originals = jax.scipy.linalg.cho_factor, jax.scipy.linalg.cho_solve, jax.scipy.linalg.solve
    bundle = physics.make_physics("half_cheetah", backend=backend, frame_skip=5, brax_substeps=16)
    many = jax.vmap(lambda qpos: bundle.step(bundle.init(qpos, jnp.zeros(9)), jnp.zeros(6)))
    text = jax.jit(many).lower(jnp.zeros((1024, 9))).as_text()
    assert "while" in text  # the substeps: this is the program
    assert set(re.findall(r"custom_call @(\w+)", text)) <= {"Sharding"}
    now = jax.scipy.linalg.cho_factor, jax.scipy.linalg.cho_solve, jax.scipy.linalg.solve
    assert now == originals
