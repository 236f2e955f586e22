"""Robots of one's own: all of MuJoCo's state, every quaternion, and mistakes in one sentence."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import metajax
from metajax import physics
from metajax.algorithms import reinforce
from metajax.envs.builders import robot_env, uniform_noise
from metajax.envs.splits import finite_splits
from metajax.errors import MetajaxError
from metajax.physics.mujoco_state import STATE_PARTS, state_parts

FRAME_SKIP = 2
WELD = '<weld body1="hand" body2="held"/>'
POSITION = '<position joint="h" kp="5" timeconst="0.2" ctrllimited="true" ctrlrange="-1 1"/>'
DELAYED = '<motor joint="h" delay="0.1" nsample="12" ctrllimited="true" ctrlrange="-1 1"/>'
PID = """<extension><plugin plugin="mujoco.pid"><instance name="pid">
  <config key="kp" value="4"/><config key="ki" value="9"/><config key="slewmax" value="3"/>
</instance></plugin></extension>"""


def hinge(actuator, *, joint="", before="", size="", option=""):
    """A pendulum that touches nothing."""
    return f"""<mujoco>{before}<size {size}/><option timestep="0.01" {option}/><worldbody><body>
      <joint name="h" axis="0 1 0" {joint}/>
      <geom type="capsule" size="0.04" fromto="0 0 0 0 0 -0.8" contype="0" conaffinity="0"/>
    </body></worldbody><actuator>{actuator}</actuator></mujoco>"""


def everything(option=""):
    """Whatever MJX carries too: activations, a mocap body that pulls another, a ball joint.

    And a tendon with a range of its own, which it reaches.
    """
    return f"""<mujoco><size nuserdata="2"/><option timestep="0.005" tolerance="0" {option}/>
    <default><geom type="capsule" size="0.04" contype="0" conaffinity="0"/></default>
    <worldbody>
      <body name="hand" mocap="true" pos="0 1 0"><geom size="0.02" fromto="0 0 0 0 0 0.1"/></body>
      <body name="held" pos="0 1 0"><freejoint/><geom fromto="0 0 0 0.2 0 0"/></body>
      <body>
        <joint name="s" type="slide" axis="1 0 0" damping="1"/><geom fromto="0 0 0 0.1 0 0"/>
        <body><joint type="ball" damping="0.1"/><geom fromto="0 0 0 0.1 0 -0.4"/></body>
      </body>
      <body pos="0 -1 0">
        <joint name="a" axis="0 1 0" damping="0.1"/><geom fromto="0 0 0 0 0 -0.4"/>
        <body pos="0 0 -0.4">
          <joint name="b" axis="0 1 0" damping="0.1"/><geom fromto="0 0 0 0 0 -0.4"/>
        </body>
      </body>
    </worldbody>
    <tendon><fixed name="t" limited="true" range="-0.3 0.2">
      <joint joint="a" coef="1"/><joint joint="b" coef="-0.5"/>
    </fixed></tendon>
    <equality><connect body1="hand" body2="held" anchor="0 0 0"/></equality>
    <actuator>
      <position joint="a" kp="5" timeconst="0.2"/>
      <muscle joint="b" lengthrange="-2 2" force="20"/>
      <intvelocity joint="s" kp="20" actrange="-0.5 0.5"/>
      <general joint="s" dyntype="filterexact" dynprm="0.05" gainprm="3"/>
      <motor tendon="t" gear="3"/>
    </actuator></mujoco>"""


MODELS = {
    "a filter": hinge(POSITION),
    "an exact filter": hinge('<general joint="h" dyntype="filterexact" dynprm="0.1"/>'),
    "early activations": hinge(
        '<general joint="h" dyntype="filter" dynprm="0.05" gainprm="3" actearly="true"/>'
    ),
    "a muscle": hinge('<muscle joint="h" lengthrange="-2 2" force="30"/>'),
    "an integrated velocity": hinge('<intvelocity joint="h" kp="5" actrange="-1 1"/>'),
    "a delayed motor": hinge(DELAYED),
    "an interpolated delay": hinge('<motor joint="h" delay="0.033" nsample="6" interp="linear"/>'),
    "a plugin": hinge(
        '<plugin joint="h" plugin="mujoco.pid" instance="pid" actdim="2"/>', before=PID
    ),
    "a spring that yields": hinge(
        '<motor joint="h" gear="5"/>', joint='stiffness="20" springyield="1"'
    ),
    "everything of MJX": everything(),
    "a weld": everything().replace('<connect body1="hand" body2="held" anchor="0 0 0"/>', WELD),
}


def model_of(xml):
    return mujoco.MjModel.from_xml_string(xml)


def controls(model, steps=40, *, seed=0):
    """Random controls, after a while of 1; the same in single and in double precision."""
    drawn = np.random.default_rng(seed).uniform(-1, 1, (steps, model.nu))
    return np.concatenate([np.ones((12, model.nu)), drawn]).astype(np.float32).astype(float)


def plain_mujoco(model, control, *, frame_skip=FRAME_SKIP, **start):
    """Positions, velocities and activations `[time, nq + nv + na]` by a loop of `mj_step`."""
    data, rows = mujoco.MjData(model), []
    for name, value in start.items():
        getattr(data, name)[:] = value
    for now in control:
        data.ctrl[:] = now
        mujoco.mj_step(model, data, nstep=frame_skip)
        rows.append(np.concatenate([data.qpos, data.qvel, data.act]))
    return np.array(rows)


def player(bundle):
    """The same through a bundle: `(control, **start) -> rows`, compiled once."""
    model = bundle.model

    @jax.jit
    def play(control, start):
        state = bundle.init(jnp.asarray(bundle.default_qpos, float), jnp.zeros(model.nv))
        state = dataclasses.replace(state, rest={**state.rest, **start})

        def step(state, now):
            state = bundle.step(state, now)
            act = state.rest.get("act", jnp.zeros(0))
            return state, jnp.concatenate([bundle.qpos(state), bundle.qvel(state), act])

        return jax.lax.scan(step, state, control)[1]

    return lambda control, **start: np.asarray(
        play(
            jnp.asarray(control, float),
            {name: jnp.asarray(value, float) for name, value in start.items()},
        )
    )


# ---------------------------------------------------------------------------------------------
# All of the state
# ---------------------------------------------------------------------------------------------


def test_the_parts_of_the_state_are_those_of_mujoco():
    """What MuJoCo adds to its state one day shows here."""
    none_or_always = {"QPOS", "QVEL", "WARMSTART", "CTRL", "QFRC_APPLIED", "XFRC_APPLIED", "TIME"}
    named = {name.upper() for name in STATE_PARTS} | none_or_always
    sums = {"PHYSICS", "FULLPHYSICS", "USER", "INTEGRATION"}
    members = mujoco.mjtState.__members__
    theirs = {name.removeprefix("mjSTATE_") for name in members if name.startswith("mjSTATE_")}
    assert theirs - sums == {{"PLUGIN_STATE": "PLUGIN"}.get(name, name) for name in named}


@pytest.mark.parametrize("name", MODELS)
def test_episodes_on_the_c_engine_are_a_loop_of_mj_step(name):
    model = model_of(MODELS[name])
    control = controls(model)
    plain = plain_mujoco(model, control)
    assert np.abs(plain[-1] - plain[0]).max() > 0.01
    with jax.enable_x64(True):
        play = player(physics.mujoco_c.make(model, frame_skip=FRAME_SKIP))
        np.testing.assert_array_equal(play(control), plain)
        play(-control)  # another episode, of which nothing stays
        np.testing.assert_array_equal(play(control), plain)


@pytest.mark.parametrize("maker", [physics.mujoco_c, physics.mjx])
def test_a_filtered_servo_swings_as_far_as_a_loop_of_mj_step_says(maker):
    play = player(maker.make(model_of(hinge(POSITION)), frame_skip=FRAME_SKIP))
    control = np.ones((12, 1))
    assert play(control)[-1, 0] == pytest.approx(0.04284, abs=5e-6)
    np.testing.assert_array_equal(play(control), play(control))


@pytest.mark.slow
@pytest.mark.parametrize("option", ["", 'integrator="RK4"'], ids=["euler", "rk4"])
def test_mjx_carries_what_it_can_like_a_loop_of_mj_step(option):
    model = model_of(everything(option))
    control = controls(model)
    with jax.enable_x64(True):
        play = player(physics.mjx.make(model, frame_skip=FRAME_SKIP))
        for active in (1.0, 0.0):
            start = {"mocap_pos": [[0.1, 1.1, 0.2]], "userdata": [1, 2], "eq_active": [active]}
            plain = plain_mujoco(model, control, **start)
            np.testing.assert_allclose(play(control, **start), plain, rtol=0, atol=1e-9)
    a, b = plain[:, model.joint("a").qposadr[0]], plain[:, model.joint("b").qposadr[0]]
    stretch = a - 0.5 * b  # of the tendon, beyond both of its soft limits
    assert (stretch.min() < -0.3) or (stretch.max() > 0.2)


def test_a_mocap_body_pulls_where_it_is_put():
    model = model_of(everything())
    control, start = controls(model), {"mocap_pos": [[0.1, 1.1, 0.2]]}
    with jax.enable_x64(True):
        play = player(physics.mujoco_c.make(model, frame_skip=FRAME_SKIP))
        for more in ({}, {"eq_active": [0.0]}):
            plain = plain_mujoco(model, control, **start, **more)
            np.testing.assert_array_equal(play(control, **start, **more), plain)
            assert (abs(plain[-1, 2] - 0.2) < 0.1) != bool(more)  # held, or fallen
        np.testing.assert_array_equal(play(control), plain_mujoco(model, control))


def test_a_delay_is_as_long_in_single_precision():
    """Rounded times choose another sample of the controls in almost every second substep."""
    model = model_of(hinge(DELAYED))
    control = controls(model, 300)
    plain = plain_mujoco(model, control)
    play = player(physics.mujoco_c.make(model, frame_skip=FRAME_SKIP))
    np.testing.assert_allclose(play(control), plain, rtol=0, atol=2e-5)


def test_worlds_have_a_state_of_their_own():
    model = model_of(MODELS["a muscle"])
    control = np.stack([controls(model, seed=seed) for seed in range(3)])
    bundle = physics.mujoco_c.make(model, frame_skip=FRAME_SKIP)

    def step(state, now):
        state = bundle.step(state, now)
        return state, state.rest["act"]

    def play(control):
        return jax.lax.scan(step, bundle.init(jnp.zeros(1), jnp.zeros(1)), control)[1]

    found = jax.jit(jax.vmap(play))(jnp.asarray(control, float))
    plain = np.stack([plain_mujoco(model, now)[:, 2:] for now in control])
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("warp") is None, reason="needs the package warp-lang")
@pytest.mark.parametrize("name", ["a muscle", "early activations"])
def test_warp_carries_activations(name):
    model = model_of(MODELS[name])
    control, play = controls(model), player(physics.warp.make(model, frame_skip=FRAME_SKIP))
    for _ in range(2):
        np.testing.assert_allclose(play(control), plain_mujoco(model, control), rtol=0, atol=5e-6)


@pytest.mark.slow
def test_the_gradient_goes_through_activations():
    bundle = physics.mjx.make(model_of(hinge(POSITION)), frame_skip=FRAME_SKIP)

    @jax.jit
    def angle(size):
        state = bundle.init(jnp.zeros(1), jnp.zeros(1))
        control = size * jnp.ones((4, 1))
        return jax.lax.scan(lambda s, u: (bundle.step(s, u), None), state, control)[0].qpos[0]

    with jax.enable_x64(True):
        numeric = (angle(0.5 + 1e-4) - angle(0.5 - 1e-4)) / 2e-4
        assert float(jax.grad(angle)(0.5)) == pytest.approx(float(numeric), rel=1e-6)
        assert float(numeric) > 1e-4


def test_gymnasiums_robots_have_no_more_state_than_before():
    for name in ("ant", "half_cheetah", "hopper", "humanoid", "reacher", "swimmer", "walker2d"):
        assert state_parts(physics.load_model(name)) == {}


@pytest.mark.parametrize(
    ("name", "backend", "what"),
    [
        ("a delayed motor", "mjx", "delayed actuators or sensors"),
        ("a delayed motor", "warp", "delayed actuators or sensors"),
        ("a plugin", "mjx", "plugins"),
        ("a spring that yields", "warp", "springs that yield (springyield)"),
        ("early activations", "mjx", "activations ahead of the force (actearly)"),
        ("a weld", "mjx", "welds that turn as MuJoCo's do"),
        ("a weld", "warp", "welds that turn as MuJoCo's do"),
        ("a muscle", "spring", "actuators with a state"),
        ("a filter", "generalized", "actuators with a state"),
        ("everything of MJX", "positional", "mocap bodies"),
    ],
)
def test_what_an_engine_does_not_carry_is_refused(name, backend, what, tmp_path, monkeypatch):
    monkeypatch.setattr(physics.engines, "resolve_backend", lambda backend: backend)
    path = tmp_path / "body.xml"
    path.write_text(MODELS[name])
    with pytest.raises(MetajaxError) as refused:
        physics.make_physics(str(path), backend=backend, frame_skip=1, brax_substeps=1)
    assert f"backend {backend!r} has no {what}, which the model asks for" in str(refused.value)


# ---------------------------------------------------------------------------------------------
# Families
# ---------------------------------------------------------------------------------------------


def family_of(path, *, goals=(-0.5, 0.5), episode_length=6):
    """Turn the first joint to a hidden angle; all of positions and velocities are seen."""
    bundle = physics.make_physics(str(path), backend="mujoco", frame_skip=2, brax_substeps=4)
    env = robot_env(
        bundle,
        noise=uniform_noise(0.1),
        observe=lambda task, state: jnp.concatenate([bundle.qpos(state), bundle.qvel(state)]),
        reward=lambda task, before, after, control: -((bundle.qpos(after)[0] - task["goal"]) ** 2),
        actions=metajax.Continuous(bundle.model.nu, -1.0, 1.0, 1.0),
        episode_length=episode_length,
    )
    splits = finite_splits({"goal": jnp.array(goals)}, np.arange(len(goals)) == len(goals) - 1)
    return metajax.TaskFamily(env, name="own-v1", backend=bundle.backend, **splits)


@pytest.mark.parametrize("name", ["a filter", "a delayed motor"])
def test_one_key_gives_the_same_episode_whatever_was_before(name, tmp_path):
    path = tmp_path / "body.xml"
    path.write_text(MODELS[name])
    env = family_of(path).env

    @jax.jit
    def play(key, action):
        state = env.reset(key, {"goal": jnp.zeros(())})
        step = lambda state, now: (env.step(state, now), state.observation)
        return jax.lax.scan(step, state, action)[1]

    action = jnp.ones((6, 1))
    first = play(jax.random.key(0), action)
    play(jax.random.key(1), -action)
    np.testing.assert_array_equal(play(jax.random.key(0), action), first)


@pytest.mark.slow
def test_a_run_on_an_own_model_goes_on_bitwise(tmp_path):
    path = tmp_path / "body.xml"
    path.write_text(MODELS["a filter"])

    def run(directory, iterations, **options):
        family = family_of(path)  # with an engine that has simulated nothing yet
        policy = metajax.mlp(family.env.observation_size, family.env.action_space, hidden=(4,))
        algorithm = reinforce(family.env, policy, episodes=2)
        return metajax.train(
            algorithm,
            family,
            iterations=iterations,
            tasks=2,
            segment=1,
            evaluation=None,
            run_directory=tmp_path / directory,
            **options,
        )

    straight = run("straight", 4)
    run("stopped", 2)
    resumed = run("stopped", 4, resume=True)
    assert not np.array_equal(straight.metrics["return"][0], 0)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, straight.state)


# ---------------------------------------------------------------------------------------------
# Every quaternion at its own address
# ---------------------------------------------------------------------------------------------

BALL = """<mujoco><worldbody><body pos="1 0 0">
  <joint type="slide"/><joint type="ball"/><geom size="0.1"/>
