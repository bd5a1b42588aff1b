"""Metrics that are summed up chunk by chunk over time, so that no logits are kept."""

import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from zorn.errors import ZornError
from zorn.tasks.objectives import Logits, Losses, Targets, TokenCrossEntropy


@final
class TokenMetrics:
    """Loss, perplexity and accuracies of a batch of rows that is fed in chunks of time.

    Keeps three numbers a row (nats in float64, counted tokens, wrong tokens) on the device of the first
    chunk, and reads them back only when a result is asked for. Targets of -100 count nowhere.

    It is an objective too, cross-entropy that adds up what it has judged, so that the logits of a large
    vocabulary can be judged in slices: see `zorn.models.streamed`.

    Args:
        rows: how many rows every chunk has, at least 1.

    Raises:
        ZornError: a result was asked for before any token was counted.

    Example:
        >>> metrics = TokenMetrics(rows=2)
        >>> _ = metrics.token_losses(torch.zeros(2, 1, 4), torch.tensor([[0], [1]]))  # ties go to token 0
        >>> _ = metrics.token_losses(torch.zeros(2, 1, 4), torch.tensor([[0], [-100]]))
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

    def token_losses(self, outputs: Logits, targets: Targets) -> Losses:
        """Adds the next chunk of the same rows; returns each token's loss in nats, as `TokenCrossEntropy`."""
        return self._added(self._objective.token_losses(outputs, targets), outputs.argmax(-1), targets)

    def sliced_token_losses(
        self, outputs: Callable[[int, int], Tensor], count: int, targets: Tensor, *, at_once: int
    ) -> Losses:
        """`token_losses` from slices of the logits, each of which is read once; the arguments are those of
        `TokenCrossEntropy.sliced_token_losses`."""
        largest, places = [], []

        def noted(first: int, last: int) -> Tensor:
            logits = outputs(first, last)
            value, place = logits.max(-1)
            largest.append(value)
            places.append(place + first)
            return logits

        losses = self._objective.sliced_token_losses(noted, count, targets, at_once=at_once)
        best = torch.stack(largest).argmax(0, keepdim=True)  # of equal ones the first, as of whole logits
        return self._added(losses, torch.stack(places).gather(0, best)[0], targets)

    def counts(self, targets: Targets) -> Bool[Tensor, "rows time"]:
        """Mask of the tokens that count: those whose target is not -100."""
        return self._objective.counts(targets)

    def _added(self, losses: Tensor, predicted: Tensor, targets: Tensor) -> Tensor:
        """Adds tokens that are judged; returns their losses."""
        assert len(targets) == len(self._nats), "a metrics object is made for one batch of rows"
        counts = self.counts(targets)
        wrong = counts & (predicted != targets)
        self._nats = self._nats.to(losses.device) + losses.sum(1, dtype=torch.float64)
        self._counted = self._counted.to(losses.device) + counts.sum(1)
        self._wrong = self._wrong.to(losses.device) + wrong.sum(1)
        return losses

    @property
    def tokens(self) -> int:
        """Number of tokens that counted."""
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
                "no token was counted, so there is no mean: give token_losses targets other than -100 first"
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
