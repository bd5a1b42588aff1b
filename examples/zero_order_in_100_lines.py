"""The method of arXiv 2505.17852 (Chaubard & Kochenderfer 2025) on one page of plain torch, without zorn.

An LSTM learns to copy one small batch of letters, and nothing is differentiated. CD-RGE ("central-difference
random-vector gradient estimation") measures the slope c_j of the loss along random directions z_j of signs:

    c_j = (L(θ + ε z_j) − L(θ − ε z_j)) / 2ε,        ĝ = (1/n) Σ_j c_j z_j.

To first order in ε the slope is zᵀ∇L, so the mean of c_j z_j is E[z zᵀ] ∇L = ∇L. zorn gives the same numbers
(`zorn.CDRGE(perturbation=zorn.Dense(), group_size=None)`). Run: python examples/zero_order_in_100_lines.py
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

LETTERS, SEPARATOR, IGNORED = 4, 4, -100


class Network(nn.Module):
    """Tokens [rows, time] to logits [rows, time, letters]."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LETTERS + 1, hidden)
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, LETTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits after every token."""
        return self.head(self.lstm(self.embedding(tokens))[0])


def copy_batch(rows: int = 8, length: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs "a b c | a b" and targets ". . . a b c", where the places marked with a dot do not count."""
    letters = torch.randint(LETTERS, (rows, length))
    separator, unseen = torch.full((rows, 1), SEPARATOR), torch.full((rows, length), IGNORED)
    return torch.cat([letters, separator, letters[:, :-1]], 1), torch.cat([unseen, letters], 1)


@torch.no_grad()
def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Mean cross-entropy in nats; any other number would do, with or without a derivative."""
    logits = model(inputs).flatten(0, 1)
    return nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED).item()


def random_signs(parameters: Sequence[Tensor], step: int, member: int) -> list[Tensor]:
    """One direction. It depends on (step, member) alone, so it is drawn again instead of stored."""
    generator = torch.Generator().manual_seed(step * 2**20 + member)
    return [torch.randint(2, p.shape, generator=generator).to(p.dtype) * 2 - 1 for p in parameters]


@torch.no_grad()
def estimate(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[], float],
    direction: Callable[[int], Sequence[Tensor]],
    members: int,
    epsilon: float,
) -> float:
    """Fill `.grad` with ĝ, leave the weights as they were, and return the mean loss of the members."""
    weights = [p.clone() for p in parameters]
    losses = torch.zeros(members, 2, dtype=torch.float64)
    for member in range(members):
        z = direction(member)
        for column, sign in enumerate((+1, -1)):
            for p, weight, noise in zip(parameters, weights, z, strict=True):
                p.copy_(weight + sign * epsilon * noise)
            losses[member, column] = loss()
    slopes = (losses[:, 0] - losses[:, 1]) / (2 * epsilon)
    for p, weight in zip(parameters, weights, strict=True):
        p.copy_(weight)
        p.grad = torch.zeros_like(p)
    for member, slope in enumerate(slopes.tolist()):
        for p, noise in zip(parameters, direction(member), strict=True):
            p.grad += slope / members * noise  # pyright: ignore[reportOptionalOperand]
    return losses.mean().item()


def main(steps: int = 200, members: int = 32, epsilon: float = 0.02) -> tuple[float, float]:
    """Learn the batch, and return its loss before and after."""
    torch.manual_seed(0)
    model, (inputs, targets) = Network(), copy_batch()
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    loss = partial(loss_of, model, inputs, targets)
    before = loss()
    for step in range(steps):
        mean = estimate(parameters, loss, partial(random_signs, parameters, step), members, epsilon)
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:3d}  loss {mean:.3f}  forward passes {2 * members * len(inputs) * (step + 1)}")
    print(f"cross-entropy of the batch in nats: {before:.3f} before, {(after := loss()):.3f} after")
    return before, after


if __name__ == "__main__":
    main()
