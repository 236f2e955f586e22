"""Configurations with values of every kind: built and traced, or refused in one sentence."""

import copy
import functools
import json
import math
import random
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
from packages import is_missing

from metajax import presets
from metajax._named_parts import Choice
from metajax.algorithms import ALGORITHMS
from metajax.envs import FAMILIES
from metajax.errors import MetajaxError
from metajax.training import train

JUNK = [
    *(None, True, False, "x", "", "none", "auto", "sgd", "trpo", "all", b"x", object(), len),
    *(-1, 0, 1, 2, 3, 2**31, 2**32, 2**63, 10**18, 10**5000, np.int64(2), np.uint8(0)),
    *(0.5, 1.5, -0.5, 1e-320, 1e300, math.nan, math.inf, -math.inf, np.float32(0.5), 1j),
    *([], {}, (), [1, 2], (3,), [0], [True], ["x"], [[1]], [10**9, 10**9], [None], {"a": 1}),
    *({"a": (0.0, 1.0)}, {1: 2}, {1}, np.zeros(2), np.array(1.0)),
]
FOUND = [name for name in FAMILIES if not is_missing(name)]
# Traced in a second or two, and some of them only, to save time.
TRACED = {"bernoulli-bandit", "gaussian-bandit", "gridnav", "point-goal", "point-sparse", "tabular"}


class Started(Exception):
    """Nothing was refused."""


def started():
    raise Started


@functools.cache
def default_config(algorithm, family, policy):
    return presets.default_config(algorithm, family, policy)


def plausible(option, draw: random.Random):
    """Return a value of the kind that an option has."""
    if isinstance(option, Choice):
        return draw.choice([*option.names, {"name": draw.choice(option.names)}, {}, None])
    annotation = option.annotation
    if get_origin(annotation) is Literal:
        return draw.choice(get_args(annotation))
    values = {int: (1, 2, 4), float: (0.5, 1.0), bool: (True, False)}.get(annotation)
    return draw.choice(values or JUNK)


def mutated(draw: random.Random):
    """Return a configuration with one to three mistakes, or none."""
    algorithm, family = draw.choice(list(ALGORITHMS)), draw.choice(FOUND)
    policy = draw.choice(presets.policies(algorithm))
    config = copy.deepcopy(default_config(algorithm, family, policy))
    known = presets.options(algorithm, family, policy)
    for _ in range(draw.randint(1, 3)):
        group = draw.choice(presets.GROUPS)
        kind = draw.random()
        if kind < 0.03:
            config[draw.choice(list(config))] = draw.choice(JUNK)
        elif kind < 0.06:
            del config[draw.choice(list(config))]
        elif isinstance(options := config.get(group), dict) and options:
            here, name = known[group], draw.choice(list(options))
            while draw.random() < 0.7 and isinstance(options[name], dict) and options[name]:
                here = here[name].options if isinstance(here.get(name), Choice) else {}
                options = options[name]
                name = draw.choice(list(options))
            if kind < 0.1:
                options[f"{name}s"] = draw.choice(JUNK)
            elif kind < 0.13:
                del options[name]
            elif kind < 0.5 and name in here:
                options[name] = plausible(here[name], draw)
            else:
                options[name] = draw.choice(JUNK)
    return config


def outcome(config, *, traced: bool) -> str:
    """Return "refused", "built" or "traced"; anything else is a fault."""
    try:
        built = presets.build(config)
        if not traced or config["family_name"] not in TRACED:
            return "built"
        train(
            built.algorithm,
            built.family,
            evaluation=built.evaluation,
            **built.training,
            started=started,
        )
    except Started:
        return "traced"
    except MetajaxError as error:
        sentence = str(error)
        assert sentence and "\n" not in sentence and len(sentence) < 400, sentence
        return "refused"
    raise AssertionError("training has ended")


@pytest.fixture(autouse=True)
def families_made_once(monkeypatch):
    """Making the same robot again would take longer than all else."""

    def once(factory):
        kept = {}

        @functools.wraps(factory)
        def make_once(**options):
            key = json.dumps(options, default=repr)
            if key not in kept:
                kept[key] = factory(**options)
            return kept[key]

        return make_once

    for name, spec in FAMILIES.items():
        monkeypatch.setitem(FAMILIES, name, spec._replace(factory=once(spec.factory)))


@pytest.mark.parametrize(
    ("count", "seed", "every"),
    [(150, 0, 3), pytest.param(3000, 1, 8, marks=pytest.mark.slow)],
)
def test_a_configuration_is_built_or_refused_in_one_sentence(count, seed, every):
    draw, counts = random.Random(seed), {"refused": 0, "built": 0, "traced": 0}
    for index in range(count):
        config = mutated(draw)
        counts[outcome(config, traced=index % every == 0)] += 1
    assert counts["refused"] > count / 2 and counts["built"] and counts["traced"]
