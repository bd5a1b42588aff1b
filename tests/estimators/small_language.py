"""The model, batches and structures that the tests of the estimators share."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jaxtyping
import torch
from torch import nn

from zorn.estimators import BPTT, TBPTT
from zorn.models import Batch, LanguageModel
from zorn.noise import Dense, RankOne

VOCABULARY = 7
ROWS, TIME = 4, 4
POPULATION = 4

STRUCTURES = {
    "rank one": RankOne(),
    "rank one gaussian": RankOne(noise="gaussian"),
    "dense": Dense(),
    "dense gaussian": Dense(noise="gaussian"),
}
EXACT = {"bptt": BPTT, "tbptt": partial(TBPTT, truncation=3)}


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


def snapshot(model):
    """All that an estimate must leave as it was: values, objects, storage, attributes and training flags."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "objects": {
            name: (id(tensor), tensor.data_ptr(), tensor.stride()) for name, tensor in tensors.items()
        },
        "attributes": {name: sorted(module.__dict__) for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
    }


def assert_unchanged(model, before):
    after = snapshot(model)
    assert_same(after.pop("values"), before["values"])
    assert after == {key: value for key, value in before.items() if key != "values"}


def model_in_mixed_modes():
    model = language_model(torch.float32)
    model.train()
    model.head.eval()
    return model


@contextmanager
def without_type_checks() -> Iterator[None]:
    """As users run zorn: the types in signatures are checked in the tests only."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
