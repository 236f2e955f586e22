"""What every algorithm promises; MAML with every combination of outer step and critic."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import outer as outer_steps
from metajax import rules
from metajax.adaptation import (
    bilevel,
    evidence_lower_bound,
    gradient_steps,
    linear,
    policy_gradient,
    product_of_gaussians,
    q_learning,
    q_prop,
    two_phases,
    value_network,
    whole_trials,
)
from metajax.algorithms import ALGORITHMS
from metajax.envs import make
from metajax.envs.rollouts import first_previous, play_on
from metajax.envs.splits import finite, sample_tasks
from metajax.errors import MetajaxError
from metajax.outer import OUTER_STEPS, adam, ppo, trpo
from metajax.policies import conditioned, deterministic, gru, mlp, snail, squashed, variational
from metajax.replay import Replay, TaskReplay
from metajax.rules import sgd
from metajax.steps import counted
from metajax.types import Continuous

LENGTH, TASKS, EPISODES = 4, 3, 3

HIDDEN = {"hidden": (4,)}
CRITICS = {"linear": linear(), "value_network": value_network(**HIDDEN), "none": None}


def inner(critic="linear", rule=None, *, adapts="all", epochs=1, max_kl=0.0, **of_objective):
    """Return gradient steps with networks of four units."""
    objective = policy_gradient(critic=CRITICS[critic], **of_objective)
    steps = {"adapts": adapts, "epochs": epochs, "max_kl": max_kl}
    return gradient_steps(objective, rule=sgd(0.1) if rule is None else rule, **steps)


def outer(minibatches, **options):
    return ppo(epochs=4, minibatches=minibatches, clip=0.2, max_gradient_norm=1.0, **options)


def natural(minibatches):
    """Return a trust region, and the objective whose critic then has minibatches of its own."""
    critic = adam(epochs=4, minibatches=minibatches, max_gradient_norm=1.0)
    return {"outer": trpo(), "objective": whole_trials(critic=critic)}


# Less than one iteration's steps are drawn at random.
REMEMBERED = {"batch": 5, "replay_capacity": 60, "random_steps": 10}

# One iteration of first visits, with three tasks.
VISITS = {
    "initial_episodes": 1,
    "prior_episodes": 1,
    "extra_episodes": 2,
    "updates": 2,
    "meta_batch": 2,
    "batch": 5,
    "context": 4,
    "replay_capacity": 30,
}

TRIALS = {"batch": 2, "replay_capacity": 7, "random_trials": 2}

# Of each algorithm: the name of a variant, and its options.
VARIANTS = {
    "maml": {
        f"outer={step} baseline={critic}": {"outer": OUTER_STEPS[step](), "inner": inner(critic)}
        for step in ("trpo", "ppo", "adam")
        for critic in CRITICS
    }
    | {
        "outer=adam control_variate=standard replay_capacity=80": {
            "outer": adam(),
            "inner": inner(control_variate=q_prop("standard", replay_capacity=80, **HIDDEN)),
        },
        "outer=adam estimator=pathwise": {
            "outer": adam(),
            "inner": inner(estimator="pathwise"),
        },
        "outer=trpo inner_max_kl=0.01 inner_learning_rate=1.0": {
            "outer": trpo(),
            "inner": inner(rule=sgd(1.0), max_kl=0.01),
        },
        "outer=ppo estimator=pathwise inner_steps=2 adapts=head": {
            "outer": ppo(),
            "inner": inner(estimator="pathwise", adapts="head"),
            "inner_steps": 2,
        },
    },
    "fomaml": {"outer=adam": {"outer": adam()}},
    "meta-sgd": {
        "outer=adam adapts=head": {
            "outer": adam(),
            "inner": inner(rule=rules.meta_sgd(0.1), adapts="head"),
        }
    },
    "meta-lstm": {  # what it remembers counts from the second step on
        "outer=adam inner_steps=2": {"outer": adam(), "inner_steps": 2}
    },
    "anil": {
        "outer=adam baseline=value_network": {
            "outer": adam(),
            "inner": inner("value_network", adapts="head"),
        }
    },
    "cavia": {"outer=ppo": {"outer": ppo(), "inner": inner(adapts="context")}},
    "e-maml": {"outer=trpo inner_steps=2": {"inner_steps": 2}},
    "promp": {"inner_steps=2": {"inner_steps": 2}},
    "reptile": {
        "inner_steps=3 baseline=value_network": {"inner": inner("value_network"), "inner_steps": 3}
    },
    "learned-optimizer": {
        "lifetime=4 unroll=2 inner_epochs=2": {
            "inner": inner(rule=rules.learned_mlp(0.1), estimator="clipped", epochs=2),
            "lifetime": 4,
            "unroll": 2,
        }
    },
    "reinforce": {"": {}},
    "a2c": {"": {"inner": inner("value_network", gae_lambda=0.95)}},
    "ppo": {"": {"inner": inner("value_network", gae_lambda=0.95)}},
    "trpo": {"baseline=none": {"inner": inner("none", gae_lambda=0.97)}},
    "q-prop": {
        "baseline=none q_updates=2 replay_capacity=80": {
            "inner": inner(
                "none",
                gae_lambda=0.97,
                control_variate=q_prop(updates=2, replay_capacity=80, **HIDDEN),
            )
        }
    },
    "dqn": {
        "updates=2 batch=5 replay_capacity=60 target_period=3": {
            "updates": 2,
            "batch": 5,
            "replay_capacity": 60,
            "target_period": 3,
        }
    },
    "maml-dqn": {
        "updates=2 batch=2 replay_capacity=7 target_period=3": {
            "updates": 2,
            "batch": 2,
            "replay_capacity": 7,
            "target_period": 3,
        },
        "rule=meta-sgd inner_steps=2": {
            "inner": gradient_steps(q_learning(), rule=rules.meta_sgd(0.1)),
            "inner_steps": 2,
        },
    },
    "sac": {
        "": {"learner": outer_steps.sac(**HIDDEN), **REMEMBERED},
        "temperature=0.2 critics=3 updates_per_step=0.5": {
            "learner": outer_steps.sac(temperature=0.2, critics=3, **HIDDEN),
            "updates_per_step": 0.5,
            **REMEMBERED,
        },
    },
    "td3": {"": {"learner": outer_steps.td3(**HIDDEN), **REMEMBERED}},
    "pearl": {
        "": {
            "encoder": product_of_gaussians(**HIDDEN),
            "learner": outer_steps.sac(value_network=True, output_penalty=1e-3, **HIDDEN),
            **VISITS,
        }
    },
    "mql": {
        "history=2": {
            "learner": outer_steps.td3(**HIDDEN),
            "adaptation": two_phases(steps=2, replay_steps=3, batch=4, kept_steps=6),
            "history": 2,
            **REMEMBERED,
        }
    },
    "rl2": {
        "minibatches=3": {"outer": outer(3)},
        "minibatches=1 outer=trpo": natural(1),
        "minibatches=1 chunk=4 burn_in=2": {
            "outer": outer(1),
            "objective": whole_trials(chunk=4, burn_in=2),
        },
    },
    "snail": {"minibatches=1": natural(1)},
    "off-policy-rl2": {
        "": {"learner": outer_steps.sac(**HIDDEN), **TRIALS},
        "temperature=0.2 critics=3 updates_per_step=0.1": {
            "learner": outer_steps.sac(temperature=0.2, critics=3, **HIDDEN),
            "updates_per_step": 0.1,
            **TRIALS,
        },
        "learner=amago exploration=bilevel": {
            "learner": outer_steps.amago(**HIDDEN),
            "exploration": bilevel(),
            **TRIALS,
        },
    },
    "varibad": {
        "minibatches=1 vae_batch=2 replay_capacity=4 state_weight=1.0": {
            "outer": outer(1),
            "vae_batch": 2,
            "replay_capacity": 4,
            "model": evidence_lower_bound(state_weight=1.0),
        }
    },
}
# Of MAML's combinations, those that have every outer step and every critic once.
QUICK = ("outer=trpo baseline=linear", "outer=ppo baseline=value_network")
QUICK += ("outer=adam baseline=none", "outer=adam estimator=pathwise")
JOINT = ("reinforce", "a2c", "ppo", "trpo", "q-prop", "dqn", "sac", "td3", "mql")
IN_CONTEXT = partial(conditioned, latent=2, actions="deterministic")
WITHIN_BOUNDS = {"sac": squashed, "td3": deterministic, "mql": IN_CONTEXT}
# Agents that adapt in their memory, with memories that fit a trial.
MEMORIES = {
    "rl2": partial(gru, width=4, critic="separate"),
    "snail": partial(
        snail,
        trial_length=EPISODES * LENGTH,
        filters=2,
        key_size=2,
        value_size=2,
        critic="separate",
    ),
    "off-policy-rl2": partial(gru, width=4, critic="none", actions="squashed"),
    "varibad": partial(variational, latent=2, width=4, hidden=(4,)),
}
CONTINUOUS = make("point-goal", episode_length=LENGTH)
COUNTED = CONTINUOUS._replace(train=finite(CONTINUOUS.train, TASKS))
DISCRETE = make("tabular", states=3, actions=2, episode_length=LENGTH)


def family_of(name):
    if name == "pearl":
        return COUNTED
    return DISCRETE if "dqn" in name else CONTINUOUS


def build(name, options, env=None):
    env = env or family_of(name).env
    if name == "pearl":
        policy = conditioned(env.observation_size, env.action_space, latent=2, hidden=(4,))
        return ALGORITHMS[name](env, policy, **options)
    if name in MEMORIES:
        policy = MEMORIES[name](env.observation_size, env.action_space)
        return ALGORITHMS[name](env, policy, episodes=EPISODES, **options)
    if name in WITHIN_BOUNDS and isinstance(env.action_space, Continuous):
        policy = WITHIN_BOUNDS[name](env.observation_size, env.action_space, hidden=(4,))
        return ALGORITHMS[name](env, policy, episodes=EPISODES, **options)
    # Wide enough to be clipped now and then, which no likelihood may notice.
    policy = mlp(
        env.observation_size,
        env.action_space,
        hidden=(4,),
        initial_std=0.1,
        context=2 if name == "cavia" else 0,
    )
    return ALGORITHMS[name](env, policy, episodes=EPISODES, **options)


def test_every_algorithm_is_covered():
    assert VARIANTS.keys() == ALGORITHMS.keys()


def cases():
    for name, variants in VARIANTS.items():
        for label, options in variants.items():
            combined = name == "maml" and label not in QUICK
            yield pytest.param(
                (name, options),
                id=" ".join([name, *label.split()]),
                marks=[pytest.mark.slow] if combined else [],
            )


@pytest.fixture(scope="module", params=cases())
def case(request):
    """Return an algorithm, its compiled update, tasks, and what two updates gave."""
    algorithm = build(*request.param)
    assert algorithm.name == request.param[0]
    family = family_of(algorithm.name)
    tasks = sample_tasks(family.train, jax.random.key(0), TASKS)
    update = jax.jit(algorithm.update)
    states, metrics = [algorithm.init(jax.random.key(1), tasks)], []
    for i in range(2):
        state, found = update(states[-1], tasks, jax.random.key(2 + i))
        states.append(state)
        metrics.append(found)
    return algorithm, update, tasks, states, metrics


def test_update_keeps_the_structure_of_the_state(case):
    _, _, _, states, _ = case
    described = [
        jax.tree.map(lambda x: (x.shape, x.dtype), state, is_leaf=lambda x: x is None)
        for state in states
    ]
    assert described[0] == described[1] == described[2]


def test_update_is_compiled_once(case):
    _, update, tasks, states, _ = case
    update(states[-1], tasks, jax.random.key(9))
    assert update._cache_size() == 1


def test_everything_is_finite_and_named(case):
    algorithm, _, _, states, metrics = case
    for leaf in jax.tree.leaves((states, metrics)):
        assert np.all(np.isfinite(leaf))
    assert algorithm.joint == (algorithm.name in JOINT)
    returns = {"return"} if algorithm.joint else {"return_before", "return_after"}
    for found in metrics:
        assert found.keys() == {*algorithm.metrics} >= {*returns, "meta_gradient_norm"}
        assert len(found) == len(algorithm.metrics)
        assert {name for name in found if name.startswith("return")} == returns
        # Where policies are meta-learned, and not the rule alone.
        assert "entropy" in found or algorithm.name == "learned-optimizer"
        assert all(value.shape == () for value in found.values())


def test_every_parameter_is_trained(case):
    _, _, _, states, _ = case
    before, after = (jax.tree_util.tree_leaves_with_path(states[i].meta_params) for i in (0, 2))
    for (path, a), (_, b) in zip(before, after, strict=True):
        name = jax.tree_util.keystr(path)
        is_trained = not name.startswith(".experience") and not name.endswith("['context']")
        assert np.any(a != b) or not is_trained, name


def test_the_same_key_gives_the_same_update(case):
    _, update, tasks, states, _ = case
    again, _ = update(states[1], tasks, jax.random.key(3))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(states[2]), strict=True):
        np.testing.assert_array_equal(a, b)
    other, _ = update(states[1], tasks, jax.random.key(4))
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(other.meta_params), jax.tree.leaves(again.meta_params), strict=True
        )
    )


def test_tasks_that_are_no_batch_are_refused(case):
    algorithm, _, tasks, states, _ = case
    message = r"^tasks is \{.*; it must be a TaskBatch\."
    with pytest.raises(MetajaxError, match=message):
        jax.jit(algorithm.update)(states[0], tasks.task, jax.random.key(0))


def test_steps_are_counted(case, request):
    name, options = request.node.callspec.params["case"]
    rounds = (
        1 if name in (*JOINT, *MEMORIES) else options.get("inner_steps", 1) + (name != "reptile")
    )
    if name == "learned-optimizer":  # pairs
        rounds = 2 * options["unroll"]
    algorithm, _, _, states, _ = case
    trial = (3, 1) if name == "pearl" else (rounds, EPISODES)
    assert algorithm.trial[:2] == trial
    steps = [int(counted(state.environment_steps)) for state in states]
    assert steps == [i * TASKS * trial[0] * trial[1] * LENGTH for i in range(3)]


def test_the_roles_of_the_state_hold_what_their_names_say(case):
    """Experience is kept in the replay, and nowhere else; nothing is tuned yet."""
    algorithm, _, _, states, _ = case
    is_ring = lambda x: isinstance(x, Replay | TaskReplay)
    rings = lambda tree: [x for x in jax.tree.leaves(tree, is_leaf=is_ring) if is_ring(x)]
    learns_again = algorithm.name == "varibad" or "q_loss" in algorithm.metrics
    assert len(rings(states[-1])) == len(rings(states[-1].replay))
    assert bool(rings(states[-1].replay)) == learns_again
    assert states[-1].hyperparameters == {}


def test_its_agent_adapts(case):
    """On more episodes than those of training; an adapted agent acts differently."""
    algorithm, _, tasks, states, _ = case
    agent, meta_params = algorithm.agent, states[-1].meta_params
    task, env = jax.tree.map(lambda x: x[0], tasks.task), family_of(algorithm.name).env

    @jax.jit
    def trial(key):
        init_key, play_key, adapt_key = jax.random.split(key, 3)
        adapted = agent.init(meta_params, init_key)

        def act(memory, step_input, key):
            return agent.act(adapted, memory, step_input, key)

        start = agent.initial_memory(), first_previous(env)
        (memory, _), trajectory = play_on(play_key, env, task, act, start, episodes=EPISODES + 2)
        first = jax.tree.map(lambda x: x[0, 0], trajectory.step_input)
        new = agent.adapt(meta_params, adapted, trajectory, adapt_key)
        said = [agent.act(*a, first, None)[2] for a in ((adapted, start[0]), (new, memory))]
        return [jax.tree.leaves(x)[0] for x in said]

    before, after = trial(jax.random.key(5))
    learns = algorithm.name not in ("sac", "td3")  # these act as they were trained
    assert jnp.all(jnp.isfinite(after)) and jnp.any(before != after) == learns