</body></worldbody></mujoco>"""
ARM = (
    "<mujoco><worldbody>"
    + "".join(f"<body><joint axis='0 {i} 1'/><geom size='0.1' mass='1'/>" for i in range(5))
    + "</body>" * 5
    + "<body pos='0.2 0 0.6'><freejoint/><geom size='0.1'/></body></worldbody></mujoco>"
)
TWO = """<mujoco><worldbody>
  <body pos="0 0 3"><freejoint/><geom size="0.1"/></body>
  <body pos="0 2 5" quat="0.6 0 0.8 0"><freejoint/><geom size="0.1"/></body>
</worldbody></mujoco>"""


def test_a_reset_and_an_observation_see_the_task(tmp_path):
    """An arm that starts at an angle of the task's, and observes how far it is from another."""
    path = tmp_path / "body.xml"
    path.write_text(
        "<mujoco><worldbody><body><joint name='a' axis='0 0 1'/><geom size='0.1'/></body>"
        "</worldbody><actuator><motor joint='a'/></actuator></mujoco>"
    )
    bundle = physics.make_physics(str(path), backend="mujoco", frame_skip=1, brax_substeps=1)
    task = {"start": jnp.array(0.3), "zero": jnp.array(0.5)}
    options = {
        "noise": lambda key, task, physics: (task["start"][None], jnp.zeros(1)),
        "observe": lambda task, state: bundle.qpos(state) - task["zero"],
        "reward": lambda task, before, after, control: bundle.qpos(before)[0],
        "healthy": lambda task, state: bundle.qpos(state)[0] > task["zero"],
        "actions": metajax.Continuous(1),
        "episode_length": 2,
    }
    env = robot_env(bundle, **options, example=task)
    state = env.reset(jax.random.key(0), task)
    after = env.step(state, jnp.zeros(1))  # nothing pushes it
    np.testing.assert_allclose(state.observation, [-0.2], atol=1e-7)
    np.testing.assert_allclose(after.observation, [-0.2], atol=1e-7)
    np.testing.assert_allclose(after.reward, 0.3, atol=1e-7)
    assert env.observation_size == 1 and after.terminated
    with pytest.raises(MetajaxError, match=r"cannot be made without a task .*example="):
        robot_env(bundle, **options)


