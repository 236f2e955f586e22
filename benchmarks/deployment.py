"""A trained half-cheetah on Gymnasium's HalfCheetah-v5, against itself inside the program.

    python benchmarks/deployment.py RUN

RUN is the directory of a `maml halfcheetah-dir` run. For both directions the deployed agent plays
and adapts in the Gymnasium environment (same reward: forward weight ±1, control cost 0.05); after
0 ... 3 gradient steps, the very parameters it has reached then play inside the program.
"""

import argparse

import common
import gymnasium
import jax
import numpy as np

import metajax
from metajax.envs.rollouts import undiscounted_returns
from metajax.runs.load import load, load_run


def inside(experiment, episodes):
    """Return a function of adapted parameters and a direction: returns `[episode]`."""
    agent, env = experiment.algorithm.agent, experiment.family.env

    @jax.jit
    def play(adapted, direction):
        def act(memory, step_input, key):
            return agent.act(adapted, memory, step_input, key)

        task, key = {"direction": direction}, jax.random.key(1)
        return undiscounted_returns(
            metajax.rollout(key, env, task, act, (), episodes=episodes, parallel=True)
        )

    return play


def episode_return(host, env, seed):
    """Play one episode of Gymnasium's environment and return its undiscounted return."""
    observation, _ = env.reset(seed=seed)
    total, end = 0.0, False
    while not end:
        observation, reward, terminated, truncated, _ = env.step(host.act(observation))
        host.observe(observation, float(reward), terminated, truncated)
        total += float(reward)
        end = terminated or truncated
    return total


def mean_and_error(returns):
    return [float(np.mean(returns)), float(np.std(returns) / np.sqrt(len(returns)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--name", default="deployment-halfcheetah-dir")
    arguments = parser.parse_args()

    experiment, _ = load_run(arguments.run)
    host = load(arguments.run)
    play = inside(experiment, episodes=200)
    rows = []
    for direction in (1.0, -1.0):
        env = gymnasium.make(
            "HalfCheetah-v5",
            forward_reward_weight=direction,
            ctrl_cost_weight=0.05,
            max_episode_steps=experiment.family.env.episode_length,
        )
        host.reset()
        for k in range(arguments.rounds):
            seeds = range(k * arguments.episodes, (k + 1) * arguments.episodes)
            here = mean_and_error(play(host.adapted, direction))
            there = mean_and_error([episode_return(host, env, seed) for seed in seeds])
            host.adapt()
            row = {"direction": direction, "steps": k, "inside": here, "outside": there}
            rows.append(row | {"ratio": there[0] / here[0]})
            print(
                f"direction {direction:+.0f}, {k} steps: inside {here[0]:7.1f} ± {here[1]:.1f}, "
                f"outside {there[0]:7.1f} ± {there[1]:.1f}, ratio {rows[-1]['ratio']:.3f}",
                flush=True,
            )
    inside_mean, outside_mean = (
        np.mean([row[where][0] for row in rows if row["steps"]]) for where in ("inside", "outside")
    )
    print(f"adapted: inside {inside_mean:.1f}, outside {outside_mean:.1f}")
    print(f"wrote {common.save(arguments.name, {'rows': rows})}")


if __name__ == "__main__":
    main()
