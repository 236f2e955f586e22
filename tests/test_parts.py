"""Parts of algorithms: values that know how they were made, and configurations of them."""

import inspect
import json
from pathlib import Path

import numpy as np
import optax
import pytest

import metajax
from metajax import outer, presets, rules
from metajax._named_parts import NAMED, Choice, built, described, paths
from metajax.adaptation import (
    evidence_lower_bound,
    gradient_steps,
    linear,
    policy_gradient,
    q_learning,
    q_prop,
    value_network,
    whole_trials,
)
from metajax.algorithms import ALGORITHMS
from metajax.algorithms.joint import fine_tuning
from metajax.cli.arguments import help_of
from metajax.envs import FAMILIES, make
from metajax.errors import MetajaxError
from metajax.parts import made_with
from metajax.policies.epsilon_greedy import epsilon_greedy
from metajax.types import Made, Part

POINT = make("point-goal", episode_length=4).env
GRID = make("gridnav", episode_length=4).env
POLICY = metajax.mlp(2, POINT.action_space, hidden=(3,))
Q_POLICY = metajax.mlp(2, GRID.action_space, hidden=(3,))

# Calls, by what a part that they make shows.
SHOWN = {
    "gradient_steps()": lambda: gradient_steps(),
    "gradient_steps(objective=policy_gradient(estimator='dice', critic=None), rule=sgd("
    "learning_rate=0.3), epochs=2)": lambda: gradient_steps(
        policy_gradient("dice", critic=None), rule=rules.sgd(0.3), epochs=2
    ),
    "policy_gradient(critic=value_network(hidden=(4,)))": lambda: policy_gradient(
        critic=value_network(hidden=[4])
    ),
    "q_prop(kind='standard', updates=3)": lambda: q_prop("standard", updates=3),
    "q_learning(error_clip=None)": lambda: q_learning(error_clip=None),
    "whole_trials(chunk=4, critic=adam())": lambda: whole_trials(chunk=4, critic=outer.adam()),
    "evidence_lower_bound(state_weight=1.0)": lambda: evidence_lower_bound(state_weight=1),
    "linear()": lambda: linear(),
    "adam(learning_rate=0.01, epochs=3)": lambda: outer.adam(0.01, epochs=3),
    "ppo(clip=0.2)": lambda: outer.ppo(1e-3, clip=0.2),
    "trpo(max_kl=0.02)": lambda: outer.trpo(0.02),
    "learned_mlp(hidden=8)": lambda: rules.learned_mlp(hidden=8),
}


def test_a_part_keeps_pythons_own_numbers():
    """Whatever was given: a configuration is JSON, and a list may change later."""
    hidden = [np.int64(4)]
    critic = value_network(hidden=hidden, learning_rate=np.float32(0.5))
    hidden.append(5)
    assert json.dumps(described(critic)) == (
        '{"name": "value-network", "hidden": [4], "learning_rate": 0.5, "epochs": 10}'
    )


@pytest.mark.parametrize("shown", SHOWN)
def test_a_part_shows_the_call_without_defaults(shown):
    assert repr(SHOWN[shown]()) == shown


@pytest.mark.parametrize("make", [make for known in NAMED.values() for make in known.values()])
def test_every_factory_makes_a_part_that_knows_it_and_says_what_its_options_are(make):
    part = make()
    assert part.made.factory is make
    parameters = inspect.signature(make).parameters
    assert part.made.options == {name: p.default for name, p in parameters.items()}
    assert parameters.keys() == help_of(make).keys()
    with pytest.raises(MetajaxError, match=f"unknown option of {make.__name__} 'rat'"):
        make(rat=0.1)


def test_a_part_knows_the_parts_within_it():
    inner = gradient_steps(policy_gradient("dice", critic=value_network(epochs=3)))
    assert made_with(inner, "objective", "critic", "epochs") == 3
    assert made_with(inner, "objective", "estimator") == "dice"
    assert made_with(Part(lambda env, policy: None), "adapts") is None  # nobody knows
    assert made_with(inner, "objective", "control_variate", "updates") is None
    assert isinstance(inner.made, Made) and inner._replace(made=None).made is None


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_option_of_an_algorithm_is_documented(name):
    parameters = inspect.signature(ALGORITHMS[name]).parameters.values()
    options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert len(options) > 2
    assert options <= help_of(ALGORITHMS[name]).keys()


