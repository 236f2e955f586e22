"""The meta-gradient against exact answers: dynamic programming, closed forms, finite differences.

All in float64. "Exact" is the derivative of the true return after adaptation, J(θ + α∇J(θ)).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from enumerated import (
    INNER_LOOP,
    Problem,
    meta_gradient_of,
    plain_steps,
    relative_error,
    rollout_of_everything,
    start,
)
from jax.flatten_util import ravel_pytree
from trials import batch_of

from metajax.adaptation import linear
from metajax.algorithms import maml
from metajax.envs.rollouts import rollout
from metajax.errors import MetajaxError
from metajax.losses import policy_gradient, returns
from metajax.outer import adam
from metajax.policies import mlp
from metajax.rules import from_optax, sgd
from metajax.types import (
    Continuous,
    Env,
    EnvState,
    StepInput,
    Trajectory,
)

LENGTH = 3
STEP = 1.0  # long enough for the curvature of the return to matter


pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def problem():
    return Problem()


# --- the estimators in expectation ---------------------------------------------------------------


def test_probabilities_add_up_and_give_the_expected_return(problem):
    probability = problem.probability(problem.flat)
    reward = problem.task["reward"][problem.everything.states, problem.everything.actions]
    np.testing.assert_allclose(jnp.sum(probability), 1, rtol=1e-12)
    np.testing.assert_allclose(
        probability @ jnp.sum(reward, axis=-1), problem.expected_return(problem.flat), rtol=1e-12
    )


class Derivatives(NamedTuple):
    """Of a return, or of an estimate of it on trajectories of the first parameters.

    First, second, and through one inner step; then the first at other parameters.
    """

    gradient: jax.Array
    hessian: jax.Array
    meta_gradient: jax.Array
    gradient_elsewhere: jax.Array


@pytest.fixture(scope="module")
def exact(problem):
    """Return a function from the discount to the truth."""

    def derivatives(discount):
        def before(flat):
            return problem.expected_return(flat, discount=discount)

        def after(flat):
            return before(flat + STEP * jax.grad(before)(flat))

        flat = problem.flat
        return Derivatives(
            jax.grad(before)(flat),
            jax.hessian(before)(flat),
            jax.grad(after)(flat),
            jax.grad(before)(problem.elsewhere),
        )

    return jax.jit(derivatives)


@pytest.fixture(scope="module")
def estimated(problem):
    """Return a function from an estimator's name and advantages to its expected derivatives."""

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(estimator, advantage, baseline):
        estimate = jax.vmap(policy_gradient.ESTIMATORS[estimator])
        valid = jnp.ones(advantage.shape, bool)

        def objective(flat, sampled_by):
            sampled_by = jax.lax.stop_gradient(sampled_by)
            behaviour = problem.log_probs(sampled_by)
            each = estimate(problem.log_probs(flat), behaviour, advantage, baseline, valid)
            return jnp.sum(problem.probability(sampled_by) * each)

        def after(flat):
            """Adapt, then return the surrogate on the adapted policy's own trajectories."""
            adapted = flat + STEP * jax.grad(objective)(flat, flat)
            log_prob = problem.log_probs(adapted)
            behaviour = jax.lax.stop_gradient(log_prob)
            gain = policy_gradient.importance_weighted(log_prob, behaviour, advantage, valid)
            return jax.lax.stop_gradient(problem.probability(adapted)) @ jnp.sum(gain, axis=-1)

        flat = problem.flat
        return Derivatives(
            jax.grad(objective)(flat, flat),
            jax.hessian(objective)(flat, flat),
            jax.grad(after)(flat),
            jax.grad(objective)(problem.elsewhere, flat),
        )

    return derivatives


@pytest.fixture(scope="module")
def missing_terms(problem):
    return jax.jit(lambda discount: problem.missing_terms(problem.flat, discount))


