"""Q-learning updates per second: inside the program, and in a PyTorch loop (needs `torch`).

    python benchmarks/q_learning.py

The same work on both sides, CartPole with episodes of at most 200 steps: act ε-greedily, keep the
step, draw 64 kept steps, take one step of Adam down the Huber loss of double Q-learning; one update
per environment step, two hidden layers of 64, a target network copied every 500 updates. The
PyTorch loop is one agent, as such loops are, with Gymnasium's environment and a replay in NumPy,
and the faster of one and all threads. Inside the program, agents (seeds) run side by side.
"""

import argparse
import os
import time

import common
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import metajax
from metajax.algorithms import dqn
from metajax.envs.rollouts import over_tasks
from metajax.training.sharding import task_mesh

LENGTH, BATCH, CAPACITY, PERIOD, EPSILON = 200, 64, 20_000, 500, 0.1


def torch_updates_per_second(seconds: float, threads: int) -> float:
    """Return the updates per second of a plain loop, after 1000 steps that fill the replay."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    random = np.random.default_rng(0)

    def network():
        return torch.nn.Sequential(
            torch.nn.Linear(4, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 2),
        )

    online, target = network(), network()
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
    seen, following = (np.zeros((CAPACITY, 4), np.float32) for _ in range(2))
    action, reward = np.zeros(CAPACITY, np.int64), np.zeros(CAPACITY, np.float32)
    terminated = np.zeros(CAPACITY, np.float32)
    env = gymnasium.make("CartPole-v1", max_episode_steps=LENGTH)
    observation, _ = env.reset(seed=0)
    warm_up, step, began = 1000, 0, 0.0
    while True:
        if step == warm_up:
            began = time.perf_counter()
        if step > warm_up and step % 100 == 0 and time.perf_counter() - began > seconds:
            return (step - warm_up) / (time.perf_counter() - began)
        if random.random() < EPSILON:
            chosen = int(random.integers(2))
        else:
            with torch.no_grad():
                chosen = int(online(torch.from_numpy(observation)).argmax())
        new, earned, ended, cut, _ = env.step(chosen)
        slot = step % CAPACITY
        seen[slot], following[slot], action[slot] = observation, new, chosen
        reward[slot], terminated[slot] = earned, ended
        observation = env.reset()[0] if ended or cut else new
        step += 1
        drawn = random.integers(0, min(step, CAPACITY), BATCH)
        s, s2, a, r, d = (
            torch.from_numpy(x[drawn]) for x in (seen, following, action, reward, terminated)
        )
        with torch.no_grad():
            best = online(s2).argmax(1, keepdim=True)
            goal = r + 0.99 * (1 - d) * target(s2).gather(1, best)[:, 0]
        value = online(s).gather(1, a[:, None])[:, 0]
        loss = torch.nn.functional.huber_loss(value, goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % PERIOD == 0:
            target.load_state_dict(online.state_dict())


def program(agents: int, iterations: int):
    """Return a call that trains `agents` for `iterations` of 200 updates each, and their states."""
    family = metajax.make("cartpole-params", episode_length=LENGTH)
    policy = metajax.mlp(4, family.env.action_space, activation="relu")
    algorithm = dqn(
        family.env,
        policy,
        episodes=1,
        updates=LENGTH,
        batch=BATCH,
        replay_capacity=CAPACITY,
        target_period=PERIOD,
        epsilon=EPSILON,
    )
    # CartPole-v1's own masses and lengths.
    task = {"length": 0.5, "mass": 0.1, "force": 10.0}
    tasks = jax.tree.map(lambda x: jnp.full(1, x, float), task)
    tasks = metajax.TaskBatch(tasks, jnp.zeros(1, jnp.int32), slots=1)
    devices = len(jax.devices()) if agents % len(jax.devices()) == 0 else 1
    mesh = task_mesh(devices)

    def train(tasks, state, key):
        def iteration(state, key):
            state, metrics = algorithm.update(state, tasks, key)
            return state, metrics["return"]

        return jax.lax.scan(iteration, state, jax.random.split(key, iterations))

    keys = jax.random.split(jax.random.key(0), agents)
    states = jax.vmap(lambda key: algorithm.init(key, tasks))(keys)
    with jax.set_mesh(mesh):
        run = jax.jit(lambda states, keys: over_tasks(train, tasks, states, keys))
        compiled = run.lower(states, keys).compile()
    return lambda: compiled(states, keys)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 2, 8, 32, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the PyTorch loop, per try")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    # The two in turn, so that drift is shared.
    loops, inside = [], {agents: [] for agents in arguments.agents}
    iterations = {agents: max(1, 160 // agents) for agents in arguments.agents}
    programs = {agents: program(agents, iterations[agents]) for agents in arguments.agents}
    for _ in range(arguments.repeats):
        for threads in {1, cores}:
            loops.append((torch_updates_per_second(arguments.seconds, threads), threads))
        for agents, call in programs.items():
            seconds = common.timed(call, repeats=1)[0][0]
            inside[agents].append(agents * iterations[agents] * LENGTH / seconds)
    medians = {
        threads: float(np.median([rate for rate, used in loops if used == threads]))
        for threads in {1, cores}
    }
    best = max(medians.values())
    print(f"PyTorch loop: {best:,.0f} updates per second")
    rows = []
    for agents, rates in inside.items():
        rate = float(np.median(rates))
        rows.append({"agents": agents, "updates_per_second": rate, "over_torch": rate / best})
        print(f"{agents:4d} agents: {rate:10,.0f} updates per second, {rate / best:5.1f} x PyTorch")
    path = common.save("q-learning", {"torch_by_threads": medians, "rows": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
