"""Objectives: token cross-entropy, and two scores without a useful derivative.

Any callable `(outputs, targets) -> Tensor [rows]` is an objective. `TokenCrossEntropy` is also a sum over
tokens, so that it can be computed chunk by chunk over time and the logits of each chunk can be dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Logits: TypeAlias = Float[Tensor, "rows time vocabulary"]
Targets: TypeAlias = Int[Tensor, "rows time"]
"""Tokens in [0, vocabulary), or `IGNORE`."""
Losses: TypeAlias = Float[Tensor, "rows time"]

IGNORE = -100
"""The target of a token that does not count (PyTorch's `ignore_index`)."""


@dataclass(frozen=True)
class TokenCrossEntropy:
    """Cross-entropy of each token in nats; a target of -100 does not count.

    loss[row, t] = logsumexp(outputs[row, t]) - outputs[row, t, targets[row, t]]

    Computed in float32 for float32, bfloat16 and float16 logits (in float64 for float64 ones), with one
    temporary of the size of the logits. It can be differentiated, and needs not be.

    Example:
        >>> outputs = torch.zeros(1, 3, 4)
        >>> targets = torch.tensor([[0, 3, -100]])
        >>> objective = TokenCrossEntropy()
        >>> objective.token_losses(outputs, targets)  # ln 4 = 1.3863
        tensor([[1.3863, 1.3863, 0.0000]])
        >>> objective.counts(targets)
        tensor([[ True,  True, False]])
    """

    def token_losses(self, outputs: Logits, targets: Targets) -> Losses:
        """The loss of each token in nats, zero where the token does not count.

        Args:
            outputs: logits `[rows, time, vocabulary]`.
            targets: tokens in [0, vocabulary), or -100.

        Raises:
            IndexError: a target outside that range (on CPU; on CUDA a device-side assertion).
        """
        precision = torch.promote_types(outputs.dtype, torch.float32)
        log_probabilities = F.log_softmax(outputs.flatten(0, 1), dim=-1, dtype=precision)
        losses = F.nll_loss(log_probabilities, targets.flatten(), ignore_index=IGNORE, reduction="none")
        return losses.view(targets.shape)

    def sliced_token_losses(
        self, outputs: Callable[[int, int], Tensor], count: int, targets: Tensor, *, at_once: int
    ) -> Losses:
        """`token_losses` of a large vocabulary, from slices of the logits: log Σ exp is added up slice by
        slice, so that no more than a slice ever exists.

        Args:
            outputs: of (first, last) gives the logits of tokens first .. last, [rows, time, last − first].
            count: vocabulary, number of tokens.
            targets: tokens in [0, vocabulary), or -100, [rows, time].
            at_once: tokens of a slice at most.

        Raises:
            IndexError: a target outside that range.

        Example:
            >>> logits, targets = torch.zeros(1, 2, 4), torch.tensor([[3, -100]])
            >>> slices = lambda first, last: logits[..., first:last]
            >>> TokenCrossEntropy().sliced_token_losses(slices, 4, targets, at_once=3)
            tensor([[1.3863, 0.0000]])
        """
        counted = self.counts(targets)
        right = targets.masked_fill(~counted, 0)
        if bool(((right < 0) | (right >= count)).any()):
            raise IndexError(f"a target lies outside 0 to {count - 1}, the vocabulary, and is not {IGNORE}")
        total: Tensor | None = None
        of_target: Tensor | None = None
        for first in range(0, count, at_once):
            last = min(first + at_once, count)
            logits = outputs(first, last)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            part = logits.logsumexp(-1)
            within = (right - first).clamp(0, last - first - 1).unsqueeze(-1)
            found = logits.gather(-1, within).squeeze(-1)
            here = (right >= first) & (right < last)
            total = part if total is None else torch.logaddexp(total, part)
            of_target = found if of_target is None else torch.where(here, found, of_target)
        assert total is not None
        assert of_target is not None
        return (total - of_target).masked_fill_(~counted, 0)

    def output_gradient(self, outputs: Logits, targets: Targets) -> Logits:
        """The derivative of each token's loss by its logits, softmax − one-hot; 0 where it does not count.

        Example:
            >>> TokenCrossEntropy().output_gradient(torch.zeros(1, 2, 4), torch.tensor([[1, -100]]))
            tensor([[[ 0.2500, -0.7500,  0.2500,  0.2500],
                     [ 0.0000,  0.0000,  0.0000,  0.0000]]])
        """
        counted = self.counts(targets)
        precision = torch.promote_types(outputs.dtype, torch.float32)
        gradient = outputs.softmax(-1, dtype=precision)
        right = targets.masked_fill(~counted, 0).unsqueeze(-1)
        gradient.scatter_add_(-1, right, torch.full_like(right, -1, dtype=precision))
        return gradient.masked_fill_(~counted.unsqueeze(-1), 0)

    def counts(self, targets: Targets) -> Bool[Tensor, "rows time"]:
        """Mask of the tokens that count: those whose target is not -100."""
        return targets != IGNORE


def token_error_rate(outputs: Logits, targets: Targets) -> Float[Tensor, " rows"]:
    """Share of each row's counted tokens whose largest logit is not the target: 0 (all right) to 1.

    Piecewise constant, so its derivative is zero or undefined: for zero-order estimators only. A row in which
    no token counts scores 0.

    Example:
        >>> outputs = torch.eye(3)[None]  # predicts 0, 1, 2
        >>> token_error_rate(outputs, torch.tensor([[0, 2, -100]]))
        tensor([0.5000])
    """
    wrong, counted = _wrong_and_counted(outputs, targets)
    return wrong.float() / counted.clamp(min=1)


def sequence_error(outputs: Logits, targets: Targets) -> Float[Tensor, " rows"]:
    """1 for a row with any counted token wrong, 0 for a row with all of them right (1 - exact match).

    Piecewise constant, as `token_error_rate` is. A row in which no token counts scores 0.

    Example:
        >>> outputs = torch.eye(3).expand(2, 3, 3)  # predicts 0, 1, 2 in both rows
        >>> sequence_error(outputs, torch.tensor([[0, 1, 2], [0, 1, 1]]))
        tensor([0., 1.])
    """
    wrong, _ = _wrong_and_counted(outputs, targets)
    return (wrong > 0).float()


def _wrong_and_counted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Per row: how many counted tokens are wrong, and how many count."""
    counted = targets != IGNORE
    wrong = counted & (outputs.argmax(-1) != targets)
    return wrong.sum(1), counted.sum(1)
