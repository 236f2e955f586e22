"""The nouns of metajax: what flows (frozen pytrees) and what varies (bundles of pure functions).

Shapes name their axes. ``*batch`` stands for the axes that `vmap` adds: code is written for one
task and one stream of experience. Everywhere:

- ``time`` counts environment steps within an episode, ``episode`` counts episodes within a trial;
- ``reward`` is the reward of one environment step;
- a key is a typed `jax.random.key`, consumed by the function that receives it.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped, UInt32

from metajax._kinks import within
from metajax.errors import MetajaxError

Task = PyTree[Array]
Params = PyTree[Array]
Memory = PyTree[Array]
Metrics = dict[str, Array]
Scalar = float | Float[Array, ""]  # a hyperparameter that may be traced
Built = TypeVar("Built")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def pytree_dataclass(cls: type) -> Any:
    """Make `cls` a frozen dataclass that JAX treats as a pytree of its fields."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


# ---------------------------------------------------------------------------------------------
# What flows
# ---------------------------------------------------------------------------------------------


@pytree_dataclass
class EnvState:
    """Everything an environment needs to continue, and what it shows after its last step.

    Attributes:
        observation: what the agent sees now; after an end, the true last observation.
        reward: of the step that led here; 0 after a reset.
        terminated: the step that led here ended the task itself: nothing follows, value 0.
        truncated: the step that led here used up `Env.episode_length`: the value goes on.
        time: steps taken since the reset.
        task: the task this episode is played on; constant.
        simulator: whatever else the environment carries (positions, velocities, a key ...).
        metrics: what else is measured after each step and after a reset, a number by name, such as
            "success" (0 or 1) or "distance"; no agent sees it.
    """

    observation: Float[Array, "*batch observation"]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    time: Int[Array, "*batch"]
    task: Task
    simulator: PyTree[Array]
    metrics: dict[str, Float[Array, "*batch"]] = dataclasses.field(default_factory=dict)


@pytree_dataclass
class StepInput:
    """What a policy is given at one step: the observation, and the outcome of the step before.

    At the first step of a trial the previous action and reward are 0 and `previous_end` is False.
    At the first step of a later episode they are those of the last step of the episode before,
    and `previous_end` is True: a memory's input says how each episode ended.
    """

    observation: Float[Array, "*batch observation"]
    previous_action: Shaped[Array, "..."]
    previous_reward: Float[Array, "*batch"]
    previous_end: Bool[Array, "*batch"]


@pytree_dataclass
class PolicyOutput:
    """What a policy outputs at one step.

    Attributes:
        distribution: over actions (see `metajax.policies.distributions`).
        value: the policy's own estimate of the discounted return to come, or None without critic.
    """

    distribution: Any
    value: Float[Array, "*batch"] | None = None


@pytree_dataclass
class Trajectory:
    """The experience of one trial: `episode` episodes of `time` steps on one task.

    Steps after an early end are padding: `valid` is False there, and nothing else in them means
    anything. `valid` is True on the step that ends the episode.

    Attributes:
        step_input: what the policy saw before each action.
        action: as the policy sampled it, before the environment clips or scales.
        output: the policy's outputs when it acted (the behaviour distribution).
        reward: of each action.
        terminated: this step ended the task itself (bootstrap with 0).
        truncated: this step was the last one allowed (bootstrap from `final_input`).
        valid: this step was played.
        final_input: what the policy would have seen after the last valid step of each episode.
        initial_state: where each episode started, for those who may simulate it again; None if it
            was not played in the program.
        metrics: the environment's after each action, by name.
    """

    step_input: StepInput
    action: Shaped[Array, "..."]
    output: PolicyOutput
    reward: Float[Array, "*batch time"]
    terminated: Bool[Array, "*batch time"]
    truncated: Bool[Array, "*batch time"]
    valid: Bool[Array, "*batch time"]
    final_input: StepInput
    initial_state: EnvState | None = None
    metrics: dict[str, Float[Array, "*batch time"]] = dataclasses.field(default_factory=dict)


@pytree_dataclass
class TaskBatch:
    """The tasks of a meta-iteration, `task[task, ...]`.

    Attributes:
        task: what the environment is given of each.
        slot: which of the training tasks each is, 0 ... `slots` - 1: its place in whatever is kept
            by task. -1 where they cannot be counted.
        slots: how many training tasks there are; 0 where they cannot be counted. A plain number,
            also in a program: sizes of arrays may depend on it.
        finite: all the training tasks there are, by slot, whichever a batch has; () where they
            cannot be counted.
    """

    task: Task
    slot: Int[Array, "*batch task"]
    slots: int = dataclasses.field(default=0, metadata={"static": True})
    finite: Task = ()

    def __len__(self) -> int:
        """Return how many tasks the batch has."""
        return self.slot.shape[-1]


