"""Streams and models that the tests of the streaming estimators share."""

import torch
from small_language import gradients
from torch import nn

from zorn.models import Batch


class Scalar(nn.Module):
    """h_t = w h_{t−1} + x_t from h_0 = 1, and h_t put out: every loss is a polynomial in w."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.map = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(self.map.weight, weight)

    def initial_state(self, rows: int) -> torch.Tensor:
        return torch.ones(rows, 1, dtype=torch.float64)

    def forward(self, inputs, state):
        outputs = []
        for x in inputs.unbind(1):
            state = self.map(state) + x
            outputs.append(state)
        return torch.stack(outputs, 1), state


def last_output(outputs, targets):
    """The loss of a window of `Scalar`: h at its end."""
    return outputs[:, -1, 0]


def nothing(steps: int) -> Batch:
    """A window of zeros for `Scalar`, whose loss after t steps in all is then w**t."""
    return Batch(torch.zeros(1, steps, 1, dtype=torch.float64), torch.zeros(1, steps, dtype=torch.int64))


def cut(batch: Batch, windows: int) -> list[Batch]:
    """The windows of a batch of whole sequences, of equal length."""
    parts = [part.chunk(windows, dim=1) for part in batch]
    return [Batch(inputs, targets) for inputs, targets in zip(*parts, strict=True)]


def segment_gradient(estimator, model, windows, objective) -> dict[str, torch.Tensor]:
    """The sum of the estimates of one new segment, at fixed weights."""
    estimator.reset()
    total: dict[str, torch.Tensor] = {}
    for window in windows:
        estimator.estimate(model, window, objective)
        for name, gradient in gradients(model).items():
            total[name] = total.get(name, 0) + gradient
    return total
