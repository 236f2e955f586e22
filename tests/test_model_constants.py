"""Multiplied models: what MuJoCo derives from masses and inertias follows them, or is said to stay.

The answers are closed forms of the step, or loops of `mj_step` over a model that was edited.
"""

import copy
import itertools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from metajax import physics
from metajax.errors import MetajaxError

NOTHING = 'contype="0" conaffinity="0"'
SLIDE = f"""<mujoco><option timestep=".01" gravity="0 0 0"/><worldbody><body>
  <joint name="j" type="slide" axis="1 0 0"/><geom size=".1" mass="1" {NOTHING}/></body></worldbody>
  <actuator><motor joint="j"/></actuator></mujoco>"""
WHEEL = f"""<mujoco><option timestep=".01" gravity="0 0 0"/><worldbody><body>
  <joint name="j" axis="0 0 1"/><inertial pos="0 0 0" mass="1" diaginertia=".02 .02 .02"/>
  <geom size=".1" {NOTHING}/></body></worldbody>
  <actuator><motor joint="j"/></actuator></mujoco>"""
FREE = f"""<mujoco><option timestep=".01"/><worldbody><body><freejoint/>
  <geom size=".1" mass="1" {NOTHING}/></body></worldbody></mujoco>"""
SPHERES = """<mujoco><option timestep=".01"/><worldbody><geom type="plane" size="9 9 .1"/>
  <body pos="2 0 .1"><freejoint/><geom size=".1" mass="1"/>
    <body pos=".5 0 0"><joint axis="0 1 0"/><geom size=".1" mass="1"/></body></body></worldbody>
  </mujoco>"""
# A box and a wheel that are simple, a pole on a cart that is not; the box lies on the floor.
MIXED = """<mujoco><option timestep=".005"/><worldbody><geom type="plane" size="9 9 .1"/>
  <body pos="0 0 .12"><freejoint/><geom type="box" size=".1 .15 .2" mass="2"/></body>
  <body pos="2 0 1"><joint name="w" axis="0 1 0"/><geom type="cylinder" size=".2 .05"
    euler="90 0 0" mass="1" contype="0" conaffinity="0"/></body>
  <body pos="4 0 1"><joint name="x" type="slide" axis="1 0 0"/><geom size=".1" mass="1"/>
    <body><joint axis="0 1 0" range="-20 20"/><geom type="capsule" fromto="0 0 0 .2 0 .5" size=".05"
      mass=".5"/></body></body></worldbody>
  <actuator><motor joint="w"/><motor joint="x" gear="5"/></actuator></mujoco>"""


@pytest.fixture
def make(tmp_path):
    def of_xml(xml, backend="mujoco", **options):
        path = tmp_path / "model.xml"
        path.write_text(xml)
        options = {"frame_skip": 1, "brax_substeps": 1} | options
        return physics.make_physics(str(path), backend=backend, **options)

    return of_xml


def play(bundle, dynamics, control, steps):
    state = bundle.init(jnp.asarray(bundle.default_qpos, float), jnp.zeros(bundle.model.nv))
    return jax.lax.fori_loop(0, steps, lambda _, s: bundle.step(s, control, dynamics), state)


PORTS = ("mjx", "generalized")
# Force, what it moves and for how long: a semi-implicit step of 0.01 s, a hundred times.
STEPS = 0.5 * 0.01**2 * 100 * 101
SIMPLE = {
    "slide": (SLIDE, {"mass": 4.0}, 1 / 4 * STEPS),  # 0.126 m
    "wheel": (WHEEL, {"inertia": 4.0}, 1 / (4 * 0.02) * STEPS),  # 6.31 rad
    "free": (FREE, {"mass": 2.0}, -9.81 * STEPS),
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *itertools.product(SIMPLE, ["mujoco"]),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in itertools.product(SIMPLE, PORTS)),
    ],
)
def test_simple_bodies_move_as_heavy_as_they_are(make, name, backend):
    xml, by, right = SIMPLE[name]
    with jax.enable_x64(True):
        bundle = make(xml, backend)
        dynamics = {key: jnp.array([1.0, value]) for key, value in by.items()}
        control = jnp.ones(bundle.model.nu)
        qpos = bundle.qpos(jax.jit(lambda: play(bundle, dynamics, control, 100))())
    assert qpos[2 if name == "free" else 0] == pytest.approx(right, rel=1e-9)


@pytest.mark.parametrize("backend", ["mujoco", pytest.param("mjx", marks=pytest.mark.slow)])
def test_center_of_mass_and_torques_about_it_follow_the_masses(make, backend):
    """At rest on the floor the torque of each contact is its force times half a metre less."""
    with jax.enable_x64(True):
        bundle = make(SPHERES, backend, contact_forces=True)
        dynamics = {"mass": jnp.array([1.0, 1.0, 4.0])}
        state = jax.jit(lambda: play(bundle, dynamics, jnp.zeros(0), 200))()
        kinematics = jax.jit(bundle.kinematics)
        heavy, light = kinematics(state, dynamics), kinematics(state, {"mass": jnp.ones(3)})
    assert heavy.center_of_mass[0] == pytest.approx(2.40, abs=1e-3)
    assert light.center_of_mass[0] == pytest.approx(2.25, abs=1e-3)
    torque = bundle.contact_force(state)[1:, 1]
    np.testing.assert_allclose(torque, [0.4 * 9.81, -0.1 * 4 * 9.81], rtol=1e-3)  # 3.92 N·m
    assert heavy.inertia[2, 9] == pytest.approx(4.0)


