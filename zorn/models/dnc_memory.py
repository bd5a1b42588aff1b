"""The addressing of the Differentiable Neural Computer's memory (Graves et al. 2016, Nature 538, Methods):
one pure function for each of its formulas, over rows of memories.

Letters: M = memory, N = slots of it, W = width of a slot, R = read heads; w = weights over the slots, none
negative and together at most 1.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zorn.checks import check_switch
from zorn.errors import ConfigError
from zorn.models.sizes import require_positive

Memory: TypeAlias = Float[Tensor, "rows slots width"]
Slots: TypeAlias = Float[Tensor, "rows slots"]
"""A number for each slot: weights, usage."""
Reads: TypeAlias = Float[Tensor, "rows heads slots"]
"""Weights over the slots of each read head, or of other heads."""
Links: TypeAlias = Float[Tensor, "rows slots slots"]
Vectors: TypeAlias = Float[Tensor, "rows heads width"]
Gate: TypeAlias = Float[Tensor, "rows 1"]

COSINE_EPSILON = 1e-6
"""Added to squared lengths, so that the cosine with an empty slot is 0 and has a finite gradient."""


@dataclass(frozen=True)
class DNCSettings:
    """Sizes of the external memory of a `DNCCell`, and its kind: see there.

    A simple memory is at least 3 numbers wide: its layer norm leaves of one number nothing, and of two only
    which is larger.

    Raises:
        ConfigError: a size below its least, or a `simple_memory` that is neither True nor False.
    """

    memory_slots: int = 16
    memory_width: int = 16
    read_heads: int = 1
    simple_memory: bool = False

    def __post_init__(self) -> None:
        require_positive(
            memory_slots=self.memory_slots, memory_width=self.memory_width, read_heads=self.read_heads
        )
        check_switch("simple_memory", self.simple_memory)
        if self.simple_memory and self.memory_width < 3:
            raise ConfigError(
                f"memory_width is {self.memory_width}, but a simple memory is layer-normalised over its "
                "width, which leaves too little of one or two numbers to tell slots apart: give "
                "memory_width=3 or more, or simple_memory=False."
            )


def content_weights(memory: Memory, keys: Vectors, strengths: Float[Tensor, "rows heads"]) -> Reads:
    """Slots that look like a key: softmax over n of β k·M[n] / (|k| |M[n]|), each |v|² + 10⁻⁶ in place of
    |v|².

    Args:
        memory: M.
        keys: k of each head.
        strengths: β of each head, at least 1; the larger, the sharper.
    """
    sharpness = strengths * (keys.square().sum(-1) + COSINE_EPSILON).rsqrt()
    inverse_lengths = (memory.square().sum(-1) + COSINE_EPSILON).rsqrt()
    products = torch.bmm(keys * sharpness.unsqueeze(-1), memory.mT)
    return (products * inverse_lengths.unsqueeze(1)).softmax(-1)


def retention(free_gates: Float[Tensor, "rows heads"], read_weights: Reads) -> Slots:
    """The share of each slot that stays in use after it was read: ψ = Π_i (1 − f_i w_i), in [0, 1].

    Args:
        free_gates: f of each read head, in [0, 1]; 1 frees what it read.
        read_weights: w of each read head, of the step before.
    """
    return (1 - free_gates.unsqueeze(-1) * read_weights).prod(1)


def usage_after(usage: Slots, write_weights: Slots, retention: Slots) -> Slots:
    """Usage of each slot: u' = (u + w − u w) ψ, in [0, 1]; w of the last write, ψ the `retention`."""
    return torch.addcmul(usage, write_weights, 1 - usage).mul_(retention)


def allocation_weights(usage: Slots) -> Slots:
    """The free list: a[φ_j] = (1 − u[φ_j]) Π_{i<j} u[φ_i], φ the slots by rising usage, equals by number.

    All of it on the least used slot where that is free; nothing where no slot is. The order is a constant to
    the gradient, which is thus that of one piece of a function continuous across pieces.
    """
    rising, order = usage.sort(dim=-1, stable=True)
    others_used = F.pad(rising.cumprod(-1)[:, :-1], (1, 0), value=1.0)
    return torch.empty_like(usage).scatter(1, order, (1 - rising) * others_used)


def write_weights(content: Slots, allocation: Slots, allocation_gate: Gate, write_gate: Gate) -> Slots:
    """Weights of a write: w = g_w (g_a a + (1 − g_a) c), gates in [0, 1]; g_w = 0 writes nothing."""
    return write_gate * content.lerp(allocation, allocation_gate)


def memory_after(
    memory: Memory,
    write_weights: Slots,
    erase: Float[Tensor, "rows width"],
    vector: Float[Tensor, "rows width"],
) -> Memory:
    """Memory after a write: M' = M ∘ (1 − w eᵀ) + w vᵀ; a slot of weight 0 keeps every bit."""
    weights = write_weights.unsqueeze(2)
    # Not M + w (v − e M): that would leave a rounding error of the old content in a slot written over.
    kept = torch.addcmul(memory, memory, weights * erase.unsqueeze(1), value=-1)
    return kept.addcmul_(weights, vector.unsqueeze(1))


def link_after(link: Links, write_weights: Slots, precedence: Slots) -> Links:
    """Links in the order of writing: L'[i, j] = (1 − w[i] − w[j]) L[i, j] + w[i] p[j], and 0 where i = j.

    L[i, j] near 1 means that slot i was written right after slot j.

    Args:
        link: L; its rows and its columns each sum to at most 1.
        write_weights: w of this write.
        precedence: p before this write.
    """
    after, before = write_weights.unsqueeze(2), write_weights.unsqueeze(1)
    new = ((1 - after) - before).mul_(link).addcmul_(after, precedence.unsqueeze(1))
    new.diagonal(dim1=1, dim2=2).zero_()
    return new


def precedence_after(precedence: Slots, write_weights: Slots) -> Slots:
    """Precedence, near 1 for the slot that was written last: p' = (1 − Σ w) p + w."""
    return torch.addcmul(write_weights, 1 - write_weights.sum(-1, keepdim=True), precedence)


def directional_weights(link: Links, read_weights: Reads) -> tuple[Reads, Reads]:
    """The slots written before, Lᵀ w, and after, L w, those that each head read: (backward, forward)."""
    return _weighted_sums(read_weights, link), torch.bmm(read_weights, link.mT)


def read_weights(
    modes: Float[Tensor, "rows heads 3"], backward: Reads, content: Reads, forward: Reads
) -> Reads:
    """Weights of each head's read: w = π_1 b + π_2 c + π_3 f; its modes π are not negative and sum to 1."""
    back, look, ahead = modes.split(1, dim=-1)
    return (back * backward).addcmul_(look, content).addcmul_(ahead, forward)


def read_vectors(memory: Memory, read_weights: Reads) -> Vectors:
    """The vector that each head reads: r = Mᵀ w."""
    return _weighted_sums(read_weights, memory)


def _weighted_sums(weights: Tensor, vectors: Tensor) -> Tensor:
    """`weights` [rows, heads, n] times `vectors` [rows, n, k]: [rows, heads, k]."""
    if weights.shape[1] == 1:  # torch's batched product of a single row is three times slower (2.13, CPU)
        return (vectors * weights.mT).sum(1, keepdim=True)
    return torch.bmm(weights, vectors)
