"""The simplified, layer-normalised external memory of arXiv 2505.17852 (2025): addressed by content alone.

Letters: H = hidden size of the controller, M = memory, N = slots, W = width of a slot, R = read heads.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zorn.models.dnc_memory import DNCSettings, memory_after, read_vectors
from zorn.models.initialise import Source, linear


class SimpleMemoryState(NamedTuple):
    """State of a `SimpleMemory`, never below float32."""

    memory: Float[Tensor, "rows slots width"]


def slot_codes(slots: int, width: int) -> Float[Tensor, "slots width"]:
    """Fixed first contents that tell slots apart: cos(π (n + ½) (k + 1) / N) in slot n, number k; float64."""
    slot = torch.arange(slots, dtype=torch.float64).unsqueeze(1) + 0.5
    return torch.cos(math.pi / slots * slot * (torch.arange(width, dtype=torch.float64) + 1))


class SimpleMemory(nn.Module):
    """Memory that is written and read by content alone: no usage, no links, no strengths.

    From the controller's output h, one affine map gives the read keys k_r [R, W], the write key k_w [W], the
    vector v [W], the erase vector e [W] and the write gate g; then, LN being layer norms over the width (of
    read keys, of write keys and of the memory, each with a gain, those of keys with a bias: the softmax would
    cancel one of the memory's),

    w = σ(g) softmax_n(LN(k_w) · LN(M[n]));  M' = M ∘ (1 − w σ(e)ᵀ) + w tanh(v)ᵀ;
    c_i = softmax_n(LN(k_r,i) · LN(M'[n]));  r_i = M'ᵀ c_i.

    The norms compute in the dtype of the weights, the rest never below float32.

    Args:
        hidden_size: H, size of the controller's output, at least 1.
        sizes: of the memory.
        generator: source of the first values of the map, Uniform(−1/√H, 1/√H); None is torch's global one.

    >>> sizes = DNCSettings(memory_slots=4, memory_width=3, read_heads=2, simple_memory=True)
    >>> memory = SimpleMemory(8, sizes)
    >>> reads, state = memory(torch.ones(5, 8), memory.initial_state(rows=5))
    >>> reads.shape, state.memory.shape
    (torch.Size([5, 2, 3]), torch.Size([5, 4, 3]))
    """

    def __init__(self, hidden_size: int, sizes: DNCSettings, *, generator: Source = None) -> None:
        super().__init__()
        size = (sizes.read_heads + 3) * sizes.memory_width + 1
        self.interface = linear(hidden_size, size, generator=generator)
        self.read_key_norm = nn.LayerNorm(sizes.memory_width)
        self.write_key_norm = nn.LayerNorm(sizes.memory_width)
        self.memory_norm = nn.LayerNorm(sizes.memory_width, bias=False)
        self.sizes = sizes

    def initial_state(self, rows: int) -> SimpleMemoryState:
        """The memory before the first write: `slot_codes`, never below float32.

        Not zeros, as in the paper's public code: content addressing treats equal slots equally, so that slots
        that start equal stay equal, and N of them remember no more than one.
        """
        weight = self.interface.weight
        codes = slot_codes(self.sizes.memory_slots, self.sizes.memory_width)
        codes = codes.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        return SimpleMemoryState(codes.repeat(rows, 1, 1))

    def forward(
        self, h: Float[Tensor, "rows hidden_size"], state: SimpleMemoryState
    ) -> tuple[Float[Tensor, "rows heads width"], SimpleMemoryState]:
        """One step: write, then read."""
        width, heads, dtype = self.sizes.memory_width, self.sizes.read_heads, state.memory.dtype
        keys, vector, gates = self.interface(h).split([(heads + 1) * width, width, width + 1], dim=1)
        read_keys, write_key = keys.unflatten(1, (-1, width)).split([heads, 1], dim=1)
        erase, write_gate = gates.to(dtype).sigmoid().split([width, 1], dim=1)

        written = self._similar(self.write_key_norm(write_key), state.memory).squeeze(1) * write_gate
        memory = memory_after(state.memory, written, erase, vector.to(dtype).tanh())
        read = self._similar(self.read_key_norm(read_keys), memory)
        return read_vectors(memory, read), SimpleMemoryState(memory)

    def _similar(self, keys: Tensor, memory: Tensor) -> Tensor:
        """Softmax over slots of the product of each key [rows, heads, W] with the normalised memory."""
        normalised = self.memory_norm(memory.to(keys.dtype))
        return torch.bmm(keys.to(memory.dtype), normalised.to(memory.dtype).mT).softmax(-1)
