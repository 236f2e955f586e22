"""A trained half-cheetah on Gymnasium's HalfCheetah-v5, against itself inside the program.

    python benchmarks/deployment.py RUN

RUN is the directory of a `maml halfcheetah-dir` run. For both directions: the mean return after
0 ... 3 gradient steps inside the program, and of the deployed agent, which adapts to episodes of
the Gymnasium environment (same reward: forward weight ±1, control cost 0.05).
"""

import argparse

import common
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import metajax
from metajax.deployment import load, load_run
from metajax.rollout import undiscounted_returns


def inside(experiment, meta_params, direction, rounds, episodes):
    """Return mean returns `[round]` of the agent in its own environment."""
    agent, env = experiment.algorithm.agent, experiment.family.env
    task = {"direction": jnp.asarray(direction)}

    def round_(adapted, key):
        def act(memory, step_input, key):
            return agent.act(adapted, memory, step_input, key)

        trajectory = metajax.rollout(key, env, task, act, (), episodes=episodes, parallel=True)
        adapted = agent.adapt(meta_params, adapted, trajectory, key)
        return adapted, undiscounted_returns(trajectory).mean()

    keys = jax.random.split(jax.random.key(1), rounds)
    return jax.jit(lambda a: jax.lax.scan(round_, a, keys)[1])(agent.begin(meta_params, keys[0]))


def outside(host, direction, length, rounds, episodes):
    """Return mean returns `[round]` of the deployed agent on Gymnasium's environment."""
    env = gymnasium.make(
        "HalfCheetah-v5",
        forward_reward_weight=direction,
        ctrl_cost_weight=0.05,
        max_episode_steps=length,
    )
    host.reset()
    returns = np.zeros((rounds, episodes))
    for k in range(rounds):
        for e in range(episodes):
            observation, _ = env.reset(seed=k * episodes + e)
            end = False
            while not end:
                observation, reward, terminated, truncated, _ = env.step(host.act(observation))
                host.observe(observation, float(reward), terminated, truncated)
                returns[k, e] += reward
                end = terminated or truncated
        host.adapt()
    return returns.mean(axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--name", default="deployment-halfcheetah-dir")
    arguments = parser.parse_args()

    experiment, state = load_run(arguments.run)
    meta_params = jax.tree.map(lambda x: x[0], state.train_state.meta_params)
    host = load(arguments.run)
    length = experiment.family.env.episode_length
    rows = []
    for direction in (1.0, -1.0):
        sizes = (arguments.rounds, arguments.episodes)
        here = np.asarray(inside(experiment, meta_params, direction, *sizes))
        there = outside(host, direction, length, *sizes)
        rows.append({"direction": direction, "inside": here.tolist(), "outside": there.tolist()})
        print(f"direction {direction:+.0f}")
        print("  inside   " + "  ".join(f"{x:8.1f}" for x in here))
        print("  outside  " + "  ".join(f"{x:8.1f}" for x in there))
    means = {k: np.mean([row[k] for row in rows], axis=0) for k in ("inside", "outside")}
    print(
        "both: outside / inside  "
        + "  ".join(f"{x:.3f}" for x in means["outside"] / means["inside"])
    )
    print(f"wrote {common.save(arguments.name, {'rows': rows})}")


if __name__ == "__main__":
    main()
