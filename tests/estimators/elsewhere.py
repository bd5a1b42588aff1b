"""A worker of another process: answers a population with nothing but what was sent to it."""

import torch
from small_language import ROWS, language_batch, language_model

from zorn.estimators import Population


def answer(population: Population, weights: dict[str, torch.Tensor]) -> list[list[float]]:
    """Losses [signs][members] of the mean logit, each member on the whole batch."""
    model, batch = language_model(), language_batch()
    model.load_state_dict(weights)
    losses = []
    for sign in population.signs:
        losses.append([])
        for member in range(population.size):
            with torch.no_grad(), population.perturbed(model, member, sign):
                outputs, _ = model(batch.inputs)
            losses[-1].append(float(mean_square(outputs, batch.targets).sum() / ROWS))
    return losses


def mean_square(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.square().mean((1, 2))
