"""SAC and TD3 once more, in NumPy and double precision, with derivatives written down by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def far_from_zero(params, seed=0):
    """Return networks whose outputs are not small, as those at the start are."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape) / 2), params)


class Perceptron:
    """Layers with rectified linear units between them, as `metajax.policies.squashed` has them."""

    def __init__(self, params):
        layers = [*params["body"], params["head"]]
        self.weights = [
            np.array(layer[name], np.float64) for layer in layers for name in ("kernel", "bias")
        ]

    def tree(self):
        """Return the parameters as `metajax` keeps them."""
        pairs = [
            dict(zip(("kernel", "bias"), pair, strict=True))
            for pair in zip(self.weights[::2], self.weights[1::2], strict=True)
        ]
        return {"body": pairs[:-1], "head": pairs[-1]}

    def copy(self):
        return Perceptron(self.tree())

    def __call__(self, x):
        self.inputs = []
        kernels, biases = self.weights[::2], self.weights[1::2]
        for index, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            x = np.maximum(x, 0) if index else x
            self.inputs.append(x)
            x = x @ kernel + bias
        return x

    def backward(self, slope):
        """Return gradients by weights and by the last call's input, given that by its output."""
        gradients = []
        for index in range(len(self.inputs))[::-1]:
            x, kernel = self.inputs[index], self.weights[2 * index]
            gradients = [x.T @ slope, slope.sum(axis=0), *gradients]
            slope = slope @ kernel.T
            if index:
                slope = slope * (x > 0)
        return gradients, slope


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) of several arrays."""

    def __init__(self, rate):
        self.rate, self.count, self.moments = rate, 0, None

    def step(self, arrays, gradients):
        if self.moments is None:
            self.moments = [(np.zeros_like(g), np.zeros_like(g)) for g in gradients]
        self.count += 1
        after = []
        for index, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
            first, second = self.moments[index]
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            self.moments[index] = first, second
            mean, square = first / (1 - 0.9**self.count), second / (1 - 0.999**self.count)
            after.append(array - self.rate * mean / (np.sqrt(square) + 1e-8))
        return after


def mixed(target, online, tau):
    """Return the slow copy of a network after it moved."""
    copy = online.copy()
    copy.weights = [
        (1 - tau) * old + tau * new for old, new in zip(target.weights, online.weights, strict=True)
    ]
    return copy


def _critic_step(critics, optimizer, x, target, action=None):
    """Move critics down their mean squared errors, together, as one set of arrays for Adam.

    Of discrete actions their values are several, of which that of `action` is compared. Return the
    sum of the errors, and its derivative by `x`.
    """
    count = len(target)
    column = np.zeros(count, int) if action is None else action
    gradients, arrays = [], []
    loss = 0.0
    for critic in critics:
        values = critic(x)
        error = values[np.arange(count), column] - target
        loss += np.mean(error**2)
        slope = np.zeros_like(values)
        slope[np.arange(count), column] = 2 * error / count
        of_weights, critic.by_input = critic.backward(slope)
        gradients += of_weights
        arrays += critic.weights
    arrays = optimizer.step(arrays, gradients)
    size = len(critics[0].weights)
    for index, critic in enumerate(critics):
        critic.weights = arrays[index * size : (index + 1) * size]
    return loss, sum(critic.by_input for critic in critics)


class Gru:
    """Gated recurrent units (Cho et al. 2014), the reset gate after the recurrent product."""

    def __init__(self, params):
        self.weights = [
            np.array(params[part][name], np.float64)
            for part in ("input", "recurrent")
            for name in ("kernel", "bias")
        ]

    def tree(self):
        """Return the parameters as `metajax` keeps them."""
        by_name = lambda pair: dict(zip(("kernel", "bias"), pair, strict=True))
        return {"input": by_name(self.weights[:2]), "recurrent": by_name(self.weights[2:])}

    def __call__(self, sequence):
        """Return the state after `sequence[time, input]`, from 0."""
        kernel, bias, recurrent, recurrent_bias = self.weights
        h, self.past = np.zeros(len(recurrent)), []
        for x in sequence:
            from_x, from_h = x @ kernel + bias, h @ recurrent + recurrent_bias
            (xr, xu, xn), (hr, hu, hn) = np.split(from_x, 3), np.split(from_h, 3)
            reset, update = 1 / (1 + np.exp(-xr - hr)), 1 / (1 + np.exp(-xu - hu))
            new = np.tanh(xn + reset * hn)
            self.past.append((x, h, reset, update, new, hn))
            h = (1 - update) * new + update * h
        return h

    def backward(self, slope):
        """Return gradients by weights of the last call, given that by its result."""
        gradients = [np.zeros_like(weight) for weight in self.weights]
        recurrent = self.weights[2]
        for x, h, reset, update, new, hn in self.past[::-1]:
            by_new = slope * (1 - update) * (1 - new**2)
            by_update = slope * (h - new) * update * (1 - update)
            by_reset = by_new * hn * reset * (1 - reset)
            by_x = np.concatenate([by_reset, by_update, by_new])
            by_h = np.concatenate([by_reset, by_update, by_new * reset])
            for gradient, more in zip(
                gradients, (np.outer(x, by_x), by_x, np.outer(h, by_h), by_h), strict=True
            ):
                gradient += more
            slope = slope * update + recurrent @ by_h
        return gradients


class Box:
    """Bounds of actions, and what critics see of an action."""

    def __init__(self, low, high):
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        self.low, self.high, self.center, self.half = low, high, (low + high) / 2, (high - low) / 2

    def inputs(self, observation, action):
        return np.concatenate([observation, (action - self.center) / self.half], axis=1)


class Sac:
    """Soft actor-critic with a learned temperature."""

    def __init__(self, policy, critics, box, *, rate, critic_rate, discount, tau, scale, entropy):
        self.policy, self.critics, self.box = policy, critics, box
        self.targets = [critic.copy() for critic in critics]
        self.log_temperature = np.zeros(())
        self.policy_optimizer, self.critic_optimizer = Adam(rate), Adam(critic_rate)
        self.discount, self.tau, self.scale, self.entropy = discount, tau, scale, entropy

    def act(self, observation, noise):
        """Return actions, their log-probabilities, and what derivatives need."""
        mean, raw = np.split(self.policy(observation), 2, axis=1)
        log_std = np.clip(raw, -20, 2)
        u = mean + np.exp(log_std) * noise
        density = -(noise**2) / 2 - log_std - math.log(2 * math.pi) / 2
        slope = np.log(self.box.half) - 2 * np.log(np.cosh(u))
        log_prob = np.sum(density - slope, axis=1)
        return self.box.center + self.box.half * np.tanh(u), log_prob, u, raw, log_std

    def policy_gradient(self, steps, noise, alpha, penalty=0.0):
        """Return it, and of the actions drawn their log-probabilities and the lowest values."""
        action, log_prob, u, raw, log_std = self.act(steps.observation, noise)
        x = self.box.inputs(steps.observation, action)
        values = np.array([critic(x)[:, 0] for critic in self.critics])
        count, lowest = len(action), np.argmin(values, axis=0)
        by_action = np.zeros_like(action)
        for index, critic in enumerate(self.critics):
            slope = critic.backward((lowest == index)[:, None] / count)[1]
            by_action -= slope[:, steps.observation.shape[1] :] / self.box.half
        # dL/du: through the action, and through 2 log cosh(u) in the log-probability.
        by_u = by_action * self.box.half * (1 - np.tanh(u) ** 2) + alpha / count * 2 * np.tanh(u)
        by_log_std = by_u * np.exp(log_std) * noise - alpha / count
        inside = (raw > -20) & (raw < 2)
        outputs = np.concatenate([by_u, by_log_std * inside], axis=1)
        mean = u - np.exp(log_std) * noise
        outputs += 2 * penalty / mean.size * np.concatenate([mean, log_std * inside], axis=1)
        return self.policy.backward(outputs)[0], log_prob, np.min(values, axis=0)

    def update(self, steps, next_noise, noise):
        alpha = math.exp(self.log_temperature)
        action, log_prob, *_ = self.act(steps.next_observation, next_noise)
        x = self.box.inputs(steps.next_observation, action)
        value = np.min([target(x)[:, 0] for target in self.targets], axis=0) - alpha * log_prob
        goal = self.scale * steps.reward + self.discount * ~steps.terminated * value
        x = self.box.inputs(steps.observation, steps.action)
        loss, _ = _critic_step(self.critics, self.critic_optimizer, x, goal)

        gradient, log_prob, _ = self.policy_gradient(steps, noise, alpha)
        excess = -np.mean(log_prob) - self.entropy
        *weights, self.log_temperature = self.policy_optimizer.step(
            [*self.policy.weights, self.log_temperature], [*gradient, np.asarray(excess)]
        )
        self.policy.weights = weights
        self.targets = [
            mixed(*pair, self.tau) for pair in zip(self.targets, self.critics, strict=True)
        ]
        return loss


class ValueSac(Sac):
    """Soft actor-critic of the first paper: a value network, and a temperature that stays."""

    def __init__(self, *of, penalty, alpha, **options):
        super().__init__(*of, entropy=None, **options)
        self.penalty, self.alpha, self.value_optimizer = (
            penalty,
            alpha,
            Adam(options["critic_rate"]),
        )

    def take_value(self, value):
        self.value, self.slow_value = value, value.copy()

    def update(self, steps, noise):
        value = self.slow_value(steps.next_observation)[:, 0]
        goal = self.scale * steps.reward + self.discount * ~steps.terminated * value
        x = self.box.inputs(steps.observation, steps.action)
        loss, self.by_input = _critic_step(self.critics, self.critic_optimizer, x, goal)

        gradient, log_prob, lowest = self.policy_gradient(steps, noise, self.alpha, self.penalty)
        self.policy.weights = self.policy_optimizer.step(self.policy.weights, gradient)
        error = self.value(steps.observation)[:, 0] - (lowest - self.alpha * log_prob)
        slope = self.value.backward(2 * error[:, None] / len(error))[0]
        self.value.weights = self.value_optimizer.step(self.value.weights, slope)
        self.slow_value = mixed(self.slow_value, self.value, self.tau)
        return loss


class DoubleQ:
    """Double Q-learning: the policy is the network of values."""

    def __init__(self, policy, target, *, rate, discount, tau):
        self.policy, self.target, self.optimizer = policy, target, Adam(rate)
        self.discount, self.tau = discount, tau

    def update(self, steps):
        best = np.argmax(self.policy(steps.next_observation), axis=1)
        value = self.target(steps.next_observation)[np.arange(len(best)), best]
        goal = steps.reward + self.discount * ~steps.terminated * value
        loss, _ = _critic_step([self.policy], self.optimizer, steps.observation, goal, steps.action)
        self.target = mixed(self.target, self.policy, self.tau)
        return loss


class DiscreteSac(Sac):
    """Soft actor-critic whose expectations over actions are sums."""

    def probabilities(self, observation):
        logits = self.policy(observation)
        log_prob = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
        return np.exp(log_prob), log_prob

    def update(self, steps):
        alpha = math.exp(self.log_temperature)
        chance, log_prob = self.probabilities(steps.next_observation)
        value = np.min([target(steps.next_observation) for target in self.targets], axis=0)
        value = np.sum(chance * (value - alpha * log_prob), axis=1)
        goal = self.scale * steps.reward + self.discount * ~steps.terminated * value
        x = steps.observation
        loss, _ = _critic_step(self.critics, self.critic_optimizer, x, goal, steps.action)

        chance, log_prob = self.probabilities(x)
        cost = alpha * log_prob - np.min([critic(x) for critic in self.critics], axis=0)
        expected = np.sum(chance * cost, axis=1, keepdims=True)
        gradient = self.policy.backward(chance * (cost - expected) / len(x))[0]
        excess = np.mean(np.sum(-chance * log_prob, axis=1)) - self.entropy
        *weights, self.log_temperature = self.policy_optimizer.step(
            [*self.policy.weights, self.log_temperature], [*gradient, np.asarray(excess)]
        )
        self.policy.weights = weights
        self.targets = [
            mixed(*pair, self.tau) for pair in zip(self.targets, self.critics, strict=True)
        ]
        return loss


class Td3:
    """Twin delayed deep deterministic policy gradients."""

    def __init__(
        self, policy, critics, box, *, rate, critic_rate, discount, tau, noise, clip, delay
    ):
        self.policy, self.critics, self.box = policy, critics, box
        self.slow_policy, self.targets = policy.copy(), [critic.copy() for critic in critics]
        self.policy_optimizer, self.critic_optimizer = Adam(rate), Adam(critic_rate)
        self.discount, self.tau, self.noise, self.clip = discount, tau, noise, clip
        self.delay, self.count = delay, 0

    def update(self, steps, noise):
        box, self.count = self.box, self.count + 1
        action = box.center + box.half * np.tanh(self.slow_policy(steps.next_observation))
        action = action + box.half * np.clip(self.noise * noise, -self.clip, self.clip)
        x = box.inputs(steps.next_observation, np.clip(action, box.low, box.high))
        value = np.min([target(x)[:, 0] for target in self.targets], axis=0)
        goal = steps.reward + self.discount * ~steps.terminated * value
        x = box.inputs(steps.observation, steps.action)
        loss, _ = _critic_step(self.critics, self.critic_optimizer, x, goal)
        if self.count % self.delay == 0:
            squashed = np.tanh(self.policy(steps.observation))
            x = box.inputs(steps.observation, box.center + box.half * squashed)
            first = self.critics[0]
            first(x)
            slope = -first.backward(np.full((len(x), 1), 1 / len(x)))[1]
            slope = slope[:, steps.observation.shape[1] :] * (1 - squashed**2)
            gradient = self.policy.backward(slope)[0]
            self.policy.weights = self.policy_optimizer.step(self.policy.weights, gradient)
            self.slow_policy = mixed(self.slow_policy, self.policy, self.tau)
            self.targets = [
                mixed(*pair, self.tau) for pair in zip(self.targets, self.critics, strict=True)
            ]
        return loss


class Pearl:
    """A gradient step of PEARL: `learner` is a `ValueSac` of observations with z behind them."""

    def __init__(self, encoder, learner, *, rate, kl_weight):
        self.encoder, self.learner, self.kl_weight = encoder, learner, kl_weight
        self.optimizer = Adam(rate)

    def update(self, context, steps, latent_noise, action_noise):
        """Return the loss of the critics and the sum of the divergences.

        Args:
            context: inputs of the encoder `[task, step, input]`.
            steps: what is remembered, `[task, step]`.
            latent_noise: `[task, latent]`.
            action_noise: `[task and step, action]`.
        """
        tasks, size = latent_noise.shape
        outputs = self.encoder(context.reshape(-1, context.shape[-1]))
        outputs = outputs.reshape(tasks, -1, 2 * size)
        mean, raw = outputs[..., :size], outputs[..., size:]
        variance = np.log1p(np.exp(raw))
        precision = 1 / variance
        total, weighted = precision.sum(axis=1), (mean * precision).sum(axis=1)
        center, square = weighted / total, 1 / total
        z = center + np.sqrt(square) * latent_noise
        divergence = np.sum((square + center**2 - 1 - np.log(square)) / 2)

        count = steps.reward.shape[1]
        beside = lambda x: np.concatenate([x, np.repeat(z[:, None], count, axis=1)], axis=2)
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        given = type(steps)(
            flat(beside(steps.observation)),
            flat(steps.action),
            flat(steps.reward),
            flat(steps.terminated),
            flat(beside(steps.next_observation)),
        )
        loss = self.learner.update(given, action_noise)

        observed = steps.observation.shape[2]
        by_z = self.learner.by_input[:, observed : observed + size]
        by_z = by_z.reshape(tasks, count, size).sum(axis=1)
        by_center = by_z + self.kl_weight * center
        by_square = by_z * latent_noise / (2 * np.sqrt(square))
        by_square += self.kl_weight * (1 - 1 / square) / 2
        by_weighted = by_center / total
        by_total = -by_center * weighted / total**2 - by_square / total**2
        by_mean = by_weighted[:, None] * precision
        by_precision = by_weighted[:, None] * mean + by_total[:, None]
        by_raw = -by_precision * precision**2 / (1 + np.exp(-raw))
        slope = np.concatenate([by_mean, by_raw], axis=2).reshape(-1, 2 * size)
        gradient = self.encoder.backward(slope)[0]
        self.encoder.weights = self.optimizer.step(self.encoder.weights, gradient)
        return loss, divergence
