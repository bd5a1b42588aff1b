"""The external memory of Graves et al. 2016 (Nature 538, "Hybrid computing using a neural network with
dynamic external memory", Methods), whole.

Letters: H = hidden size of the controller, M = memory, N = slots, W = width of a slot, R = read heads.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zorn.models import dnc_memory as addressing
from zorn.models.dnc_memory import DNCSettings
from zorn.models.initialise import Source, linear


class DynamicMemoryState(NamedTuple):
    """State of a `DynamicMemory`, never below float32."""

    memory: Float[Tensor, "rows slots width"]
    usage: Float[Tensor, "rows slots"]
    precedence: Float[Tensor, "rows slots"]
    link: Float[Tensor, "rows slots slots"]
    write_weights: Float[Tensor, "rows slots"]
    read_weights: Float[Tensor, "rows heads slots"]


class Interface(NamedTuple):
    """The controller's commands to the memory in one step, each in its range."""

    read_keys: Float[Tensor, "rows heads width"]
    write_key: Float[Tensor, "rows 1 width"]
    vector: Float[Tensor, "rows width"]  # that is written
    erase: Float[Tensor, "rows width"]  # in [0, 1]
    free_gates: Float[Tensor, "rows heads"]  # in [0, 1]
    allocation_gate: Float[Tensor, "rows 1"]  # in [0, 1]: 0 writes by content, 1 where memory is free
    write_gate: Float[Tensor, "rows 1"]  # in [0, 1]: 0 writes nothing
    read_strengths: Float[Tensor, "rows heads"]  # at least 1
    write_strength: Float[Tensor, "rows 1"]  # at least 1
    modes: Float[Tensor, "rows heads 3"]  # shares of backward, content and forward reading, together 1


def interface_size(memory: DNCSettings) -> int:
    """Numbers that the controller emits for a step: R W + 3 W + 5 R + 3."""
    width, heads = memory.memory_width, memory.read_heads
    return heads * width + 3 * width + 5 * heads + 3


def interface_parts(emitted: Float[Tensor, "rows size"], memory: DNCSettings) -> Interface:
    """Cut what the controller emitted into its parts, and bring each into its range.

    They lie by what is done to them: read keys, write key and vector [R W + 2 W], as they are; erase, free
    gates, allocation gate and write gate [W + R + 2], sigmoid; read strengths and write strength [R + 1],
    oneplus, 1 + log(1 + eˣ); modes [3 R], softmax of each head's three.
    """
    width, heads = memory.memory_width, memory.read_heads
    vectors, gates, strengths, modes = emitted.split(
        [(heads + 2) * width, width + heads + 2, heads + 1, 3 * heads], dim=1
    )
    read_keys, write_key, vector = vectors.unflatten(1, (-1, width)).split([heads, 1, 1], dim=1)
    erase, free, allocation, write = gates.sigmoid().split([width, heads, 1, 1], dim=1)
    read_strengths, write_strength = (F.softplus(strengths) + 1).split([heads, 1], dim=1)
    modes = modes.unflatten(1, (heads, 3)).softmax(-1)
    gates = (erase, free, allocation, write)
    return Interface(read_keys, write_key, vector.squeeze(1), *gates, read_strengths, write_strength, modes)


class DynamicMemory(nn.Module):
    """Memory that is written by content or where it is free, and read by content or in the order of writing.

    A step: ψ from the free gates and the last reads; usage from ψ and the last write; allocation from usage;
    write weights from allocation and content; memory written; link and precedence of slots; read weights from
    content, backward and forward links; reads. The formulas are those of `zorn.models.dnc_memory`. The map of
    the controller's output to the interface has a bias, which the paper leaves out.

    Args:
        hidden_size: H, size of the controller's output, at least 1.
        sizes: of the memory.
        generator: source of the first values, Uniform(−1/√H, 1/√H); None is torch's global one.

    >>> memory = DynamicMemory(8, DNCSettings(memory_slots=4, memory_width=3, read_heads=2))
    >>> reads, state = memory(torch.ones(5, 8), memory.initial_state(rows=5))
    >>> reads.shape, state.link.shape
    (torch.Size([5, 2, 3]), torch.Size([5, 4, 4]))
    """

    def __init__(self, hidden_size: int, sizes: DNCSettings, *, generator: Source = None) -> None:
        super().__init__()
        self.interface = linear(hidden_size, interface_size(sizes), generator=generator)
        self.sizes = sizes

    def initial_state(self, rows: int) -> DynamicMemoryState:
        """An empty memory: zeros, as in the paper, on the device of the weights, never below float32.

        All content looks alike then, and it is allocation that tells slots apart: it takes free ones by
        number.
        """
        weight, slots, heads = self.interface.weight, self.sizes.memory_slots, self.sizes.read_heads
        dtype = torch.promote_types(weight.dtype, torch.float32)

        shapes = (
            (slots, self.sizes.memory_width),
            (slots,),
            (slots,),
            (slots, slots),
            (slots,),
            (heads, slots),
        )
        return DynamicMemoryState(*(weight.new_zeros(rows, *shape, dtype=dtype) for shape in shapes))

    def forward(
        self, h: Float[Tensor, "rows hidden_size"], state: DynamicMemoryState
    ) -> tuple[Float[Tensor, "rows heads width"], DynamicMemoryState]:
        """One step: write, then read; the arithmetic in the dtype of the state."""
        told = interface_parts(self.interface(h).to(state.memory.dtype), self.sizes)

        kept = addressing.retention(told.free_gates, state.read_weights)
        usage = addressing.usage_after(state.usage, state.write_weights, kept)
        content = addressing.content_weights(state.memory, told.write_key, told.write_strength).squeeze(1)
        allocation = addressing.allocation_weights(usage)
        written = addressing.write_weights(content, allocation, told.allocation_gate, told.write_gate)
        memory = addressing.memory_after(state.memory, written, told.erase, told.vector)

        link = addressing.link_after(state.link, written, state.precedence)
        precedence = addressing.precedence_after(state.precedence, written)
        backward, forward = addressing.directional_weights(link, state.read_weights)
        content = addressing.content_weights(memory, told.read_keys, told.read_strengths)
        read = addressing.read_weights(told.modes, backward, content, forward)
        after = DynamicMemoryState(memory, usage, precedence, link, written, read)
        return addressing.read_vectors(memory, read), after
