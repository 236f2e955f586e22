"""Gradients through the simulator: exact in expectation, truncated where they should be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumerated import PLAIN, plain_steps, relative_error
from jax.flatten_util import ravel_pytree
from test_q_prop import WEIGHTS, OneStep

from metajax.adaptation import Experience, gradient_steps, policy_gradient
from metajax.adaptation.objectives import Estimator
from metajax.adaptation.pathwise import pathwise_returns
from metajax.algorithms import maml, trpo
from metajax.envs import make
from metajax.envs.rollouts import rollout
from metajax.errors import MetajaxError
from metajax.losses.policy_gradient import ESTIMATORS
from metajax.outer import adam
from metajax.policies import mlp
from metajax.rules import sgd

pytestmark = pytest.mark.usefixtures("float64")

LENGTH = 6


@pytest.fixture(scope="module")
def problem():
    return OneStep()


def test_exact_in_expectation(problem):
    """Gradient and Hessian of the expected reward, by Gauss and Hermite."""
    objective = policy_gradient("pathwise", **PLAIN).build(problem.env, problem.policy)
    episodes = problem.every_episode()
    start = problem.env.reset(jax.random.key(0), jnp.zeros(1))
    start = dataclasses.replace(
        start, simulator=problem.observation, observation=problem.observation
    )
    starts = jax.tree.map(lambda x: jnp.broadcast_to(x, (20, 1, *x.shape)), start)
    episodes = dataclasses.replace(episodes, initial_state=starts)

    def loss(flat):
        params = problem.unravel(flat)
        losses = jax.vmap(lambda x: objective.loss(params, params, Experience(x, ())))(episodes)
        return jnp.sum(WEIGHTS * losses)

    exact = jax.grad(problem.expected_reward)(problem.flat)
    assert relative_error(-jax.grad(loss)(problem.flat), exact) < 1e-9
    hessian = -jax.jacrev(jax.grad(loss))(problem.flat)
    assert relative_error(hessian, jax.hessian(problem.expected_reward)(problem.flat)) < 1e-9


class Point:
    """Three sampled episodes of point-goal, and a policy to play them again with."""

    def __init__(self):
        self.family = make("point-goal", episode_length=LENGTH)
        self.env = self.family.env
        self.policy = mlp(2, self.env.action_space, hidden=(4,), initial_std=0.02)
        flat, self.unravel = ravel_pytree(self.policy.init(jax.random.key(0)))
        self.flat = flat + 0.1 * jax.random.normal(jax.random.key(1), flat.shape)
        task = jax.tree.map(lambda x: x.astype(float), self.family.train.sample(jax.random.key(2)))

        def act(memory, step_input, key):
            memory, output = self.policy.step(self.unravel(self.flat), memory, step_input)
            return memory, output.distribution.sample(key), output

        self.played = rollout(jax.random.key(3), self.env, task, act, (), episodes=3, parallel=True)

    def returns(self, flat, truncation=LENGTH):
        return pathwise_returns(
            self.env, self.policy, self.unravel(flat), self.played, truncation=truncation
        )

    def by_hand(self, flat_of_step, counted):
        """Return the reward of the steps `counted`, each acted by its own parameters."""
        total, played = 0.0, self.played
        for episode in range(3):
            state = jax.tree.map(lambda x, e=episode: x[e], played.initial_state)
            for time in range(LENGTH):
                seen, old, action = jax.tree.map(
                    lambda x, at=(episode, time): x[at],
                    (played.step_input, played.output.distribution, played.action),
                )
                noise = (action - old.mean) / jnp.exp(old.log_std)
                params = self.unravel(flat_of_step(time))
                seen = dataclasses.replace(seen, observation=state.observation)
                new = self.policy.step(params, (), seen)[1].distribution
                state = self.env.step(state, new.mean + jnp.exp(new.log_std) * noise)
                total += state.reward * (time in counted)
        return total


@pytest.fixture(scope="module")
def point():
    return Point()


def test_the_same_parameters_play_the_same_episodes(point):
    np.testing.assert_allclose(
        point.returns(point.flat), jnp.sum(point.played.reward, axis=1), rtol=1e-10
    )


@pytest.mark.parametrize("truncation", [1, 4, LENGTH])
def test_gradients_reach_back_to_the_last_cut(point, truncation):
    """In a random direction, by central differences: each window by itself."""
    direction = jax.random.normal(jax.random.key(5), point.flat.shape)
    gradient = jax.grad(lambda f: jnp.sum(point.returns(f, truncation)))(point.flat)
    slope, size = 0.0, 1e-6
    for begin in range(0, LENGTH, truncation):
        window = range(begin, min(begin + truncation, LENGTH))

        def shifted(sign, window=window):
            return point.by_hand(
                lambda time: point.flat + sign * size * direction * (time in window), window
            )

        slope += (shifted(1) - shifted(-1)) / (2 * size)
    np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-6)


def test_nothing_after_the_end_has_a_gradient(point):
    """Whatever padding holds; and what is left is not the gradient of whole episodes."""

    def gradient(valid, after):
        played = dataclasses.replace(
            point.played,
            valid=point.played.valid.at[1, 2:].set(valid),
            action=point.played.action.at[1, 2:].set(after),
        )

        def earned(flat):
            params = point.unravel(flat)
            return jnp.sum(
                pathwise_returns(point.env, point.policy, params, played, truncation=LENGTH)
            )

        return jax.grad(earned)(point.flat)

    np.testing.assert_array_equal(gradient(False, 1e30), gradient(False, 0.0))
    assert relative_error(gradient(False, 0.0), gradient(True, 0.0)) > 0.01


def test_an_adaptation_step_and_its_derivative(point):
    """θ' and vᵀ ∂θ'/∂θ of the inner loop, by central differences of the gradient."""
    alpha, size = 0.05, 1e-5
    inner = plain_steps("pathwise", sgd(alpha), of_objective={"truncation": LENGTH})
    loop = inner.build(point.env, point.policy)
    experience = jax.tree.map(lambda x: x[None], Experience(point.played, ()))

    def adapted(flat):
        adapted, _ = loop.readapt(point.unravel(flat), (), experience, False, False)
        return ravel_pytree(adapted.policy)[0]

    def mean_gradient(flat):
        return jax.grad(lambda f: jnp.mean(point.returns(f)) / LENGTH)(flat)

    expected = point.flat + alpha * mean_gradient(point.flat)
    np.testing.assert_allclose(adapted(point.flat), expected, rtol=1e-9)
    v = jax.random.normal(jax.random.key(6), point.flat.shape)
    (found,) = jax.vjp(adapted, point.flat)[1](v)
    curvature = (mean_gradient(point.flat + size * v) - mean_gradient(point.flat - size * v)) / (
        2 * size
    )
    np.testing.assert_allclose(found, v + alpha * curvature, rtol=1e-5, atol=1e-8)
    assert float(jnp.max(jnp.abs(alpha * curvature))) > 1e-3


def test_every_estimator_has_a_name():
    assert Estimator.__args__ == (*ESTIMATORS, "pathwise")


def test_bad_options(point):
    grid, inner = make("gridnav"), gradient_steps(policy_gradient("pathwise"))
    with pytest.raises(MetajaxError, match="continuous actions"):
        maml(grid.env, mlp(2, grid.env.action_space), inner=inner, outer=adam())
    with pytest.raises(MetajaxError, match="truncation is 0"):
        policy_gradient("pathwise", truncation=0)
    with pytest.raises(MetajaxError, match="take another estimator, or"):
        maml(point.env, point.policy, inner=inner)
    with pytest.raises(MetajaxError, match="take another estimator, or"):  # the fine-tuning's
        trpo(point.env, point.policy, inner=inner)
    elsewhere = dataclasses.replace(point.played, initial_state=None)
    with pytest.raises(MetajaxError, match="something else than the simulator"):
        pathwise_returns(
            point.env, point.policy, point.unravel(point.flat), elsewhere, truncation=2
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "backend"), [("reacher-goal", "mjx"), ("halfcheetah-dir", "spring")]
)
def test_through_physics(family, backend):
    """First and second derivatives of a short episode by its actions, by central differences."""
    length = 3
    family = make(family, backend=backend, episode_length=length)
    task = family.train.sample(jax.random.key(0))
    size = family.env.action_space.size

    def earned(actions):
        state = family.env.reset(jax.random.key(1), task)
        _, rewards = jax.lax.scan(
            lambda state, action: (lambda new: (new, new.reward))(family.env.step(state, action)),
            state,
            actions.reshape(length, size),
        )
        return jnp.sum(rewards)

    actions = 0.3 * jax.random.normal(jax.random.key(2), (length * size,))
    v = jax.random.normal(jax.random.key(3), actions.shape)

    @jax.jit
    def along(actions):
        return jax.jvp(jax.grad(earned), (actions,), (v,))

    gradient, curvature = along(actions)
    step = 1e-5
    value = jax.jit(earned)
    slope = (value(actions + step * v) - value(actions - step * v)) / (2 * step)
    np.testing.assert_allclose(gradient @ v, slope, rtol=1e-4)
    change = (along(actions + step * v)[0] - along(actions - step * v)[0]) / (2 * step)
    np.testing.assert_allclose(curvature, change, rtol=1e-2, atol=1e-3 * np.abs(change).max())
