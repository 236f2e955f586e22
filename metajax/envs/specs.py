"""What belongs to a task family by name, in one value at the end of its file."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from metajax.envs.drawings import REWARDS, Drawing
from metajax.types import TaskFamily

Preset = Mapping[str, Mapping[str, Any]]


class FamilySpec(NamedTuple):
    """A task family by name, and all else that metajax knows of it.

    Attributes:
        name: what the command line calls it.
        factory: makes it; its keyword arguments are the family's options.
        source: where it comes from; its docstring says more.
        backends: physics engines that it runs on; none where its option `backend` is missing.
        variants: what its option `variant` accepts; none where there is none.
        drawing: how it is drawn.
        presets: by algorithm, the values that were tuned for it here, by group of options. Those
            that go with an outer step which is asked for stand in the group "outer", by its name.
            An algorithm that is not named has the defaults of its own.
        references: names in `metajax.reference_agents` of what plays it without learning.
        package: that must be installed, where it is no requirement of metajax.
    """

    name: str
    factory: Callable[..., TaskFamily]
    source: str
    backends: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    drawing: Drawing = REWARDS
    presets: Mapping[str, Preset] = {}
    references: tuple[str, ...] = ()
    package: str | None = None


# Algorithms that take gradient steps on the returns of a task, or fine-tune by them, and the values
# that each does not take from the others: it has no such option, or one of another scale.
_STEPS = ("inner.rule", "inner.learning_rate_decay")
_NOT_SHARED = {
    **dict.fromkeys(("maml", "fomaml", "meta-sgd", "meta-lstm", "anil", "e-maml"), ()),
    "cavia": ("inner.rule",),
    "promp": ("outer.name",),
    "reptile": ("outer",),
    "learned-optimizer": ("outer", *_STEPS),
    "reinforce": ("outer.name", "inner.objective.gae_lambda", *_STEPS),
    **dict.fromkeys(("a2c", "ppo"), ("outer.name", *_STEPS)),
    **dict.fromkeys(("trpo", "q-prop"), ("outer", *_STEPS)),
}


def gradient_presets(shared: Preset, own: Mapping[str, Preset] | None = None) -> dict[str, Preset]:
    """Return presets, by algorithm, for all that learn by policy gradients from task to task.

    Args:
        shared: what MAML was tuned to; each other algorithm takes of it what means the same there.
        own: what an algorithm has in addition or instead, by its name.
    """
    own = own or {}
    return {
        algorithm: merged(_without(shared, names), own.get(algorithm, {}))
        for algorithm, names in _NOT_SHARED.items()
    }


def merged(*presets: Mapping[str, Any]) -> dict[str, Any]:
    """Return one preset of several: of a value that several have, the last."""
    found: dict[str, Any] = {}
    for preset in presets:
        for name, value in preset.items():
            if isinstance(value, Mapping):
                value = merged(found.get(name, {}), value)
            found[name] = value
    return found


def _without(preset: Preset, paths: tuple[str, ...]) -> dict[str, Any]:
    """Return a preset without some options of the algorithm, by their dotted names."""
    kept = merged(preset)
    for path in paths:
        *groups, name = path.split(".")
        values = kept.get("algorithm", {})
        for group in groups:
            values = values.get(group, {})
        values.pop(name, None)
    if "outer" in kept:
        steps = {} if "outer" in paths or "outer.name" in paths else kept["outer"]
        kept["outer"] = {step: _without(values, paths) for step, values in steps.items()}
    return kept
