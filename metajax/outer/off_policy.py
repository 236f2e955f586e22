"""Off-policy learners: how a policy and its critics move on steps that other policies took.

A learner is written for policies without a memory. Where they are given more than an observation,
such as a belief about the task, whoever uses the learner makes the steps from the parameters of
what infers it, and the critics' loss trains these too.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from metajax._promotion import on_own_terms
from metajax.envs.rollouts import check_policy, first_previous
from metajax.errors import MetajaxError, check_at_least, check_at_most, check_positive
from metajax.parts import part
from metajax.policies.distributions import Categorical
from metajax.policies.mlp import Activation
from metajax.policies.squashed import (
    NoisyAction,
    QNetworks,
    SquashedNormal,
    box_of,
    like,
    q_networks,
)
from metajax.replay import Steps
from metajax.types import Discrete, Env, Metrics, Params, Part, Policy, Scalar, StepInput

# `(encoder) -> (steps[*batch], penalty)`: what is learned from, and what is added to its loss
StepsOf = Callable[[Params], tuple[Steps, Float[Array, ""]]]
State = dict[str, PyTree[Array]]


class OffPolicyLearner(NamedTuple):
    """How a policy moves on remembered steps.

    - `init(key, policy_params, encoder) -> state`;
    - `improve(policy_params, encoder, state, steps_of, key) -> (policy_params, encoder, state,
      metrics)`: one gradient step of the critics, then one of the policy; `encoder` are the
      parameters that steps are made from, () where there are none;
    - `metrics`: their names.
    """

    init: Callable[[Key[Array, ""], Params, Params], State]
    improve: Callable[
        [Params, Params, State, StepsOf, Key[Array, ""]], tuple[Params, Params, State, Metrics]
    ]
    metrics: tuple[str, ...]


def _distribution(env: Env, policy: Policy, params: Params, observation) -> Any:
    step_input = StepInput(observation, *first_previous(env))
    return policy.step(params, policy.initial_memory(), step_input)[1].distribution


def _check_distribution(name: str, env: Env, policy: Policy, kind: type, which: str) -> None:
    """Check that a policy is one that a learner can train.

    Raises:
        MetajaxError: it was made for another environment, it has a memory, or its distribution is
            another one.
    """
    found = check_policy(env, policy)[1].distribution
    if jax.tree.leaves(jax.eval_shape(policy.initial_memory)):
        raise MetajaxError(f"{name} trains policies without a memory; take {which}.")
    if not isinstance(found, kind):
        raise MetajaxError(
            f"{name} cannot train a policy whose distribution is {type(found).__name__}; take "
            f"{which}."
        )


def bellman_target(
    reward: Float[Array, "*batch"],
    terminated: Bool[Array, "*batch"],
    next_value: Float[Array, "*batch"],
    discount: Scalar,
) -> Float[Array, "*batch"]:
    """Return r + γ(1 - d)V(s'), a constant; at the end of a task, d = 1, nothing follows."""
    return jax.lax.stop_gradient(reward + discount * jnp.where(terminated, 0.0, next_value))


def soft_update(target: PyTree[Array], online: PyTree[Array], tau: Scalar) -> PyTree[Array]:
    """Return (1 - τ)·target + τ·online."""
    return jax.tree.map(lambda old, new: old + tau * (new - old), target, online)


def _descend(optimizer, gradient, params, state) -> tuple[Any, PyTree[Array]]:
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def _critic_step(
    q_of: Callable[[Params, Steps], Float[Array, "critic *batch"]],
    target_of: Callable[[Steps], Float[Array, "*batch"]],
    steps_of: StepsOf,
    trained: tuple[Params, Params],
    optimizer: optax.GradientTransformationExtraArgs,
    optimizer_state: PyTree[Array],
) -> tuple[tuple[Params, Params], PyTree[Array], Metrics]:
    """Return critics, encoder and optimizer after a step down the critics' squared errors.

    Args:
        q_of: values of the actions that were taken, by each critic.
        target_of: what they should be.
        steps_of: see `StepsOf`.
        trained: (critics, encoder).
        optimizer: of both.
        optimizer_state: its state.
    """

    def loss(trained):
        critic, encoder = trained
        steps, penalty = steps_of(encoder)
        q = q_of(critic, steps)
        target = target_of(steps)
        errors = jax.vmap(lambda q: jnp.mean((q - target) ** 2))(q)
        return jnp.sum(errors) + penalty, {"q_loss": jnp.sum(errors), "q_value": jnp.mean(q)}

    gradient, metrics = jax.grad(loss, has_aux=True)(trained)
    trained, optimizer_state = _descend(optimizer, gradient, trained, optimizer_state)
    return trained, optimizer_state, metrics | {"meta_gradient_norm": optax.tree.norm(gradient)}


_METRICS = ("q_loss", "q_value", "meta_gradient_norm")


def _check_rates(learning_rate, critic_learning_rate, discount, tau) -> None:
    check_positive(learning_rate=learning_rate, critic_learning_rate=critic_learning_rate)
    check_positive(discount=discount, tau=tau)
    check_at_most(1, discount=discount, tau=tau)


# ---------------------------------------------------------------------------------------------
# Soft actor-critic
# ---------------------------------------------------------------------------------------------


@part
def sac(
    learning_rate: Scalar = 3e-4,
    *,
    critic_learning_rate: Scalar = 3e-4,
    discount: Scalar = 0.99,
    tau: Scalar = 0.005,
    reward_scale: Scalar = 1.0,
    temperature: Scalar | None = None,
    target_entropy: Scalar | None = None,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
    critics: int = 2,
) -> Part[OffPolicyLearner]:
    """Return soft actor-critic (Haarnoja et al. 2018b), of continuous or discrete actions.

    With Q̄ the slow copies of the critics Q_j, γ the discount, α the temperature and d the end of a
    task:

    - y = r + γ(1 - d)(min_j Q̄_j(s', a') - α log π(a')), with a' drawn from π at s'; each Q_j
      descends the mean of (Q_j(s, a) - y)²;
    - the policy descends the mean of α log π(ã) - min_j Q_j(s, ã), with ã drawn from π at s, of the
      critics after that step;
    - log α descends -log α·mean(log π(ã) + H̄), of the same ã;
    - Q̄ ← (1 - τ)Q̄ + τQ.

    Of discrete actions (Christodoulou 2019) expectations over a' and ã are sums.

    Args:
        learning_rate: learning rate of Adam, of the policy and of the temperature.
        critic_learning_rate: learning rate of Adam, of the critics.
        discount: discount γ per step.
        tau: share τ of the critics in their slow copies, per gradient step.
        reward_scale: factor of rewards.
        temperature: temperature α; None to learn it, from 1.
        target_entropy: entropy H̄ of the policy that a learned temperature keeps, in nats; None for
            minus the number of action dimensions, of discrete actions 0.89 of the most there is.
        hidden: widths of the critics' hidden layers.
        activation: activation function after each hidden layer of the critics.
        critics: number of critics.

    Raises:
        MetajaxError: an option is out of range; later, that the policy is none of `squashed`, or
            of discrete actions none of `mlp`.
    """
    _check_rates(learning_rate, critic_learning_rate, discount, tau)
    check_positive(reward_scale=reward_scale)
    check_at_least(1, critics=critics)
    if temperature is not None:
        check_at_least(0, temperature=temperature)
    policy_optimizer = on_own_terms(optax.adam(learning_rate))
    critic_optimizer = on_own_terms(optax.adam(critic_learning_rate))

    def build(env: Env, policy: Policy) -> OffPolicyLearner:
        sizes = {"hidden": hidden, "activation": activation, "count": critics}
        soft = _soft_policy(env, policy, sizes, target_entropy)

        def init(key, policy_params, encoder) -> State:
            critic = soft.values.init(key)
            actor = policy_params, jnp.zeros(()) if temperature is None else ()
            return {
                "critic": critic,
                "target": critic,
                "log_temperature": actor[1],
                "critic_optimizer": critic_optimizer.init((critic, encoder)),
                "policy_optimizer": policy_optimizer.init(actor),
            }

        def improve(policy_params, encoder, state: State, steps_of: StepsOf, key):
            next_key, action_key = jax.random.split(key)
            alpha = jnp.exp(state["log_temperature"]) if temperature is None else temperature

            def target_of(steps: Steps):
                value, log_prob, expected = soft.draw(
                    policy_params, state["target"], steps.next_observation, next_key
                )
                next_value = expected(value - alpha * log_prob)
                return bellman_target(
                    reward_scale * steps.reward, steps.terminated, next_value, discount
                )

            steps = jax.lax.stop_gradient(steps_of(encoder)[0])
            (critic, encoder), of_critic, metrics = _critic_step(
                soft.q_of,
                target_of,
                steps_of,
                (state["critic"], encoder),
                critic_optimizer,
                state["critic_optimizer"],
            )

            def policy_loss(policy_params):
                value, log_prob, expected = soft.draw(
                    policy_params, critic, steps.observation, action_key
                )
                loss = jnp.mean(expected(alpha * log_prob - value))
                return loss, -jnp.mean(expected(log_prob))

            slope, entropy = jax.grad(policy_loss, has_aux=True)(policy_params)
            excess = entropy - jnp.asarray(soft.target_entropy, entropy.dtype)
            (policy_params, log_temperature), of_policy = _descend(
                policy_optimizer,
                (slope, excess if temperature is None else ()),
                (policy_params, state["log_temperature"]),
                state["policy_optimizer"],
            )
            state = {
                "critic": critic,
                "target": soft_update(state["target"], critic, tau),
                "log_temperature": log_temperature,
                "critic_optimizer": of_critic,
                "policy_optimizer": of_policy,
            }
            metrics |= {"temperature": jnp.asarray(alpha, entropy.dtype)}
            return policy_params, encoder, state, metrics

        return OffPolicyLearner(init, improve, (*_METRICS, "temperature"))

    return Part(build)


class _SoftPolicy(NamedTuple):
    """A stochastic policy and its critics.

    - `draw(params, critic, observation, key) -> (values, log_probs, expected)`: min_j Q_j and log π
      of an action that is drawn; of each action, where they are discrete; `expected` is the mean
      of such numbers under the policy;
    - `q_of(critic, steps)`: values of the actions that were taken `[critic, *batch]`;
    - `target_entropy`: in nats.
    """

    values: QNetworks
    draw: Callable[..., tuple[Array, Array, Callable[[Array], Array]]]
    q_of: Callable[[Params, Steps], Float[Array, "critic *batch"]]
    target_entropy: Scalar


def _soft_policy(
    env: Env, policy: Policy, sizes: dict[str, Any], target_entropy: Scalar | None
) -> _SoftPolicy:
    space = env.action_space
    values = q_networks(env.observation_size, space, **sizes)
    if isinstance(space, Discrete):
        _check_distribution("sac", env, policy, Categorical, "'mlp'")

        def draw_all(params, critic, observation, key):
            del key  # nothing is left to chance
            log_prob = jax.nn.log_softmax(_distribution(env, policy, params, observation).logits)
            lowest = jnp.min(values.apply(critic, observation), axis=0)
            return lowest, log_prob, lambda x: jnp.sum(jnp.exp(log_prob) * x, axis=-1)

        def q_of_taken(critic, steps: Steps):
            q = values.apply(critic, steps.observation)
            return jax.vmap(lambda q: jnp.take_along_axis(q, steps.action[..., None], -1)[..., 0])(
                q
            )

        most = float(np.log(space.size))
        wanted = _SHARE_OF_ENTROPY * most if target_entropy is None else target_entropy
        return _SoftPolicy(values, draw_all, q_of_taken, wanted)
    _check_distribution("sac", env, policy, SquashedNormal, "'squashed'")

    def draw(params, critic, observation, key):
        distribution = _distribution(env, policy, params, observation)
        action, log_prob = distribution.sample_with_log_prob(key)
        lowest = jnp.min(values.apply(critic, observation, action), axis=0)
        return lowest, log_prob, lambda x: x

    def q_of(critic, steps: Steps):
        return values.apply(critic, steps.observation, steps.action)

    wanted = -float(space.size) if target_entropy is None else target_entropy
    return _SoftPolicy(values, draw, q_of, wanted)


_SHARE_OF_ENTROPY = 0.89  # of a uniform policy's; CleanRL's, with 0.98 some games are never learned


# ---------------------------------------------------------------------------------------------
# Twin delayed deep deterministic policy gradients
# ---------------------------------------------------------------------------------------------


@part
def td3(
    learning_rate: Scalar = 3e-4,
    *,
    critic_learning_rate: Scalar = 3e-4,
    discount: Scalar = 0.99,
    tau: Scalar = 0.005,
    target_noise: Scalar = 0.2,
    target_noise_clip: Scalar = 0.5,
    policy_delay: int = 2,
    hidden: Sequence[int] = (256, 256),
    activation: Activation = "relu",
) -> Part[OffPolicyLearner]:
    """Return twin delayed deep deterministic policy gradients (Fujimoto et al. 2018).

    With π̄ and Q̄ slow copies: y = r + γ(1 - d) min_j Q̄_j(s', clip(π̄(s') + clip(ε))), ε normal; each
    critic descends the mean of (Q_j(s, a) - y)². After every `policy_delay` of these steps the
    policy descends -mean Q_1(s, π(s)), and all slow copies move.

    Args:
        learning_rate: learning rate of Adam, of the policy.
        critic_learning_rate: learning rate of Adam, of the critics.
        discount: discount γ per step.
        tau: share τ of what is learned in its slow copies, each time that they move.
        target_noise: standard deviation of ε, in halves of the distance between an action's bounds.
        target_noise_clip: largest ε, in the same units.
        policy_delay: gradient steps of the critics for each of the policy.
        hidden: widths of the critics' hidden layers.
        activation: activation function after each hidden layer of the critics.

    Raises:
        MetajaxError: an option is out of range; later, that the policy is none of `deterministic`.
    """
    _check_rates(learning_rate, critic_learning_rate, discount, tau)
    check_at_least(0, target_noise=target_noise, target_noise_clip=target_noise_clip)
    check_at_least(1, policy_delay=policy_delay)
    policy_optimizer = on_own_terms(optax.adam(learning_rate))
    critic_optimizer = on_own_terms(optax.adam(critic_learning_rate))

    def build(env: Env, policy: Policy) -> OffPolicyLearner:
        center, half = box_of("td3", env.action_space)
        _check_distribution("td3", env, policy, NoisyAction, "'deterministic'")
        sizes = {"hidden": hidden, "activation": activation}
        values = q_networks(env.observation_size, env.action_space, **sizes)

        def act(params: Params, observation):
            return _distribution(env, policy, params, observation).mode()

        def init(key, policy_params, encoder) -> State:
            critic = values.init(key)
            return {
                "critic": critic,
                "target": (policy_params, critic),
                "updates": jnp.zeros((), jnp.int32),
                "critic_optimizer": critic_optimizer.init((critic, encoder)),
                "policy_optimizer": policy_optimizer.init(policy_params),
            }

        def improve(policy_params, encoder, state: State, steps_of: StepsOf, key):
            slow_policy, slow_critic = state["target"]

            def target_of(steps: Steps):
                action = act(slow_policy, steps.next_observation)
                noise = target_noise * jax.random.normal(key, action.shape, action.dtype)
                noise = jnp.clip(noise, -target_noise_clip, target_noise_clip)
                middle, reach = like(action, center), like(action, half)
                action = jnp.clip(action + reach * noise, middle - reach, middle + reach)
                next_value = jnp.min(values.apply(slow_critic, steps.next_observation, action), 0)
                return bellman_target(steps.reward, steps.terminated, next_value, discount)

            steps = jax.lax.stop_gradient(steps_of(encoder)[0])
            (critic, encoder), of_critic, metrics = _critic_step(
                lambda critic, steps: values.apply(critic, steps.observation, steps.action),
                target_of,
                steps_of,
                (state["critic"], encoder),
                critic_optimizer,
                state["critic_optimizer"],
            )

            def policy_loss(policy_params):
                action = act(policy_params, steps.observation)
                return -jnp.mean(values.apply(critic, steps.observation, action)[0])

            def delayed(policy_params, of_policy, target):
                slope = jax.grad(policy_loss)(policy_params)
                policy_params, of_policy = _descend(
                    policy_optimizer, slope, policy_params, of_policy
                )
                return policy_params, of_policy, soft_update(target, (policy_params, critic), tau)

            updates = state["updates"] + 1
            moving = policy_params, state["policy_optimizer"], state["target"]
            policy_params, of_policy, target = jax.lax.cond(
                updates % policy_delay == 0, delayed, lambda *moving: moving, *moving
            )
            state = {
                "critic": critic,
                "target": target,
                "updates": updates,
                "critic_optimizer": of_critic,
                "policy_optimizer": of_policy,
            }
            return policy_params, encoder, state, metrics

        return OffPolicyLearner(init, improve, _METRICS)

    return Part(build)


OFF_POLICY_LEARNERS: dict[str, Callable[..., Part[OffPolicyLearner]]] = {"sac": sac, "td3": td3}
