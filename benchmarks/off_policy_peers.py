"""The other sides of `off_policy_speed.py`, for an interpreter that has them.

    python benchmarks/off_policy_peers.py sb3|sbx|torch-pearl|versions [--seconds 10]

`sb3` and `sbx`: environment steps per second of soft actor-critic by Stable-Baselines3 and by SBX,
learning included. `torch-pearl`: gradient steps per second of PEARL, written plainly in PyTorch.
`versions` prints those of the libraries. Nothing of metajax is imported.
"""

import argparse
import importlib.metadata
import json
import time

import gymnasium

BATCH, HIDDEN = 256, (256, 256)
LIBRARIES = ("stable-baselines3", "sbx-rl", "torch", "jax", "gymnasium", "mujoco")


def sac_steps_per_second(library: str, seconds: float) -> float:
    """Return environment steps per second on HalfCheetah, one gradient step for each."""
    if library == "sb3":
        from stable_baselines3 import SAC
    else:
        from sbx import SAC
    model = SAC(
        "MlpPolicy",
        gymnasium.make("HalfCheetah-v5"),
        batch_size=BATCH,
        learning_starts=BATCH,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": list(HIDDEN)},
        seed=0,
    )
    model.learn(1500)  # compiles, and fills what is remembered
    played, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        model.learn(1000, reset_num_timesteps=False)
        played += 1000
    return played / (time.perf_counter() - began)


def pearl_steps_per_second(
    seconds: float, threads: int | None, tasks: int, batch: int, context: int, width: int
) -> float:
    """Return gradient steps per second on half-cheetahs' sizes, steps drawn from a tensor.

    Order and losses are the paper's: critics and encoder by temporal differences and the
    divergence from the prior, then the value network, its slow copy, then the policy.
    """
    import torch
    from torch.nn.functional import softplus

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    observation, action, latent = 17, 6, 5

    def network(inputs, outputs, widths):
        layers, size = [], inputs
        for following in widths:
            layers += [torch.nn.Linear(size, following), torch.nn.ReLU()]
            size = following
        return torch.nn.Sequential(*layers, torch.nn.Linear(size, outputs))

    wide = [width] * 3
    encoder = network(observation + action + 1, 2 * latent, [200] * 3)
    critics = [network(observation + action + latent, 1, wide) for _ in range(2)]
    value, slow = (network(observation + latent, 1, wide) for _ in range(2))
    slow.load_state_dict(value.state_dict())
    policy = network(observation + latent, 2 * action, wide)
    adam = lambda *of: torch.optim.Adam([x for net in of for x in net.parameters()], lr=3e-4)
    of_critics, of_value, of_policy = adam(encoder, *critics), adam(value), adam(policy)
    kept = torch.randn(tasks, 20_000, 2 * observation + action + 1)
    sizes = [observation, action, 1, observation]

    def drawn(count):
        place = torch.randint(kept.shape[1], (tasks, count, 1)).expand(-1, -1, kept.shape[2])
        return torch.split(torch.gather(kept, 1, place), sizes, dim=-1)

    def descend(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def gradient_step():
        mean, spread = encoder(torch.cat(drawn(context)[:3], -1)).chunk(2, -1)
        variance = softplus(spread).clamp(min=1e-7)
        total = 1 / (1 / variance).sum(1)
        center = total * (mean / variance).sum(1)
        z = (center + total.sqrt() * torch.randn_like(center))[:, None].expand(-1, batch, -1)
        s, a, r, s2 = drawn(batch)
        with torch.no_grad():
            goal = 5 * r + 0.99 * slow(torch.cat([s2, z], -1))
        taken = torch.cat([s, a, z], -1)
        divergence = 0.5 * (total + center**2 - 1 - total.log()).sum()
        descend(
            of_critics, sum(((q(taken) - goal) ** 2).mean() for q in critics) + 0.1 * divergence
        )
        z = z.detach()
        seen = torch.cat([s, z], -1)
        mean, log_std = policy(seen).chunk(2, -1)
        log_std = log_std.clamp(-20, 2)
        noise = torch.randn_like(mean)
        chosen = torch.tanh(mean + log_std.exp() * noise)
        log_prob = (-0.5 * noise**2 - log_std - 0.919 - torch.log(1 - chosen**2 + 1e-6)).sum(
            -1, keepdim=True
        )
        q = torch.minimum(*(critic(torch.cat([s, chosen, z], -1)) for critic in critics))
        descend(of_value, ((value(seen) - (q - log_prob).detach()) ** 2).mean())
        with torch.no_grad():
            for old, new in zip(slow.parameters(), value.parameters(), strict=True):
                old.lerp_(new, 0.005)
        squares = 1e-3 * (mean**2).mean() + 1e-3 * (log_std**2).mean()
        descend(of_policy, (log_prob - q).mean() + squares)

    for _ in range(3):
        gradient_step()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        gradient_step()
        count += 1
    return count / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=["sb3", "sbx", "torch-pearl", "versions"])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, help="of PyTorch; None for its own choice")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--context", type=int, default=100)
    parser.add_argument("--width", type=int, default=300)
    of = parser.parse_args()
    if of.peer == "versions":
        print(json.dumps({name: importlib.metadata.version(name) for name in LIBRARIES}))
        return
    if of.peer == "torch-pearl":
        rate = pearl_steps_per_second(
            of.seconds, of.threads, of.tasks, of.batch, of.context, of.width
        )
    else:
        rate = sac_steps_per_second(of.peer, of.seconds)
    print(rate)


if __name__ == "__main__":
    main()
