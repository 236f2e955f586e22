"""What a policy and its critics see of remembered steps: an observation, or a trial so far."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metajax.envs.rollouts import first_previous
from metajax.errors import MetajaxError
from metajax.policies.squashed import QNetworks, q_networks
from metajax.replay import Steps, TrialSteps
from metajax.types import Env, Params, Policy, StepInput

Remembered = Steps | TrialSteps


class Views(NamedTuple):
    """How distributions of actions, and their values, are found on remembered steps.

    - `before(steps) -> seen`, `after(steps) -> seen`: what is seen before and after each step;
    - `distribution(params, seen)`: of a policy's actions `[*batch]`;
    - `q_networks(**sizes)`: critics whose `apply(params, seen, action)` is that of
      `metajax.policies.squashed.QNetworks`.
    """

    before: Callable[[Any], Any]
    after: Callable[[Any], Any]
    distribution: Callable[[Params, Any], Any]
    q_networks: Callable[..., QNetworks]


class _Trials(NamedTuple):
    """Inputs `[trial, step]`, encoded from the start; `ahead`: up to the step after each.

    A trial's last step has no next one; what is found there means nothing.
    """

    step_input: StepInput
    ahead: bool


def has_memory(policy: Policy) -> bool:
    """Return whether a policy has a memory."""
    return bool(jax.tree.leaves(jax.eval_shape(policy.initial_memory)))


def views_of(env: Env, policy: Policy) -> Views:
    """Return how a policy sees `Steps[*batch]` or, with a memory, `TrialSteps[trial, step]`."""
    return _of_trials(env, policy) if has_memory(policy) else _of_steps(env, policy)


def _of_steps(env: Env, policy: Policy) -> Views:
    def distribution(params: Params, observation: Array):
        step_input = StepInput(observation, *first_previous(env))
        return policy.step(params, policy.initial_memory(), step_input)[1].distribution

    return Views(
        lambda steps: steps.observation,
        lambda steps: steps.next_observation,
        distribution,
        lambda **sizes: q_networks(env.observation_size, env.action_space, **sizes),
    )


def _of_trials(env: Env, policy: Policy) -> Views:
    def distribution(params: Params, seen: _Trials):
        def of_trial(step_input):
            return policy.unroll(params, policy.initial_memory(), step_input)[1].distribution

        return _at(seen, jax.vmap(of_trial)(seen.step_input))

    def q_networks_of(**sizes) -> QNetworks:
        return _trial_critics(env, policy, sizes)

    return Views(
        lambda trials: _Trials(trials.step_input, ahead=False),
        lambda trials: _Trials(trials.step_input, ahead=True),
        distribution,
        q_networks_of,
    )


def _trial_critics(env: Env, policy: Policy, sizes: dict[str, Any]) -> QNetworks:
    """Return critics with a memory of the policy's kind (Ni et al. 2022).

    All of them read one memory, beside the observation, which takes no way through it.
    """
    encoder = policy.encoder
    if encoder is None:
        raise MetajaxError(
            "critics of trials have a memory of the policy's kind, and this policy has no encoder; "
            "take one such as metajax.gru."
        )
    heads = q_networks(encoder.size + env.observation_size, env.action_space, **sizes)

    def init(key):
        memory_key, head_key = jax.random.split(key)
        return {"memory": encoder.init(memory_key), "heads": heads.init(head_key)}

    def apply(params, seen: _Trials, *action):
        encode = lambda step_input: encoder.encode(params["memory"], step_input)
        features = jax.vmap(encode)(seen.step_input)
        x = jnp.concatenate([features, seen.step_input.observation], axis=-1)
        return heads.apply(params["heads"], _at(seen, x), *action)

    def rescaled(params, factor, shift):
        return params | {"heads": heads.rescaled(params["heads"], factor, shift)}

    return QNetworks(init, apply, rescaled)


def _at(seen: _Trials, found: PyTree) -> PyTree:
    """Return what was found at `[trial, step]`, or at the next step if that is what is seen."""
    return jax.tree.map(lambda x: jnp.roll(x, -1, axis=1), found) if seen.ahead else found