# --- configurations ------------------------------------------------------------------------------


def same(one, other):
    """Whether two parts, or values, were made by the same calls."""
    made, again = getattr(one, "made", None), getattr(other, "made", None)
    if made is None or again is None:
        return one == other or (isinstance(one, tuple | list) and tuple(one) == tuple(other))
    return made.factory is again.factory and all(
        same(value, again.options[name]) for name, value in made.options.items()
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_configuration_of_an_algorithm_says_how_its_parts_were_made(algorithm):
    """Wherever it has presets, and where it has none: described, kept as JSON, and made again."""
    for family in FAMILIES:
        if family != "swimmer-vel" and algorithm not in FAMILIES[family].presets:
            continue
        config = presets.default_config(algorithm, family)
        read = json.loads(json.dumps(config))
        assert (
            presets.checked_config(read)["algorithm"] == presets.checked_config(config)["algorithm"]
        )
        checked = presets.checked_config(config)
        assert json.loads(json.dumps(checked)) == read
        known = presets.known_options(config)["algorithm"]
        made = built(known, checked["algorithm"])
        for name, option in known.items():
            if isinstance(option, Choice):
                assert json.loads(json.dumps(described(made[name]))) == read["algorithm"][name]
                again = built(known, json.loads(json.dumps(checked["algorithm"])))[name]
                assert same(made[name], again)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_a_preset_the_parts_are_those_of_the_signature(algorithm):
    known = presets.options(algorithm, "swimmer-vel")["algorithm"]
    values = {name: option.default for name, option in known.items()}
    made = built(
        known, presets.checked_config(presets.default_config(algorithm, "swimmer-vel"))["algorithm"]
    )
    parameters = inspect.signature(ALGORITHMS[algorithm]).parameters
    assert values.keys() <= parameters.keys()
    for name in values:
        # CAVIA's policy and RL²'s critic are the only things set for an algorithm on any family.
        assert same(made[name], parameters[name].default), name


def test_a_configuration_names_its_parts():
    config = presets.default_config("maml", "point-goal")
    config["algorithm"] = {
        "inner": {
            "objective": {"name": "policy-gradient", "estimator": "dice", "critic": None},
            "rule": {"name": "meta-sgd", "learning_rate": 0.3},
        },
        "outer": {"name": "ppo", "epochs": 3},
    }
    known = presets.known_options(config)["algorithm"]
    made = built(known, presets.checked_config(config)["algorithm"])
    assert repr(made["outer"]) == "ppo(epochs=3)"
    assert repr(made["inner"]) == (
        "gradient_steps(objective=policy_gradient(estimator='dice', critic=None), "
        "rule=meta_sgd(learning_rate=0.3))"
    )
    names = {"inner.rule": "meta-sgd", "inner.objective.critic": None, "outer": "ppo"}
    assert {path: paths(known)[path].name for path in names} == names
    config["algorithm"]["outer"] = "trpo"  # a name alone is one with its defaults
    made = built(
        presets.known_options(config)["algorithm"], presets.checked_config(config)["algorithm"]
    )
    assert repr(made["outer"]) == "trpo()"


@pytest.mark.parametrize(
    ("algorithm", "chosen", "made"),
    [
        ("anil", {"inner": {"epochs": 2}}, "gradient_steps(adapts='head', epochs=2)"),
        (
            "a2c",
            {"inner": {"objective": {"discount": 0.5}}},
            "gradient_steps(objective=policy_gradient(critic=value_network(), discount=0.5, "
            "gae_lambda=0.95), rule=sgd(learning_rate=1.0), max_kl=0.01)",
        ),
        (
            "dqn",
            {"inner": {"rule": {"learning_rate": 0.5}}},
            "gradient_steps(objective=q_learning(), rule=sgd(learning_rate=0.5))",
        ),
        ("ppo", {"outer": {"epochs": 3}}, "ppo(epochs=3, clip=0.2)"),
        ("ppo", {"outer": "ppo"}, "ppo(epochs=10, clip=0.2)"),
        ("maml", {"outer": {"name": "ppo", "epochs": 3}}, "ppo(epochs=3)"),
    ],
)
def test_what_is_not_said_of_a_part_is_as_in_the_algorithms_own(algorithm, chosen, made):
    config = presets.default_config(algorithm, "point-goal") | {"algorithm": chosen}
    found = built(
        presets.known_options(config)["algorithm"], presets.checked_config(config)["algorithm"]
    )
    assert [*map(repr, found.values())] == [made]


def test_what_was_made_by_hand_has_no_description():
    with pytest.raises(MetajaxError, match="does not know how it was made"):
        described(rules.from_optax(optax.sgd(0.1)))
    assert described(None) is None


# --- what a name promises ------------------------------------------------------------------------

Q_STEPS = gradient_steps(q_learning())
MAML = "or it would be another algorithm: metajax.maml takes all of them."
REFUSED = {
    "anil": ({"inner": gradient_steps()}, "inner.adapts is 'all'; in ANIL it must be 'head', "),
    "cavia": (
        {"inner": gradient_steps(adapts="head")},
        "inner.adapts is 'head'; in CAVIA it must be 'context', ",
    ),
    "meta-sgd": (
        {"inner": gradient_steps()},
        "inner.rule is 'sgd'; in Meta-SGD it must be 'meta_sgd', ",
    ),
    "meta-lstm": (
        {"inner": gradient_steps(rule=rules.meta_sgd())},
        "inner.rule is 'meta_sgd'; in Meta-LSTM it must be 'meta_lstm', ",
    ),
    "e-maml": (
        {"inner": gradient_steps(policy_gradient("dice"))},
        "inner.objective.estimator is 'dice'; in E-MAML it must be 'naive', ",
    ),
    "promp": ({"outer": outer.trpo()}, "outer is 'trpo'; in ProMP it must be 'ppo', "),
    "promp's estimator": (
        {"inner": gradient_steps(policy_gradient("naive"))},
        "inner.objective.estimator is 'naive'; in ProMP it must be 'likelihood_ratio', ",
    ),
    "reptile": (
        {"inner": gradient_steps(adapts="head")},
        "inner.adapts is 'head'; in Reptile it must be 'all', ",
    ),
    "reinforce": ({"outer": outer.ppo()}, "outer is 'ppo'; in REINFORCE it must be 'adam', "),
    "a2c": (
        {"inner": fine_tuning(policy_gradient())},
        "inner.objective.critic is 'linear'; in A2C it must be 'value_network', ",
    ),
    "a2c's outer step": ({"outer": outer.trpo()}, "outer is 'trpo'; in A2C it must be 'adam', "),
    "ppo": ({"outer": outer.adam(clip=0.2)}, "outer is 'adam'; in PPO it must be 'ppo', "),
    "trpo": ({"outer": outer.ppo()}, "outer is 'ppo'; in TRPO it must be 'trpo', "),
    "q-prop": ({"outer": outer.adam()}, "outer is 'adam'; in Q-Prop it must be 'trpo', "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_algorithm_is_what_its_name_says(case):
    options, said = REFUSED[case]
    with pytest.raises(MetajaxError) as caught:
        ALGORITHMS[case.partition("'")[0]](POINT, POLICY, **options)
    assert str(caught.value) == said + MAML


def test_reinforce_has_no_critic():
    with pytest.raises(MetajaxError, match="is a critic; in REINFORCE it must be None"):
        metajax.reinforce(POINT, POLICY, inner=gradient_steps())


def test_parts_that_were_made_by_hand_are_taken_at_their_word():
    part = gradient_steps(adapts="head")
    assert metajax.anil(POINT, POLICY, inner=Part(part.build)).name == "anil"
    step = outer.ppo()._replace(made=None)
    assert metajax.promp(POINT, POLICY, outer=step).name == "promp"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("maml", {"inner": Q_STEPS}, "needs a policy of action values"),
        ("reptile", {"inner": Q_STEPS}, "needs a policy of action values"),
        ("learned-optimizer", {"inner": Q_STEPS}, "needs a policy of action values"),
        ("ppo", {"inner": Q_STEPS}, "needs a policy of action values"),
        ("dqn", {"inner": gradient_steps()}, "inner.objective must be 'q-learning'"),
        ("maml-dqn", {"inner": gradient_steps()}, "inner.objective must be 'q-learning'"),
        ("dqn", {"outer": outer.trpo()}, "dqn descends a loss of values; take the outer step 'ada"),
        ("maml-dqn", {"outer": outer.trpo()}, "maml-dqn descends a loss of values; take the oute"),
    ],
)
def test_values_of_actions_and_policies_are_not_mixed(name, options, said):
    with pytest.raises(MetajaxError) as caught:
        ALGORITHMS[name](GRID, Q_POLICY, **options)
    assert said in str(caught.value)


def test_maml_has_no_outer_step_on_action_values():
    """Even of a policy that has some."""
    policy = epsilon_greedy(Q_POLICY, 0.1)
    with pytest.raises(MetajaxError, match=r"for Q-learning there is .*\.maml_dqn"):
        metajax.maml(GRID, policy, inner=Q_STEPS)
    assert metajax.reptile(GRID, policy, inner=Q_STEPS).name == "reptile"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: metajax.maml(POINT, POLICY, inner=policy_gradient("dice")),
            "inner is policy_gradient(estimator='dice'); it must be a Part[InnerLoop].",
        ),
        (
            lambda: metajax.maml(POINT, POLICY, inner=whole_trials()),
            "inner is whole_trials(); it must be a Part[InnerLoop].",
        ),
        (
            lambda: metajax.maml(POINT, POLICY, outer=rules.sgd(0.3)),
            "outer is sgd(learning_rate=0.3); it must be an OuterStep.",
        ),
        (
            lambda: gradient_steps(linear()),
            "objective is linear(); it must be a Part[Objective].",
        ),
        (
            lambda: policy_gradient(critic=q_prop()),
            "critic is q_prop(); it must be a Part[Critic] or None.",
        ),
    ],
)
def test_another_kind_of_part_is_refused(call, said):
    with pytest.raises(MetajaxError) as caught:
        call()
    assert str(caught.value) == said