@pytree_dataclass
class MetaParams:
    """What is meta-learned, and all that an agent starts from; () where there is nothing.

    Attributes:
        policy: θ.
        rule: the inner rule's own parameters.
        critic: the parameters of what states or actions are worth, by its name, where adaptation
            asks for it.
        mean_square_reward: running mean of squared rewards, where the policy's input is rewards
            over its root: without it the agent cannot act.
        experience: some of what meta-training played, where adaptation learns from that again.
    """

    policy: Params
    rule: Any = ()
    critic: Any = ()
    mean_square_reward: Any = ()
    experience: Any = ()


@pytree_dataclass
class TrainState:
    """Everything an algorithm trains or must resume, by the role it plays.

    An update whose result is not finite is discarded: then meta-parameters, learner and statistics
    stay as they were. A replay is too large to be copied for that. It keeps what was played, and
    `metajax.replay` lets nothing into it that is not finite.

    Attributes:
        meta_params: what `Agent.init` starts from, and all that an agent is loaded from.
        learner: what else training changes: optimizer states, target networks, critics that no
            agent asks, penalties, counts; () where there is none.
        statistics: running normalizers that agents act without; () where there are none.
        replay: large rings of experience; () where there is none.
        hyperparameters: numbers that the program is given as arrays, by name.
        environment_steps: taken so far, those of discarded updates and padding included; see
            `metajax.steps`.
    """

    meta_params: PyTree[Array]
    learner: PyTree[Array] = ()
    statistics: PyTree[Array] = ()
    replay: PyTree[Array] = ()
    hyperparameters: dict[str, Array] = dataclasses.field(default_factory=dict)
    environment_steps: UInt32[Array, "*batch 2"] = dataclasses.field(
        default_factory=lambda: jnp.zeros(2, jnp.uint32)
    )


# ---------------------------------------------------------------------------------------------
# What varies
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions 0 ... `size` - 1, an int32 scalar."""

    size: int


@dataclasses.dataclass(frozen=True)
class Continuous:
    """Actions in a box: `size` floats; the environment clips to [`low`, `high`], then scales.

    Attributes:
        size: how many.
        low: the smallest action, or a sequence `[size]` of one for each dimension.
        high: the largest, likewise.
        scale: the control is this times the clipped action.
    """

    size: int
    low: float | tuple[float, ...] = -1.0
    high: float | tuple[float, ...] = 1.0
    scale: float = 1.0

    def __post_init__(self):
        """Keep bounds as what can be compared and hashed: one number where all are the same."""
        for name in ("low", "high"):
            bound = np.asarray(getattr(self, name), float)
            if bound.ndim == 0:
                continue
            if bound.shape != (self.size,):
                raise MetajaxError(
                    f"{name} has shape {bound.shape}; it must be one number, or one for each of "
                    f"the {self.size} dimensions of the action."
                )
            same = len(set(bound.tolist())) == 1
            object.__setattr__(self, name, float(bound[0]) if same else tuple(bound.tolist()))

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest action, `[size]` each."""
        low, high = (np.asarray(bound, np.float32) for bound in (self.low, self.high))
        return np.broadcast_to(low, (self.size,)), np.broadcast_to(high, (self.size,))

    def to_control(self, action: Float[Array, "*batch action"]) -> Float[Array, "*batch action"]:
        """Return what the environment applies when it is given `action`."""
        low, high = (
            jnp.asarray(bound, action.dtype) if isinstance(bound, tuple) else bound
            for bound in (self.low, self.high)
        )
        return self.scale * within(action, low, high)


ActionSpace = Discrete | Continuous


class Env(NamedTuple):
    """One environment, written for one task and one stream.

    `step` never resets by itself and the task travels inside the state, so a trial is a loop that
    calls `reset` once per episode with the same task (see `metajax.rollout`).
    """

    reset: Callable[[Key[Array, ""], Task], EnvState]
    step: Callable[[EnvState, Array], EnvState]
    observation_size: int
    action_space: ActionSpace
    episode_length: int


class TaskDistribution(NamedTuple):
    """Where tasks come from.

    Attributes:
        sample: `(key) -> task`.
        finite: all the tasks there are, with a leading axis; None if they cannot be counted.
    """

    sample: Callable[[Key[Array, ""]], Task]
    finite: Task | None = None


class TaskFamily(NamedTuple):
    """What `metajax.make` returns: an environment and distributions over its tasks.

    Attributes:
        env: shared by all tasks.
        train: the tasks that meta-training sees.
        test: the held-out tasks, from the same range.
        name: versioned; the numbers behind a name never change.
        backend: the physics engine, or "jax" for families that need none.
        extrapolate: tasks from beyond the range; None where there is nothing beyond.
        validation: tasks that are neither training nor held-out tasks, with the same leaves as the
            latter; None where there are no others.
    """

    env: Env
    train: TaskDistribution
    test: TaskDistribution
    name: str
    backend: str = "jax"
    extrapolate: TaskDistribution | None = None
    validation: TaskDistribution | None = None