def start_of(bundle, noise):
    """Positions where an episode starts."""
    env = robot_env(
        bundle,
        noise=lambda key, task, physics: (jnp.asarray(noise, float), jnp.zeros(bundle.model.nv)),
        observe=lambda task, state: bundle.qpos(state),
        reward=lambda task, before, after, control: jnp.zeros(()),
        actions=metajax.Continuous(1, -1.0, 1.0, 1.0),
        episode_length=1,
    )
    return np.asarray(env.reset(jax.random.key(0), None).observation)


@pytest.mark.parametrize(
    ("xml", "rest"),
    [
        (BALL, [0, 1, 0, 0, 0]),
        (ARM, [0, 0, 0, 0, 0, 0.2, 0, 0.6, 1, 0, 0, 0]),
        (TWO, [0, 0, 3, 1, 0, 0, 0, 0, 2, 5, 0.6, 0, 0.8, 0]),
    ],
)
def test_a_reset_stands_where_the_model_stands(xml, rest):
    bundle = physics.mujoco_c.make(model_of(xml), frame_skip=1)
    np.testing.assert_allclose(start_of(bundle, np.zeros(len(rest))), rest, rtol=0, atol=1e-7)


def test_a_reset_makes_every_quaternion_one_again_and_moves_nothing_else():
    bundle = physics.mujoco_c.make(model_of(TWO), frame_skip=1)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 14)
    expected = np.array(bundle.default_qpos) + noise
    mujoco.mj_normalizeQuat(bundle.model, expected)
    np.testing.assert_allclose(start_of(bundle, noise), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ant", "humanoid"])
def test_gymnasiums_robots_start_with_the_same_bits_as_before(name):
    bundle = physics.make_physics(name, backend="mujoco", frame_skip=1, brax_substeps=1)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, bundle.model.nq)
    expected = jnp.asarray(bundle.default_qpos, float) + jnp.asarray(noise, float)
    expected = expected.at[3:7].divide(jnp.linalg.norm(expected[3:7]))
    np.testing.assert_array_equal(start_of(bundle, noise), expected)