SOFTNESS = ("body_invweight0", "dof_invweight0", "tendon_invweight0", "actuator_acc0")


def edited(model, multipliers, *, soft):
    """The model multiplied and its constants derived again, softness only if asked."""
    changed = copy.copy(model)
    for name, field in (("mass", changed.body_mass), ("inertia", changed.body_inertia)):
        field[:] *= multipliers[name]
    mujoco.mj_setConst(changed, mujoco.MjData(changed))
    for name in () if soft else SOFTNESS:
        getattr(changed, name)[:] = getattr(model, name)
    return changed


@pytest.mark.parametrize("recompute", [False, True])
def test_every_world_has_the_bits_of_a_loop_over_its_own_model(make, recompute):
    with jax.enable_x64(True):
        bundle = make(MIXED, recompute_constants=recompute)
        model, rng = bundle.model, np.random.default_rng(0)
        assert np.array(model.body_simple).any() and not np.array(model.body_simple).all()
        worlds = {
            "mass": 1.5 ** rng.uniform(-3, 3, (3, model.nbody)),
            "inertia": 1.5 ** rng.uniform(-3, 3, (3, model.nbody, 3)),
        }
        control = jnp.array([0.1, -0.2])
        run = jax.jit(jax.vmap(lambda dynamics: bundle.qpos(play(bundle, dynamics, control, 100))))
        found = np.asarray(run(worlds))
        np.testing.assert_array_equal(run(worlds), found)
        backwards = jax.tree.map(lambda x: x[::-1], worlds)  # other multipliers in the same batch
        np.testing.assert_array_equal(run(backwards), found[::-1])
    other = []
    for world in range(3):
        for soft in (recompute, not recompute):
            own = edited(model, jax.tree.map(lambda x: x[world], worlds), soft=soft)  # noqa: B023
            own.stat.meaninertia = model.stat.meaninertia  # the scale at which the solver stops
            data = mujoco.MjData(own)
            data.ctrl[:] = control
            mujoco.mj_step(own, data, nstep=100)
            if soft == recompute:
                np.testing.assert_array_equal(found[world], data.qpos)
            else:
                other.append(np.abs(found[world] - data.qpos).max())
    assert max(other) > 1e-6  # how soft the box lies does depend on the option


@pytest.mark.parametrize("backend", ["mjx", "spring", "generalized"])
def test_constants_are_recomputed_on_the_c_engine_alone(make, backend):
    with pytest.raises(MetajaxError, match="cannot recompute the constants of a multiplied model"):
        make(SLIDE, backend, recompute_constants=True)


def test_a_world_without_mass_is_nan_and_alone(make):
    bundle = make(SLIDE)
    mass = jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 4.0]])
    run = jax.jit(jax.vmap(lambda m: bundle.qpos(play(bundle, {"mass": m}, jnp.ones(1), 100))[0]))
    np.testing.assert_allclose(run(mass), [STEPS, np.nan, STEPS / 4], rtol=1e-4)


def test_the_gear_of_a_muscle_cannot_be_multiplied(make):
    xml = SLIDE.replace('axis="1 0 0"', 'axis="1 0 0" range="-1 1" limited="true"')
    bundle = make(xml.replace("<motor", "<muscle"))
    state = jax.eval_shape(bundle.init, jnp.zeros(1), jnp.zeros(1))
    with pytest.raises(MetajaxError, match="gear of a muscle cannot be multiplied"):
        jax.eval_shape(bundle.step, state, jnp.zeros(1), {"gear": jnp.ones(1)})


# ---------------------------------------------------------------------------------------------
# Kinematics on the C engine, of a model that MJX cannot load
# ---------------------------------------------------------------------------------------------


def test_kinematics_without_mjx_are_those_of_mujoco(make):
    with jax.enable_x64(True):
        flag = "<option><flag energy='enable'/></option><worldbody>"
        bundle = make(MIXED.replace("<worldbody>", flag))
        model, rng = bundle.model, np.random.default_rng(0)
        mass = 1.5 ** rng.uniform(-3, 3, (3, model.nbody))
        qvel = rng.standard_normal((3, model.nv))
        state = jax.vmap(bundle.init)(np.tile(model.qpos0, (3, 1)), qvel)
        found = jax.jit(jax.vmap(lambda s, m: bundle.kinematics(s, {"mass": m})))(state, mass)
        with pytest.raises(MetajaxError, match="no gradient"):
            one = jax.tree.map(lambda x: x[0], state)
            jax.grad(lambda s: bundle.kinematics(s).center_of_mass[0])(one)
    for world in range(3):
        own = copy.copy(model)
        own.body_mass[:] *= mass[world]
        mujoco.mj_setConst(own, mujoco.MjData(own))
        data = mujoco.MjData(own)
        data.qvel[:] = qvel[world]
        mujoco.mj_forward(own, data)
        expected = {
            "geom_position": data.geom_xpos,
            "body_position": data.xpos,
            "body_rotation": data.xmat.reshape(-1, 3, 3),
            "center_of_mass": own.body_mass @ data.xipos / own.body_mass.sum(),
            "inertia": data.cinert,
            "velocity": data.cvel,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(found, name)[world], value, atol=1e-12, err_msg=name)