class Encoder(NamedTuple):
    """A causal network that encodes a trial from its start.

    - `init(key) -> params`;
    - `encode(params, step_input[time]) -> features[time, feature]`;
    - `size`: numbers in the features of a step.
    """

    init: Callable[[Key[Array, ""]], Params]
    encode: Callable[[Params, StepInput], Float[Array, "time feature"]]
    size: int


class Policy(NamedTuple):
    """A policy, with or without memory; `unroll` equals a scan of `step` over time.

    `encoder` is another network of its memory's kind, for critics that encode trials.
    """

    init: Callable[[Key[Array, ""]], Params]
    initial_memory: Callable[[], Memory]
    step: Callable[[Params, Memory, StepInput], tuple[Memory, PolicyOutput]]
    unroll: Callable[[Params, Memory, StepInput], tuple[Memory, PolicyOutput]]
    encoder: Encoder | None = None


class Made(NamedTuple):
    """How a part was made, `factory(**options)`: what a configuration keeps of it."""

    factory: Callable[..., Any]
    options: Mapping[str, Any]

    def __repr__(self) -> str:
        """Return the call, without options that have their defaults."""
        defaults = inspect.signature(self.factory).parameters
        said = [
            f"{name}={value!r}"
            for name, value in self.options.items()
            if repr(value) != repr(defaults[name].default)
        ]
        return f"{self.factory.__name__}({', '.join(said)})"


class Part(NamedTuple, Generic[Built]):
    """A part of an algorithm that the environment and the policy complete.

    Attributes:
        build: `(env, policy) ->` what the algorithm uses.
        made: how; None where no factory of `metajax.parts.part` made it.
    """

    build: Callable[[Env, Policy], Built]
    made: Made | None = None

    def __repr__(self) -> str:
        """Return how the part was made."""
        return repr(self.made or self.build)


class UpdateRule(NamedTuple):
    """How an inner loop learns; `rule_params` are themselves meta-learned (() if there are none).

    `optimizer(rule_params)` is an ordinary optax transformation, so rules compose under
    `optax.chain`. `made` is as in `Part`.
    """

    init: Callable[[Key[Array, ""], Params], PyTree[Array]]
    optimizer: Callable[[PyTree[Array]], Any]
    made: Made | None = None

    def __repr__(self) -> str:
        """Return how the rule was made."""
        return repr(self.made or self.optimizer)


class Agent(NamedTuple):
    """Behaviour within one task: all that evaluation and deployment ever see.

    - `init(meta_params, key) -> adapted`: before anything is known of the task.
    - `initial_memory() -> memory`: at the start of a trial.
    - `act(adapted, memory, step_input, key) -> (memory, action, policy_output)`; with key None
      the distribution's mode is taken instead of a sample.
    - `adapt(meta_params, adapted, trajectory, key) -> adapted`: learn from `trajectory[episode,
      time]`; the identity for agents that adapt in their memory.
    - `episodic`: whether a memory is one of the episode alone; only `adapt` outlives it.
    """

    init: Callable[[PyTree[Array], Key[Array, ""]], PyTree[Array]]
    initial_memory: Callable[[], Memory]
    act: Callable[..., tuple[Memory, Array, PolicyOutput]]
    adapt: Callable[..., PyTree[Array]]
    episodic: bool = False


class Trial(NamedTuple):
    """What an update plays on each of its tasks, and what it is after.

    Attributes:
        rounds: batches of episodes; an adaptation step follows each, or each but the last. 1 where
            nothing adapts between episodes but a memory.
        episodes: of each round.
        adaptations: adaptation steps after which training raises the return; 0 where it trains all
            tasks jointly, so that what its agents do in `adapt` is fine-tuning; None where it
            raises that of the whole trial.
    """

    rounds: int
    episodes: int
    adaptations: int | None

    def steps(self, env: Env) -> int:
        """Return the environment steps of a trial, padding included."""
        return self.rounds * self.episodes * env.episode_length


class Algorithm(NamedTuple):
    """A meta-learner: how one meta-iteration improves the meta-parameters.

    - `init(key, tasks) -> TrainState`, for training on batches like the `TaskBatch` given;
    - `update(state, tasks, key) -> (state, metrics)`: one meta-iteration on a `TaskBatch`; it also
      counts their environment steps.
    - `agent`: what the meta-parameters are good for.
    - `trial`: what an update plays on each task.
    - `metrics`: the names of what an update measures. Progress and pictures show "return", or
      "return_before" and "return_after" adaptation, of those that have them.
    """

    init: Callable[[Key[Array, ""], TaskBatch], TrainState]
    update: Callable[[TrainState, TaskBatch, Key[Array, ""]], tuple[TrainState, Metrics]]
    agent: Agent
    name: str
    trial: Trial
    metrics: tuple[str, ...]

    @property
    def joint(self) -> bool:
        """Whether nothing adapts in training."""
        return self.trial.adaptations == 0