# ---------------------------------------------------------------------------------------------
# Mistakes
# ---------------------------------------------------------------------------------------------


def written(directory, name, text):
    path = directory / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("body.XML", hinge(POSITION), r"body\.XML must end in \.xml.* rename it, or take the name"),
        ("body.mjcf", hinge(POSITION), r"body\.mjcf must end in \.xml"),
        ("body", hinge(POSITION), r"body must end in \.xml"),
        ("body.xml", "", "cannot read .*empty file"),
        ("body.xml", "no XML", "cannot read .*body.xml: "),
        ("body.xml", "<mujocoinclude/>", "cannot read .*mujocoinclude"),
        ("body.xml", "<mujoco><include file='gone.xml'/></mujoco>", "cannot read .*gone.xml"),
        ("body.xml", hinge("<motor joint='knee'/>"), "cannot compile .*knee"),
        ("body.xml", hinge("<motor joint='h' gaer='2'/>"), "cannot read .*gaer"),
        ("body.xml", "<mujoco/>", "nothing in .*body.xml can move: it has no joints."),
        (
            "body.xml",
            hinge(POSITION).replace('"0.01" />', '"0.01"><flag sleep="enable"/></option>'),
            "backend 'mujoco' has no sleeping bodies .flag sleep.",
        ),
    ],
)
def test_a_mistake_in_an_own_model_is_one_sentence(name, text, sentence, tmp_path):
    path = written(tmp_path, name, text)
    with pytest.raises(MetajaxError, match=sentence) as refused:
        physics.make_physics(path, backend="mujoco", frame_skip=1, brax_substeps=1)
    assert "\n" not in str(refused.value)


