"""The engines: against plain MuJoCo, against each other, and under everything JAX does to them."""

import copy
import itertools
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
import scipy.optimize

from metajax import physics
from metajax.errors import MetajaxError
from metajax.physics import linear_algebra, runge_kutta
from metajax.physics.batching import in_chunks_on_cpu
from metajax.physics.segments import closest_segment_to_segment_points

FRAME_SKIP = 5
STEPS = 200


@pytest.fixture(scope="module")
def model():
    return physics.load_model("half_cheetah")


@pytest.fixture(scope="module")
def engine(model):
    return physics.mujoco_c.make(model, frame_skip=FRAME_SKIP)


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


def play(bundle, qpos, qvel, control, *, dynamics=None):
    """The same through a bundle: one world, `[time, nq + nv]`."""

    def step(state, now):
        state = bundle.step(state, now, dynamics)
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
        bundle = physics.mujoco_c.make(model, frame_skip=FRAME_SKIP)
        played = in_double(bundle, *start, control)
    np.testing.assert_array_equal(played, plain_mujoco(model, *start, control))


def test_mjx_and_the_c_engine_agree_with_plain_mujoco(model):
    # Small controls: the cheetah stands and leans, in contact but never tumbling. As shipped, C
    # MuJoCo stops solving at 1e-8, which one world in ten shows; here all solve to the end.
    exact = physics.load_model("half_cheetah")
    exact.opt.tolerance = 0
    start, control = starts(model, 4), controls(model, 4, STEPS, size=0.1)
    plain = plain_mujoco(exact, *start, control)
    with jax.enable_x64(True):
        for maker in (physics.mjx, physics.mujoco_c):
            played = in_double(maker.make(exact, frame_skip=FRAME_SKIP), *start, control)
            assert played.dtype == np.float64
            np.testing.assert_allclose(played, plain, rtol=0, atol=1e-9)
    np.testing.assert_allclose(plain_mujoco(model, *start, control), plain, rtol=0, atol=1e-5)


def test_places_and_motions_are_where_mujoco_puts_them():
    model = physics.load_model("humanoid")
    data = mujoco.MjData(model)
    qpos, qvel = starts(model, 1, seed=3)
    data.qpos[:], data.qvel[:] = qpos[0], qvel[0]
    mujoco.mj_normalizeQuat(model, data.qpos)
    mujoco.mj_forward(model, data)
    with jax.enable_x64(True):
        engine = physics.mujoco_c.make(model, frame_skip=5)
        state = engine.init(jnp.asarray(data.qpos), jnp.asarray(data.qvel))
        found = jax.jit(engine.kinematics)(state)
    expected = {
        "geom_position": data.geom_xpos,
        "body_position": data.xpos,
        "body_rotation": data.xmat.reshape(-1, 3, 3),
        "center_of_mass": model.body_mass @ data.xipos / np.sum(model.body_mass),
        "inertia": data.cinert,
        "velocity": data.cvel,
    }
    assert found._fields == tuple(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=0, atol=1e-12, err_msg=name)


def test_facts_of_the_model(engine):
    assert engine.dt == pytest.approx(0.05)
    assert engine.default_qpos.shape == (9,)
    np.testing.assert_array_equal(engine.control_range, [[-1, 1]] * 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swimmer", "ant", "hopper", "humanoid", "walker2d"])
def test_runge_kutta_in_jax_is_that_of_the_c_engine(name):
    """Solved to the end, with as many iterations as it takes: the same method, to rounding."""
    exact = physics.load_model(name)
    exact.opt.tolerance = 0
    start, control = starts(exact, 2), controls(exact, 2, 20, size=0.3)
    for qpos in start[0]:
        mujoco.mj_normalizeQuat(exact, qpos)
    plain = plain_mujoco(exact, *start, control)
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(physics.mjx, "SOLVER_ITERATIONS", 50)
        patch.setattr(physics.mjx, "LINE_SEARCH", 50)
        played = in_double(physics.mjx.make(exact, frame_skip=FRAME_SKIP), *start, control)
    np.testing.assert_allclose(played, plain, rtol=0, atol=1e-11)


# (size of the controls, environment steps, largest difference). As shipped, C MuJoCo stops solving
# at 1e-8 and MJX after 8 iterations; where feet come and go, that grows.
LONG = {
    ("ant", 5): [(1.0, 100, 1e-8), (1.0, 200, 1e-3)],
    ("half_cheetah", 5): [(0.3, 200, 1e-11), (1.0, 50, 1e-6)],  # full controls make it tumble
    ("hopper", 4): [(1.0, 100, 1e-11), (1.0, 200, 1e-5)],
    ("humanoid", 5): [(1.0, 200, 1e-10)],
    ("reacher", 2): [(1.0, 200, 1e-9)],
    ("swimmer", 4): [(1.0, 200, 1e-11)],
    ("walker2d", 8): [(1.0, 100, 1e-9), (1.0, 200, 1e-6)],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "frame_skip"), LONG)
