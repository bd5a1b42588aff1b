"""Differentiable Neural Computer (Graves et al. 2016, Nature 538): an LSTM with an external memory.

Letters: k = input size, H = hidden size, W = width of the memory's slots, R = read heads.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zorn.models.cell import Cell
from zorn.models.dnc_memory import DNCSettings
from zorn.models.dynamic_memory import DynamicMemory, DynamicMemoryState
from zorn.models.initialise import Source, linear
from zorn.models.lstm import LSTMCell, LSTMState
from zorn.models.maps import Drive
from zorn.models.simple_memory import SimpleMemory, SimpleMemoryState
from zorn.models.sizes import head_size, require_positive


class DNCState(NamedTuple):
    """State of a `DNCCell`; `external` and `reads` are never below float32."""

    controller: LSTMState
    external: DynamicMemoryState | SimpleMemoryState
    reads: Float[Tensor, "rows heads width"]


class DNCCell(Cell):
    """One pure step of a Differentiable Neural Computer whose controller is one LSTM layer.

    h = LSTM([x; r]), r the R reads of the step before;  r' from h and the memory, as `DynamicMemory` says;
    y = W_y [h; r'].

    With `simple_memory`, the simplified computer of arXiv 2505.17852 (2025): `SimpleMemory`, and three layer
    norms, each with gain and bias: h = LN(LSTM(LN([x; r])));  r' from h and the memory;  y = W_y LN([h; r']).
    The LSTM's own recurrence is that of its output before the norm.

    First values: Uniform(−1/√n, 1/√n) for a map of n inputs; the LSTM as it says.

    Args:
        hidden_size: H, units of the controller and size of y, a multiple of `num_heads`.
        num_heads: blocks of the controller's recurrent weight, at least 1; 1 is dense.
        memory_slots: rows of the memory (N), at least 1.
        memory_width: numbers in a row of the memory (W), at least 1; at least 3 in a simple memory.
        read_heads: rows read at a step (R), at least 1.
        simple_memory: the paper's simplified memory with layer norms (arXiv 2505.17852), in place of the
            whole DNC.

    Raises:
        ConfigError: a size below 1, a hidden size that the heads do not divide, or what `DNCSettings`
            refuses.

    >>> cell = DNCCell(input_size=3, hidden_size=8, memory_slots=4, memory_width=5)
    >>> y, state = cell(torch.ones(2, 3), cell.initial_state(rows=2))
    >>> y.shape, state.external.memory.shape
    (torch.Size([2, 8]), torch.Size([2, 4, 5]))
    """

    state_maps = ()  # its controller is a cell of its own

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_heads: int = 1,
        *,
        generator: Source = None,
        memory_slots: int = DNCSettings.memory_slots,
        memory_width: int = DNCSettings.memory_width,
        read_heads: int = DNCSettings.read_heads,
        simple_memory: bool = DNCSettings.simple_memory,
    ) -> None:
        memory = DNCSettings(memory_slots, memory_width, read_heads, simple_memory)
        require_positive(input_size=input_size)
        head_size(hidden_size, num_heads)
        super().__init__()
        read_size = memory.read_heads * memory.memory_width
        seen, said = input_size + read_size, hidden_size + read_size
        self.controller = LSTMCell(seen, hidden_size, num_heads, generator=generator)
        kind = SimpleMemory if memory.simple_memory else DynamicMemory
        self.memory = kind(hidden_size, memory, generator=generator)
        self.output = linear(said, hidden_size, bias=False, generator=generator)
        norm = nn.LayerNorm if memory.simple_memory else nn.Identity
        self.input_norm, self.hidden_norm, self.output_norm = norm(seen), norm(hidden_size), norm(said)

    def initial_state(self, rows: int) -> DNCState:
        """Zeros, but for the first contents of a simple memory, on the device of the weights."""
        external, sizes = self.memory.initial_state(rows), self.memory.sizes
        reads = external.memory.new_zeros(rows, sizes.read_heads, sizes.memory_width)
        return DNCState(self.controller.initial_state(rows), external, reads)

    def step(self, drive_t: Drive, state: DNCState) -> tuple[Float[Tensor, "rows hidden_size"], DNCState]:
        """One step; the maps in the dtype of the weights, the memory in that of its state."""
        (x,) = drive_t
        seen = self.input_norm(torch.cat([x, state.reads.flatten(1).to(x.dtype)], dim=1))
        hidden, controller = self.controller(seen, state.controller)
        hidden = self.hidden_norm(hidden)
        reads, external = self.memory(hidden, state.external)
        said = torch.cat([hidden, reads.flatten(1).to(x.dtype)], dim=1)
        return self.output(self.output_norm(said)), DNCState(controller, external, reads)
