"""PES and NRES are unbiased for the gradient of the long-horizon loss; truncation is not."""

import pytest
import torch
from samples import assert_mean_is_not, assert_mean_vector, gradient
from torch import Tensor, nn

from zorn.estimators import BPTT, CDRGE, TBPTT
from zorn.estimators.nres import NRES
from zorn.estimators.pes import PES
from zorn.models import Batch, LanguageModel, map_state
from zorn.noise import RankOne
from zorn.tasks import TokenCrossEntropy

ROWS, LENGTH, WINDOWS, VOCABULARY = 2, 1, 4, 4
TIME = WINDOWS * LENGTH
SEGMENTS = 20


def whole_sequence(rows: int = ROWS) -> tuple[LanguageModel, Batch]:
    """A model of 96 trained parameters, all below the head so that what they leave in the state counts, and
    streams of four windows."""
    model = LanguageModel(VOCABULARY, 3).double()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    model.head.requires_grad_(False)
    tokens = torch.randint(0, VOCABULARY, (rows, TIME + 1), generator=torch.Generator().manual_seed(1))
    return model, Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def windows(batch: Batch) -> list[Batch]:
    parts = zip(*(part.split(LENGTH, dim=1) for part in batch), strict=True)
    return [Batch(inputs, targets) for inputs, targets in parts]


def segments(estimator, model: nn.Module, batch: Batch, count: int) -> Tensor:
    """The estimates of `count` segments, each summed over its windows, [count, d]."""
    rows = []
    for _ in range(count):
        estimator.reset()
        total = torch.zeros(())
        for window in windows(batch):
            estimator.estimate(model, window, TokenCrossEntropy())
            total = total + gradient(model)
        rows.append(total)
    return torch.stack(rows)


def exact(estimator, model: nn.Module, batch: Batch) -> Tensor:
    """The gradient of the sum over windows of their mean losses."""
    estimator.estimate(model, batch, TokenCrossEntropy())
    return WINDOWS * gradient(model)


CASES = {
    "pes": (PES, RankOne()),
    "pes, gaussian": (PES, RankOne(noise="gaussian")),
    "nres": (NRES, RankOne()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_segment_adds_up_to_the_gradient_through_all_of_it(case):
    """And not to what TBPTT with carried state gives, the gradient within windows."""
    kind, structure = CASES[case]
    model, batch = whole_sequence()
    through_all, truncated = exact(BPTT(), model, batch), exact(TBPTT(truncation=LENGTH), model, batch)
    estimator = kind(population=256, epsilon=1e-5, perturbation=structure, seed=11)
    found = segments(estimator, model, batch, SEGMENTS)
    assert_mean_vector(found, through_all)
    beyond = through_all - truncated
    assert_mean_is_not(found @ beyond, float(truncated @ beyond))


class FromState(nn.Module):
    """A model whose rows all start from one state."""

    def __init__(self, model, state) -> None:
        super().__init__()
        self.model, self.state = model, state

    def initial_state(self, rows):
        return map_state(lambda tensor: tensor.expand(rows, -1), self.state)

    def forward(self, inputs, state):
        return self.model(inputs, state)


def test_differences_of_single_windows_from_the_clean_state_are_truncated():
    """CD-RGE of each window from the state that θ itself left there: its mean is that of TBPTT."""
    model, batch = whole_sequence(rows=1)
    through_all, truncated = exact(BPTT(), model, batch), exact(TBPTT(truncation=LENGTH), model, batch)
    estimator, rows = CDRGE(population=256, epsilon=1e-5, seed=11, group_size=None), []
    for _ in range(SEGMENTS):
        total, state = torch.zeros(()), model.initial_state(1)
        for window in windows(batch):
            estimator.estimate(FromState(model, state), window, TokenCrossEntropy())
            total = total + gradient(model)
            with torch.no_grad():
                state = model(window.inputs, state)[1]
        rows.append(total)
    assert_mean_vector(torch.stack(rows), truncated)
    beyond = through_all - truncated
    assert_mean_is_not(torch.stack(rows) @ beyond, float(through_all @ beyond))
