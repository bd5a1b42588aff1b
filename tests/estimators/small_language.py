"""The model, batches and structures that the tests of the estimators share."""

import torch
from torch import nn

from zorn.models import Batch, LanguageModel
from zorn.perturbations import Dense, RankOne

VOCABULARY = 7
ROWS, TIME = 4, 4
POPULATION = 4

STRUCTURES = {
    "rank one": RankOne(),
    "rank two": RankOne(rank=2),
    "rank one gaussian": RankOne(noise="gaussian"),
    "dense": Dense(),
    "dense gaussian": Dense(noise="gaussian"),
}


def language_model(dtype: torch.dtype = torch.float64, **options) -> LanguageModel:
    return LanguageModel(VOCABULARY, 6, **options).to(dtype)


def language_batch(seed: int = 1) -> Batch:
    """Random tokens whose rows differ in how many of them count."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (ROWS, TIME + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    for row, length in enumerate((4, 2, 3, 1)):
        targets[row, length:] = -100
    return Batch(inputs, targets)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every `.grad`."""
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def flat_gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients(model).values()])


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def folded(population, model: nn.Module, coefficients: torch.Tensor) -> dict[str, torch.Tensor]:
    """Σ_j w_j z_j by the structure's own fold, as tensors of the parameters' shapes."""
    bound = population.perturbation.bind(model)
    flat = {t.name: torch.full((t.parameter.numel(),), torch.nan, dtype=torch.float64) for t in bound.targets}
    for block in bound.fold(population.draw, coefficients):
        flat[block.target.name][block.start : block.start + len(block.values)] = block.values.double()
    return {t.name: flat[t.name].view_as(t.parameter) for t in bound.targets}
