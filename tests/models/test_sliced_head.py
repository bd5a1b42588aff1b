"""Losses of a large vocabulary, read in slices, are those of its logits, under every kind of noise."""

import pytest
import torch
from torch import nn

import zorn
from zorn.models import row_losses, sliced_head, streamed
from zorn.noise.weights import rank_one

VOCABULARY = 37


@pytest.fixture
def small_slices(monkeypatch):
    """A vocabulary of 37 is large now: slices of 8, and not more than two steps of 4 rows at once."""
    monkeypatch.setattr(sliced_head, "OUTPUT_SLICE", 8)
    monkeypatch.setattr(sliced_head, "LOGITS_AT_ONCE", 4 * 8 * 2)


def batch(rows=4, time=7):
    tokens = torch.randint(0, VOCABULARY, (rows, time + 1), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    targets[1, 3] = targets[2, 0] = -100
    return zorn.Batch(tokens[:, :-1], targets)


def losses_of(model, perturbation, **options):
    options = {"population": 8, "epsilon": 0.1, "group_size": 2, "micro_batch": 8, "time_chunk": 3} | options
    estimator = zorn.CDRGE(**options, perturbation=perturbation)
    return estimator.evaluate(model, estimator.ask(model), batch(), zorn.TokenCrossEntropy())[0]


@pytest.mark.parametrize(
    "perturbation",
    [zorn.RankOne(), zorn.RankOne(noise="gaussian"), zorn.Dense()],
    ids=str,
)
@pytest.mark.parametrize("tie", [False, True])
def test_the_losses_of_a_population_are_those_of_whole_logits(small_slices, monkeypatch, perturbation, tie):
    model = zorn.LanguageModel(VOCABULARY, 6, tie_embedding=tie)
    assert isinstance(streamed(model, zorn.TokenCrossEntropy())[0], sliced_head.Body)
    found = losses_of(model, perturbation)
    monkeypatch.setattr(sliced_head, "OUTPUT_SLICE", 10**6)
    expected = losses_of(model, perturbation)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)


def test_a_frozen_weight_or_bias_of_the_head_has_no_noise(small_slices, monkeypatch):
    for name in ("weight", "bias"):
        model = zorn.LanguageModel(VOCABULARY, 6)
        getattr(model.head, name).requires_grad_(False)
        found = losses_of(model, zorn.RankOne())
        with monkeypatch.context() as patch:
            patch.setattr(sliced_head, "OUTPUT_SLICE", 10**6)
            torch.testing.assert_close(found, losses_of(model, zorn.RankOne()), rtol=0, atol=3e-6)


def test_row_factors_that_are_drawn_when_read_are_the_same_noise(monkeypatch):
    model = zorn.LanguageModel(VOCABULARY, 6)
    model.embedding.padding_idx = 5
    expected = losses_of(model, zorn.RankOne())
    monkeypatch.setattr(rank_one, "LARGEST_TABLE", 10)
    assert torch.equal(losses_of(model, zorn.RankOne()), expected)


def test_no_tensor_of_the_whole_vocabulary_is_made(monkeypatch):
    """Of 16 rows × 20 steps × 20,000 tokens, 25 MB in float32, no more than a slice is ever asked for."""
    model = zorn.LanguageModel(20_000, 4)
    tokens = torch.randint(0, 20_000, (16, 20), generator=torch.Generator().manual_seed(0))
    asked = []
    plain = sliced_head.linear_slice
    monkeypatch.setattr(sliced_head, "linear_slice", lambda *args: asked.append(plain(*args)) or asked[-1])
    body, judge = streamed(model, zorn.TokenCrossEntropy())
    with torch.inference_mode():
        found = row_losses(body, zorn.Batch(tokens, tokens), judge)
        expected = row_losses(model, zorn.Batch(tokens, tokens), zorn.TokenCrossEntropy())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert max(part.numel() for part in asked) <= sliced_head.LOGITS_AT_ONCE
    assert max(part.shape[-1] for part in asked) == sliced_head.OUTPUT_SLICE


class OwnLoss(zorn.TokenCrossEntropy):
    def token_losses(self, outputs, targets):
        return 2 * super().token_losses(outputs, targets)


def test_what_is_not_known_to_read_slices_is_left_alone(small_slices):
    model, objective = zorn.LanguageModel(VOCABULARY, 6), zorn.TokenCrossEntropy()
    assert streamed(model, OwnLoss())[0] is model
    assert streamed(model, lambda outputs, targets: outputs.mean((1, 2)))[0] is model
    assert streamed(nn.Linear(2, 3), objective)[1] is objective
    model.register_forward_hook(lambda *_: None)
    assert streamed(model, objective)[0] is model


def test_a_head_with_a_hook_is_run_whole(small_slices):
    model, data = zorn.LanguageModel(VOCABULARY, 6), batch()
    model.head.register_forward_hook(lambda module, inputs, outputs: 3 * outputs)
    body, judge = streamed(model, zorn.TokenCrossEntropy())
    found = row_losses(body, data, judge)
    torch.testing.assert_close(found, row_losses(model, data, zorn.TokenCrossEntropy()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("at_once", [1, 5, 37, 100])
def test_the_sum_of_exponentials_is_that_of_all_slices(dtype, at_once):
    generator = torch.Generator().manual_seed(2)
    logits = (20 * torch.randn(3, 5, VOCABULARY, generator=generator)).to(dtype)
    logits[0, 0, :30] = -torch.inf
    targets = torch.randint(30, VOCABULARY, (3, 5), generator=generator)
    targets[1, 1] = -100
    objective = zorn.TokenCrossEntropy()
    found = objective.sliced_token_losses(
        lambda first, last: logits[..., first:last], VOCABULARY, targets, at_once=at_once
    )
    expected = objective.token_losses(logits, targets)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("target", [-1, VOCABULARY])
def test_a_target_outside_the_vocabulary_is_an_error(target):
    targets = torch.tensor([[0, target]])
    with pytest.raises(IndexError, match="outside 0 to 36"):
        zorn.TokenCrossEntropy().sliced_token_losses(
            lambda first, last: torch.zeros(1, 2, last - first), VOCABULARY, targets, at_once=8
        )