@pytest.mark.parametrize("estimator", policy_gradient.ESTIMATORS)
@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("with_baseline", [False, True])
def test_estimators_in_expectation(
    problem, exact, estimated, missing_terms, estimator, discount, with_baseline
):
    truth = exact(discount)
    found = estimated(estimator, *problem.advantages(discount, with_baseline))
    np.testing.assert_allclose(found.gradient, truth.gradient, rtol=1e-9, atol=1e-12)
    error = relative_error(found.meta_gradient, truth.meta_gradient)
    print(f"{estimator}, {discount=}, {with_baseline=}: {error:.2e}")
    if estimator in ("dice", "loaded_dice"):
        assert relative_error(found.hessian, truth.hessian) < 1e-9
        assert error < 1e-6
        # Parameters that moved on can be adapted on stored trajectories.
        assert relative_error(found.gradient_elsewhere, truth.gradient_elsewhere) < 1e-9
    elif estimator in ("likelihood_ratio", "clipped"):
        missing = missing_terms(discount)
        missing = missing + missing.T
        assert relative_error(found.hessian, truth.hessian - missing) < 1e-9
        adapted_gradient = jnp.linalg.solve(
            jnp.eye(len(missing)) + STEP * truth.hessian, truth.meta_gradient
        )
        lost = STEP * missing @ adapted_gradient
        assert relative_error(found.meta_gradient, truth.meta_gradient - lost) < 1e-6
        assert error > 0.1
    else:
        assert error > 1  # worse than no second order at all


def test_first_order_misses_the_curvature(problem, exact):
    truth = exact(1.0)
    first_order = jnp.linalg.solve(
        jnp.eye(len(problem.flat)) + STEP * truth.hessian, truth.meta_gradient
    )
    error = relative_error(first_order, truth.meta_gradient)
    print(f"first order: {error:.2e}")
    assert error > 0.1


def test_without_the_factor_of_the_discount_no_second_derivative_is_exact(
    problem, exact, estimated
):
    """As practice has it: γ < 1 makes the advantages, but does not weigh the steps."""
    advantages = problem.advantages(0.8, with_baseline=False, enter_discount=False)
    error = relative_error(estimated("dice", *advantages).meta_gradient, exact(0.8).meta_gradient)
    print(f"no factor: {error:.2e}")
    assert error > 0.05


# --- maml itself, on the enumerated trajectories -------------------------------------------------


@pytest.fixture
def everything(problem, monkeypatch):
    """Let `maml` play every trajectory, weighted by its probability; return a factory of it."""
    env = problem.family.env
    monkeypatch.setattr(INNER_LOOP, "rollout", rollout_of_everything(env, problem.everything))
    return functools.partial(maml, env, problem.policy, episodes=problem.count, outer=adam())


def exact_maml(problem, rates):
    """Return the mean over tasks of the return after steps of the given sizes, and its gradient.

    maml's losses are means over steps, so its rates and its gradients carry a factor 1/LENGTH.
    """

    def after(flat):
        def of_task(task):
            adapted = flat
            for rate in rates:
                adapted += rate / LENGTH * jax.grad(problem.expected_return)(adapted, task)
            return problem.expected_return(adapted, task) / LENGTH

        return jnp.mean(jax.vmap(of_task)(problem.tasks))

    return jax.jit(after), jax.jit(jax.grad(after))(problem.flat)


RATE = STEP * LENGTH


def first_order_maml(problem):
    """Return the mean over tasks of the gradient at the adapted parameters, by the same factor."""

    def of_task(task):
        adapted = problem.flat + STEP * jax.grad(problem.expected_return)(problem.flat, task)
        return jax.grad(problem.expected_return)(adapted, task) / LENGTH

    return jnp.mean(jax.jit(jax.vmap(of_task))(problem.tasks), axis=0)


@pytest.mark.parametrize(
    ("estimator", "low", "high"),
    [
        ("dice", 0, 1e-6),
        ("loaded_dice", 0, 1e-6),
        ("likelihood_ratio", 0.1, 0.3),
        ("naive", 1, 10),
    ],
)
def test_maml_meta_gradient(problem, everything, estimator, low, high):
    algorithm = everything(inner=plain_steps(estimator, sgd(RATE)))
    found = meta_gradient_of(algorithm, start(algorithm, problem.params), problem.tasks)
    error = relative_error(found, exact_maml(problem, [RATE])[1])
    print(f"maml, {estimator}: {error:.2e}")
    assert low <= error < high


