"""MuJoCo Warp behind the same bundle, on a CPU, where its kernels run too."""

import importlib.util

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import metajax
from metajax import physics
from metajax.errors import MetajaxError

needs_warp = pytest.mark.skipif(
    importlib.util.find_spec("warp") is None, reason="needs the package warp-lang"
)
WORLDS, STEPS = 3, 20


def make(name, backend, frame_skip, **options):
    return physics.make_physics(
        name, backend=backend, frame_skip=frame_skip, brax_substeps=1, **options
    )


def controls(model):
    random = np.random.default_rng(0).uniform(-1, 1, (WORLDS, STEPS, model.nu))
    return random * model.actuator_ctrlrange[0, 1]


def play(bundle, control, dynamics=None):
    """Positions `[world, time, nq]`, and contact forces if there are any."""

    def one(control, dynamics):
        state = bundle.init(
            jnp.asarray(bundle.default_qpos, jnp.float32), jnp.zeros(bundle.model.nv)
        )

        def step(state, now):
            state = bundle.step(state, now, dynamics)
            force = bundle.contact_force and bundle.contact_force(state)
            return state, (bundle.qpos(state), force)

        return jax.lax.scan(step, state, control)[1]

    control = jnp.asarray(control, jnp.float32)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(control, dynamics))


def plain_mujoco(model, control, frame_skip):
    rows, forces = [], []
    for world in control:
        data = mujoco.MjData(model)
        for now in world:
            data.ctrl[:] = now
            mujoco.mj_step(model, data, nstep=frame_skip)
            rows.append(data.qpos.copy())
            forces.append(data.cfrc_ext.copy())
    return [np.reshape(x, (WORLDS, STEPS, *np.shape(x)[1:])) for x in (rows, forces)]


@needs_warp
@pytest.mark.parametrize(("name", "frame_skip"), [("hopper", 4), ("humanoid", 5), ("swimmer", 4)])
def test_it_is_mujoco_in_single_precision(name, frame_skip):
    bundle = make(name, "warp", frame_skip)
    control = controls(bundle.model)
    plain, _ = plain_mujoco(bundle.model, control, frame_skip)
    np.testing.assert_allclose(play(bundle, control)[0], plain, rtol=0, atol=2e-5)


@needs_warp
def test_with_its_contact_frames_mjx_agrees_on_the_ant(monkeypatch):
    monkeypatch.setattr(physics.mjx, "_align_with_capsules", lambda compiled, data: data)
    bundles = [make("ant", backend, 5) for backend in ("warp", "mjx")]
    control = controls(bundles[0].model)
    one, other = (play(bundle, control)[0] for bundle in bundles)
    np.testing.assert_allclose(one[:, :5], other[:, :5], rtol=0, atol=5e-6)
    np.testing.assert_allclose(one, other, rtol=0, atol=5e-3)


@needs_warp
def test_contact_forces_are_those_of_the_c_engine():
    bundle = make("humanoid", "warp", 5, contact_forces=True)
    control = controls(bundle.model)
    _, forces = plain_mujoco(bundle.model, control, 5)
    assert np.abs(forces).max() > 100
    np.testing.assert_allclose(play(bundle, control)[1], forces, rtol=1e-2, atol=0.5)


@needs_warp
def test_every_world_has_its_own_dynamics():
    bundle = make("hopper", "warp", 4)
    control, model = controls(bundle.model), bundle.model
    mass = np.random.default_rng(1).uniform(0.5, 2, (WORLDS, model.nbody)).astype(np.float32)
    damping = np.random.default_rng(2).uniform(0.5, 2, (WORLDS, model.nv)).astype(np.float32)
    found = play(bundle, control, {"mass": jnp.asarray(mass), "damping": jnp.asarray(damping)})[0]
    for world in range(WORLDS):
        edited = physics.load_model("hopper")
        edited.body_mass[:] *= mass[world]
        edited.dof_damping[:] *= damping[world]
        plain, _ = plain_mujoco(edited, control, 4)
        np.testing.assert_allclose(found[world], plain[world], rtol=0, atol=2e-4)


@needs_warp
def test_a_family_trains_on_it():
    family = metajax.make("halfcheetah-vel", backend="warp", episode_length=4)
    assert family.backend == "warp"
    policy = metajax.mlp(family.env.observation_size, family.env.action_space, hidden=(8,))
    algorithm = metajax.maml(family.env, policy, outer=metajax.outer.adam(), episodes=2)
    result = metajax.train(algorithm, family, iterations=2, tasks=2, evaluation=None, report=None)
    assert np.all(np.isfinite(result.metrics["return_after"]))


@needs_warp
def test_a_gradient_is_refused():
    bundle = make("hopper", "warp", 4)
    state = bundle.init(jnp.asarray(bundle.default_qpos, jnp.float32), jnp.zeros(6))
    with pytest.raises(MetajaxError, match="MuJoCo Warp, which has no gradient"):
        jax.grad(lambda control: bundle.step(state, control).qpos.sum())(jnp.zeros(3))


def test_on_another_accelerator_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(MetajaxError, match="NVIDIA GPU, or slowly on a CPU, but JAX runs on tpu"):
        physics.resolve_backend("warp")


@needs_warp
def test_on_a_cpu_it_runs_where_it_is_asked_for_by_name_alone():
    assert physics.resolve_backend("warp") == "warp"
    assert physics.resolve_backend("auto") == "mujoco"


@needs_warp
@pytest.mark.parametrize("of", ["mass", "inertia"])
def test_simple_bodies_move_as_heavy_as_they_are(of, tmp_path):
    """A wheel and a slide under 1 N·m and 1 N for a second, four times as heavy."""
    path = tmp_path / "model.xml"
    path.write_text(
        """<mujoco><option timestep=".01" gravity="0 0 0"/><worldbody>
        <body><joint name="w" axis="0 0 1"/><inertial pos="0 0 0" mass="1"
          diaginertia=".02 .02 .02"/><geom size=".1" contype="0" conaffinity="0"/></body>
        <body><joint name="s" type="slide"/><geom size=".1" mass="1" contype="0"
          conaffinity="0"/></body></worldbody>
        <actuator><motor joint="w"/><motor joint="s"/></actuator></mujoco>"""
    )
    bundle = make(str(path), "warp", 100)
    state = bundle.init(jnp.zeros(2), jnp.zeros(2))
    state = bundle.step(state, jnp.ones(2), {of: jnp.array([1.0, 4.0, 4.0])})
    right = {"mass": [25.25, 0.12625], "inertia": [6.3125, 0.505]}
    np.testing.assert_allclose(bundle.qpos(state), right[of], rtol=1e-5)


def test_without_its_package_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MetajaxError, match=r'pip install -e "\.\[warp\]"'):
        physics.resolve_backend("warp")
