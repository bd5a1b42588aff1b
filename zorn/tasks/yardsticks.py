"""Yardsticks: the bits per byte of models that only count bytes, fitted on the training split alone."""

import numpy
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from zorn.checks import check_choice
from zorn.tasks.metrics import bits_per_byte
from zorn.tasks.text import TextTask


def unigram_bits_per_byte(task: TextTask, split: str = "validation") -> float:
    """Bits per byte of a split when each byte is guessed from how often it occurs in the training piece.

    p(b) = (count(b) + 1) / (bytes + 256)

    Taken over every byte of the split but the first, as a model's evaluation is.

    Example:
        >>> task = TextTask(source="python-docs", batch=1, length=1, seed=0)
        >>> 4 < unigram_bits_per_byte(task) < 5
        True
    """
    evaluated = _bytes(task, split)[1:]
    probabilities = unigram_probabilities(_bytes(task, "train"))
    return bits_per_byte(-probabilities[evaluated].log().sum().item(), len(evaluated))


def bigram_bits_per_byte(task: TextTask, split: str = "validation") -> float:
    """Bits per byte of a split when each byte is guessed from the one before it: `bigram_probabilities`.

    Taken over every byte of the split but the first, as a model's evaluation is.

    Example:
        >>> task = TextTask(source="python-docs", batch=1, length=1, seed=0)
        >>> bigram_bits_per_byte(task) < unigram_bits_per_byte(task)
        True
    """
    evaluated = _bytes(task, split)
    probabilities = bigram_probabilities(_bytes(task, "train"))
    nats = -probabilities[evaluated[:-1], evaluated[1:]].log().sum().item()
    return bits_per_byte(nats, len(evaluated) - 1)


def unigram_probabilities(text: Int64[Tensor, " time"]) -> Float64[Tensor, "256"]:
    """Probability of each byte: its count and one more, normalised."""
    counts = torch.bincount(text, minlength=256).double() + 1
    return counts / counts.sum()


def bigram_probabilities(text: Int64[Tensor, " time"]) -> Float64[Tensor, "256 256"]:
    """Probability of each byte (column) after each (row): absolute discounting, backing off to the unigram.

    p(b | a) = (max(count(ab) - D, 0) + D · kinds(a) · p(b)) / count(a)

    kinds(a) is how many different bytes follow a, and D = n1 / (n1 + 2 n2) with n1 and n2 the numbers of
    pairs seen once and twice (1/2 where no pair was seen once). After a byte never seen, p(b | a) = p(b).

    References:
        H. Ney, U. Essen, R. Kneser: On structuring probabilistic dependences in stochastic language
        modelling, 1994.
    """
    counts = torch.bincount(text[:-1] * 256 + text[1:], minlength=256 * 256).view(256, 256)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once > 0 else 0.5
    total = counts.sum(1, keepdim=True).double()
    kinds = (counts > 0).sum(1, keepdim=True).double()
    backoff = torch.where(total > 0, discount * kinds / total.clamp(min=1), 1.0)
    seen = (counts - discount).clamp(min=0).double() / total.clamp(min=1)
    return seen + backoff * unigram_probabilities(text)


def _bytes(task: TextTask, split: str) -> Tensor:
    check_choice("split", split, task.splits)
    return torch.from_numpy(numpy.frombuffer(task.text[split], dtype=numpy.uint8).astype(numpy.int64))
