"""MuJoCo models: those of the installed Gymnasium package, and one's own."""

import importlib.util
import pathlib

import mujoco

from metajax.errors import MetajaxError, unknown
from metajax.physics.quiet import without_warning

# pyright: reportAttributeAccessIssue=false
# (the compiled modules of mujoco carry no types)

_GYMNASIUM = "envs/mujoco/assets"
_SLIDE = mujoco.mjtJoint.mjJNT_SLIDE


def load_model(
    name: str,
    *,
    without: str | None = None,
    for_brax: bool = False,
    contact_sensor: bool = False,
) -> mujoco.MjModel:
    """Return a model of the installed Gymnasium package, or of one's own, edited in memory.

    Where the file asks for the PGS solver, which MJX does not have, Newton's takes its place, on
    every engine: both solve the same problem, Newton's to the end.

    Args:
        name: of the XML file, for example "half_cheetah", or its path.
        without: a body to leave out.
        for_brax: add the engine parameters of Brax's own version of the model, and do as Brax's
            pipelines ask: merge bodies without joints into their parents, and let hinges and
            slides be 0 where the model stands.
        contact_sensor: add a sensor that makes C MuJoCo compute `cfrc_ext`.

    Raises:
        MetajaxError: there is no such model or body, or MuJoCo cannot read the model.
    """
    own = pathlib.Path(name).suffix != "" or len(pathlib.Path(name).parts) > 1
    spec = _own_spec(str(name)) if own else _gymnasium_spec(name)
    if without is not None:
        bodies = {body.name: body for body in spec.bodies[1:] if body.name}  # not the world
        if without not in bodies:
            raise unknown("body", without, bodies)
        spec.delete(bodies[without])
    if spec.option.solver == mujoco.mjtSolver.mjSOL_PGS:
        spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    if contact_sensor:
        spec.bodies[1].add_site(name="metajax")
        spec.add_sensor(
            name="metajax",
            type=mujoco.mjtSensor.mjSENS_FORCE,
            objtype=mujoco.mjtObj.mjOBJ_SITE,
            objname="metajax",
        )
    if for_brax:
        spec.compiler.fusestatic = True
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
        hinges = {j.parent.name: j.pos for j in spec.joints if j.type != _SLIDE}
        for joint in spec.joints:
            joint.ref = 0
            joint.pos = hinges.get(joint.parent.name, joint.pos)  # no matter for a slide
        if not own:
            _tune_for_brax(spec, _spec("brax", f"envs/assets/{name}.xml"))
    # Deprecated, but it is what Gymnasium's cheetah says.
    with without_warning(".*settotalmass"):
        try:
            model = spec.compile()
        except (ValueError, mujoco.FatalError) as error:
            raise MetajaxError(f"MuJoCo cannot compile {name}: {_one_line(error)}") from None
    if model.nv == 0:
        raise MetajaxError(f"nothing in {name} can move: it has no joints.")
    return model


def _own_spec(path: str) -> mujoco.MjSpec:
    if not path.endswith(".xml"):  # by which alone MuJoCo knows what it is
        raise MetajaxError(
            f"{path} must end in .xml, by which MuJoCo knows it: rename it, or take the name of a "
            f"model of Gymnasium's: {', '.join(_gymnasium_models())}."
        )
    if not pathlib.Path(path).is_file():
        raise MetajaxError(f"MuJoCo cannot read {path}: there is no such file.")
    try:
        return mujoco.MjSpec.from_file(path)
    except (ValueError, mujoco.FatalError) as error:
        raise MetajaxError(f"MuJoCo cannot read {path}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _gymnasium_spec(name: str) -> mujoco.MjSpec:
    if name not in _gymnasium_models():
        known = unknown("model", name, _gymnasium_models())
        raise MetajaxError(f"{known} One of your own is the path of a file that ends in .xml.")
    return _spec("gymnasium", f"{_GYMNASIUM}/{name}.xml")


def _gymnasium_models() -> list[str]:
    return sorted(path.stem for path in _path("gymnasium", _GYMNASIUM).glob("*.xml"))


def _tune_for_brax(spec: mujoco.MjSpec, tuned: mujoco.MjSpec) -> None:
    spec.option.iterations = tuned.option.iterations
    links = len({joint.parent.name for joint in spec.joints})
    for numeric in tuned.numerics:
        if numeric.name != "init_qpos":
            data = list(numeric.data)[:links]  # one per link, or one for all
            spec.add_numeric(name=numeric.name, data=data, size=len(data))


def _spec(package: str, path: str) -> mujoco.MjSpec:
    return mujoco.MjSpec.from_file(str(_path(package, path)))


def _path(package: str, path: str) -> pathlib.Path:
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    return pathlib.Path(found.origin).parent / path


def quaternion_addresses(model: mujoco.MjModel) -> list[tuple[int, int]]:
    """Return where the unit quaternions of free and ball joints are in positions and velocities."""
    offset = {int(mujoco.mjtJoint.mjJNT_FREE): 3, int(mujoco.mjtJoint.mjJNT_BALL): 0}
    joints = zip(model.jnt_type, model.jnt_qposadr, model.jnt_dofadr, strict=True)
    return [
        (int(q) + offset[int(kind)], int(v) + offset[int(kind)])
        for kind, q, v in joints
        if int(kind) in offset
    ]
