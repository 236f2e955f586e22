"""Options that are parts of an algorithm, as data: the name of a factory, and its options.

`{"name": "ppo", "epochs": 5}` stands for `metajax.outer.ppo(epochs=5)`; options that are parts
themselves look alike, and None stands for no part. A name is one of metajax's own or, for a factory
of the user's, "module:attribute" (see `metajax._imported`).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Union, get_args, get_origin

from metajax._checks import check_options
from metajax._imported import check_factory, imported, module_of, of_type, options_of
from metajax.adaptation import (
    BELIEF_MODELS,
    CONTEXT_ENCODERS,
    CONTROL_VARIATES,
    CRITICS,
    EXPLORATIONS,
    INNER_LOOPS,
    OBJECTIVES,
    REPLAY_ADAPTATIONS,
    TRIAL_OBJECTIVES,
    BeliefModel,
    ContextEncoder,
    ControlVariate,
    Critic,
    Exploration,
    InnerLoop,
    Objective,
    ReplayAdaptation,
    TrialObjective,
)
from metajax.errors import MetajaxError, brief, unknown
from metajax.outer import OFF_POLICY_LEARNERS, OUTER_STEPS, OffPolicyLearner, OuterStep
from metajax.rules import RULES
from metajax.types import Part, UpdateRule

# By what an option's annotation says, the factories that have names.
NAMED: dict[Any, Mapping[str, Callable[..., Any]]] = {
    OuterStep: OUTER_STEPS,
    Part[OffPolicyLearner]: OFF_POLICY_LEARNERS,
    UpdateRule: RULES,
    Part[InnerLoop]: INNER_LOOPS,
    Part[Objective]: OBJECTIVES,
    Part[Critic]: CRITICS,
    Part[ControlVariate]: CONTROL_VARIATES,
    Part[TrialObjective]: TRIAL_OBJECTIVES,
    Part[BeliefModel]: BELIEF_MODELS,
    Part[ContextEncoder]: CONTEXT_ENCODERS,
    Part[ReplayAdaptation]: REPLAY_ADAPTATIONS,
    Part[Exploration]: EXPLORATIONS,
}
NAME = "name"
NONE = "none"


class Choice(NamedTuple):
    """An option that is a part.

    Attributes:
        kind: its annotation, without None.
        optional: whether None is allowed.
        name: of the chosen factory; None for no part.
        factory: of that name.
        options: of the factory, with defaults.
    """

    kind: Any
    optional: bool
    name: str | None
    factory: Callable[..., Any] | None
    options: "Options"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what can be chosen."""
        return (*NAMED[self.kind], *([NONE] if self.optional else []))

    @property
    def default(self) -> dict[str, Any] | None:
        """The description of the part with its defaults."""
        if self.name is None:
            return None
        return {NAME: self.name} | {name: one.default for name, one in self.options.items()}


Options = dict[str, "inspect.Parameter | Choice"]


def kind_of(annotation: Any) -> tuple[Any, bool] | None:
    """Return the kind of part that an annotation asks for, and whether None will do, or None."""
    kinds = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    parts = [kind for kind in kinds if _is_part(kind)]
    return (parts[0], type(None) in kinds) if parts else None


_UNIONS = (Union, type(int | str))


def _is_part(kind: Any) -> bool:
    try:
        return kind in NAMED
    except TypeError:  # an annotation that cannot be hashed
        return False


def factory_of(kind: Any, name: str, allow_import: Sequence[str]) -> Callable[..., Any]:
    """Return the factory of a name.

    Raises:
        MetajaxError: there is none, or it cannot or may not be imported.
    """
    known, what = NAMED[kind], kind_name(kind)
    if module_of(name) is None:
        if name not in known:
            raise unknown(what, name, known)
        return known[name]
    factory = imported(what, name, allow_import)
    check_factory(what, name, factory, ())
    return factory


def kind_name(kind: Any) -> str:
    """Return a kind in words, such as "outer step"."""
    name = (get_args(kind) or (kind,))[0].__name__
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


def described(part: Any) -> dict[str, Any] | None:
    """Return a part as data; None for no part.

    Raises:
        MetajaxError: nobody knows how it was made.
    """
    if part is None:
        return None
    if part.made is None:
        raise MetajaxError(
            "a default is a part that does not know how it was made; make it by a factory that is "
            "decorated with metajax.parts.part."
        )
    factory, options = part.made
    named = (name for known in NAMED.values() for name, one in known.items() if one is factory)
    name = next(named, f"{factory.__module__}:{factory.__name__}")
    is_part = lambda value: hasattr(value, "made")
    values = {n: described(v) if is_part(v) else v for n, v in options.items()}
    return {NAME: name} | values


def options_with(
    name: str,
    factory: Callable[..., Any],
    *,
    values: Mapping[str, Any],
    chosen: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    allow_import: Sequence[str] = (),
    positional: bool = False,
) -> Options:
    """Return the options of a factory: those that are plain data, and those that are parts.

    Args:
        name: of the factory.
        factory: whose keyword arguments are meant.
        values: of options, instead of their defaults. Those of a part hold for whichever part is
            chosen, where it has such options.
        chosen: the names of parts instead of those, `{option: {"name": name, ...}}`.
        defaults: instead of the factory's own.
        allow_import: modules outside metajax that may be imported.
        positional: whether all arguments are options.

    Raises:
        MetajaxError: a part does not exist, or nothing says what an option is.
    """
    defaults, found = defaults or {}, {}
    is_part = lambda annotation: kind_of(annotation) is not None
    for parameter in options_of(name, factory, positional=positional, also=is_part).values():
        option = parameter.name
        kind = kind_of(parameter.annotation)
        if kind is None:
            default = values.get(option, defaults.get(option, parameter.default))
            found[option] = parameter.replace(default=default)
            continue
        default = defaults[option] if option in defaults else described(parameter.default)
        found[option] = _choice(
            kind[0],
            optional=kind[1],
            default=_named(default),
            values=_named(values.get(option, {})),
            chosen=_named(chosen.get(option, {})),
            allow_import=allow_import,
        )
    return found


