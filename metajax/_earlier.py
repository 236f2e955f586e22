"""Configurations of earlier runs, whose options had other names and places."""

from collections.abc import Collection, Mapping
from typing import Any

_OBJECTIVES = ("inner.objective", "objective")

# Where an option went: the first of these places that an algorithm has.
MOVED: dict[str, tuple[str, ...]] = {
    "inner_learning_rate": ("inner.rule.learning_rate",),
    "inner_learning_rate_decay": ("inner.learning_rate_decay",),
    "inner_epochs": ("inner.epochs",),
    "inner_max_kl": ("inner.max_kl",),
    "rule": ("inner.rule",),
    "adapts": ("inner.adapts",),
    "estimator": ("inner.objective.estimator",),
    "truncation": ("inner.objective.truncation",),
    "baseline": ("inner.objective.critic",),
    "discount": tuple(f"{of}.discount" for of in _OBJECTIVES),
    "trace": tuple(f"{of}.gae_lambda" for of in _OBJECTIVES),
    "normalize_advantages": ("inner.objective.normalize_advantages",),
    "critic_hidden": ("inner.objective.critic.hidden",),
    "critic_learning_rate": ("inner.objective.critic.learning_rate",),
    "critic_epochs": ("inner.objective.critic.epochs",),
    "control_variate": ("inner.objective.control_variate",),
    "q_updates": ("inner.objective.control_variate.updates",),
    "replay_capacity": ("inner.objective.control_variate.replay_capacity",),
    "error_clip": ("inner.objective.error_clip",),
    "outer_learning_rate": (
        *("outer.learning_rate", "objective.critic.learning_rate"),
        *("step_size", "learning_rate"),
    ),
    "outer_half_life": ("outer.half_life", "objective.critic.half_life"),
    "outer_epochs": ("outer.epochs", "objective.critic.epochs"),
    "minibatches": ("outer.minibatches", "objective.critic.minibatches"),
    "max_gradient_norm": ("outer.max_gradient_norm", "objective.critic.max_gradient_norm"),
    "clip": ("outer.clip",),
    "max_kl": ("outer.max_kl",),
    "cg_iterations": ("outer.cg_iterations",),
    "cg_damping": ("outer.cg_damping",),
    "entropy_weight": ("objective.entropy_weight",),
    "value_weight": ("objective.value_weight",),
    "chunk": ("objective.chunk",),
    "burn_in": ("objective.burn_in",),
    "beliefs": ("model.beliefs",),
    "predictions": ("model.predictions",),
    "kl_weight": ("model.kl_weight",),
    "state_weight": ("model.state_weight",),
    "decoder_hidden": ("model.decoder_hidden",),
}
EVALUATION = {"mode": "deterministic"}
_PARTS = ("outer", "rule", "baseline", "control_variate")  # names, once they are there


def moved(option: str, places: Collection[str]) -> str | None:
    """Return where an option of an earlier version is now, of the places that there are."""
    return next((place for place in MOVED.get(option, ()) if place in places), None)


def is_earlier(options: Mapping[str, Any]) -> bool:
    """Return whether the options of an algorithm are those of an earlier version."""
    return isinstance(options.get("outer"), str) or any(
        name in options for name in ("inner_learning_rate", "outer_learning_rate", "trace")
    )


def named_parts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts that earlier options name, `{option: {"name": name}}`."""
    found: dict[str, Any] = {}
    if "outer" in options:
        found["outer"] = {"name": options["outer"]}
    for option in _PARTS[1:]:
        if option in options:
            name = options[option].replace("_", "-")
            if option == "control_variate" and name != "none":
                name = "q-prop"
            _put(found, f"{MOVED[option][0]}.name", name)
    return found


def translated(options: Mapping[str, Any], places: Collection[str]) -> dict[str, Any]:
    """Return earlier options of an algorithm as they are now; those of parts not taken are gone.

    Args:
        options: by name.
        places: the dotted names of options that the algorithm has, with the parts that it names.
    """
    found = named_parts(options)
    kind = options.get("control_variate", "none")
    if kind != "none":
        _put(found, "inner.objective.control_variate.kind", kind)
        for name in ("hidden", "learning_rate"):  # of both critics
            if f"critic_{name}" in options:
                value = options[f"critic_{name}"]
                _put(found, f"inner.objective.control_variate.{name}", value)
    # A step of Adam's was one on the whole batch, whatever its epochs and its clipping.
    unread = ("outer_epochs", "clip") if options.get("outer") == "adam" else ()
    for name, value in options.items():
        if name in (*_PARTS, *unread):
            continue
        place = name if name in places else moved(name, places)
        if place is not None:
            _put(found, place, value)
    return {name: found[name] for name in found if name.partition(".")[0] in places}


def evaluation_of_today(options: Any) -> Any:
    """Return earlier options of the evaluation as they are now; what are no options as it is."""
    if not isinstance(options, Mapping):
        return options
    return {EVALUATION.get(name, name): value for name, value in options.items()}


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *groups, name = path.split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
    tree[name] = value
