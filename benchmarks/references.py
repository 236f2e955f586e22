"""Reference agents on bandits and tabular processes, beside what they are known to get.

    python benchmarks/references.py          # a quarter of an hour on a core

Writes benchmarks/results/references.json and .md. Tasks are of the whole prior, as those of the
known numbers are; held-out ones, whose first arm pays with one of nine probabilities, allow a
little less.
"""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np

import metajax
from metajax.envs.splits import sample_batch
from metajax.reference_agents import (
    Choose,
    at_random,
    backward_induction,
    bandit_agent,
    by_index,
    epsilon_greedy,
    greedy,
    index_table,
    process_agent,
    psrl,
    thompson,
    ucrl2,
    upper_confidence,
    whole_prior,
)
from metajax.types import Agent

NAME = "references"
PROCESSES = 10_000
# Mean total reward by (pulls, arms), computed by another program (standard error .005 and .08); of
# ε-greedy, what Duan et al. 2016, table 1, print of 1000 trials (.07 and .5).
BANDITS = {
    (10, 5): [5.0, 5.833, 6.565, 6.6, 6.655, 6.662],
    (10, 10): [5.0, 5.579, 6.622, 6.6, 6.707, 6.715],
    (100, 5): [50.0, 75.06, 74.97, 75.4, 78.22, 78.65],
    (100, 10): [50.0, 77.07, 77.85, 77.4, 83.15, 83.78],
    (100, 50): [50.0, 64.53, 78.21, 78.3, 84.71, 85.58],
}
# The same by episodes; UCRL2's are those of Duan et al. 2016, table 2.
TABULAR = {10: [100.0, 133.7, 146.6, 218.4], 25: [250.0, 404.7, 424.1, 546.0]}


def play_processes(episodes: int, plan: Choose, *, tasks: int = PROCESSES, seed: int = 0):
    """Return the total reward of trials `[task]` on tabular processes."""
    family = whole_prior("tabular")
    env = family.env
    agent = process_agent(env.observation_size, env.action_space.size, env.episode_length, plan)
    return _total(agent, family, tasks, seed, rounds=episodes, episodes=1)


def optimum(*, tasks: int = 10 * PROCESSES, seed: int = 0):
    """Return the expected reward per episode `[task]` of who knows the process."""
    family = whole_prior("tabular")

    def value(key):
        task = family.test.sample(key)
        solve = functools.partial(backward_induction, horizon=family.env.episode_length)
        return solve(task["reward"], lambda value: task["transition"] @ value)[0][0]

    return np.asarray(jax.jit(jax.vmap(value))(jax.random.split(jax.random.key(seed), tasks)))


def play(pulls: int, arms: int, choose: Choose, *, tasks: int, seed: int = 0):
    """Return the total reward of trials `[task]` on bandits."""
    family = whole_prior("bernoulli-bandit", arms=arms)
    return _total(bandit_agent(arms, choose), family, tasks, seed, rounds=1, episodes=pulls)


def _total(agent: Agent, family, tasks: int, seed: int, **size: int):
    size["tasks"] = min(tasks, 2_000)
    run = jax.jit(lambda key: metajax.evaluate(agent, family, (), key, **size).sum((1, 2)))
    keys = jax.random.split(jax.random.key(seed), tasks // size["tasks"])
    return np.concatenate([run(key) for key in keys])


def bandit_agents(pulls: int) -> dict[str, Choose]:
    """Return what is compared on trials of so many pulls; two have the best of a few parameters."""
    table = jnp.asarray(index_table(pulls))
    width = 0.1 if pulls == 10 else 0.2
    return {
        "random": at_random,
        "Thompson": thompson,
        "greedy": greedy,
        "ε-greedy": functools.partial(epsilon_greedy, 0.03),
        "UCB1": functools.partial(upper_confidence, width),
        "Whittle's index": functools.partial(by_index, table),
    }


def table(rows) -> str:
    """Return a Markdown table."""
    lines = ["| problem | agent | return | known |", "| --- | --- | --- | --- |"]
    for row in rows:
        found = f"{row['return']:.3f} ± {row['standard_error']:.3f}"
        lines.append(f"| {row['problem']} | {row['agent']} | {found} | {row['known']:g} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    rows = []

    def add(problem: str, agent: str, total, known: float):
        mean, error = float(total.mean()), float(total.std(ddof=1) / np.sqrt(total.size))
        rows.append({"problem": problem, "agent": agent, "return": mean, "standard_error": error})
        rows[-1] |= {"known": known, "tasks": total.size}
        print(f"{problem}: {agent} {mean:.3f} ± {error:.3f} ({known})", flush=True)
        common.save(NAME, {"rows": rows}).with_suffix(".md").write_text(table(rows))

    for (pulls, arms), known in BANDITS.items():
        count = 100_000 if pulls == 10 else 20_000
        for (agent, choose), x in zip(bandit_agents(pulls).items(), known, strict=True):
            add(f"bandit {pulls}, {arms}", agent, play(pulls, arms, choose, tasks=count), x)
        prior = whole_prior("bernoulli-bandit", arms=arms).test
        tasks = sample_batch(prior, jax.random.key(0), 100_000)
        best = tasks["probability"].max(axis=1)
        add(f"bandit {pulls}, {arms}", "told the arms", pulls * best, pulls * arms / (arms + 1))
    horizon = metajax.make("tabular").env.episode_length
    for episodes, known in TABULAR.items():
        plans = {
            "random": lambda counts, key: jax.random.randint(key, (horizon, 10), 0, 5),
            "PSRL": functools.partial(psrl, horizon),
            "UCRL2": functools.partial(ucrl2, horizon, 0.35),
        }
        totals = {name: play_processes(episodes, plan) for name, plan in plans.items()}
        totals |= {"told the process": episodes * optimum()}
        for (agent, total), x in zip(totals.items(), known, strict=True):
            add(f"process {episodes}", agent, total, x)


if __name__ == "__main__":
    main()
