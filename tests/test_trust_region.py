"""The natural-gradient step, through an inner adaptation, against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumerated import (
    INNER_LOOP,
    action_probabilities,
    enumerate_trajectories,
    expected_return,
    log_probs,
    log_transition,
    plain_steps,
    rollout_of_everything,
)
from jax.flatten_util import ravel_pytree
from trials import batch_of

from metajax.algorithms import maml
from metajax.envs.families.tabular import tabular
from metajax.outer import trpo
from metajax.outer.trust_region import (
    conjugate_gradient,
    fisher_vector_product,
    trust_region_step,
)
from metajax.policies import Categorical, DiagonalNormal, mlp
from metajax.rules import sgd
from metajax.types import Continuous, Discrete, MetaParams, StepInput, TrainState

STATES, ACTIONS, LENGTH = 2, 3, 2
EVERYTHING = enumerate_trajectories(STATES, ACTIONS, LENGTH)


pytestmark = pytest.mark.usefixtures("float64")


def random_matrix(size, rank, damping):
    root = np.random.default_rng(0).normal(size=(size, rank))
    return jnp.asarray(root @ root.T + damping * np.eye(size))


# --- conjugate gradient --------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_conjugate_gradient_solves(scale):
    matrix = random_matrix(8, 8, 0.1)
    b = scale * jnp.arange(1.0, 9.0)
    found = conjugate_gradient(lambda v: matrix @ v, b, iterations=20)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, b), rtol=1e-7)


def test_conjugate_gradient_is_optimal_at_every_length():
    """After k iterations: the best solution within the first k powers of the matrix times b."""
    matrix, b = random_matrix(8, 8, 0.1), jnp.arange(1.0, 9.0)
    for k in range(1, 5):
        found = conjugate_gradient(lambda v: matrix @ v, b, iterations=k)
        krylov = np.stack([np.linalg.matrix_power(matrix, i) @ b for i in range(k)], axis=1)
        best = krylov @ np.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ b)
        np.testing.assert_allclose(found, best, rtol=1e-6)


def test_conjugate_gradient_stays_once_solved():
    matrix = random_matrix(8, 3, 0.0)
    b = matrix @ jnp.ones(8)
    few, many = (conjugate_gradient(lambda v: matrix @ v, b, iterations=n) for n in (3, 100))
    np.testing.assert_allclose(few, many, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(matrix @ many, b, rtol=1e-9)
    np.testing.assert_array_equal(
        conjugate_gradient(lambda v: matrix @ v, jnp.zeros(8), iterations=5), 0
    )


def test_conjugate_gradient_does_not_enlarge_rounding():
    """Fifteen iterations on an ill-conditioned matrix, with errors in the last place."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(22, 22)))[0]
    matrix = jnp.asarray(basis @ np.diag(np.logspace(-5, 1, 22)) @ basis.T)
    b = matrix @ rng.normal(size=22)
    error = 1e-16 * rng.normal(size=(2, 22, 22))
    one, other = (
        conjugate_gradient(lambda v, e=e: (matrix + e) @ v, b, iterations=15) for e in error
    )
    assert jnp.linalg.norm(one - other) < 1e-9 * jnp.linalg.norm(one)


# --- the Fisher matrix through an adaptation -----------------------------------------------------