def test_maml_first_order(problem, everything):
    algorithm = everything(inner=plain_steps("naive", sgd(RATE)), first_order=True)
    found = meta_gradient_of(algorithm, start(algorithm, problem.params), problem.tasks)

    assert relative_error(found, first_order_maml(problem)) < 1e-9
    error = relative_error(found, exact_maml(problem, [RATE])[1])
    print(f"maml, first order: {error:.2e}")
    assert error > 0.1


@pytest.mark.parametrize("rematerialize", [pytest.param(False, marks=pytest.mark.slow), True])
def test_maml_with_three_steps_of_decayed_rate(problem, everything, rematerialize):
    algorithm = everything(
        inner=plain_steps("dice", sgd(RATE), learning_rate_decay=0.5),
        inner_steps=3,
        rematerialize=rematerialize,
    )
    found = meta_gradient_of(algorithm, start(algorithm, problem.params), problem.tasks)
    after, exact = exact_maml(problem, [RATE, RATE / 2, RATE / 2])
    assert relative_error(found, exact) < 1e-6

    # And against finite differences of the whole objective, adaptation included.
    directions = jax.random.normal(jax.random.key(6), (3, len(problem.flat)))
    for direction in directions:
        step = 1e-5 * direction
        slope = (after(problem.flat + step) - after(problem.flat - step)) / 2e-5
        np.testing.assert_allclose(found @ direction, slope, rtol=1e-6)


# --- sampled -------------------------------------------------------------------------------------


def standard_errors(samples, expected):
    """Return how many standard errors the mean of `samples[sample, ...]` is from `expected`."""
    spread = jnp.std(samples, axis=0, ddof=1) / jnp.sqrt(len(samples))
    return np.asarray(jnp.abs(jnp.mean(samples, axis=0) - expected) / spread)


@pytest.fixture(scope="module")
def sampled(problem):
    """Return 40 000 episodes from the real `rollout`."""

    def act(memory, step_input, key):
        memory, output = problem.policy.step(problem.params, memory, step_input)
        return memory, output.distribution.sample(key), output

    return jax.jit(
        lambda key: rollout(
            key, problem.family.env, problem.task, act, (), episodes=40_000, parallel=True
        )
    )(jax.random.key(8))


@pytest.mark.parametrize("estimator", policy_gradient.ESTIMATORS)
def test_estimators_on_sampled_episodes(problem, exact, missing_terms, sampled, estimator):
    """First and second derivatives along random directions have the exact mean, within 3σ."""
    directions = jax.random.normal(jax.random.key(9), (5, 2, len(problem.flat)))

    def objective(flat, episode: Trajectory):
        _, output = problem.policy.unroll(problem.unravel(flat), (), episode.step_input)
        to_go = returns.discounted_returns(episode.reward, episode.valid, 1.0)
        baseline = jnp.array([0.5, -1.0, 2.0])[jnp.argmax(episode.step_input.observation, axis=-1)]
        return policy_gradient.ESTIMATORS[estimator](
            output.distribution.log_prob(episode.action),
            episode.output.distribution.log_prob(episode.action),
            to_go - baseline,
            baseline,
            episode.valid,
        )

    def derivatives(episode, direction):
        slope, bend = jax.jvp(
            lambda flat: jax.grad(objective)(flat, episode) @ direction[0],
            (problem.flat,),
            (direction[1],),
        )
        return slope, bend

    each = jax.vmap(jax.vmap(derivatives, in_axes=(None, 0)), in_axes=(0, None))
    slope, bend = jax.jit(each)(sampled, directions)
    truth = exact(1.0)
    assert standard_errors(slope, directions[:, 0] @ truth.gradient).max() < 3
    hessian = truth.hessian
    if estimator in ("likelihood_ratio", "clipped"):
        hessian -= missing_terms(1.0) + missing_terms(1.0).T
    expected = jnp.einsum("di,ij,dj->d", directions[:, 0], hessian, directions[:, 1])
    errors = standard_errors(bend, expected)
    print(f"{estimator}: {errors.round(1)} standard errors")
    assert errors.max() > 10 if estimator == "naive" else errors.max() < 3