def test_two_hundred_steps_as_shipped(name, frame_skip):
    """Gymnasium's models from where they stand, float64: MJX beside a loop of `mj_step`."""
    model = physics.load_model(name, without="target" if name == "reacher" else None)
    start = model.qpos0[None], np.zeros((1, model.nv))
    for size, steps, tolerance in LONG[name, frame_skip]:
        control = controls(model, 1, steps, size=size * model.actuator_ctrlrange[0, 1], seed=0)
        plain = plain_mujoco(model, *start, control, frame_skip=frame_skip)
        assert np.abs(plain[0, -1] - plain[0, 0]).max() > 0.1  # it moved
        with jax.enable_x64(True):
            played = in_double(physics.mjx.make(model, frame_skip=frame_skip), *start, control)
        np.testing.assert_allclose(played, plain, rtol=0, atol=tolerance)


def test_capsules_meet_where_a_minimizer_says():
    """Segments at random, some parallel, some that are points."""
    rng = np.random.default_rng(0)
    ends = rng.uniform(-1, 1, (40, 4, 3))
    ends[:8, 3] = ends[:8, 2] + rng.uniform(-2, 2, (8, 1)) * (ends[:8, 1] - ends[:8, 0])
    ends[8:12, 1] = ends[8:12, 0]
    ends[12:14, 3] = ends[12:14, 2]
    with jax.enable_x64(True):
        closest = jax.jit(jax.vmap(closest_segment_to_segment_points))
        points = np.asarray(closest(*np.moveaxis(ends, 1, 0)))
    for (a0, a1, b0, b1), a, b in zip(ends, *points, strict=True):

        def apart(at, a0=a0, a1=a1, b0=b0, b1=b1):
            return np.sum((a0 + at[0] * (a1 - a0) - b0 - at[1] * (b1 - b0)) ** 2)

        starts_ = itertools.product((0.0, 0.5, 1.0), repeat=2)
        found = [scipy.optimize.minimize(apart, x, bounds=[(0, 1)] * 2).fun for x in starts_]
        assert np.sum((a - b) ** 2) == pytest.approx(min(found), abs=1e-7)
        for point, (end, other) in ((a, (a0, a1)), (b, (b0, b1))):  # and both lie on their segment
            detour = np.linalg.norm(point - end) + np.linalg.norm(point - other)
            assert detour == pytest.approx(np.linalg.norm(end - other), abs=1e-12)


def test_small_and_large_turns_agree_with_mujoco():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for size in (1e-9, 1e-3, 0.09, 0.11, 1.0, 3.0):
            quaternion, by = rng.standard_normal(4), rng.standard_normal(3)
            quaternion, by = quaternion / np.linalg.norm(quaternion), size * by / np.linalg.norm(by)
            turned = quaternion.copy()
            mujoco.mju_quatIntegrate(turned, by, 1.0)
            found = runge_kutta.turn(jnp.asarray(quaternion), jnp.asarray(by))
            np.testing.assert_allclose(found, turned, atol=1e-12)

            # Definition: exp(by + dt·rate) is exp(by) turned on by dt·velocity.
            velocity, dt = rng.standard_normal(3), 1e-6
            rate = runge_kutta.rate_of_turn(jnp.asarray(by), jnp.asarray(velocity))
            one, other = np.array([1.0, 0, 0, 0]), np.array([1.0, 0, 0, 0])
            mujoco.mju_quatIntegrate(one, np.asarray(by + dt * rate), 1.0)
            mujoco.mju_quatIntegrate(other, by, 1.0)
            mujoco.mju_quatIntegrate(other, velocity, dt)
            np.testing.assert_allclose(one, other, atol=1e-11)
        gradient = jax.jacobian(runge_kutta.turn, argnums=1)(jnp.asarray(one), jnp.zeros(3))
        assert np.isfinite(gradient).all()


