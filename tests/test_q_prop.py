"""Q-Prop: unbiased whatever its critic says, and of lower variance when it is right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumerated import INNER_LOOP, PLAIN, meta_gradient_of, relative_error
from jax.flatten_util import ravel_pytree
from trials import batch_of

from metajax.adaptation import Experience, gradient_steps, policy_gradient
from metajax.adaptation import q_prop as control_variate
from metajax.algorithms import learned_optimizer, maml, q_prop
from metajax.envs import make
from metajax.envs.builders import Moved, make_env
from metajax.envs.rollouts import rollout
from metajax.errors import MetajaxError
from metajax.losses.policy_gradient import control_variate_weight
from metajax.outer import adam, trpo
from metajax.policies import mlp
from metajax.types import Continuous, MetaParams, StepInput, Trajectory

pytestmark = pytest.mark.usefixtures("float64")

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def objective_of(kind=None, estimator="likelihood_ratio", **options):
    """Return a policy gradient on returns as they are, less a control variate if there is one."""
    options = {"hidden": (64, 64), "learning_rate": 3e-3, "replay_capacity": 20_000} | options
    variate = None if kind is None else control_variate(kind, **options)
    return policy_gradient(estimator, control_variate=variate, **PLAIN)


def reward_of(observation, action):
    return observation[0] * action - 0.3 * action**2 + 0.1 * action**3


class OneStep:
    """Episodes of one continuous action, worth `reward_of`; expectations by Gauss and Hermite."""

    def __init__(self):
        self.env = make_env(
            lambda key, task: jax.random.uniform(key, (2,), minval=-1.0),
            lambda state, action, task: Moved(state, reward_of(state, action[0]), True),
            lambda state, task: state,
            observation_size=2,
            action_space=Continuous(1, -100.0, 100.0),
            episode_length=1,
        )
        self.policy = mlp(2, self.env.action_space, hidden=(3,), initial_std=0.3)
        flat, self.unravel = ravel_pytree(self.policy.init(jax.random.key(0)))
        self.flat = flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape)
        self.observation = jnp.array([0.7, -0.4])

    def output(self, flat, shape=()):
        seen = jnp.broadcast_to(self.observation, (*shape, 2))
        nothing = jnp.zeros(shape)
        step_input = StepInput(seen, nothing[..., None], nothing, nothing.astype(bool))
        return step_input, self.policy.step(self.unravel(flat), (), step_input)[1]

    def expected_reward(self, flat):
        distribution = self.output(flat)[1].distribution
        actions = distribution.mode()[0] + jnp.exp(distribution.log_std[0]) * NODES
        return jnp.sum(WEIGHTS * reward_of(self.observation, actions))

    def every_episode(self):
        """Return one episode per node, `[node, episode, time]`."""
        step_input, output = self.output(self.flat, (20, 1, 1))
        distribution = output.distribution
        noise = NODES[:, None, None, None]
        actions = distribution.mode() + jnp.exp(distribution.log_std) * noise
        ended = jnp.ones((20, 1, 1), bool)
        return Trajectory(
            step_input=step_input,
            action=actions,
            output=output,
            reward=reward_of(self.observation, actions[..., 0]),
            terminated=ended,
            truncated=~ended,
            valid=ended,
            final_input=jax.tree.map(lambda x: x[:, :, 0], step_input),
        )

    def expected_loss(self, kind, estimator="likelihood_ratio"):
        """Return the objective's loss as a function of the weights, in expectation."""
        objective = objective_of(kind, estimator).build(self.env, self.policy)
        critic, *_ = objective.init(jax.random.key(3))
        episodes = self.every_episode()
        advantages = jax.vmap(lambda t: objective.estimate(critic, t))(episodes)

        def loss(flat):
            params = self.unravel(flat)
            losses = jax.vmap(lambda x: objective.loss(params, params, x))(
                Experience(episodes, advantages)
            )
            return jnp.sum(WEIGHTS * losses)

        return loss, advantages