def test_a_body_that_is_not_there_cannot_be_left_out(tmp_path):
    path = written(tmp_path, "body.xml", everything())
    for body in ("world", "hnad", ""):
        with pytest.raises(MetajaxError, match=f"unknown body '{body}'.* hand, held"):
            physics.load_model(path, without=body)
    assert physics.load_model(path, without="held").nbody == model_of(everything()).nbody - 1


def test_a_name_that_gymnasium_does_not_have_is_answered_with_the_nearest():
    with pytest.raises(MetajaxError, match="unknown model 'halfcheetah'; did you mean 'half_chee"):
        physics.load_model("halfcheetah")


def test_a_directory_and_a_path_object(tmp_path):
    with pytest.raises(MetajaxError, match="there is no such file"):
        physics.load_model(str(tmp_path / "body.xml"))
    (tmp_path / "body.xml").mkdir()
    with pytest.raises(MetajaxError, match="there is no such file"):
        physics.load_model(tmp_path / "body.xml")


# ---------------------------------------------------------------------------------------------
# Other packages' models
# ---------------------------------------------------------------------------------------------

# Of these packages only files are read, so they need none of what they require:
# pip install --no-deps dm_control gymnasium-robotics
PACKAGES = {"gymnasium": "envs/mujoco/assets", "dm_control": "suite", "gymnasium_robotics": "envs"}


