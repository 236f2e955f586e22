"""Bounds of actions: one for every actuator, in and out of Gymnasium and gymnax."""

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import export, physics
from metajax.envs.bridges import gymnax
from metajax.envs.builders import scaled_actions
from metajax.errors import MetajaxError
from metajax.types import Continuous, Env

ARM = """<mujoco><worldbody><body><joint name="a" {joint}/><geom size=".1"/>
  <body pos=".5 0 0"><joint name="b"/><geom size=".1"/></body></body></worldbody>
  <actuator>{motors}</actuator></mujoco>"""
TWO = """<motor name="one" joint="a" {}/><motor name="two" joint="b" {}/>"""


def robot(motors, tmp_path, joint=""):
    path = tmp_path / "model.xml"
    path.write_text(ARM.format(motors=motors, joint=joint))
    return physics.make_physics(str(path), backend="mujoco", frame_skip=1, brax_substeps=1)


def test_every_actuator_has_its_own_range(tmp_path):
    bundle = robot(TWO.format('ctrlrange="-2 .5"', 'ctrlrange="0 3"'), tmp_path)
    for scale in (1.0, 0.1):
        space = scaled_actions(bundle, scale)
        assert hash(space) == hash(scaled_actions(bundle, scale))
        ends = [space.to_control(jnp.full((2,), end)) for end in (-100.0, 100.0)]
        np.testing.assert_allclose(ends, [[-2, 0], [0.5, 3]], rtol=1e-6)
        # Within the range the control is `scale` times the action, in units of 3 N·m.
        within = space.to_control(jnp.array([-0.1, 0.5]))
        np.testing.assert_allclose(within, [-0.3 * scale, 1.5 * scale], rtol=1e-6)
    low, high = scaled_actions(bundle, 1.0).bounds
    np.testing.assert_allclose([low, high], [[-2 / 3, 0], [1 / 6, 1]], rtol=1e-6)


def test_ranges_that_are_inherited_are_ranges(tmp_path):
    motors = '<position joint="a" inheritrange="1"/>'
    bundle = robot(motors, tmp_path, 'range="-90 30"')
    controls = [scaled_actions(bundle, 1.0).to_control(jnp.full((1,), x)) for x in (-9.0, 9.0)]
    np.testing.assert_allclose(np.ravel(controls), np.radians([-90, 30]), rtol=1e-6)


@pytest.mark.parametrize("limit", ["", 'forcerange="-1 1"', 'ctrlrange="-1 1" ctrllimited="false"'])
def test_an_actuator_without_a_range_is_refused_by_name(limit, tmp_path):
    bundle = robot(TWO.format('ctrlrange="-1 1"', limit), tmp_path)
    with pytest.raises(
        MetajaxError, match=r"'two' has no range of controls.*ctrlrange.*Continuous"
    ):
        scaled_actions(bundle, 1.0)


def test_impossible_bounds_of_actions_are_refused(tmp_path):
    with pytest.raises(MetajaxError, match="has no actuator"):
        scaled_actions(robot("", tmp_path), 1.0)
    with pytest.raises(MetajaxError, match="scale is 0"):
        scaled_actions(robot(TWO.format('ctrlrange="-1 1"', 'ctrlrange="-1 1"'), tmp_path), 0.0)
    with pytest.raises(MetajaxError, match=r"low has shape \(3,\).*2 dimensions"):
        Continuous(2, (0.0, 1.0, 2.0))


def test_bounds_go_to_gymnasium_and_come_from_gymnax():
    low, high = np.array([-1, 0], np.float32), np.array([1, 2], np.float32)
    space = Continuous(2, (-1.0, 0.0), (1.0, 2.0))
    env = Env(
        reset=lambda *_: None,
        step=lambda *_: None,
        observation_size=3,
        action_space=space,
        episode_length=5,
    )
    box = gymnasium.spaces.Box(low, high)
    assert export._spaces(env)[1] == box
    assert gymnax._action_space("theirs", box)[0] == space


def test_equal_bounds_are_one_number():
    assert Continuous(2, np.array([-1, -1]), [2.0, 2.0]) == Continuous(2, -1.0, 2.0)
    assert Continuous(2, (-1.0, 0.0)) != Continuous(2, -1.0)
