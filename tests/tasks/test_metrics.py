import math

import pytest
import torch
import torch.nn.functional as F

from zorn.errors import ZornError
from zorn.tasks import IGNORE, TokenMetrics, bits_per_byte

ROWS, TIME, VOCABULARY = 4, 9, 6


def _example():
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, VOCABULARY, (ROWS, TIME), generator=generator)
    logits = torch.randn(ROWS, TIME, VOCABULARY, generator=generator)
    logits[0] += 20 * F.one_hot(targets[0], VOCABULARY)  # row 0 is right throughout
    targets[1, 3:] = IGNORE
    targets[2] = IGNORE
    return logits, targets


def test_metrics_of_one_chunk_are_their_definitions():
    logits, targets = _example()
    metrics = TokenMetrics(ROWS)
    metrics.token_losses(logits, targets)
    counted = targets != IGNORE
    loss = F.cross_entropy(logits[counted].double(), targets[counted]).item()
    accuracy = (logits.argmax(-1) == targets)[counted].double().mean().item()
    assert metrics.tokens == TIME + 3 + TIME
    assert metrics.nats_per_token == pytest.approx(loss, rel=1e-6)
    assert metrics.nats == pytest.approx(loss * metrics.tokens, rel=1e-6)
    assert metrics.perplexity == pytest.approx(math.exp(loss), rel=1e-6)
    assert metrics.token_accuracy == pytest.approx(accuracy)
    assert 0.3 < accuracy < 1
    assert metrics.sequence_accuracy == 1 / 3  # row 2 has no token that counts


@pytest.mark.parametrize("chunk", [1, 2, 4, TIME])
def test_metrics_do_not_depend_on_the_chunks(chunk):
    logits, targets = _example()
    whole, parts = TokenMetrics(ROWS), TokenMetrics(ROWS)
    whole.token_losses(logits, targets)
    for start in range(0, TIME, chunk):
        parts.token_losses(logits[:, start : start + chunk], targets[:, start : start + chunk])
    assert parts.nats == pytest.approx(whole.nats, rel=1e-6)
    assert (parts.tokens, parts.token_accuracy, parts.sequence_accuracy) == (
        whole.tokens,
        whole.token_accuracy,
        whole.sequence_accuracy,
    )


def test_one_wrong_token_in_any_chunk_spoils_the_sequence():
    targets = torch.zeros(1, 1, dtype=torch.int64)
    right, wrong = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    metrics = TokenMetrics(1)
    for logits in (right, wrong, right):
        metrics.token_losses(logits, targets)
    assert metrics.sequence_accuracy == 0.0
    assert metrics.token_accuracy == pytest.approx(2 / 3)


def test_perplexity_of_a_hopeless_model_is_infinite_not_an_error():
    metrics = TokenMetrics(1)
    metrics.token_losses(torch.tensor([[[1e4, 0.0]]]), torch.tensor([[1]]))
    assert metrics.nats_per_token == 1e4
    assert metrics.perplexity == math.inf


def test_no_counted_token_is_an_error():
    metrics = TokenMetrics(1)
    metrics.token_losses(torch.zeros(1, 1, 2), torch.tensor([[IGNORE]]))
    for result in ("nats_per_token", "perplexity", "token_accuracy", "sequence_accuracy"):
        with pytest.raises(ZornError, match="no token was counted"):
            getattr(metrics, result)


def test_bits_per_byte_of_a_uniform_guess_is_eight():
    assert bits_per_byte(3 * math.log(256), 3) == pytest.approx(8)
    with pytest.raises(ZornError, match="at least 1 byte, got 0"):
        bits_per_byte(1.0, 0)
