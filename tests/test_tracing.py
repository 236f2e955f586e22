"""An engine is traced on its own terms, and nobody else notices; a program is its platform's."""

import contextlib
import re
import sys
import threading
import warnings

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from metajax.physics import linear_algebra, mjx, segments
from metajax.physics.mjx_model import import_mjx
from metajax.physics.quiet import without_lines, without_warning
from metajax.physics.tracing import engine_code

ENVIRONMENTS = 40

ARM = """<mujoco><worldbody><body><joint name="a" axis="0 1 0"/>
  <geom type="capsule" size=".05" fromto="0 0 0 .5 0 0" contype="0" conaffinity="0"/>
  <body pos=".5 0 0"><joint axis="0 1 0"/>
  <geom type="capsule" size=".04" fromto="0 0 0 .5 0 0" contype="0" conaffinity="0"/></body>
  </body></worldbody><actuator><motor joint="a"/></actuator></mujoco>"""


@pytest.fixture(scope="module")
def traced():
    """A step of many environments, for no platform yet."""
    bundle = mjx.make(mujoco.MjModel.from_xml_string(ARM), frame_skip=2)
    many = jax.vmap(lambda qpos: bundle.step(bundle.init(qpos, jnp.zeros(2)), jnp.zeros(1)))
    return jax.jit(many).trace(jnp.zeros((ENVIRONMENTS, 2)))


# ---------------------------------------------------------------------------------------------
# What a program is lowered for
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "factorization"),
    [("cpu", None), ("cuda", "cusolver_potrf_ffi"), ("tpu", "stablehlo.cholesky")],
)
def test_a_program_lowered_on_a_cpu_is_that_of_its_platform(traced, platform, factorization):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    calls = set(re.findall(r"custom_call @(\w+)", text)) - {"Sharding"}
    chunks = re.search(r"tensor<3x14x\d", text)  # 40 environments as 3 chunks of at most 16
    assert "stablehlo.while" in text
    if factorization is None:
        assert chunks and not calls and "stablehlo.cholesky" not in text
    else:
        assert not chunks and factorization in text
        assert calls <= {factorization}
    # A choice that is left has one branch.
    for choice in re.findall(r'"stablehlo.case"\(%\w+\) \(\{.*?\}\) :', text, re.DOTALL):
        branches = choice.split("}, {")
        assert len(branches) == 1 or all("constant" in branch for branch in branches)


def test_factorizations_are_unrolled_on_a_cpu_alone():
    def solved(matrix, right):
        ours = linear_algebra.solve(matrix, right, assume_a="pos")
        return ours, linear_algebra.cho_solve(linear_algebra.cho_factor(matrix), right)

    lowered = jax.jit(solved).trace(jnp.eye(3), jnp.ones(3))
    texts = {p: lowered.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda", "tpu")}
    assert [texts[p].count("stablehlo.sqrt") for p in texts] == [6, 0, 0]
    assert "custom_call" not in texts["cpu"] and "triangular_solve" not in texts["cpu"]


def test_matrices_of_mjx_do_not_follow_the_machine(monkeypatch):
    """MJX makes them sparse where it finds a TPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    model = mujoco.MjModel.from_xml_string(ARM)
    from metajax.physics.mjx_model import mjx_arrays

    compiled, data = mjx_arrays(model)()
    assert data._impl.M.shape == (model.nv, model.nv)
    with engine_code():
        assert import_mjx().full_m(compiled, data).shape == (model.nv, model.nv)
    assert model.opt.jacobian == mujoco.mjtJacobian.mjJAC_AUTO  # the user's is as it was


# ---------------------------------------------------------------------------------------------
# What another thread sees
# ---------------------------------------------------------------------------------------------


def elsewhere(function):
    """Return what a function returns on another thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(timeout=60)
    return found[0]


def primitives(function, *arguments):
    return re.findall(r"cholesky|sqrt|platform_index", str(jax.make_jaxpr(function)(*arguments)))


def test_names_of_the_engine_are_replaced_while_it_is_traced_for_the_tracing_thread():
    import_mjx()
    from mujoco.mjx._src import math, smooth

    factor = lambda matrix: smooth.jax.scipy.linalg.cho_factor(matrix)[0]
    names = jax.scipy.linalg.cho_factor, jax.scipy.linalg.cho_solve, jax.scipy.linalg.solve
    own = math.closest_segment_point
    ends = jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]), jnp.array([0.5, 1.0, 0.0])
    theirs, ours = own(*ends)[0], segments.closest_segment_point(*ends)[0]
    assert theirs != ours == 0.5  # they add 1e-6 to the denominator
    with engine_code(), engine_code():
        assert "platform_index" in primitives(factor, jnp.eye(2))
        assert math.closest_segment_point(*ends)[0] == ours
        assert set(elsewhere(lambda: primitives(factor, jnp.eye(2)))) == {"cholesky"}
        assert elsewhere(lambda: math.closest_segment_point(*ends)[0]) == theirs
        now = jax.scipy.linalg.cho_factor, jax.scipy.linalg.cho_solve, jax.scipy.linalg.solve
        assert now == names
    assert smooth.jax is jax
    assert math.closest_segment_point is own


