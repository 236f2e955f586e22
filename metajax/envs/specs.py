"""What belongs to a task family by name, in one value at the end of its file."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from metajax.envs.drawings import REWARDS, Drawing
from metajax.types import TaskFamily

Preset = Mapping[str, Mapping[str, Any]]


class FamilySpec(NamedTuple):
    """A task family by name, and all that metajax knows of it beside its factory.

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
_NOT_SHARED = {
    **dict.fromkeys(("maml", "fomaml", "meta-sgd", "meta-lstm", "anil", "e-maml"), ()),
    "cavia": ("inner_learning_rate",),
    "promp": ("outer",),
    "reptile": ("outer", "outer_learning_rate"),
    "learned-optimizer": (
        *("outer", "outer_learning_rate"),
        *("inner_learning_rate", "inner_learning_rate_decay"),
    ),
    "reinforce": ("outer", "inner_learning_rate", "inner_learning_rate_decay", "trace"),
    **dict.fromkeys(("a2c", "ppo"), ("outer", "inner_learning_rate", "inner_learning_rate_decay")),
    **dict.fromkeys(
        ("trpo", "q-prop"),
        ("outer", "outer_learning_rate", "inner_learning_rate", "inner_learning_rate_decay"),
    ),
}


def gradient_presets(shared: Preset, own: Mapping[str, Preset] | None = None) -> dict[str, Preset]:
    """Return presets, by algorithm, for all that learn by policy gradients from task to task.

    Args:
        shared: what MAML was tuned to; each other algorithm takes of it what means the same there.
        own: what an algorithm has beside or instead, by its name.
    """
    own = own or {}
    return {
        algorithm: merged(_without(shared, names), own.get(algorithm, {}))
        for algorithm, names in _NOT_SHARED.items()
    }


def merged(*presets: Preset) -> dict[str, dict[str, Any]]:
    """Return one preset of several: of a value that several have, the last."""
    groups = dict.fromkeys(group for preset in presets for group in preset)
    return {
        group: {name: value for preset in presets for name, value in preset.get(group, {}).items()}
        for group in groups
    }


def _without(preset: Preset, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return a preset without some options of the algorithm."""
    kept = {group: dict(values) for group, values in preset.items()}
    kept["algorithm"] = {k: v for k, v in preset.get("algorithm", {}).items() if k not in names}
    if "outer" in preset:
        steps = {} if "outer" in names else preset["outer"]
        kept["outer"] = {step: _without(values, names) for step, values in steps.items()}
    return kept
