"""Forward differences on a quadratic L = ½ (θ − θ*)ᵀ H (θ − θ*): c = g·z + (ε/2) zᵀ H z, so an error of O(ε)
in each coefficient, none in the mean (odd moments of z are zero), and none at all for central differences."""

import pytest
import torch
from samples import assert_mean_vector, estimates
from torch import nn

from zorn.estimators import CDRGE, FDRGE
from zorn.models import Batch
from zorn.noise import Dense, RankOne

X = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0], [0.4, 0.4, 0.9], [-0.7, 0.1, 0.5]], dtype=torch.float64)
WEIGHT = torch.tensor([[0.3, -0.6, 0.9]], dtype=torch.float64)
HESSIAN = X.t() @ X / len(X)
GRADIENT = HESSIAN @ WEIGHT[0]

STRUCTURES = [RankOne(), RankOne(noise="gaussian"), Dense(), Dense(noise="gaussian")]
each_structure = pytest.mark.parametrize(
    "structure", STRUCTURES, ids=lambda s: f"{type(s).__name__} {s.noise}"
)


def half_square(outputs, targets):
    return outputs[:, 0].square() / 2


def setting():
    model = nn.Linear(3, 1, bias=False).double()
    model.weight.data.copy_(WEIGHT)
    return model, Batch(X, torch.zeros(len(X), dtype=torch.float64))


def directions(structure, population):
    """z of each member, [n, d], from one-hot folds."""
    model, _ = setting()
    estimator = FDRGE(population=population, epsilon=1.0, perturbation=structure, seed=8, group_size=None)
    draw, bound = estimator.ask(model).draw, structure.bind(model)
    return torch.stack(
        [
            torch.cat([block.values for block in bound.fold(draw, weights)])
            for weights in torch.eye(population, dtype=torch.float64)
        ]
    )


def coefficients(kind, structure, epsilon):
    model, batch = setting()
    estimator = kind(population=8, group_size=None, epsilon=epsilon, perturbation=structure, seed=8)
    return estimator.estimate(model, batch, half_square).coefficients


@each_structure
@pytest.mark.parametrize("epsilon", [1.0, 0.5, 0.01])
def test_the_error_of_a_coefficient_is_the_curvature_along_its_direction(structure, epsilon):
    z = directions(structure, 8)
    curvature = (z @ HESSIAN * z).sum(1)
    slope = z @ GRADIENT
    torch.testing.assert_close(coefficients(CDRGE, structure, epsilon), slope, rtol=1e-9, atol=1e-11)
    expected = slope + epsilon / 2 * curvature
    torch.testing.assert_close(coefficients(FDRGE, structure, epsilon), expected, rtol=1e-9, atol=1e-11)


@each_structure
def test_halving_epsilon_halves_the_error(structure):
    def error(epsilon):
        return coefficients(FDRGE, structure, epsilon) - coefficients(CDRGE, structure, epsilon)

    torch.testing.assert_close(error(0.1), error(0.2) / 2, rtol=1e-9, atol=1e-11)
    assert (error(0.2) > 0).all()


@pytest.mark.parametrize("group", [1, 2, None])
@pytest.mark.parametrize("structure", [RankOne(), RankOne(noise="gaussian")])
def test_the_mean_is_the_gradient_nevertheless(structure, group):
    model, batch = setting()
    estimator = FDRGE(
        population=400, epsilon=0.5, perturbation=structure, group_size=group, seed=3, micro_batch=4096
    )
    assert_mean_vector(estimates(estimator, model, batch, half_square, 40), GRADIENT)