def test_a_thread_that_solves_and_one_that_traces_do_not_notice_each_other():
    engine = import_mjx()
    model = mujoco.MjModel.from_xml_string(ARM)
    with engine_code():
        compiled, data = engine.put_model(model), engine.make_data(model)

    def traced():
        def accelerate(data):
            for stage in (engine.kinematics, engine.com_pos, engine.crb, engine.factor_m):
                data = stage(compiled, data)
            return engine.fwd_acceleration(compiled, data).qacc_smooth

        with engine_code():
            return str(jax.make_jaxpr(accelerate)(data))

    expected, tracing = traced(), threading.Event()
    assert "platform_index" in expected
    mistakes, solved = [], []

    def trace():
        for _ in range(2):
            if traced() != expected:
                mistakes.append("another program")

    def solve():
        matrix = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 4.0]])
        while not tracing.is_set():
            try:
                solution = jax.scipy.linalg.solve(matrix, jnp.ones(3))
                np.testing.assert_allclose(matrix @ solution, 1.0, rtol=1e-5)
                upper, lower = jax.scipy.linalg.cho_factor(matrix @ matrix.T)
                both = jax.scipy.linalg.cho_solve((upper, lower), jnp.ones(3))
                np.testing.assert_allclose(matrix @ matrix.T @ both, 1.0, rtol=1e-4)
                solved.append(1)
            except Exception as error:  # the thread would swallow it
                mistakes.append(repr(error))
                return

    tracers = [threading.Thread(target=trace) for _ in range(2)]
    solver = threading.Thread(target=solve)
    for thread in (*tracers, solver):
        thread.start()
    for thread in tracers:
        thread.join(timeout=400)
    tracing.set()
    solver.join(timeout=60)
    assert not any(thread.is_alive() for thread in (*tracers, solver))
    assert not mistakes and solved
    from mujoco.mjx._src import solver as of_mjx

    assert of_mjx.jax is jax


def test_complaints_of_an_engine_are_dropped_for_the_tracing_thread_alone():
    import_mjx()
    from mujoco.mjx._src import types

    complaint = "Accessing `x` directly from `Data` is deprecated."
    with engine_code():
        types.warnings.warn(complaint, DeprecationWarning, stacklevel=1)
        with pytest.warns(UserWarning, match="something else") as caught:
            types.warnings.warn("something else", stacklevel=1)
        assert caught[0].filename == __file__

        def warned():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                types.warnings.warn(complaint, DeprecationWarning, stacklevel=1)
            return [str(one.message) for one in caught]

        assert elsewhere(warned) == [complaint]


def test_warnings_are_ignored_without_touching_other_filters():
    before = list(warnings.filters)
    ours, theirs = without_warning("ours"), warnings.catch_warnings()
    ours.__enter__()
    warnings.warn("ours, to the end", stacklevel=1)  # an error in these tests
    theirs.__enter__()
    ours.__exit__(None, None, None)
    theirs.__exit__(None, None, None)
    assert list(warnings.filters) == before


def test_lines_are_held_back_without_holding_back_those_of_other_threads(capsys):
    stream = sys.stdout
    with without_lines("noise"):
        print("noise: one")
        print("a line")
        elsewhere(lambda: print("noise of another thread"))
    assert sys.stdout is stream
    assert capsys.readouterr().out.splitlines() == ["noise of another thread", "a line"]

    ours, theirs = without_lines("noise"), contextlib.redirect_stdout(None)
    ours.__enter__()
    theirs.__enter__()
    ours.__exit__(None, None, None)
    theirs.__exit__(None, None, None)
    print("not lost")
    sys.stdout = stream
    assert capsys.readouterr().out == "not lost\n"
