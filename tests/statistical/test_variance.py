"""The total variance against theory, on a loss that is exactly linear, so that c = g·z.

One member: E‖c z‖² = E[(g·z)² |z|²], with d the number of parameters and |g|² the gradient's squared norm

    signs, dense and rank-one          d |g|²                     (|z|² = d always)
    Gaussian, dense                    (d + 2) |g|²
    Gaussian, rank-one, m × k          (m + 2) (k + 2) |g|²

Members are independent, so the mean of n of them has E‖ĝ‖² = |g|² + (E‖c z‖² − |g|²) / n.
"""

import pytest
import torch
from samples import assert_mean, assert_mean_is_not
from torch import nn

from zorn.estimators import CDRGE
from zorn.models import Batch
from zorn.noise import Dense, RankOne

OUTPUTS, INPUTS, ROWS = 4, 5, 6
WITH_BIAS = OUTPUTS * (INPUTS + 1)


def linear_loss(bias=True):
    """Model, batch and the gradient of each row, [rows, outputs, inputs (+ 1)]."""
    generator = torch.Generator().manual_seed(4)
    model = nn.Linear(INPUTS, OUTPUTS, bias=bias).double()
    inputs = torch.randn(ROWS, INPUTS, dtype=torch.float64, generator=generator)
    targets = torch.randn(ROWS, OUTPUTS, dtype=torch.float64, generator=generator)
    seen = torch.cat([inputs, torch.ones(ROWS, int(bias), dtype=torch.float64)], dim=1)
    return model, Batch(inputs, targets), targets[:, :, None] * seen[:, None, :]


def dot(outputs, targets):
    return (outputs * targets).sum(1)


def squared_norms(structure, population, group, count, bias=True):
    """‖ĝ‖² of `count` estimates."""
    model, batch, _ = linear_loss(bias)
    estimator = CDRGE(
        population=population, epsilon=0.5, perturbation=structure, group_size=group, seed=2, micro_batch=4096
    )
    norms = [estimator.estimate(model, batch, dot).gradient_norm for _ in range(count)]
    return torch.tensor(norms, dtype=torch.float64).square()


MOMENTS = {
    "signs, rank-one": (RankOne(), WITH_BIAS, 8, 150),
    "signs, dense": (Dense(), WITH_BIAS, 2, 150),
    "gaussian, dense": (Dense(noise="gaussian"), WITH_BIAS + 2, 2, 150),
    "gaussian, rank-one": (RankOne(noise="gaussian"), (OUTPUTS + 2) * (INPUTS + 1 + 2), 16, 200),
}


@pytest.mark.parametrize("case", MOMENTS)
def test_of_members_that_share_the_batch(case):
    structure, moment, population, count = MOMENTS[case]
    _, _, rows = linear_loss()
    square = float(rows.mean(0).square().sum())
    found = squared_norms(structure, population, None, count)
    assert_mean(found, square * (1 + (moment - 1) / population))
    assert_mean_is_not(found, square * (1 + 2 * (moment - 1) / population))
    assert_mean_is_not(found, square)


@pytest.mark.parametrize("structure", [RankOne(), Dense()])
def test_a_direction_of_signs_has_squared_norm_d(structure):
    model, batch, _ = linear_loss()
    estimator = CDRGE(population=1, epsilon=0.5, perturbation=structure, group_size=None)
    for _ in range(5):
        found = estimator.estimate(model, batch, dot)
        assert found.gradient_norm**2 == pytest.approx(WITH_BIAS * float(found.coefficients[0]) ** 2)


@pytest.mark.parametrize("structure", [RankOne(), RankOne(noise="gaussian")])
def test_the_mean_square_of_the_coefficients_is_the_squared_norm_of_the_gradient(structure):
    """E[z zᵀ] = I."""
    model, batch, rows = linear_loss()
    square = float(rows.mean(0).square().sum())
    estimator = CDRGE(
        population=5000, epsilon=0.5, perturbation=structure, seed=9, micro_batch=8192, group_size=None
    )
    found = estimator.estimate(model, batch, dot)
    assert_mean(found.coefficients.square(), square)
    assert_mean(found.coefficients, 0.0)
    assert_mean_is_not(found.coefficients.square(), 1.5 * square)


@pytest.mark.parametrize("group", [1, 2, 3])
def test_of_one_member_a_sequence_or_a_group(group):
    """n members over B / g groups: the group's own gradient g_b in place of g, so that with one member a
    sequence the relative variance is (d − 1) (1 + s) / n, s = σ²/|g|²."""
    _, _, rows = linear_loss()
    mean = rows.mean(0)
    of_groups = rows.view(ROWS // group, group, *rows.shape[1:]).mean(1)
    square = float(mean.square().sum())
    spread = float((of_groups - mean).square().sum((1, 2)).mean())  # σ², over the groups
    population = 12
    found = squared_norms(RankOne(), population, group, 150)
    relative = (WITH_BIAS - 1) * (1 + spread / square) / population
    assert_mean(found, square * (1 + relative))
    assert_mean_is_not(found, square * (1 + (WITH_BIAS - 1) / population))
