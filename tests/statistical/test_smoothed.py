"""The gradient of the smoothed loss in closed form, at an ε so large that it is far from that of the loss.

The model is u = θ·x, the loss (1/B) Σ_b f(u_b). With s = z·x the coefficient of one sequence is the odd part
(f(u + εs) − f(u − εs)) / 2ε, so for f = u⁴/4 it is u³ s + ε² u s³, and E[s z] = x for every structure. What
differs is E[s³ z_i], for d inputs and one output:

    dense Gaussian        3 |x|² x_i                (so the estimate is that of ∇L_ε exactly)
    signs                 (3 |x|² − 2 x_i²) x_i     (a rank-one sign matrix of one row is a dense one)
    rank-one Gaussian     9 |x|² x_i                (z = a b, E a⁴ = 3)
"""

import pytest
import torch
from samples import assert_mean_is_not, assert_mean_vector, estimates
from torch import nn

from zorn.estimators import CDRGE
from zorn.models import Batch
from zorn.perturbations import Dense, RankOne

EPSILON = 1.0
X = torch.tensor([[0.6, -0.3, 0.5], [0.2, 0.7, -0.4]], dtype=torch.float64)
WEIGHT = torch.tensor([[0.8, 0.4, -0.5]], dtype=torch.float64)


def line():
    model = nn.Linear(3, 1, bias=False).double()
    model.weight.data.copy_(WEIGHT)
    return model, Batch(X, torch.zeros(2, dtype=torch.float64))


U = X @ WEIGHT[0]
SQUARE = X.square().sum(1)
QUARTIC = X * U.pow(3)[:, None]  # ∇L of each sequence
THIRD_MOMENTS = {
    "dense gaussian": 3 * SQUARE[:, None] * X,
    "dense signs": (3 * SQUARE[:, None] - 2 * X.square()) * X,
    "rank-one signs": (3 * SQUARE[:, None] - 2 * X.square()) * X,
    "rank-one gaussian": 9 * SQUARE[:, None] * X,
}
STRUCTURES = {
    "dense gaussian": (Dense(noise="gaussian"), 12),
    "dense signs": (Dense(), 12),
    "rank-one signs": (RankOne(), 1000),
    "rank-one gaussian": (RankOne(noise="gaussian"), 1000),
}


def sampled(structure, objective, group):
    perturbation, population = STRUCTURES[structure]
    model, batch = line()
    estimator = CDRGE(
        population=population,
        epsilon=EPSILON,
        perturbation=perturbation,
        group_size=group,
        seed=1,
        micro_batch=4096,
    )
    return estimates(estimator, model, batch, objective, 30)


def quartic(outputs, targets):
    return outputs[:, 0].pow(4) / 4


def cubic(outputs, targets):
    return outputs[:, 0].pow(3)


def quadratic(outputs, targets):
    return outputs[:, 0].square() / 2


@pytest.mark.parametrize(
    ("structure", "group"),
    [*((name, None) for name in STRUCTURES), ("rank-one signs", 1), ("rank-one gaussian", 1)],
)
def test_of_a_quartic(structure, group):
    found = sampled(structure, quartic, group)
    smoothed = (QUARTIC + EPSILON**2 * U[:, None] * THIRD_MOMENTS[structure]).mean(0)
    assert_mean_vector(found, smoothed)
    plain = QUARTIC.mean(0)
    assert_mean_is_not(found @ smoothed, float(plain @ smoothed))
    with pytest.raises(AssertionError):
        assert_mean_vector(found, plain)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_of_a_cubic(structure):
    """f = u³: 3u² s + ε² s³."""
    found = sampled(structure, cubic, None)
    plain = 3 * (U.square()[:, None] * X).mean(0)
    smoothed = plain + EPSILON**2 * THIRD_MOMENTS[structure].mean(0)
    assert_mean_vector(found, smoothed)
    assert_mean_is_not(found @ smoothed, float(plain @ smoothed))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_of_a_quadratic_it_is_the_gradient_at_any_epsilon(structure):
    assert_mean_vector(sampled(structure, quadratic, None), (X * U[:, None]).mean(0))


def test_autograd_agrees_on_the_smoothed_loss():
    """The formula for Gaussian noise against autograd on E f(u + ε|x| ξ) = (u⁴ + 6 u²σ² + 3 σ⁴) / 4."""
    weight = WEIGHT[0].clone().requires_grad_()
    u, variance = X @ weight, EPSILON**2 * SQUARE
    loss = ((u.pow(4) + 6 * u.square() * variance + 3 * variance.square()) / 4).mean()
    expected = (QUARTIC + EPSILON**2 * U[:, None] * THIRD_MOMENTS["dense gaussian"]).mean(0)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], expected)
