"""1.5-SPSA against closed forms: the curvature is that along the direction, and it is applied."""

import pytest
import torch
from small_language import STRUCTURES, assert_close, folded, gradients, language_batch, language_model
from torch import nn

from zorn.estimators import CDRGE, SPSA15
from zorn.models import Batch
from zorn.tasks import TokenCrossEntropy

MEMBERS = 6
HESSIAN = torch.tensor([[3.0, 1.0, 0.0], [1.0, -2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
SLOPE = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)


class Point(nn.Module):
    """A model that is a point θ of three numbers: the weight of a linear layer, read off by the identity."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1, bias=False).double()

    def forward(self, inputs):
        return self.line(inputs).view(-1, 3)


IDENTITY = Batch(torch.eye(3, dtype=torch.float64)[None], torch.zeros(1))


def quadratic(outputs, targets):
    """½ θᵀ H θ + gᵀ θ."""
    return torch.einsum("ri,ij,rj->r", outputs, HESSIAN, outputs) / 2 + outputs @ SLOPE


def directions(population, model):
    """z of each member, [members, 3]."""
    ones = torch.eye(population.size, dtype=torch.float64)
    return torch.stack([folded(population, model, one)["line.weight"][0] for one in ones])


@pytest.mark.parametrize(("power", "floor"), [(1.0, 0.01), (0.5, 0.01), (0.1, 1.0), (0.5, 2.0), (1.0, 100.0)])
@pytest.mark.parametrize("epsilon", [0.01, 0.5])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_of_a_quadratic(structure, epsilon, power, floor):
    """The curvature along z is zᵀ H z at any ε; here of both signs, and on both sides of the floor."""
    model = Point()
    estimator = SPSA15(
        population=MEMBERS,
        epsilon=epsilon,
        perturbation=STRUCTURES[structure],
        curvature_power=power,
        curvature_floor=floor,
        group_size=None,
    )
    population = estimator.ask(model)
    z = directions(population, model)
    curvature = torch.einsum("ni,ij,nj->n", z, HESSIAN, z)
    slope = z @ (HESSIAN @ model.line.weight[0].detach() + SLOPE)
    expected = slope / (curvature.abs() ** power).clamp(min=floor)
    estimator.step = 0
    found = estimator.estimate(model, IDENTITY, quadratic)
    torch.testing.assert_close(found.coefficients, expected, rtol=1e-8, atol=1e-10)
    written = gradients(model)
    assert_close(written, folded(population, model, expected / MEMBERS), rtol=1e-8, atol=1e-10)
    plain = CDRGE(population=MEMBERS, epsilon=epsilon, perturbation=STRUCTURES[structure], group_size=None)
    assert not torch.allclose(plain.estimate(model, IDENTITY, quadratic).coefficients, expected)
    assert not torch.allclose(gradients(model)["line.weight"], written["line.weight"])


def coefficients(objective, structure="rank one", group=1, **options):
    """Of the small language model, where every curvature is far above the floor."""
    estimator = SPSA15(
        population=8, epsilon=0.1, group_size=group, perturbation=STRUCTURES[structure], **options
    )
    return estimator.estimate(language_model(), language_batch(), objective).coefficients


class Scaled(TokenCrossEntropy):
    def token_losses(self, outputs, targets):
        return 1000 * super().token_losses(outputs, targets)


@pytest.mark.parametrize("group", [1, None])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_scale_of_the_objective_cancels_with_the_full_power_alone(structure, group):
    options = {"structure": structure, "group": group, "curvature_floor": 1e-12}
    for power in (1.0, 0.5):
        plain = coefficients(TokenCrossEntropy(), curvature_power=power, **options)
        scaled = coefficients(Scaled(), curvature_power=power, **options)
        torch.testing.assert_close(scaled, plain * 1000 ** (1 - power), rtol=1e-6, atol=0)


def test_without_power_it_is_the_central_difference():
    found = coefficients(TokenCrossEntropy(), curvature_power=0.0)
    plain = CDRGE(population=8, epsilon=0.1, group_size=1)
    expected = plain.estimate(language_model(), language_batch(), TokenCrossEntropy()).coefficients
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_loss_is_that_of_the_weights_themselves():
    model, batch, objective = language_model(), language_batch(), TokenCrossEntropy()
    outputs, _ = model(batch.inputs)
    expected = nn.functional.cross_entropy(outputs.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    found = SPSA15(population=8, epsilon=1.0, group_size=1).estimate(model, batch, objective)
    assert found.loss == pytest.approx(float(expected.detach()), rel=1e-12)