def _named(value: Any) -> Mapping[str, Any]:
    """Return any description as a mapping; of what is none, an empty one."""
    if value is None:
        return {NAME: NONE}
    if isinstance(value, str):
        return {NAME: value}
    return value if isinstance(value, Mapping) else {}  # `checked_values` refuses it


def name_in(value: Any) -> str | None:
    """Return the name in the description of a part; None without any."""
    name = _named(value).get(NAME)
    return name if isinstance(name, str) else None


def _choice(
    kind: Any,
    *,
    optional: bool,
    default: Mapping[str, Any],
    values: Mapping[str, Any],
    chosen: Mapping[str, Any],
    allow_import: Sequence[str],
) -> Choice:
    name = next(one[NAME] for one in (chosen, values, default) if NAME in one)
    if not isinstance(name, str):
        raise MetajaxError(f"the name of a part is {brief(name)}; it must be a string.")
    if name == NONE and optional:
        return Choice(kind, optional, None, None, {})
    factory = factory_of(kind, name, allow_import)
    known = options_with(
        name,
        factory,
        values=values,
        chosen=chosen,
        defaults=default if default.get(NAME) == name else {},
        allow_import=allow_import,
        positional=True,
    )
    return Choice(kind, optional, name, factory, known)


def checked_values(
    options: Options, values: Mapping[str, Any], what: str, *, prefix: str = ""
) -> dict[str, Any]:
    """Return values of options as these have them; of parts, all that they have.

    Args:
        options: for the parts that the values name.
        values: of some of them, by name.
        what: an unknown name would have been the name of.
        prefix: of the options' names, in what is said of values.

    Raises:
        MetajaxError: a name is unknown, or a value is not what its annotation says.
    """
    plain = {n: p for n, p in options.items() if not isinstance(p, Choice)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        choice = options.get(name)
        if not isinstance(choice, Choice):
            known = options if name not in options else plain
            found |= check_options(known, {name: value}, what, prefix=prefix)  # type: ignore
            continue
        here = f"{prefix}{name}"
        if not isinstance(value, Mapping | str | None):
            must = "a name, or options with one"
            raise MetajaxError(f"{here} is {brief(value)}; it must be {must}.")
        if choice.name is None:
            if _named(value).keys() != {NAME}:
                raise MetajaxError(f"{here} is none; it has no options.")
            found[name] = None
            continue
        nested = {n: v for n, v in _named(value).items() if n != NAME}
        within = checked_values(choice.options, nested, f"option of {here}", prefix=f"{here}.")
        defaults = {n: option.default for n, option in choice.options.items()}
        found[name] = {NAME: choice.name} | defaults | within
    return found


def built(options: Options, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that checked values of options stand for, parts made.

    Raises:
        MetajaxError: a value is out of range.
    """
    arguments = {}
    for name, value in values.items():
        choice = options[name]
        if isinstance(choice, Choice) and choice.factory is not None:
            of_part = {n: v for n, v in value.items() if n != NAME}
            kind = get_origin(choice.kind) or choice.kind
            made = choice.factory(**built(choice.options, of_part))
            value = of_type(kind, choice.name or NONE, made)
        arguments[name] = value
    return arguments


def with_option(options: Options, path: str) -> tuple[Choice, list[str]] | None:
    """Return the chosen part that lacks an option, and the names of those that have it there.

    Args:
        options: with the parts that are chosen.
        path: the option's dotted name; None is returned where it leads through no part.
    """
    words, known = path.split("."), paths(options)
    for length in range(len(words) - 1, 0, -1):  # the innermost part that there is
        choice = known.get(".".join(words[:length]))
        if isinstance(choice, Choice):
            return choice, _owners(choice.kind, words[length:])
    return None


def _owners(kind: Any, words: Sequence[str]) -> list[str]:
    """Return the names of parts of a kind that have an option, or may have it inside a part."""

    def has(name: str, factory: Callable[..., Any]) -> bool:
        known = options_with(name, factory, values={}, chosen={}, positional=True)
        option = known.get(words[0])
        if len(words) == 1 or option is None:
            return option is not None
        return isinstance(option, Choice) and bool(_owners(option.kind, words[1:]))

    return [name for name, factory in NAMED[kind].items() if has(name, factory)]


def unknown_names(options: Options, values: Mapping[str, Any]) -> Iterator[str]:
    """Return the dotted names among values that neither the chosen parts nor others have."""
    known = paths(options)

    def named(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in values.items():
            path = f"{prefix}{name}"
            yield path
            if isinstance(value, Mapping) and isinstance(known.get(path), Choice):
                yield from named({n: v for n, v in value.items() if n != NAME}, f"{path}.")

    for path in named(values):
        if path not in known and not (with_option(options, path) or (None, []))[1]:
            yield path


def paths(options: Options, prefix: str = "") -> dict[str, "inspect.Parameter | Choice"]:
    """Return all options, those of parts under their own, by their dotted names."""
    found: dict[str, Any] = {}
    for name, option in options.items():
        found[f"{prefix}{name}"] = option
        if isinstance(option, Choice):
            found |= paths(option.options, f"{prefix}{name}.")
    return found
