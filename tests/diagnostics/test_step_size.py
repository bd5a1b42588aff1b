"""The loss along −ĝ, on a loss whose best step is known."""

import pytest
import torch

import zorn
from zorn.diagnostics import step_curve
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.models import Batch

BATCH = Batch(torch.ones(2, 3), torch.zeros(2, 3))


class Bowl(torch.nn.Module):
    """Half of the squared weights, bent by `curvature`: the best rate is 1 / curvature, wherever one is."""

    def __init__(self, curvature):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
        self.curvature = curvature

    def forward(self, inputs):
        return self.curvature * self.weight.square().sum() / 2 * inputs[:, 0]


def value(outputs, targets):
    return outputs


@pytest.mark.parametrize("curvature", [0.01, 1.0, 100.0])
def test_the_best_rate_of_a_bowl(curvature):
    model = Bowl(curvature)
    curve = step_curve(model, BATCH, value, zorn.BPTT(), lengths=[0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
    assert curve.loss == pytest.approx(curvature * 12.5)
    assert curve.best.learning_rate == pytest.approx(1 / curvature)
    assert curve.best.length == 1.0
    for point in curve.points:
        rate = point.learning_rate
        assert point.loss == pytest.approx(curvature * 12.5 * (1 - rate * curvature) ** 2, abs=1e-6)
        assert rate * curvature == pytest.approx(point.length)


def test_no_step_that_lowers_the_loss_is_said():
    curve = step_curve(Bowl(1.0), BATCH, value, zorn.BPTT(), lengths=[2.5, 4.0])
    assert curve.best is None


def test_the_losses_are_those_of_the_probe():
    def error(outputs, targets):
        return (outputs - targets).square().mean(-1)

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    probe = Batch(torch.randn(5, 3), torch.randn(5, 3))
    curve = step_curve(model, BATCH, error, zorn.BPTT(), probe=probe, lengths=[0.1])
    with torch.no_grad():
        assert curve.loss == pytest.approx(float(error(model(probe.inputs), probe.targets).mean()))


def test_a_loss_that_overflows_is_infinite_and_one_that_does_at_once_is_an_error():
    def log(outputs, targets):
        return (outputs - 1).log()

    curve = step_curve(Bowl(1.0), BATCH, log, zorn.BPTT(), lengths=[0.1, 1.0])
    assert curve.points[-1].loss == float("inf")
    assert curve.best == curve.points[0]

    def bad(outputs, targets):
        return outputs.detach() * torch.nan + outputs * 0

    with pytest.raises(NonFiniteLossError):
        step_curve(Bowl(1.0), BATCH, bad, zorn.BPTT())


@pytest.mark.parametrize("lengths", [[], [0.0], [-1.0, 1.0]])
def test_lengths_are_checked(lengths):
    with pytest.raises(ConfigError, match="lengths must"):
        step_curve(Bowl(1.0), BATCH, value, zorn.BPTT(), lengths=lengths)


def test_a_gradient_of_zero_is_told():
    with pytest.raises(ConfigError, match="all zero"):
        step_curve(Bowl(0.0), BATCH, value, zorn.BPTT())