# ---------------------------------------------------------------------------------------------
# Contact forces and other dynamics
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "maker", [pytest.param(physics.mjx, marks=pytest.mark.slow), physics.mujoco_c]
)
@pytest.mark.parametrize(  # Euler's method and Runge-Kutta's
    "name", ["half_cheetah", pytest.param("ant", marks=pytest.mark.slow)]
)
def test_contact_forces_are_those_at_the_start_of_the_last_substep(name, maker):
    exact = physics.load_model(name, contact_sensor=True)
    exact.opt.tolerance = 0
    start, control = starts(exact, 2), controls(exact, 2, 20, size=0.2)
    expected = np.zeros((2, 20, exact.nbody, 6))
    for world in range(2):
        data = mujoco.MjData(exact)
        data.qpos[:], data.qvel[:] = start[0][world], start[1][world]
        for time, now in enumerate(control[world]):
            data.ctrl[:] = now
            mujoco.mj_step(exact, data, nstep=FRAME_SKIP - 1)
            mujoco.mj_forward(exact, data)
            mujoco.mj_rnePostConstraint(exact, data)
            expected[world, time] = data.cfrc_ext
            mujoco.mj_step(exact, data)
    assert np.abs(expected).max() > 10

    with jax.enable_x64(True):
        bundle = maker.make(exact, frame_skip=FRAME_SKIP, contact_forces=True)
        assert (
            bundle.contact_force(bundle.init(jnp.zeros(exact.nq), jnp.zeros(exact.nv))).max() == 0
        )

        def step(state, now):
            state = bundle.step(state, now)
            return state, bundle.contact_force(state)

        run = lambda qpos, qvel, control: jax.lax.scan(step, bundle.init(qpos, qvel), control)[1]
        found = jax.jit(jax.vmap(run))(*start, control)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def shapes_of(model):
    return {name: physics.field_shape(model, name) for name in physics.DYNAMICS}


@pytest.mark.parametrize(
    "maker", [pytest.param(physics.mjx, marks=pytest.mark.slow), physics.mujoco_c]
)
def test_multiplied_dynamics_are_a_model_edited_by_hand(maker):
    exact = physics.load_model("hopper")
    exact.opt.tolerance = 0
    start, control = starts(exact, 3), controls(exact, 3, 30, size=0.3)
    rng = np.random.default_rng(2)
    multipliers = {n: 1.5 ** rng.uniform(-1, 1, (3, *s)) for n, s in shapes_of(exact).items()}
    plain = []
    for world in range(3):
        edited = copy.copy(exact)
        edited.body_mass[:] *= multipliers["mass"][world]
        edited.body_inertia[:] *= multipliers["inertia"][world]
        edited.geom_friction[:] *= multipliers["friction"][world]
        edited.dof_damping[:] *= multipliers["damping"][world]
        edited.opt.gravity[:] *= multipliers["gravity"][world]
        edited.actuator_gear[:] *= multipliers["gear"][world]
        one = [x[world : world + 1] for x in (*start, control)]
        plain.append(plain_mujoco(edited, *one)[0])
    with jax.enable_x64(True):
        bundle = maker.make(exact, frame_skip=FRAME_SKIP)
        run = jax.jit(jax.vmap(lambda d, *x: play(bundle, *x, dynamics=d)))
        played = run(jax.tree.map(jnp.asarray, multipliers), *start, control)
        np.testing.assert_allclose(played, plain, rtol=0, atol=1e-9)
        assert np.ptp(played[:, -1], axis=0).max() > 0.1

        nothing = jax.tree.map(jnp.ones_like, multipliers)  # also restores what was changed before
        np.testing.assert_allclose(
            run(nothing, *start, control), plain_mujoco(exact, *start, control), rtol=0, atol=1e-9
        )
        assert run._cache_size() == 1


@pytest.fixture(scope="module")
def brax_hopper():
    bundle = physics.make_physics("hopper", backend="generalized", frame_skip=4, brax_substeps=8)
    run = lambda dynamics, *x: play(bundle, *x, dynamics=dynamics)
    return bundle, jax.jit(jax.vmap(run, in_axes=(0, None, None, None)))


