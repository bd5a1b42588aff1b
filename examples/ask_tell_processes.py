"""Losses from other processes: each holds a replica of the model, and nothing but losses travels.

All replicas ask the same question (directions depend on seed, step and member alone), evaluate their share of
the members, tell the losses of all, and so make the same update. The loss is a simulation of sticks that fall
unless a network pushes them. Prints whether one process gives the same weights, and how long sticks stand.
"""

import argparse
import multiprocessing

import torch
from torch import nn

import zorn


@torch.no_grad()
def fallen(policy: nn.Module, seed: int) -> float:
    """Share of the time for which 32 sticks that start near upright lean by more than half a radian."""
    angle, speed = torch.rand(2, 32, generator=torch.Generator().manual_seed(seed)) * 0.4 - 0.2
    lying = 0
    for _ in range(100):
        push = policy(torch.stack([angle, speed], 1))[:, 0].sign()  # all or nothing: no derivative
        angle, speed = angle + 0.02 * speed, speed + 0.02 * (15 * angle.sin() + 10 * push)
        lying += int((angle.abs() > 0.5).sum())
    return lying / 3200


def answer(model: nn.Module, asked: zorn.estimators.Population, member: int, sign: int) -> float:
    """The loss of a member, at one of its two signs, on the sticks of this step."""
    with asked.perturbed(model, member, sign):
        return fallen(model, seed=asked.draw.step)


def train(steps: int, seed: int, members: range = range(8), exchange=lambda losses: losses) -> nn.Module:
    """What every process does: `exchange` takes the losses of its members, and returns those of all."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    estimator = zorn.CDRGE(population=8, epsilon=0.1, seed=seed)
    for _ in range(steps):
        asked = estimator.ask(model)
        losses = exchange([[answer(model, asked, member, sign) for sign in (1, -1)] for member in members])
        estimator.tell(
            model, asked, list(zip(*losses, strict=True)), zorn.estimators.FusedSGD(learning_rate=0.3)
        )
    return model


def work(link, *run) -> None:
    """A worker process: sends losses of its own, receives those of all."""
    train(*run, exchange=lambda losses: link.send(losses) or link.recv())


def main(steps: int, seed: int = 0) -> tuple[float, float]:
    """Train for `steps`; the share of the time that sticks stand, before and after."""
    context, links = multiprocessing.get_context("spawn"), []
    for members in (range(4), range(4, 8)):
        here, there = context.Pipe()
        context.Process(target=work, args=(there, steps, seed, members), daemon=True).start()
        there.close()  # so that a worker that dies is an EOFError here
        links.append(here)

    def gather(_: list) -> list[list[float]]:
        losses = [row for link in links for row in link.recv()]
        for link in links:
            link.send(losses)
        return losses

    first, alone, together = train(0, seed), train(steps, seed), train(steps, seed, range(0), gather)
    print("the same weights:", all(map(torch.equal, together.parameters(), alone.parameters())))
    before, after = 1 - fallen(first, seed=10**6), 1 - fallen(together, seed=10**6)
    print(f"share of the time that sticks stand: {before:.3f} before, {after:.3f} after {steps} steps")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 steps instead of 15")
    main(5 if parser.parse_args().quick else 15)