def test_maml_on_sampled_trajectories(problem):
    """The mean meta-gradient of many sampled meta-iterations is the exact one, within 3σ."""
    algorithm = maml(
        problem.family.env,
        problem.policy,
        episodes=4000,  # the bias of a nonlinear function of a mean falls as 1/episodes
        inner=plain_steps("loaded_dice", sgd(RATE), of_objective={"critic": linear()}),
        outer=adam(),
    )
    state = start(algorithm, problem.params)

    @jax.jit
    @jax.vmap
    def meta_gradient(key):
        new, _ = algorithm.update(state, batch_of(problem.tasks), key)
        return -10 * ravel_pytree(new.learner["outer"][0].mu[0])[0]

    directions = jax.random.normal(jax.random.key(9), (len(problem.flat), 5))
    samples = meta_gradient(jax.random.split(jax.random.key(7), 40)) @ directions
    errors = standard_errors(samples, exact_maml(problem, [RATE])[1] @ directions)
    others = standard_errors(samples, first_order_maml(problem) @ directions)
    print(f"maml, sampled: {errors.round(1)} standard errors; first order {others.round(1)}")
    assert errors.max() < 3
    assert others.max() > 10  # so the check would see a wrong meta-gradient


# --- a quadratic, in closed form -----------------------------------------------------------------

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(6)
NODES = np.stack(np.meshgrid(NODES, NODES), axis=-1).reshape(-1, 2)
WEIGHTS = np.outer(WEIGHTS, WEIGHTS).ravel() / WEIGHTS.sum() ** 2
BOWL = np.array([[1.0, 0.3], [0.3, 0.5]])
CENTRES = np.array([[1.0, -2.0], [0.5, 1.5]])


def bandit(reward) -> Env:
    """Return an environment of one step whose reward is `reward(action, task)`."""

    def reset(key, task):
        no = jnp.zeros((), bool)
        return EnvState(jnp.zeros(1), jnp.zeros(()), no, no, jnp.zeros((), jnp.int32), task, ())

    def step(state, action):
        return dataclasses.replace(
            state,
            reward=reward(action, state.task),
            truncated=~state.truncated,
            time=state.time + 1,
        )

    return Env(reset, step, 1, Continuous(2, -np.inf, np.inf), 1)


def quadratic(action, centre):
    return -0.5 * (action - centre) @ BOWL @ (action - centre)


def quadrature_rollout(key, env, task, act, memory, *, episodes, parallel):
    """Play the nodes of a Gauss-Hermite rule, weighted: expectations of polynomials are exact."""
    del key, parallel
    assert episodes == len(NODES)
    first = env.reset(jax.random.key(0), task)
    one = StepInput(first.observation[None], jnp.zeros((1, 2)), jnp.zeros(1), jnp.zeros(1, bool))
    seen = jax.tree.map(lambda x: jnp.broadcast_to(x, (episodes, *x.shape)), one)
    output = act(memory, seen, None)[2]
    normal = output.distribution
    action = normal.mean + jnp.exp(normal.log_std) * NODES[:, None]
    reward = jax.vmap(lambda a: env.step(first, a).reward)(action[:, 0])[:, None]
    yes = jnp.ones((episodes, 1), bool)
    return Trajectory(
        step_input=seen,
        action=action,
        output=output,
        reward=episodes * WEIGHTS[:, None] * reward,
        terminated=~yes,
        truncated=yes,
        valid=yes,
        final_input=jax.tree.map(lambda x: x[:, -1], seen),
    )