@pytest.fixture(scope="module")
def problem():
    return OneStep()


@pytest.mark.parametrize("estimator", ["likelihood_ratio", "dice", "naive", "clipped"])
def test_standard_is_unbiased(problem, estimator):
    """With an untrained critic: the expected gradient is that of the expected reward."""
    loss, advantages = problem.expected_loss("standard", estimator)
    exact = jax.grad(problem.expected_reward)(problem.flat)
    assert relative_error(-jax.grad(loss)(problem.flat), exact) < 1e-9
    assert float(jnp.max(jnp.abs(advantages.control))) > 0.05  # it does take something


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["likelihood_ratio", "dice"])
def test_standard_is_unbiased_as_an_inner_objective(problem, estimator):
    loss, _ = problem.expected_loss("standard", estimator)
    hessian = -jax.hessian(loss)(problem.flat)
    assert relative_error(hessian, jax.hessian(problem.expected_reward)(problem.flat)) < 1e-9


def test_both_terms_are_needed(problem, monkeypatch):
    monkeypatch.setattr("metajax.adaptation.objectives.control", lambda *_: 0.0)
    loss, _ = problem.expected_loss("standard")
    exact = jax.grad(problem.expected_reward)(problem.flat)
    assert relative_error(-jax.grad(loss)(problem.flat), exact) > 0.03


@pytest.mark.parametrize("variant", ["conservative", "aggressive"])
def test_the_others_are_biased_as_their_paper_says(problem, variant):
    loss, _ = problem.expected_loss(variant)
    exact = jax.grad(problem.expected_reward)(problem.flat)
    assert relative_error(-jax.grad(loss)(problem.flat), exact) > 1e-3


def test_weights_by_hand():
    advantage, estimate = jnp.array([2.0, -2.0, 3.0, 0.0]), jnp.array([1.0, -1.0, -1.0, 1.0])
    for variant, expected in {
        "standard": [1, 1, 1, 1],
        "conservative": [1, 1, 0, 0],
        "aggressive": [1, 1, -1, 0],
    }.items():
        np.testing.assert_array_equal(
            control_variate_weight(advantage, estimate, variant), expected
        )


@pytest.fixture(scope="module")
def trained(problem):
    """Return Q-Prop after updates that teach its critic, and hardly move its policy."""
    algorithm = q_prop(
        problem.env,
        problem.policy,
        inner=gradient_steps(objective_of("standard", updates=1000)),
        outer=trpo(1e-12),
        episodes=500,
    )
    tasks = batch_of(jnp.zeros((1, 1)))
    update = jax.jit(algorithm.update)
    state = algorithm.init(jax.random.key(0), tasks)
    meta_params = MetaParams(problem.unravel(problem.flat), (), state.meta_params.critic)
    state = dataclasses.replace(state, meta_params=meta_params)
    for i in range(6):
        state, metrics = update(state, tasks, jax.random.key(i))
    return state, metrics


def test_the_critic_learns_what_actions_are_worth(problem, trained):
    state, metrics = trained
    assert metrics["q_loss"] < 0.02
    objective = objective_of("standard").build(problem.env, problem.policy)
    episodes = jax.tree.map(lambda x: x[10], problem.every_episode())
    found = objective.estimate(state.meta_params.critic, episodes).control[0, 0]
    mean = problem.output(problem.flat)[1].distribution.mode()[0]
    slope = jax.grad(lambda a: reward_of(problem.observation, a))(mean)
    np.testing.assert_allclose(found[0], slope, atol=0.15)