@pytest.mark.parametrize("action_space", [Continuous(2), Discrete(3)])
def test_fisher_vector_product_is_the_hessian_of_the_divergence(action_space):
    """The policy is adapted by a gradient step first: the product goes through its curvature."""
    policy = mlp(3, action_space, hidden=(4,))
    params = jax.tree.map(lambda x: x.astype(float), policy.init(jax.random.key(0)))
    flat, unravel = ravel_pytree(params)
    seen = StepInput(
        jax.random.normal(jax.random.key(1), (20, 3)), jnp.zeros(20), jnp.zeros(20), jnp.zeros(20)
    )
    credit = jax.random.normal(jax.random.key(2), (20,))
    action = policy.step(params, (), seen)[1].distribution.sample(jax.random.key(3))

    def adapted(params):
        def loss(params):
            log_prob = policy.step(params, (), seen)[1].distribution.log_prob(action)
            return -jnp.mean(jnp.exp(log_prob - jax.lax.stop_gradient(log_prob)) * credit)

        gradient = jax.grad(loss)(params)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
        return policy.step(params, (), seen)[1].distribution

    def mean_kl(old, new):
        return jnp.mean(old.kl(new))

    @jax.jit
    def both(params):
        product = fisher_vector_product(adapted, mean_kl, params, damping=0.1)
        old = jax.lax.stop_gradient(adapted(params))
        dense = jax.hessian(lambda flat: mean_kl(old, adapted(unravel(flat))))(flat)
        return jax.vmap(product)(jnp.eye(len(flat))), dense

    found, dense = both(params)
    assert isinstance(adapted(params), DiagonalNormal | Categorical)
    error = jnp.linalg.norm(found - 0.1 * jnp.eye(len(flat)) - dense) / jnp.linalg.norm(dense)
    print(f"Fisher-vector product, {action_space}: {error:.1e}")
    assert error < 1e-8


# --- the line search -----------------------------------------------------------------------------

CURVATURE = np.array([1.0, 4.0])


def step_on(objective, gradient):
    """Take a step from 0 where the divergence is xᵀdiag(1, 4)x/2, a hair less for the rounding."""
    return trust_region_step(
        lambda x: (objective(x), (0.5 - 1e-12) * jnp.sum(CURVATURE * x**2)),
        jnp.asarray(gradient),
        lambda v: CURVATURE * v,
        jnp.zeros(2),
        max_kl=0.1,
    )


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_on_a_line_the_step_is_the_natural_gradient_to_the_edge(scale):
    slope = scale * np.array([1.0, 2.0])
    step = step_on(lambda x: slope @ x, slope)
    natural = slope / CURVATURE
    expected = natural * np.sqrt(0.2 / (natural @ (CURVATURE * natural)))
    np.testing.assert_allclose(step.params, expected, rtol=1e-9)
    assert step.accepted
    np.testing.assert_allclose(step.kl, 0.1, rtol=1e-9)


def test_the_step_is_shortened_until_it_helps_and_stays_within_the_region():
    slope = np.array([1.0, 2.0])

    def objective(x):  # below 0 beyond half of the way to the edge
        return slope @ x - 10.0 * x @ x

    step = step_on(objective, slope)
    full = step_on(lambda x: slope @ x, slope).params
    np.testing.assert_allclose(step.params, full * 0.8**4, rtol=1e-6)
    assert objective(step.params) > 0 > objective(full * 0.8**3)
    assert step.accepted and 0 < step.kl <= 0.1


@pytest.mark.parametrize(
    ("objective", "gradient"),
    [
        (lambda x: -jnp.sum(x**2), [1.0, 2.0]),  # nothing helps
        (lambda x: jnp.where(jnp.any(x != 0), jnp.nan, 0.0), [1.0, 2.0]),
        (lambda x: 0.0 * jnp.sum(x), [0.0, 0.0]),
        (lambda x: jnp.sum(x), [jnp.nan, 1.0]),
    ],
)
def test_a_step_that_does_not_help_is_rejected(objective, gradient):
    step = step_on(objective, gradient)
    assert not step.accepted
    np.testing.assert_array_equal(step.params, 0)
    assert step.kl == 0


def test_a_step_outside_the_region_is_rejected():
    """The product may be wrong about how far is far: what counts is the divergence itself."""
    step = trust_region_step(
        lambda x: (jnp.sum(x), 1.0 + jnp.sum(x**2)),
        jnp.ones(2),
        lambda v: v,
        jnp.zeros(2),
        max_kl=0.1,
    )
    assert not step.accepted


# --- TRPO as maml takes it -----------------------------------------------------------------------


