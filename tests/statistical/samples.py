"""Independent estimates as a sample, and tests of their mean by its standard errors."""

import math

import torch
from torch import Tensor, nn

SIGMAS = 5.0


def gradient(model: nn.Module) -> Tensor:
    """Every `.grad`, flat, as a copy."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def estimates(estimator, model, batch, objective, count: int) -> Tensor:
    """`count` independent estimates of the gradient, [count, d]: one a step, each of other directions."""
    rows = []
    for _ in range(count):
        estimator.estimate(model, batch, objective)
        rows.append(gradient(model))
    return torch.stack(rows)


def deviation(samples: Tensor, expected: Tensor | float) -> Tensor:
    """(mean − expected) in standard errors of the mean, samples along the first dimension."""
    error = samples.std(0) / math.sqrt(len(samples))
    return (samples.mean(0) - expected) / error


def assert_mean(samples: Tensor, expected: float) -> None:
    """The mean of scalar samples is `expected`, within 5 standard errors."""
    found = float(deviation(samples, expected))
    assert abs(found) < SIGMAS, (
        f"mean {float(samples.mean()):.6g}, expected {expected:.6g}: {found:.1f} standard errors away"
    )


def assert_mean_is_not(samples: Tensor, wrong: float) -> None:
    """The sample has the power to tell its mean from `wrong`."""
    assert abs(float(deviation(samples, wrong))) > SIGMAS


def assert_same_mean(first: Tensor, second: Tensor) -> None:
    """Two independent samples, [K, …] and [L, …], have the same mean in every component."""
    variance = first.var(0) / len(first) + second.var(0) / len(second)
    deviations = (first.mean(0) - second.mean(0)) / variance.sqrt()
    assert deviations.abs().max() < SIGMAS, f"{deviations} standard errors apart"


def assert_mean_vector(samples: Tensor, expected: Tensor) -> None:
    """The mean of [K, d] samples is `expected`: along it, in every component, and in all of them together.

    The squared deviations are those of Student's t with ν = K − 1 degrees of freedom, ν/(ν − 2) each in the
    mean, with the variance that its fourth moment gives; components are uncorrelated but for one direction.
    """
    along = samples @ expected / expected.square().sum()
    assert_mean(along, 1.0)
    assert_mean_is_not(along, 0.0)
    t = deviation(samples, expected)
    freedom, size = len(samples) - 1, len(t)
    assert freedom > 8
    component = torch.distributions.StudentT(float(freedom))
    tail = 5.7e-7 / size  # of 5 sigmas, shared by the components
    assert t.abs().max() < _quantile(component, tail)
    mean = freedom / (freedom - 2)
    variance = 3 * freedom**2 / ((freedom - 2) * (freedom - 4)) - mean**2
    assert t.square().sum() < size * mean + SIGMAS * math.sqrt(size * variance)


def _quantile(student: torch.distributions.StudentT, tail: float) -> float:
    """The |t| that is passed with probability `tail`, by integrating the density from far out inwards."""
    points = torch.linspace(0, 200, 400_001, dtype=torch.float64)
    step = float(points[1])
    mass = 2 * step * student.log_prob(points).exp().flip(0).cumsum(0).flip(0)
    return float(points[int((mass > tail).sum())])
