"""Evaluation of a large vocabulary: what whole logits give, without a tensor of them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zorn.models import Batch, LanguageModel, sliced_head
from zorn.tasks import EvaluationData, Task, TokenCrossEntropy, TokenMetrics
from zorn.tasks.held_out import objective_value

VOCABULARY, ROWS, TIME = 130_000, 16, 18


class ManyTokens(Task):
    name = "many tokens"
    vocabulary = VOCABULARY
    objective = TokenCrossEntropy()

    def training_batch(self, step):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, VOCABULARY, (ROWS, TIME + 1), generator=generator)
        targets = tokens[:, 1:].clone()
        targets[2, 5:] = -100
        return Batch(tokens[:, :-1], targets)

    def evaluation_data(self, split):
        return EvaluationData(split, self.training_batch(0), total_bytes=2500, whole_sequences=True)

    def encode(self, text):
        raise NotImplementedError

    def decode(self, tokens):
        raise NotImplementedError


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that is made in the block."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.fixture(scope="module")
def model():
    made = LanguageModel(VOCABULARY, 4)
    with torch.no_grad():  # whose predictions are often right: a token is followed by itself
        made.head.weight.mul_(8)
    return made


def evaluated_whole(model, function, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sliced_head, "OUTPUT_SLICE", 10**9)
        return function(model)


def test_an_evaluation_is_that_of_whole_logits(model, monkeypatch):
    task = ManyTokens()
    with Largest() as largest:
        found = task.evaluate(model)
    assert largest.numbers <= sliced_head.LOGITS_AT_ONCE
    with Largest() as largest:
        expected = evaluated_whole(model, lambda model: task.evaluate(model, time_chunk=4), monkeypatch)
    assert largest.numbers == ROWS * 4 * VOCABULARY  # so that the first figure tells something
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-6)
    assert (found.tokens, found.token_accuracy) == (expected.tokens, expected.token_accuracy)


def test_the_value_of_an_objective_is_that_of_whole_logits(model, monkeypatch):
    with Largest() as largest:
        found = objective_value(model, ManyTokens())
    assert largest.numbers <= sliced_head.LOGITS_AT_ONCE
    expected = evaluated_whole(model, lambda model: objective_value(model, ManyTokens()), monkeypatch)
    assert found == pytest.approx(expected, rel=1e-6)


def test_long_rows_of_whole_logits_are_read_in_chunks(monkeypatch):
    """One row of 18 steps has more logits than are to be there at once."""
    monkeypatch.setattr("zorn.tasks.held_out.OUTPUTS", 2**18)
    monkeypatch.setattr(sliced_head, "OUTPUT_SLICE", 10**9)
    with Largest() as largest:
        objective_value(LanguageModel(VOCABULARY, 2), ManyTokens())
    assert largest.numbers <= 2 * VOCABULARY


@pytest.mark.parametrize("at_once", [1, 4, 5, 11, 20])
def test_sliced_metrics_are_those_of_whole_logits(at_once):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randint(0, 4, (6, 9, 11), generator=generator).float()  # many are equal
    logits[5, 2, 7] = torch.nan
    targets = torch.randint(0, 11, (6, 9), generator=generator)
    targets[:4] = logits[:4].argmax(-1)
    targets[3, 4] = (targets[3, 4] + 1) % 11
    targets[0, 5:] = -100
    whole, sliced = TokenMetrics(6), TokenMetrics(6)
    expected = whole.token_losses(logits, targets)
    found = sliced.sliced_token_losses(
        lambda first, last: logits[..., first:last], 11, targets, at_once=at_once
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert sliced.token_accuracy == whole.token_accuracy
    assert sliced.sequence_accuracy == whole.sequence_accuracy == 0.5
    assert sliced.tokens == whole.tokens
