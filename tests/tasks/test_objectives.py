import math

import pytest
import torch
import torch.nn.functional as F

from zorn.tasks import IGNORE, TokenCrossEntropy, sequence_error, token_error_rate

ROWS, TIME, VOCABULARY = 5, 7, 11


def _example(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(ROWS, TIME, VOCABULARY, generator=generator)
    targets = torch.randint(0, VOCABULARY, (ROWS, TIME), generator=generator)
    targets[1, 4:] = IGNORE
    targets[2] = IGNORE
    return logits.to(dtype), targets


def _by_definition(logits, targets):
    logits = logits.double()
    losses = torch.zeros(targets.shape, dtype=torch.float64)
    for row in range(ROWS):
        for time in range(TIME):
            target = int(targets[row, time])
            if target != IGNORE:
                losses[row, time] = logits[row, time].exp().sum().log() - logits[row, time, target]
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_token_losses_are_the_definition_and_at_least_float32(dtype):
    logits, targets = _example(dtype)
    losses = TokenCrossEntropy().token_losses(logits, targets)
    assert losses.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype != torch.float64 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(losses.double(), _by_definition(logits, targets), **tolerance)


def test_ignored_tokens_cost_exactly_nothing_whatever_their_logits():
    logits, targets = _example()
    logits[2] = math.nan
    losses = TokenCrossEntropy().token_losses(logits, targets)
    assert losses[2].eq(0).all()
    assert losses[1, 4:].eq(0).all()
    assert losses[1, :4].gt(0).all()
    assert torch.equal(TokenCrossEntropy().counts(targets), losses != 0)


def test_a_time_major_view_gives_the_same_bits_and_the_same_shape():
    logits, targets = _example()
    view = logits.transpose(0, 1).contiguous().transpose(0, 1)
    assert not view.is_contiguous()
    expected = TokenCrossEntropy().token_losses(logits, targets)
    assert torch.equal(TokenCrossEntropy().token_losses(view, targets), expected)


def test_a_slice_of_time_is_taken_as_it_is():
    logits, targets = _example()
    expected = TokenCrossEntropy().token_losses(logits, targets)
    for inputs in (logits, logits.transpose(0, 1).contiguous().transpose(0, 1)):
        part = TokenCrossEntropy().token_losses(inputs[:, 2:5], targets[:, 2:5])
        assert torch.equal(part, expected[:, 2:5])


def test_token_losses_work_under_inference_mode():
    logits, targets = _example()
    with torch.inference_mode():
        losses = TokenCrossEntropy().token_losses(logits, targets)
    assert losses.is_inference()


@pytest.mark.parametrize("time_major", [False, True])
def test_token_losses_have_the_gradient_of_cross_entropy(time_major):
    logits, targets = _example(torch.float64)
    if time_major:
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    logits.requires_grad_(True)
    weights = torch.rand(ROWS, TIME, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        (TokenCrossEntropy().token_losses(logits, targets) * weights).sum(), logits
    )
    reference = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    (expected,) = torch.autograd.grad((reference * weights).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_a_target_outside_the_vocabulary_is_an_error():
    logits, targets = _example()
    targets[0, 0] = VOCABULARY
    with pytest.raises(IndexError, match="out of bounds"):
        TokenCrossEntropy().token_losses(logits, targets)


def _predicting(tokens):
    return F.one_hot(torch.tensor(tokens), VOCABULARY).float()


def test_error_rates_count_only_what_counts():
    outputs = _predicting([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    targets = torch.tensor(
        [[1, 2, 3, 4], [IGNORE, 9, 3, 4], [IGNORE, 2, 3, IGNORE], [IGNORE, IGNORE, IGNORE, IGNORE]]
    )
    torch.testing.assert_close(token_error_rate(outputs, targets), torch.tensor([0.0, 1 / 3, 0.0, 0.0]))
    assert sequence_error(outputs, targets).tolist() == [0.0, 1.0, 0.0, 0.0]