def folder_of(package):
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"needs the models of {package}: pip install --no-deps {package}")
    return pathlib.Path(found.origin).parent / PACKAGES[package]


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_every_model_of_the_package_is_simulated_or_refused_in_a_sentence(package):
    """Some of the files are only parts of models."""
    simulated = 0
    for path in sorted(folder_of(package).rglob("*.xml")):
        with jax.enable_x64(True):
            try:
                bundle = physics.make_physics(
                    str(path), backend="mujoco", frame_skip=FRAME_SKIP, brax_substeps=1
                )
            except MetajaxError as refused:
                assert "\n" not in str(refused)
                assert "cannot " in str(refused) or "it has no joints" in str(refused)
                continue
            model = bundle.model
            size = np.random.default_rng(0).uniform(-0.3, 0.3, (50, model.nu))
            control = np.clip(size, *bundle.control_range.T)
            plain, play = plain_mujoco(model, control), player(bundle)
            for _ in range(2):
                np.testing.assert_array_equal(play(control), plain, err_msg=str(path))
        simulated += 1
    assert simulated >= 14


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_every_model_of_the_package_is_made_on_every_engine_or_refused(package):
    made = dict.fromkeys(("mjx", "spring", "positional", "generalized"), 0)
    for path in sorted(folder_of(package).rglob("*.xml")):
        for backend in made:
            try:
                physics.make_physics(str(path), backend=backend, frame_skip=1, brax_substeps=1)
            except MetajaxError as refused:
                assert "\n" not in str(refused)
                continue
            made[backend] += 1
    assert min(made.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ball_in_cup", "finger", "point_mass", "reacher", "walker"])
def test_models_of_dm_control_on_mjx_are_a_loop_of_mj_step(name, monkeypatch):
    """Solved to the end; the half that C MuJoCo leaves at 1e-8 is its own."""
    monkeypatch.setattr(physics.mjx, "SOLVER_ITERATIONS", 50)
    monkeypatch.setattr(physics.mjx, "LINE_SEARCH", 50)
    model = physics.load_model(str(folder_of("dm_control") / f"{name}.xml"))
    model.opt.tolerance = 0
    control = np.random.default_rng(0).uniform(-0.3, 0.3, (50, model.nu))
    plain = plain_mujoco(model, control)
    assert np.abs(plain[-1] - plain[0]).max() > 0.01
    with jax.enable_x64(True):
        play = player(physics.mjx.make(model, frame_skip=FRAME_SKIP))
        for _ in range(2):
            np.testing.assert_allclose(play(control), plain, rtol=0, atol=1e-9)
