"""What a model asks for is computed by an engine as by C MuJoCo, or refused when it is made."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from metajax import physics
from metajax.errors import MetajaxError
from metajax.physics.limits import LIMITS

STEPS = 25
IMPLICIT = 'integrator="implicitfast"'


def arm(joint="", motor='<motor joint="a"/>', *, option="", flag="", link="", rod="", extra=""):
    """Two links above a floor that they do not reach in `STEPS`."""
    return f"""<mujoco><option timestep=".01" {option}>{flag}</option><worldbody>
      <geom name="floor" type="plane" size="9 9 .1"/>
      <body pos="0 0 1" {link}><joint name="a" axis="0 1 0" {joint}/>
        <geom type="capsule" fromto="0 0 0 .3 0 0" size=".04" mass="1" {rod}/>
        <body pos=".3 0 0"><joint name="b" axis="0 1 0"/><site name="tip" pos=".3 0 0"/>
          <geom type="capsule" fromto="0 0 0 .3 0 0" size=".04" mass=".5"/></body></body>
      </worldbody>{extra}<actuator>{motor}</actuator></mujoco>"""


def ball(sphere="", floor="", *, option="", flag="", extra=""):
    """A sphere that falls on a floor."""
    return f"""<mujoco><option timestep=".005" {option}>{flag}</option><worldbody>
      <geom name="floor" type="plane" size="9 9 .1" {floor}/>
      <body name="ball" pos="0 0 .11"><freejoint/>
        <geom name="sphere" size=".1" mass="1" {sphere}/></body></worldbody>{extra}</mujoco>"""


def tendon(of="", *, option="", motor='<motor joint="a"/>'):
    fixed = f"""<tendon><fixed name="t" {of}><joint joint="a" coef="1"/>
      <joint joint="b" coef="-1"/></fixed></tendon>"""
    return arm(motor=motor, option=option, extra=fixed)


FREE = """<mujoco><option timestep=".01" {option}/><worldbody><body><joint type="free" {joint}/>
  <inertial pos=".05 0 .02" mass="1" diaginertia=".01 .03 .035"/>
  <geom size=".1" contype="0" conaffinity="0"/></body></worldbody></mujoco>"""
BALL_JOINT = """<mujoco><option timestep=".01"/><worldbody><body>
  <joint type="slide" axis="1 0 0"/><joint type="ball" pos=".1 0 0" range="0 20" limited="true"
  stiffness="3" damping=".1"/><geom type="box" size=".1 .2 .3" pos=".2 0 0"/></body></worldbody>
  </mujoco>"""
SITES = """<mujoco><option timestep=".01" integrator="implicitfast"/><worldbody>
  <site name="o" pos="0 0 1"/><body><freejoint/><site name="s" pos=".1 0 0"/>
  <inertial pos=".05 0 .02" mass="1" diaginertia=".01 .03 .035"/><geom size=".1"/></body>
  </worldbody><tendon><spatial damping="3" stiffness="4"><site site="o"/><site site="s"/></spatial>
  </tendon>
  <actuator><velocity site="s" gear="0 0 1 0 0 0" kv="3"/></actuator></mujoco>"""
BRANCHES = """<mujoco><option timestep=".01" integrator="implicitfast"/><worldbody><body>
  <joint name="r"/><geom size=".1"/><body pos=".3 0 0"><joint name="a" axis="0 1 0"/>
  <geom pos=".2 0 0" size=".05"/></body><body pos="0 .5 0"><joint name="b" axis="0 0 1"/>
  <geom pos=".2 0 0" size=".05"/></body></body></worldbody><tendon><fixed damping="2">
  <joint joint="a" coef="1"/><joint joint="b" coef="-1"/></fixed></tendon></mujoco>"""
SERVO_AND_FREE = """<mujoco><option timestep=".01" integrator="implicitfast"/><worldbody>
  <body><joint name="a"/><geom size=".1" pos=".2 0 0" contype="0" conaffinity="0"/></body>
  <body><freejoint/><inertial pos=".05 0 .02" mass="1" diaginertia=".01 .03 .035"/>
  <geom size=".1" contype="0" conaffinity="0"/></body></worldbody><actuator>
  <velocity joint="a" kv="20" forcerange="-1 1"/></actuator></mujoco>"""
PLUGIN = """<mujoco><extension><plugin plugin="mujoco.pid"><instance name="p">
  <config key="kp" value="4"/></instance></plugin></extension><worldbody><body><joint name="a"/>
  <geom size=".1"/></body></worldbody><actuator><plugin joint="a" plugin="mujoco.pid" instance="p"/>
  </actuator></mujoco>"""

# What MJX leaves out without a word. C MuJoCo is the other answer.
REFUSED = {
    "discrete": arm('damping=".5"', option='integrator="discrete"'),
    "implicit": arm('damping=".5"', option='integrator="implicit"'),
    "implicitfast muscle": arm(
        'range="-90 90" limited="true"', '<muscle joint="a"/>', option=IMPLICIT
    ),
    "noslip": ball(option='noslip_iterations="5"'),
    "plugin": PLUGIN,
    "springyield": arm('stiffness="5" springyield=".5"'),
    "tendon springyield": tendon('stiffness="3" springyield=".1"'),
    "delay": arm(motor='<motor joint="a" delay=".03" nsample="4"/>'),
    "disabled group": arm(motor='<motor joint="a" group="1"/>', option='actuatorgroupdisable="1"'),
    "actuator armature": arm(motor='<motor joint="a" armature=".5"/>'),
    "actuator damping": arm(motor='<motor joint="a" damping=".5"/>'),
    "actearly": arm(motor='<general joint="a" dyntype="filter" dynprm=".1" actearly="true"/>'),
    "stiffness polynomial": arm('stiffness="5 2"'),
    "damping polynomial": arm('damping=".5 .3"'),
    "tendon stiffness polynomial": tendon('stiffness="3 2"'),
    "tendon damping polynomial": tendon('damping=".03 .02"'),
    "surfacevel": ball(floor='surfacevel="1 0 0 0 0 0"'),
    "adhesion": ball('adhesion="3"'),
    "fluid": arm(rod='fluidshape="ellipsoid"', option='density="1000"'),
    "spring alone": arm('stiffness="2" damping=".5"', flag='<flag damper="disable"/>'),
    "damper alone": arm('damping=".5"', flag='<flag spring="disable"/>', link='gravcomp=".5"'),
    "energy": arm(flag='<flag energy="enable"/>'),
    "override": ball(option='o_margin=".05"', flag='<flag override="enable"/>'),
    "diagexact": ball(flag='<flag diagexact="enable"/>'),
    "speculative": ball(flag='<flag speculative="enable"/>'),
    "dcmotor": arm(motor='<dcmotor joint="a" motorconst=".1" resistance="1"/>'),
}

# What MJX computes, to rounding.
SAME = {
    "clamped servo and free body": SERVO_AND_FREE,
    "gain of the speed": arm(
        motor='<general joint="a" gaintype="affine" gainprm="1 0 -2" ctrlrange="-.3 .3"/>',
        option=IMPLICIT,
    ),
    "free body, damped": FREE.format(option=IMPLICIT, joint='damping=".3" stiffness="2"'),
    "free body on a tendon": SITES,
    "branches": BRANCHES,
    "no actuation": arm('damping=".5"', option=IMPLICIT, flag='<flag actuation="disable"/>'),
    "tendon": tendon('damping="2" stiffness="3" range="-.2 .2" limited="true"', option=IMPLICIT),
    "tendon's motor": tendon('actuatorfrcrange="-.5 .5"', motor='<motor tendon="t"/>'),
    "ball joint behind a slide": BALL_JOINT,
    "gravcomp": arm('actuatorgravcomp="true" actuatorfrcrange="-1 1"', link='gravcomp=".5"'),
    "force range": arm(motor='<position joint="a" kp="100" forcerange="-1 1"/>'),
    "frictionloss": arm('frictionloss=".3"'),
    "elliptic": ball('condim="4" friction="1 .1 .1"', option='cone="elliptic" impratio="10"'),
    "sparse": arm(option='jacobian="sparse"'),
    "invdiscrete": arm(flag='<flag invdiscrete="enable"/>'),
    "wind": arm(option='density="1.2" viscosity=".1" wind="1 0 0"'),
    "margin and gap": ball(floor='margin=".05" gap=".03"'),
    "inactive equality": arm(
        extra='<equality><joint joint1="a" joint2="b" active="false"/></equality>'
    ),
}
QUICK = "clamped servo and free body"
SAME_PARAMETERS = [
    pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in SAME
]


def load(xml, tmp_path):
    path = tmp_path / "model.xml"
    path.write_text(xml)
    return str(path)


def loop_of_mj_step(model):
    """Positions `[time, nq]` from a moving start under random controls, and both."""
    control = np.random.default_rng(0).uniform(-1, 1, (STEPS, model.nu))
    qvel = np.linspace(0.5, 2, model.nv)
    data, rows = mujoco.MjData(model), []
    data.qvel[:] = qvel
    for now in control:
        data.ctrl[:] = now
        mujoco.mj_step(model, data)
        rows.append(data.qpos.copy())
    return np.array(rows), qvel, control


def compare(maker, path):
    model = physics.load_model(path)
    model.opt.tolerance = 0
    right, qvel, control = loop_of_mj_step(model)
    with jax.enable_x64(True):
        bundle = maker.make(model, frame_skip=1)

        def step(state, now):
            state = bundle.step(state, now)
            return state, bundle.qpos(state)

        start = bundle.init(jnp.asarray(model.qpos0), jnp.asarray(qvel))
        found = jax.jit(lambda: jax.lax.scan(step, start, jnp.asarray(control))[1])()
    return np.asarray(found), right


@pytest.mark.parametrize("name", REFUSED)
def test_what_mjx_would_leave_out_is_refused_and_runs_in_c(name, tmp_path):
    path = load(REFUSED[name], tmp_path)
    with pytest.raises(MetajaxError, match=r"backend 'mjx' (has no|cannot load).*'mujoco'"):
        physics.make_physics(path, backend="mjx", frame_skip=1, brax_substeps=1)
    found, right = compare(physics.mujoco_c, path)
    np.testing.assert_array_equal(found, right)
    assert np.abs(right[-1] - right[0]).max() > 0.01


@pytest.mark.parametrize("name", SAME_PARAMETERS)
def test_what_mjx_takes_it_computes_as_c_mujoco(name, tmp_path):
    found, right = compare(physics.mjx, load(SAME[name], tmp_path))
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-9)
    assert np.abs(right[-1] - right[0]).max() > 0.01


@pytest.mark.parametrize("flag", ["sleep", "ipc"])
def test_what_cannot_be_carried_from_step_to_step_is_refused_everywhere(flag, tmp_path):
    path = load(arm(option='integrator="discrete"', flag=f'<flag {flag}="enable"/>'), tmp_path)
    for backend in ("mujoco", "mjx"):
        with pytest.raises(MetajaxError, match=rf"{backend}.*\(flag {flag}\).*: leave it out"):
            physics.make_physics(path, backend=backend, frame_skip=1, brax_substeps=1)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (tendon('stiffness="3"'), "has no tendons that pull"),
        (arm(extra='<equality><joint joint1="a" joint2="b"/></equality>'), "no equality constr"),
        (arm(motor='<intvelocity joint="a" actrange="-1 1"/>'), "no actuators with a state"),
        (arm('frictionloss=".3"'), "no friction of joints"),
        (arm(link='gravcomp="1"'), "no compensation of gravity"),
        (arm('stiffness="3" springref="20"'), "no springs that rest elsewhere"),
        (arm(flag='<flag gravity="disable"/>'), "no disabled constraints"),
        (arm(option='density="1"'), "no fluids"),
        (ball(option='noslip_iterations="5"'), "no noslip_iterations"),
        (arm(option='cone="elliptic"'), "cannot load the model: Only pyramidal"),
        (BALL_JOINT.replace('range="0 20" limited="true"', ""), "cannot load the model"),
        (arm(motor='<motor site="tip"/>'), "cannot load the model: Only joint transmission"),
    ],
)
def test_what_brax_would_leave_out_is_refused(xml, message, tmp_path):
    for backend in ("spring", "generalized"):
        with pytest.raises(MetajaxError, match=f"backend '{backend}' .*{message}"):
            physics.make_physics(
                load(xml, tmp_path), backend=backend, frame_skip=1, brax_substeps=1
            )


def test_every_limit_names_something_that_a_plain_model_does_not_ask_for():
    model = mujoco.MjModel.from_xml_string(arm())
    assert not any(limit.asked(model) for limit in LIMITS)