@pytest.mark.slow
@pytest.mark.parametrize("name", physics.DYNAMICS)
def test_every_multiplier_does_something_on_brax(name, brax_hopper):
    bundle, run = brax_hopper
    ones = {n: jnp.ones((2, *s)) for n, s in shapes_of(bundle.model).items()}
    doubled = ones | {name: ones[name].at[1].set(2.0)}
    start = jnp.asarray(bundle.default_qpos, jnp.float32), 0.1 * jnp.ones(bundle.model.nv)
    played = np.asarray(run(doubled, *start, 0.3 * jnp.ones((40, bundle.model.nu))))
    assert np.isfinite(played).all()
    assert abs(played[0, 0, 1] - 1.25) < 0.05  # where the hopper of the model's file stands
    assert np.abs(played[0] - played[1]).max() > 1e-3


def test_impossible_dynamics_are_refused(engine, model):
    state = engine.init(jnp.zeros(9), jnp.zeros(9))
    with pytest.raises(MetajaxError, match="unknown dynamics 'mas'; did you mean 'mass'"):
        engine.step(state, jnp.zeros(6), {"mas": jnp.ones(8)})
    with pytest.raises(MetajaxError, match=r"mass have shape \(7,\); they must be \(8,\)"):
        engine.step(state, jnp.zeros(6), {"mass": jnp.ones(7)})
    spring = physics.make_physics("hopper", backend="spring", frame_skip=4, brax_substeps=8)
    state = jax.eval_shape(spring.init, jnp.zeros(6), jnp.zeros(6))
    with pytest.raises(MetajaxError, match="backend 'spring' cannot change mass"):
        jax.eval_shape(spring.step, state, jnp.zeros(3), {"mass": jnp.ones(5)})


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ("<body><joint/></body>", "MuJoCo cannot compile .*mass"),
        ("<body>", "MuJoCo cannot read"),
        (
            "<geom type='ellipsoid' size='.1 .1 .1'/>"
            "<body><joint/><geom type='box' size='.1 .1 .1'/></body>",
            "'mjx' cannot load .*: ",
        ),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_sentence(world, message, tmp_path):
    path = tmp_path / "body.xml"
    path.write_text(f"<mujoco><worldbody>{world}</worldbody></mujoco>")
    with pytest.raises(MetajaxError, match=message):
        physics.make_physics(str(path), backend="mjx", frame_skip=1, brax_substeps=1)


def test_a_model_that_is_not_there():
    with pytest.raises(MetajaxError, match=r"cannot read .*nowhere\.xml"):
        physics.make_physics("nowhere.xml", backend="mujoco", frame_skip=1, brax_substeps=1)


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

    chunked = in_chunks_on_cpu(step, 8)
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
    assert scans == ([str(-(-worlds // 8))] if worlds > 8 else [])


def test_chunks_can_be_differentiated_forwards():
    chunked = in_chunks_on_cpu(lambda state, control: jnp.sin(state) * control, 8)
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
    script = "from metajax.physics import BACKENDS, make_physics\n" + "".join(
        f"make_physics('reacher', without='target', backend={backend!r}, frame_skip=2,"
        " brax_substeps=4)\n"
        for backend in physics.BACKENDS
        if backend != "warp"
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
            factor, flag = linear_algebra.cho_factor(matrix, lower)
            np.testing.assert_allclose(factor, expected if lower else expected.T, atol=1e-12)
            assert flag == lower
            for columns in (right, right[:, 0]):
                solved = linear_algebra.cho_solve((factor, lower), jnp.asarray(columns))
                np.testing.assert_allclose(matrix @ solved, columns, atol=1e-12)
        solved = linear_algebra.solve(matrix, jnp.asarray(right), assume_a="pos")
        np.testing.assert_allclose(matrix @ solved, right, atol=1e-12)


@pytest.mark.parametrize(
    "backend",
    [
        "mjx",
        "spring",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("positional", "generalized")),
    ],
)
def test_programs_in_pure_jax_call_neither_lapack_nor_the_host(backend):
    bundle = physics.make_physics("half_cheetah", backend=backend, frame_skip=5, brax_substeps=16)
    many = jax.vmap(lambda qpos: bundle.step(bundle.init(qpos, jnp.zeros(9)), jnp.zeros(6)))
    text = jax.jit(many).lower(jnp.zeros((1024, 9))).as_text()
    assert "while" in text  # the substeps: this is the program
    assert set(re.findall(r"custom_call @(\w+)", text)) <= {"Sharding"}
