"""An estimator whose signal, noise and bias are known, on a model whose gradient is known."""

import torch
from torch import nn

from zorn.estimators import Estimate, Estimator
from zorn.models import Batch

SIZE = 4000


class Plane(nn.Module):
    """Two parameters whose loss is linear: the gradient is `slope` everywhere, in both halves."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        slope = torch.randn(2, SIZE // 2, generator=generator)
        self.register_buffer("slope", slope / slope.norm())
        self.first = nn.Parameter(torch.ones(SIZE // 2))
        self.second = nn.Parameter(torch.ones(SIZE // 2))

    def forward(self, inputs):
        return (self.first @ self.slope[0] + self.second @ self.slope[1]) * inputs[:, 0]


def value(outputs, targets):
    return outputs - targets


BATCH = Batch(torch.ones(2, 1), torch.zeros(2))


class Noisy(Estimator):
    """The gradient, turned by `angle` (radians), with normal noise of power `noise` / population:
    cos(n) = cos(angle) / √(1 + noise / n)."""

    sizes = ("population",)

    def __init__(self, noise, population=1, angle=0.0):
        self.noise, self.population, self.angle = noise, population, angle
        self.seen = []

    def passes(self, batch, steps):
        return 3 * batch

    def _estimate(self, model, batch, objective, update):
        generator = torch.Generator().manual_seed(self.step)
        self.seen.append(self.step)
        deviation = (self.noise / self.population / SIZE) ** 0.5
        aside = torch.randn(2, SIZE // 2, generator=torch.Generator().manual_seed(10**6))
        aside -= (aside * model.slope).sum() * model.slope
        aside /= aside.norm()
        angle = torch.tensor(self.angle)
        mean = angle.cos() * model.slope + angle.sin() * aside
        found = mean + deviation * torch.randn(2, SIZE // 2, generator=generator)
        model.first.grad, model.second.grad = found[0], found[1]
        self.step += 1
        return Estimate(loss=1.0, gradient_norm=1.0, forward_passes=6)
