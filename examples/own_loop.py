"""Your model, your loop: zorn fills `.grad` from forward passes, any torch optimizer does the rest.

A small network with a hard decision inside (a step function, whose derivative is zero everywhere) learns the
parity of three bits; backpropagation could not train its first layer. Run it: python examples/own_loop.py
"""

import argparse

import torch
from torch import Tensor, nn

import zorn


class HardNetwork(nn.Module):
    """Linear, a step, Linear: any `nn.Module` made of layers that zorn has rules for works unmodified."""

    def __init__(self, bits: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(bits, hidden)
        self.second = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Bits [rows, bits] to logits [rows, 2]."""
        return self.second((self.first(x) > 0).float())


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """One number a row; nothing here needs a derivative."""
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def main(steps: int, seed: int = 0) -> float:
    """Train for `steps` and return the share of bit patterns that the network gets right."""
    torch.manual_seed(seed)
    model = HardNetwork(bits=3, hidden=32)
    inputs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    batch = zorn.Batch(inputs, (inputs > 0).sum(1) % 2)

    estimator = zorn.CDRGE(population=64, epsilon=0.1, group_size=None, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for step in range(steps):
        estimate = estimator.estimate(model, batch, loss)
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:4d}  loss {estimate.loss:.3f}  forward passes {estimate.forward_passes}")
    right = float((model(batch.inputs).argmax(1) == batch.targets).float().mean())
    print(f"after {steps} steps: {right:.0%} of the patterns right")
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    main(parser.parse_args().steps)