# --- configurations of before parts --------------------------------------------------------------

EARLIER = json.loads((Path(__file__).parent / "earlier_configurations.json").read_text())
# Where numbers of those configurations are now.
ARRIVED = {
    "maml": {
        "outer": {"name": "adam", "learning_rate": 5e-4},
        "outer.epochs": 1,  # Adam read neither epochs nor clipping
        "outer.clip": None,
        "inner.rule": {"name": "sgd", "learning_rate": 0.04},
        "inner.learning_rate_decay": 0.25,
        "inner.objective.gae_lambda": 0.95,
        "inner.objective.critic": {"name": "linear"},
        "inner.objective.control_variate": None,
        "inner.objective.normalize_advantages": True,
        "episodes": 20,
        "inner_steps": 1,
    },
    "maml with another rule, critic and outer step": {
        "outer": {"name": "ppo", "learning_rate": 5e-4, "epochs": 5, "clip": 0.4},
        "inner.rule": {"name": "meta-sgd", "learning_rate": 0.3},
        "inner.adapts": "head",
        "inner.epochs": 2,
        "inner.max_kl": 0.02,
        "inner.objective.estimator": "dice",
        "inner.objective.critic": {"name": "value-network", "epochs": 3, "learning_rate": 1e-3},
        "inner.objective.critic.hidden": (7,),
    },
    "promp": {
        "outer": {"name": "ppo", "learning_rate": 2.5e-4, "epochs": 2, "clip": 0.3},
        "inner.rule": {"name": "sgd", "learning_rate": 0.04},
        "kl_penalty": 5e-4,
        "target_kl": None,
    },
    "rl2 by trpo": {
        "outer": {"name": "trpo", "max_kl": 0.03, "cg_iterations": 10, "cg_damping": 1e-5},
        "objective.critic": {
            "name": "adam",
            "learning_rate": 1e-3,
            "epochs": 2,
            "minibatches": 4,
            "clip": None,
            "max_gradient_norm": 1.0,
        },
        "objective.gae_lambda": 0.8,
        "objective.entropy_weight": 0.01,
        "objective.value_weight": 0.5,
        "objective.chunk": None,
        "episodes": 2,
    },
    "q-prop": {
        "outer": {"name": "trpo", "max_kl": 0.01},
        "inner.objective.control_variate": {
            "name": "q-prop",
            "kind": "aggressive",
            "updates": 7,
            "hidden": (5,),
            "learning_rate": 2e-3,
            "replay_capacity": 100_000,
        },
        "inner.objective.gae_lambda": 0.6,
        "inner.max_kl": 0.01,
        "inner.rule": {"name": "sgd", "learning_rate": 1.0},
    },
    "dqn": {
        "outer": {"name": "adam", "learning_rate": 5e-4, "epochs": 1},
        "inner.objective": {"name": "q-learning", "discount": 0.99, "error_clip": 0.25},
        "inner.rule": {"name": "sgd", "learning_rate": 1e-4},
        "replay_capacity": 300_000,
        "updates": 100,
        "target_period": 200,
    },
    "reptile": {"step_size": 0.1, "inner_steps": 5, "inner.rule.learning_rate": 0.04},
    "learned-optimizer": {
        "learning_rate": 0.01,
        "inner.rule": {"name": "learned-mlp", "learning_rate": 0.003},
        "inner.epochs": 4,
        "inner.objective.estimator": "clipped",
        "lifetime": 20,
    },
    "varibad": {
        "outer": {"name": "ppo", "learning_rate": 1e-3, "epochs": 4, "minibatches": 4, "clip": 0.2},
        "outer.max_gradient_norm": 1.0,
        "model": {"name": "evidence-lower-bound", "beliefs": 50, "kl_weight": 0.1},
        "model.decoder_hidden": (64, 32),
        "objective.gae_lambda": 0.95,
        "replay_capacity": 1000,
    },
    # What was no option of theirs is as it was.
    "anil": {"inner.adapts": "head", "inner.rule": {"name": "sgd", "learning_rate": 0.04}},
    "cavia": {"inner.adapts": "context", "inner.rule": {"name": "sgd", "learning_rate": 1.0}},
    "e-maml": {"inner.objective.estimator": "naive", "outer": {"name": "adam", "epochs": 1}},
    "meta-sgd": {"inner.rule": {"name": "meta-sgd", "learning_rate": 0.04}},
    "reinforce": {
        "inner.objective.critic": None,
        "inner.objective.gae_lambda": 1.0,
        "inner.max_kl": 0.01,
        "outer": {"name": "adam", "learning_rate": 5e-4, "epochs": 1},
    },
    "ppo": {
        "outer": {"name": "ppo", "learning_rate": 5e-4, "epochs": 6, "clip": 0.2},
        "inner.objective.critic": {"name": "value-network", "hidden": (64, 64), "epochs": 10},
        "inner.max_kl": 0.01,
    },
}


