"""A network of one's own: a small transformer of torch.nn layers, with one layer that zorn has no rule for.

The layer is DyT, y = tanh(x · a) · gain (Zhu et al., 2025, but a bias). A `Rule` perturbs it for all members
at once; `zorn.noise.MemberwiseRule()` in its place calls it member by member. The network learns which of 4
letters comes oftenest in a row. Prints what is perturbed and how, then the held-out rows that it gets right.
"""

import argparse

import torch
from torch import Tensor, nn

import zorn


class DyT(nn.Module):
    """A layer that zorn does not know."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.a, self.gain = nn.Parameter(torch.full((1,), 0.5)), nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """[rows, time, size] to the same."""
        return (x * self.a).tanh() * self.gain


class DyTRule(zorn.noise.Rule):
    """The same, with noise of its own for each member's rows."""

    def layouts(self, module: DyT) -> dict[str, zorn.noise.Layout]:
        """Two vectors."""
        return {"a": zorn.noise.Layout(rows=1), "gain": zorn.noise.Layout(rows=len(module.gain))}

    def perturbed(self, module: DyT, noise: zorn.noise.MemberNoise):
        """What takes the place of `forward`."""
        return {"forward": lambda x: noise.scale(noise.scale(x, module.a, "a").tanh(), module.gain, "gain")}


class Transformer(nn.Module):
    """A convolution, then attention, over letters; rows lie along the first dimension."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.letter, self.local = nn.Embedding(4, size), nn.Conv1d(size, size, kernel_size=3, padding=1)
        self.squash, self.norm = DyT(size), nn.LayerNorm(size)
        self.attention, self.head = nn.Linear(size, 3 * size), nn.Linear(size, 4)

    def forward(self, letters: Tensor) -> Tensor:
        """Letters [rows, time] to logits [rows, 4]."""
        x = self.letter(letters)
        x = self.squash(x + self.local(x.mT).mT)
        x = x + nn.functional.scaled_dot_product_attention(*self.attention(x).chunk(3, dim=-1))
        return self.head(self.norm(x.mean(1)))


def main(steps: int, seed: int = 0) -> tuple[float, float]:
    """Train for `steps`; the share of held-out rows that are right, before and after."""
    torch.manual_seed(seed)
    model, letters = Transformer(), torch.randint(4, (steps + 1, 512, 9))
    oftenest = nn.functional.one_hot(letters).sum(2).argmax(2)  # of several, the first
    zorn.register_rule(DyT, DyTRule())
    for one in zorn.inspect_model(model):
        print(f"{one.name:<17} {one.status} {one.count:>4} {one.how}")
    estimator = zorn.CDRGE(population=512, epsilon=0.02, group_size=1, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = float((model(letters[0]).argmax(1) == oftenest[0]).float().mean())
    for batch in map(zorn.Batch, letters[1:], oftenest[1:]):
        estimator.estimate(model, batch, nn.CrossEntropyLoss(reduction="none"))
        optimizer.step()
    after = float((model(letters[0]).argmax(1) == oftenest[0]).float().mean())
    print(f"held-out rows right: {before:.3f} before, {after:.3f} after {steps} steps")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 steps instead of 200")
    main(40 if parser.parse_args().quick else 200)
