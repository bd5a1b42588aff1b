"""Your own loop on several processes, in two lines: `start` joins them, `share` deals the members.

An LSTM learns to tell which of two letters a sequence had more of. Every process runs this program on the
same batches with a replica of the model. Losses are all that they send, and they end with the weights of one
process, bit for bit. Prints the share of sequences that the model gets right. Run it alone, or on two:
python -m torch.distributed.run --standalone --nproc-per-node 2 examples/distributed.py
"""

import argparse

import torch
from torch import Tensor, nn

import zorn
from zorn.distributed import share, start


def loss(outputs: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of the answer, read from the outputs [rows, time, 2] after the last letter."""
    return nn.functional.cross_entropy(outputs[:, -1], answers, reduction="none")


def batch_of(step: int) -> zorn.Batch:
    """64 sequences of 9 letters, the same on every process: they depend on the step alone."""
    letters = torch.randint(2, (64, 9), generator=torch.Generator().manual_seed(step))
    return zorn.Batch(letters, (letters.sum(1) > 4).long())


@torch.no_grad()
def right(model: zorn.LanguageModel) -> float:
    """Share of new sequences with the right answer."""
    batch = batch_of(10**6)
    outputs, _ = model(batch.inputs, model.initial_state(len(batch.inputs)))
    return float((outputs[:, -1].argmax(1) == batch.targets).float().mean())


def main(steps: int, seed: int = 0) -> tuple[float, float]:
    """Train for `steps`; the share of right answers before and after."""
    model = zorn.LanguageModel(2, 16, seed=seed)  # another seed in one process would be told as an error
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with start() as group:
        estimator = share(
            zorn.CDRGE(population=64, epsilon=0.05, group_size=1, seed=seed, micro_batch=32), group
        )
        before = right(model)
        for step in range(steps):
            estimator.estimate(model, batch_of(step), loss)
            optimizer.step()
        after = right(model)
        if group.is_main:
            sent = group.bytes_sent / max(1, steps)
            print(f"{group.size} processes, {sent:.0f} bytes sent a step by each")
            print(f"share of right answers: {before:.3f} before, {after:.3f} after {steps} steps")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