def value_at(arguments, path):
    """Return an argument, or an option that a part was made with."""
    name, _, within = path.partition(".")
    return made_with(arguments[name], *within.split(".")) if within else arguments[name]


def agrees(found, expected):
    """Whether a value is the expected one; of a part, its name and some of its options."""
    if not isinstance(expected, dict):
        return found == expected
    told = described(found)
    return told is not None and expected.items() <= told.items()


@pytest.mark.parametrize("case", EARLIER)
def test_a_configuration_of_before_makes_the_same_algorithm(case, tmp_path):
    config = presets.described(EARLIER[case], tmp_path)
    experiment = presets.build(json.loads(json.dumps(config)))
    assert experiment.algorithm.name == config["algorithm_name"] == case.partition(" ")[0]
    evaluation = dict(EARLIER[case]["evaluation"])
    evaluation["deterministic"] = evaluation.pop("mode")
    others = {"algorithm": None, "evaluation": evaluation}
    assert config | {"algorithm": None} == EARLIER[case] | others
    known = presets.known_options(config)["algorithm"]
    arguments = built(known, presets.checked_config(config)["algorithm"])
    arguments = {
        name: p.default
        for name, p in inspect.signature(ALGORITHMS[config["algorithm_name"]]).parameters.items()
    } | arguments
    for path, expected in ARRIVED[case].items():
        found = value_at(arguments, path)
        assert agrees(found, expected), (path, found)


def test_a_configuration_of_today_stays_as_it_is(tmp_path):
    for algorithm in ALGORITHMS:
        config = presets.default_config(algorithm, "tabular")
        assert presets.described(config, tmp_path) == config


def test_snail_by_ppo_learns_from_trials_as_rl2_does():
    snail, rl2 = (
        presets.default_config(name, "bernoulli-bandit", parts={"outer": {"name": "ppo"}})
        for name in ("snail", "rl2")
    )
    assert snail["algorithm"]["outer"] == rl2["algorithm"]["outer"]