def test_maml_takes_the_natural_gradient_step_of_the_adapted_policies(monkeypatch):
    """Every part again, densely: adaptation, divergence, Fisher matrix, meta-gradient, step."""
    count, rate, max_kl = len(EVERYTHING.states), 1.5, 0.02
    family = tabular(states=STATES, actions=ACTIONS, episode_length=LENGTH, reward_std=0.0)
    policy = mlp(STATES, Discrete(ACTIONS), hidden=())
    tasks = jax.vmap(family.train.sample)(jax.random.split(jax.random.key(0), 2))
    flat, unravel = ravel_pytree(policy.init(jax.random.key(1)))
    flat = flat + 0.5 * jax.random.normal(jax.random.key(2), flat.shape)

    monkeypatch.setattr(INNER_LOOP, "rollout", rollout_of_everything(family.env, EVERYTHING))
    algorithm = maml(
        family.env,
        policy,
        episodes=count,
        inner=plain_steps("dice", sgd(rate)),
        outer=trpo(max_kl, cg_iterations=30, cg_damping=1e-3),
    )
    nothing = {"outer": (), "critic": (), "kl_penalty": ()}
    state = TrainState(MetaParams(unravel(flat), (), ()), nothing)
    new, metrics = jax.jit(algorithm.update)(state, batch_of(tasks), jax.random.key(0))
    moved = ravel_pytree(new.meta_params.policy)[0] - flat

    def log_prob(flat):
        return log_probs(policy, unravel(flat), EVERYTHING, STATES)

    def probability(flat, task):
        return jnp.exp(jnp.sum(log_prob(flat), axis=-1) + log_transition(task, EVERYTHING))

    def adapt(flat, task):
        slope = jax.grad(lambda flat: expected_return(policy, unravel(flat), task, LENGTH))(flat)
        return flat + rate / LENGTH * slope

    def surrogate(new):
        """Return the mean of π_θ'(a)/π_θ'old(a) times the return to go, over steps and tasks."""

        def of_task(task):
            old_adapted, adapted = adapt(flat, task), adapt(new, task)
            ratio = jnp.exp(log_prob(adapted) - log_prob(old_adapted))
            reward = task["reward"][EVERYTHING.states, EVERYTHING.actions]
            to_go = jnp.cumsum(reward[:, ::-1], axis=-1)[:, ::-1]
            return probability(old_adapted, task) @ jnp.mean(ratio * to_go, axis=-1)

        return jnp.mean(jax.vmap(of_task)(tasks))

    def divergence(new):
        """Return KL(old ‖ new) of the adapted policies; all stand-in episodes count the same."""

        def of_task(task):
            old, new_ = (
                action_probabilities(policy, unravel(adapt(x, task)), STATES) for x in (flat, new)
            )
            return jnp.mean(jnp.sum(old * jnp.log(old / new_), axis=-1)[EVERYTHING.states])

        return jnp.mean(jax.vmap(of_task)(tasks))

    gradient = jax.jit(jax.grad(surrogate))(flat)
    fisher = jax.jit(jax.hessian(divergence))(flat) + 1e-3 * jnp.eye(len(flat))
    np.testing.assert_allclose(metrics["meta_gradient_norm"], jnp.linalg.norm(gradient), rtol=1e-8)
    direction = jnp.linalg.solve(fisher, gradient)
    full = direction * jnp.sqrt(2 * max_kl / (direction @ fisher @ direction))
    lengths = moved / full
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)
    count = round(float(jnp.log(lengths[0]) / np.log(0.8)))
    np.testing.assert_allclose(lengths[0], 0.8**count, rtol=1e-5)

    def acceptable(step):
        return surrogate(flat + step) > surrogate(flat) and divergence(flat + step) <= max_kl

    assert metrics["step_accepted"] == 1 and acceptable(moved)
    assert count == 0 or not acceptable(full * 0.8 ** (count - 1))
    np.testing.assert_allclose(metrics["kl"], divergence(flat + moved), rtol=1e-6)
    # The trust region is that of the function whose derivatives were used.
    np.testing.assert_allclose(metrics["kl"], max_kl * 0.64**count, rtol=0.3)
