"""Metrics that are summed up chunk by chunk over time, so that no logits are kept."""

import math
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zorn.errors import ZornError
from zorn.tasks.objectives import TokenCrossEntropy


@final
class TokenMetrics:
    """Loss, perplexity and accuracies of a batch of rows that is fed in chunks of time.

    Keeps three numbers a row (nats in float64, counted tokens, wrong tokens) on the device of the first
    chunk, and reads them back only when a result is asked for. Targets of -100 count nowhere.

    Args:
        rows: how many rows every chunk has, at least 1.

    Raises:
        ZornError: a result was asked for before any token was counted.

    Example:
        >>> metrics = TokenMetrics(rows=2)
        >>> metrics.update(torch.zeros(2, 1, 4), torch.tensor([[0], [1]]))  # ties go to token 0
        >>> metrics.update(torch.zeros(2, 1, 4), torch.tensor([[0], [-100]]))
        >>> metrics.tokens, round(metrics.token_accuracy, 3), metrics.sequence_accuracy
        (3, 0.667, 0.5)
        >>> round(metrics.perplexity, 3)
        4.0
    """

    def __init__(self, rows: int):
        self._objective = TokenCrossEntropy()
        self._nats = torch.zeros(rows, dtype=torch.float64)
        self._counted = torch.zeros(rows, dtype=torch.int64)
        self._wrong = torch.zeros(rows, dtype=torch.int64)

    def update(
        self, logits: Float[Tensor, "rows time vocabulary"], targets: Int[Tensor, "rows time"]
    ) -> None:
        """Adds the next chunk of the same rows."""
        assert len(targets) == len(self._nats), "a metrics object is made for one batch of rows"
        counts = self._objective.counts(targets)
        wrong = counts & (logits.argmax(-1) != targets)
        nats = self._objective.token_losses(logits, targets).sum(1, dtype=torch.float64)
        self._nats = self._nats.to(nats.device) + nats
        self._counted = self._counted.to(nats.device) + counts.sum(1)
        self._wrong = self._wrong.to(nats.device) + wrong.sum(1)

    @property
    def tokens(self) -> int:
        """How many tokens counted."""
        return int(self._counted.sum())

    @property
    def nats(self) -> float:
        """Total loss of the counted tokens, in nats."""
        return self._nats.sum().item()

    @property
    def nats_per_token(self) -> float:
        """Mean loss of the counted tokens, in nats."""
        return self.nats / self._some(self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(nats per token): 1 for a perfect model, the vocabulary's size for a uniform guess."""
        return torch.tensor(self.nats_per_token, dtype=torch.float64).exp().item()  # overflows to inf

    @property
    def token_accuracy(self) -> float:
        """Share of the counted tokens whose largest logit is the target: 0 to 1."""
        return 1 - int(self._wrong.sum()) / self._some(self.tokens)

    @property
    def sequence_accuracy(self) -> float:
        """Share of the rows with every counted token right, among rows with at least one: 0 to 1."""
        with_tokens = self._counted > 0
        right = with_tokens & (self._wrong == 0)
        return int(right.sum()) / self._some(int(with_tokens.sum()))

    @staticmethod
    def _some(count: int) -> int:
        if count == 0:
            raise ZornError(
                "no token was counted, so there is no mean: update() with targets other than -100 first"
            )
        return count


def bits_per_byte(total_nats: float, total_bytes: int) -> float:
    """The loss of a text in bits per byte, comparable between tokenizers: nats / (ln 2 · bytes).

    Args:
        total_nats: the summed loss of the predicted tokens, in nats.
        total_bytes: how many bytes those tokens stand for, at least 1.

    Raises:
        ZornError: `total_bytes` below 1.

    Example:
        >>> bits_per_byte(total_nats=10 * math.log(256), total_bytes=10)
        8.0
    """
    if total_bytes < 1:
        raise ZornError(f"bits per byte need at least 1 byte, got {total_bytes}")
    return total_nats / math.log(2) / total_bytes