def test_variance_is_lower(problem, trained):
    """Of the gradient by the mean's parameters, from the same sampled episodes."""
    critic = trained[0].meta_params.critic

    def act(memory, step_input, key):
        memory, output = problem.policy.step(problem.unravel(problem.flat), memory, step_input)
        return memory, output.distribution.sample(key), output

    played = rollout(
        jax.random.key(9), problem.env, jnp.zeros(1), act, (), episodes=4000, parallel=True
    )
    # Less the value of the state, which a critic would take.
    distribution = played.output.distribution
    likely = distribution.mode() + jnp.exp(distribution.log_std) * NODES[None, None]
    seen = jnp.moveaxis(played.step_input.observation[..., None], -2, 0)
    value = jnp.sum(WEIGHTS[None, None] * reward_of(seen, likely), axis=-1)
    played = dataclasses.replace(played, reward=played.reward - value)
    episodes = jax.tree.map(lambda x: x[:, None], played)

    def gradients(kind):
        objective = objective_of(kind).build(problem.env, problem.policy)

        def of_episode(episode):
            experience = Experience(episode, objective.estimate(critic, episode))
            params = problem.unravel(problem.flat)
            gradient = jax.grad(lambda p: objective.loss(p, p, experience))(params)
            return ravel_pytree({"body": gradient["body"], "head": gradient["head"]})[0]

        return jax.jit(jax.vmap(of_episode))(episodes)

    plain, controlled = gradients(None), gradients("standard")
    variance = [float(jnp.sum(jnp.var(x, axis=0))) for x in (plain, controlled)]
    print(f"variance {variance[0]:.3f} without, {variance[1]:.3f} with")
    assert variance[1] < 0.5 * variance[0]
    error = jnp.std(plain - controlled, axis=0) / np.sqrt(4000)
    assert jnp.all(jnp.abs(jnp.mean(plain - controlled, axis=0)) < 5 * error + 1e-9)


def test_outside_and_inside_are_the_same(problem, trained, monkeypatch):
    """The outer gradient without adaptation is that of the objective on the same episodes."""
    state, _ = trained
    everything = jax.tree.map(lambda x: x[:, 0], problem.every_episode())
    monkeypatch.setattr(INNER_LOOP, "rollout", lambda *_, **__: everything)

    def joint(objective):
        inner = gradient_steps(objective)
        return maml(problem.env, problem.policy, inner=inner, inner_steps=0, outer=adam())

    part = objective_of("conservative")
    algorithm = joint(part)
    tasks = jnp.zeros((1, 1))
    start = algorithm.init(jax.random.key(0), batch_of(tasks))
    params = problem.unravel(problem.flat)
    meta_params = MetaParams(params, (), state.meta_params.critic)
    found = meta_gradient_of(algorithm, dataclasses.replace(start, meta_params=meta_params), tasks)
    objective = part.build(problem.env, problem.policy)
    experience = Experience(everything, objective.estimate(meta_params.critic, everything))
    gradient = jax.grad(lambda p: objective.loss(p, params, experience))(params)
    np.testing.assert_allclose(found, -ravel_pytree(gradient)[0], rtol=1e-7, atol=1e-12)
    other = joint(objective_of())
    start = other.init(jax.random.key(0), batch_of(tasks))
    start = dataclasses.replace(start, meta_params=MetaParams(params, (), {}))
    plain = meta_gradient_of(other, start, tasks)
    assert relative_error(plain, found) > 0.01


def test_bad_options():
    grid, point = make("gridnav"), make("point-goal", episode_length=4)
    grid_policy = mlp(2, grid.env.action_space)
    policy = mlp(2, point.env.action_space)
    with pytest.raises(MetajaxError, match="continuous"):
        q_prop(grid.env, grid_policy)
    with pytest.raises(MetajaxError, match="did you mean 'standard'"):
        control_variate("standart")
    with pytest.raises(MetajaxError, match="loaded_dice"):
        objective_of("standard", "loaded_dice")
    with pytest.raises(MetajaxError, match="updates is 0"):
        control_variate(updates=0)
    with pytest.raises(MetajaxError, match="control_variate none"):
        learned_optimizer(point.env, policy, inner=gradient_steps(objective_of("standard")))
