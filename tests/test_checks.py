"""Arguments against their annotations, from Python: what is refused, and how it is said."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax import _memory
from metajax._checks import checked
from metajax.adaptation import gradient_steps, policy_gradient, q_prop
from metajax.algorithms import varibad
from metajax.errors import MetajaxError, brief, check_at_least, check_fraction, check_positive
from metajax.outer.trust_region import conjugate_gradient
from metajax.policies import gru, transformer, variational
from metajax.replay import empty_replay, sample_replay
from metajax.rules import learned_lstm, learned_mlp, sgd
from metajax.training import Evaluation
from metajax.types import Discrete

FAMILY = metajax.make("point-goal", episode_length=4)
ENV = FAMILY.env
POLICY = metajax.mlp(2, ENV.action_space, hidden=(3,))


@checked
def everything(
    count: int = 1,
    *,
    rate: float = 1.0,
    flag: bool = False,
    name: str = "",
    sizes: tuple[int, ...] = (),
    ranges: dict[str, tuple[float, float]] | None = None,
    limit: float | None = None,
):
    """Return what there is."""
    return count, rate, flag, name, sizes, ranges, limit


def test_numbers_of_other_libraries_become_pythons_own():
    found = everything(np.int16(3), rate=np.float32(0.5), sizes=[np.uint8(1), 2], limit=2)
    assert found == (3, 0.5, False, "", (1, 2), None, 2.0)
    assert [type(x) for x in (found[0], found[1], found[4][0], found[6])] == [
        int,
        float,
        int,
        float,
    ]
    assert everything(ranges={"a": [0, 1.5]})[5] == {"a": (0.0, 1.5)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 2.0}, "count is 2.0; it must be a whole number below 2³¹."),
        ({"count": True}, "count is True; it must be a whole number."),
        ({"count": None}, "count is None; it must be a whole number."),
        ({"count": 2**31}, "count is 2147483648; it must be a whole number below 2³¹."),
        ({"count": 10**5000}, "a number beyond all bounds; it must be a whole number below 2³¹."),
        ({"rate": "x"}, "rate is 'x'; it must be a finite number."),
        ({"rate": True}, "rate is True; it must be a finite number."),
        ({"rate": math.nan}, "rate is nan; it must be a finite number in single precision."),
        ({"rate": -math.inf}, "rate is -inf; it must be a finite number in single precision."),
        ({"rate": 1e39}, "rate is 1e+39; it must be a finite number in single precision."),
        ({"rate": 1e-39}, "rate is 1e-39; it must be a finite number in single precision."),
        ({"rate": 10**400}, "it must be a finite number in single precision."),
        ({"rate": 1j}, "rate is 1j; it must be a finite number."),
        ({"rate": jnp.asarray(jnp.inf)}, "rate is of the type ArrayImpl; it must be a finite"),
        ({"flag": 1}, "flag is 1; it must be True or False."),
        ({"flag": "x"}, "flag is 'x'; it must be True or False."),
        ({"name": 3}, "name is 3; it must be a string."),
        ({"sizes": 3}, "sizes is 3; it must be a sequence, each element a whole number"),
        ({"sizes": "34"}, "sizes is '34'; it must be a sequence, each element a whole number."),
        ({"sizes": (3, 0.5)}, "sizes is (3, 0.5); it must be a sequence, each element a whole"),
        ({"ranges": {"a": (0.0,)}}, "ranges is {'a': (0.0,)}; it must be a mapping, each key a"),
        ({"ranges": {1: (0.0, 1.0)}}, "each value 2 values, each a finite number or None."),
        ({"limit": "x"}, "limit is 'x'; it must be a finite number or None."),
        ({"other": 1}, "unknown option of everything 'other'; did you mean"),
        ({"cuont": 1}, "unknown option of everything 'cuont'; did you mean 'count'?"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(options, said):
    with pytest.raises(MetajaxError) as caught:
        everything(**options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_superfluous_arguments_are_our_error():
    with pytest.raises(MetajaxError, match="mlp: missing a required argument: 'action_space'"):
        metajax.mlp(2)  # type: ignore
    with pytest.raises(MetajaxError, match="everything: too many positional arguments"):
        everything(1, 2)  # type: ignore


def test_the_signature_stays():
    assert list(inspect.signature(everything).parameters)[:2] == ["count", "rate"]
    assert everything.__doc__ == "Return what there is."
    assert list(inspect.signature(Evaluation).parameters)[:2] == ["every", "tasks"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: metajax.mlp(2.5, ENV.action_space), "observation_size is 2.5"),
        (lambda: metajax.mlp(0, ENV.action_space), "observation_size is 0"),
        (lambda: metajax.mlp(2, 3), "action_space is 3; it must be a Discrete or a Continuous"),
        (lambda: metajax.mlp(2, ENV.action_space, hidden=None), "hidden is None"),
        (
            lambda: metajax.mlp(2, ENV.action_space, hidden=[2] * 1001),
            "hidden is 1001; it must be at",
        ),
        (lambda: transformer(2, ENV.action_space, trial_length=2, layers=9999), "layers is 9999"),
        (lambda: learned_lstm(layers=9999), "layers is 9999; it must be at most 1000"),
        (lambda: gru(2, ENV.action_space, width=True), "width is True"),
        (lambda: gru(2, ENV.action_space, widht=3), "option of gru 'widht'; did you mean 'width'"),
        (lambda: metajax.maml(ENV, POLICY, inner_steps=1.5), "inner_steps is 1.5"),
        (lambda: metajax.maml(ENV, POLICY, episodes=2.5), "episodes is 2.5"),
        (lambda: metajax.outer.adam(math.inf), "learning_rate is inf"),
        (lambda: metajax.maml(ENV, POLICY, first_order="x"), "first_order is 'x'"),
        (lambda: gradient_steps(rule=3), "rule is 3; it must be an UpdateRule"),
        (lambda: metajax.maml(ENV, POLICY, inner="sgd"), "inner is 'sgd'; it must be a Part[Inner"),
        (lambda: metajax.maml(ENV, POLICY, inner=sgd(0.1)), "it must be a Part[InnerLoop]"),
        (lambda: metajax.maml(ENV, POLICY, outer="trpo"), "outer is 'trpo'; it must be an OuterSt"),
        (lambda: gradient_steps(adapts="al"), "unknown value of adapts 'al'; did you mean 'all'"),
        (lambda: policy_gradient("dise"), "unknown value of estimator 'dise'; did you mean 'dice'"),
        (lambda: policy_gradient(critic="linear"), "it must be a Part[Critic] or None"),
        (lambda: policy_gradient(estimater="dice"), "option of policy_gradient 'estimater'; did y"),
        (
            lambda: metajax.maml(ENV, POLICY, episods=3),
            "option of maml 'episods'; did you mean 'ep",
        ),
        (lambda: metajax.maml(FAMILY, POLICY), "env is of the type TaskFamily; it must be an Env"),
        # What nothing reads is no place for anything, either.
        (lambda: metajax.outer.ppo(clip="x"), "clip is 'x'"),
        (lambda: policy_gradient("naive", truncation=0), "truncation is 0"),
        (lambda: q_prop(updates=0), "updates is 0"),
        (lambda: metajax.outer.ppo(minibatches="x"), "minibatches is 'x'"),
        (
            lambda: varibad(ENV, variational(2, ENV.action_space), vae_batch=10**9),
            "need 10 TB for the predictions of a",
        ),
        (lambda: sgd("x"), "learning_rate is 'x'"),
        (lambda: learned_mlp(scale=math.inf), "scale is inf"),
        (lambda: metajax.make("point-goal", episode_length=[3]), "episode_length is [3]"),
        (lambda: metajax.make("tabular", states=2.5), "states is 2.5"),
        (
            lambda: metajax.make("dark-key-door", size=1000),
            "need 16 TB for all places of key and d",
        ),
        (lambda: metajax.make("halfcheetah-vel", backend=None), "backend is None"),
        (lambda: metajax.make("halfcheetah-vel", varaint="maml"), "did you mean 'variant'"),
        (lambda: metajax.make(["point-goal"]), "name is ['point-goal']; it must be a string"),
        (lambda: Evaluation(every=2.5), "evaluation.every is 2.5; it must be a whole number"),
        (lambda: Evaluation(tasks=0), "evaluation.tasks is 0; it must be at least 1"),
        (
            lambda: Evaluation(deterministic="x"),
            "evaluation.deterministic is 'x'; it must be True or False",
        ),
        (lambda: Evaluation(evry=3), "option of Evaluation 'evry'; did you mean 'every'"),
    ],
)
def test_every_factory_checks_its_arguments(call, said):
    with pytest.raises(MetajaxError) as caught:
        call()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iterations": 1.5}, "iterations is 1.5; it must be a whole number"),
        ({"tasks": 0}, "tasks is 0; it must be at least 1"),
        ({"seed": 2**32}, "seed is 4294967296; it must be a whole number from 0 to 4294967295"),
        ({"on_nan": "skp"}, "unknown value of on_nan 'skp'; did you mean 'skip'"),
        ({"evaluation": 3}, "evaluation is 3; it must be an Evaluation or None"),
        ({"iteration": 3}, "option of train 'iteration'; did you mean 'iterations'"),
    ],
)
def test_training_checks_its_arguments(options, said):
    with pytest.raises(MetajaxError) as caught:
        metajax.train(metajax.maml(ENV, POLICY), FAMILY, **options)
    assert said in str(caught.value)


def test_numbers_that_are_traced_are_not_checked():
    def rate_of(rate):
        optimizer = sgd(rate).optimizer(())
        return optimizer.update(jnp.ones(()), optimizer.init(jnp.ones(())))[0]

    assert jax.vmap(rate_of)(jnp.array([1.0, 2.0])).tolist() == [-1.0, -2.0]

    @jax.jit
    def in_range(x):
        check_at_least(1, x=x)
        check_positive(x=x)
        check_fraction(x=x)
        return everything(rate=x)[1]

    assert in_range(-3.0) == -3.0


def test_ranges_have_no_place_for_what_is_not_finite():
    for value in (math.nan, math.inf):
        for check in (check_at_least, check_positive, check_fraction):
            with pytest.raises(MetajaxError, match=f"rate is {value}"):
                check(*((1,) if check is check_at_least else ()), rate=value)


def test_values_are_told_in_a_few_words():
    assert brief("x" * 100) == "'" + 56 * "x" + "..."
    assert brief([1, "a\nb"]) == "[1, 'a\\nb']"
    assert brief(np.zeros((3, 3))) == "of the type ndarray"


# --- memory ---------------------------------------------------------------------------------------


def test_what_arrays_take():
    tree = {"a": jax.ShapeDtypeStruct((10**10, 3), jnp.float32), "b": jnp.zeros(5, bool)}
    assert _memory.bytes_of(tree) == 4 * 3 * 10**10 + 5
    assert _memory.bytes_of(jax.random.key(0)) == 8


def test_what_episodes_take_is_less_than_what_they_do():
    agent = metajax.maml(ENV, POLICY, episodes=2).agent

    def played(key):
        task = FAMILY.train.sample(key)
        act = lambda memory, x, key: agent.act(
            type("Adapted", (), {"policy": POLICY.init(key)}), memory, x, key
        )
        return metajax.rollout(key, ENV, task, act, (), episodes=50)

    taken = _memory.bytes_of(jax.eval_shape(played, jax.random.key(0)))
    least = _memory.experience_bytes(ENV, 50 * ENV.episode_length)
    assert 0.5 * taken < least <= taken


class Started(Exception):
    """Nothing was refused."""


def started():
    raise Started


def test_what_does_not_fit_into_memory_is_refused_with_its_size(monkeypatch):
    hidden = 1000
    policy = metajax.mlp(2, ENV.action_space, hidden=(hidden, hidden))
    algorithm = metajax.maml(ENV, policy, outer=metajax.outer.adam(), episodes=2)
    weights = 2 * hidden + hidden + hidden * hidden + hidden + 2 * hidden + 2 + 2
    megabytes = 3 * 4 * weights / 1e6  # the weights, and two moments of Adam's
    run = {"tasks": 1, "evaluation": None, "devices": 1, "started": started}

    def with_memory(count):
        monkeypatch.setattr(_memory.os, "sysconf", {"SC_PHYS_PAGES": count, "SC_PAGE_SIZE": 1}.get)

    with_memory(int(1e6 * megabytes))
    with pytest.raises(MetajaxError) as caught:
        metajax.train(algorithm, FAMILY, **run)
    assert f"this would need {megabytes:.3g} MB for the training state" in str(caught.value)
    assert f"this machine has {megabytes:.3g} MB of memory" in str(caught.value)
    with_memory(int(1.01e6 * megabytes))
    with pytest.raises(Started):
        metajax.train(algorithm, FAMILY, **run)


def test_episodes_that_do_not_fit_are_refused_before_anything_is_traced():
    algorithm = metajax.maml(ENV, POLICY, episodes=2)
    # 2 rounds x 2 episodes x 4 steps x (2 observed + 3 x 2 of actions + 2) numbers of 4 bytes.
    with pytest.raises(MetajaxError, match="need 640 GB for the episodes of an iteration; this m"):
        metajax.train(algorithm, FAMILY, tasks=10**9, devices=1)
    # 10^5 x 1 x 10^5 probabilities and 10^5 x 1 rewards in each of 20 tasks.
    family = metajax.make("tabular", states=10**5, actions=1, episode_length=4)
    algorithm = metajax.maml(family.env, metajax.mlp(10**5, Discrete(1), hidden=()), episodes=2)
    with pytest.raises(MetajaxError, match="need 800 GB for the tasks of an iteration, "):
        metajax.train(algorithm, family, tasks=20, devices=1)
    with pytest.raises(MetajaxError, match="GB for the episodes of an evaluation"):
        key = jax.random.key(0)
        metajax.evaluate(algorithm.agent, FAMILY, (), key, tasks=10**9, rounds=1, episodes=1)


def test_items_of_a_replay_that_do_not_fit_are_refused():
    replay = empty_replay(jnp.zeros((2, 3)), capacity=5)  # 12 bytes each
    with pytest.raises(MetajaxError, match="need 120 GB for the items drawn from the replay"):
        sample_replay(replay, jax.random.key(0), 10**10)


def test_conjugate_gradients_that_do_not_fit_are_refused():
    with pytest.raises(
        MetajaxError, match=r"need 85\.9 GB for the directions of conjugate gradients"
    ):
        conjugate_gradient(lambda v: v, jnp.ones(10), iterations=2**31 - 1)
