"""A plain transformer in inference with a cache of keys and values: beside the RNNs of the context benchmark.

Pre-norm (Xiong et al. 2020), causal, sinusoidal positions (Vaswani et al. 2017), one token at a time.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, HEAD_SIZE = 5, 32


class Cache(NamedTuple):
    """Keys and values of every layer: `[layers, rows, heads, length, HEAD_SIZE]`."""

    keys: Tensor
    values: Tensor


class Block(nn.Module):
    """x ← x + attention(norm(x)); x ← x + feedforward(norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, place: int) -> Tensor:
        """One token of each row, `[rows, width]`; writes its key and value at `place` and attends to all up
        to it."""
        heads = self.inputs(self.attention_norm(x)).view(len(x), 3, -1, HEAD_SIZE)
        query, keys[:, :, place], values[:, :, place] = heads.unbind(1)
        seen = slice(0, place + 1)
        mixed = F.scaled_dot_product_attention(query.unsqueeze(2), keys[:, :, seen], values[:, :, seen])
        x = x + self.output(mixed.flatten(1))
        return x + self.narrow(F.gelu(self.widen(self.feedforward_norm(x))))


class Transformer(nn.Module):
    """Next-token logits of a causal transformer of `LAYERS` layers.

    Args:
        vocabulary: V, number of tokens.
        width: of a token's vector, a multiple of `HEAD_SIZE`.

    Example:
        >>> model = Transformer(50, width=64)
        >>> cache = model.filled_cache(rows=2, length=8)
        >>> model(torch.tensor([3, 4]), cache, place=7).shape
        torch.Size([2, 50])
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    @classmethod
    def with_parameters(cls, parameters: int, vocabulary: int) -> "Transformer":
        """The model whose number of parameters is closest to `parameters`."""

        def count(width: int) -> int:
            return LAYERS * (12 * width**2 + 13 * width) + (2 * vocabulary + 2) * width + vocabulary

        widths = range(HEAD_SIZE, 32 * HEAD_SIZE + 1, HEAD_SIZE)
        return cls(vocabulary, min(widths, key=lambda width: abs(count(width) - parameters)))

    def filled_cache(self, rows: int, length: int) -> Cache:
        """A cache of `length` places as a context of random numbers would leave it."""
        shape = LAYERS, rows, self.width // HEAD_SIZE, length, HEAD_SIZE
        return Cache(torch.randn(shape), torch.randn(shape))

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: Cache, place: int) -> Tensor:
        """Logits `[rows, vocabulary]` after one more token of each row, the one at `place` of the cache."""
        x = self.embedding(tokens) + positions(place, self.width)
        for block, keys, values in zip(self.blocks, *cache, strict=True):
            x = block(x, keys, values, place)
        return self.head(self.norm(x))


def positions(place: int, width: int) -> Tensor:
    """The sinusoidal vector of one place, `[width]`."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = place * rates
    return torch.cat([angles.sin(), angles.cos()])