@pytest.fixture
def on_bandit(monkeypatch):
    """Return a function: reward and options of `maml` to the meta-gradient at known parameters."""
    monkeypatch.setattr(INNER_LOOP, "rollout", quadrature_rollout)

    def run(reward, inner, **options):
        env = bandit(reward)
        policy = mlp(1, env.action_space, hidden=())
        params = {
            "log_std": jnp.array([-0.5, 0.2]),
            # The observation is 0: the mean is the bias, and the kernel's gradient exactly 0.
            "head": {"kernel": jnp.ones((1, 2)), "bias": jnp.array([0.3, -0.1])},
            "body": {},
        }
        options |= {"episodes": len(NODES), "outer": adam()}
        algorithm = maml(env, policy, inner=inner, **options)
        flat = meta_gradient_of(algorithm, start(algorithm, params), jnp.asarray(CENTRES))
        return ravel_pytree(params)[1](flat)

    return run


def by_hand(rates):
    """Return the exact meta-gradient of mean and log_std for `quadratic`.

    The expected reward is -(μ-c)ᵀA(μ-c)/2 - Σ A_ii σ_i²/2.
    """
    curvature = np.diag(BOWL)
    total_mean, total_log_std = 0, 0
    for centre in CENTRES:
        mean, log_std = np.array([0.3, -0.1]), np.array([-0.5, 0.2])
        mean_jacobian, log_std_jacobian = np.eye(2), np.ones(2)
        for rate in rates:
            mean_jacobian = mean_jacobian @ (np.eye(2) - rate * BOWL)
            log_std_jacobian *= 1 - 2 * rate * curvature * np.exp(2 * log_std)
            mean = mean + rate * BOWL @ (centre - mean)
            log_std = log_std - rate * curvature * np.exp(2 * log_std)
        total_mean += mean_jacobian @ BOWL @ (centre - mean) / len(CENTRES)
        total_log_std += log_std_jacobian * -curvature * np.exp(2 * log_std) / len(CENTRES)
    return total_mean, total_log_std


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        # With one step there is nothing later for `likelihood_ratio` to miss.
        ({"inner": plain_steps("likelihood_ratio", sgd(0.4))}, [0.4]),
        (
            {
                "inner": plain_steps("dice", sgd(0.4), learning_rate_decay=0.5),
                "inner_steps": 3,
            },
            [0.4, 0.2, 0.2],
        ),
        ({"inner": plain_steps("dice", sgd(0.3)), "inner_steps": 2}, [0.3, 0.3]),
    ],
)
def test_quadratic(on_bandit, options, rates):
    found = on_bandit(quadratic, **options)
    mean, log_std = by_hand(rates)
    np.testing.assert_allclose(found["head"]["bias"], mean, rtol=1e-9)
    np.testing.assert_allclose(found["log_std"], log_std, rtol=1e-9)
    np.testing.assert_allclose(found["head"]["kernel"], 0, atol=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
def test_orders_agree_where_the_return_has_no_curvature(on_bandit, first_order):
    slope = jnp.array([0.7, -0.2])
    found = on_bandit(
        lambda action, task: slope @ action,
        plain_steps("dice", sgd(0.4)),
        first_order=first_order,
    )
    np.testing.assert_allclose(found["head"]["bias"], slope, rtol=1e-9)
    np.testing.assert_allclose(found["log_std"], 0, atol=1e-9)


def test_inner_adam_needs_a_smooth_root(on_bandit):
    with pytest.raises(MetajaxError, match="eps_root=1e-8"):
        from_optax(optax.adam(0.1))
    rough = from_optax(optax.adam(0.1), second_order=False)
    smooth = from_optax(optax.adam(0.1, eps_root=1e-8))
    rough, smooth = (plain_steps("dice", rule) for rule in (rough, smooth))
    found = on_bandit(quadratic, smooth, inner_steps=2)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(found))
    # One weight without gradient, here the kernel, is enough to spoil everything.
    assert jnp.isnan(on_bandit(quadratic, rough, inner_steps=2)["head"]["bias"][0])
    found = on_bandit(quadratic, rough, inner_steps=2, first_order=True)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(found))
