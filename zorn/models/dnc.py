"""Differentiable Neural Computer (Graves et al. 2016, Nature 538): an LSTM with an external memory.

Letters: k = input size, H = hidden size, W = width of the memory's slots, R = read heads.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zorn.models.dnc_memory import DNCMemory
from zorn.models.dynamic_memory import DynamicMemory, DynamicMemoryState
from zorn.models.initialise import uniform_, without_values
from zorn.models.lstm import LSTMCell, LSTMState
from zorn.models.maps import Drive
from zorn.models.simple_memory import SimpleMemory, SimpleMemoryState
from zorn.models.sizes import head_size, require_positive


class DNCState(NamedTuple):
    """State of a `DNCCell`; `external` and `reads` are never below float32."""

    controller: LSTMState
    external: DynamicMemoryState | SimpleMemoryState
    reads: Float[Tensor, "rows heads width"]


class DNCCell(nn.Module):
    """One pure step of a Differentiable Neural Computer whose controller is one LSTM layer.

    h = LSTM([x; r]), r the R reads of the step before;  r' from h and the memory, as `DynamicMemory` says;
    y = W_y [h; r'].

    With `memory.simple`, the simplified computer of arXiv 2505.17852 (2025): `SimpleMemory`, and three layer
    norms, each with gain and bias: h = LN(LSTM(LN([x; r])));  r' from h and the memory;  y = W_y LN([h; r']).
    The LSTM's own recurrence is that of its output before the norm.

    First values: Uniform(−1/√n, 1/√n) for a map of n inputs; the LSTM as it says.

    Args:
        input_size: k, at least 1.
        hidden_size: H, units of the controller and size of y, a multiple of `num_heads`.
        num_heads: blocks of the controller's recurrent weight, at least 1; 1 is dense.
        memory: its sizes and kind.
        generator: source of the first values; None is torch's global one.

    Raises:
        ConfigError: a size below 1, or a hidden size that the heads do not divide.

    >>> cell = DNCCell(input_size=3, hidden_size=8, memory=DNCMemory(slots=4, width=5))
    >>> y, state = cell(torch.ones(2, 3), cell.initial_state(rows=2))
    >>> y.shape, state.external.memory.shape
    (torch.Size([2, 8]), torch.Size([2, 4, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_heads: int = 1,
        *,
        memory: DNCMemory = DNCMemory(),  # noqa: B008 (frozen)
        generator: torch.Generator | None = None,
    ) -> None:
        require_positive(input_size=input_size)
        head_size(hidden_size, num_heads)
        super().__init__()
        read_size = memory.read_heads * memory.width
        seen, said = input_size + read_size, hidden_size + read_size
        self.controller = LSTMCell(seen, hidden_size, num_heads, generator=generator)
        self.memory = _kind(memory)(hidden_size, memory, generator=generator)
        self.output = without_values(nn.Linear(said, hidden_size, bias=False, device="meta"))
        uniform_(self.output.weight, said**-0.5, generator)
        norm = nn.LayerNorm if memory.simple else nn.Identity
        self.input_norm, self.hidden_norm, self.output_norm = norm(seen), norm(hidden_size), norm(said)

    @staticmethod
    def num_parameters(
        input_size: int,
        hidden_size: int,
        num_heads: int = 1,
        memory: DNCMemory = DNCMemory(),  # noqa: B008 (frozen)
    ) -> int:
        """Parameters of a cell of these sizes, without building it."""
        read_size = memory.read_heads * memory.width
        seen, said = input_size + read_size, hidden_size + read_size
        maps = LSTMCell.num_parameters(seen, hidden_size, num_heads) + said * hidden_size
        norms = 2 * (seen + hidden_size + said) if memory.simple else 0
        return maps + norms + _kind(memory).num_parameters(hidden_size, memory)

    def initial_state(self, rows: int) -> DNCState:
        """Zeros, but for the first contents of a simple memory, on the device of the weights."""
        external, sizes = self.memory.initial_state(rows), self.memory.sizes
        reads = external.memory.new_zeros(rows, sizes.read_heads, sizes.width)
        return DNCState(self.controller.initial_state(rows), external, reads)

    def drive(self, x: Float[Tensor, "time rows input_size"]) -> Drive:
        """The input as it is: all that the cell computes needs its state."""
        return (x,)

    def step(self, drive_t: Drive, state: DNCState) -> tuple[Float[Tensor, "rows hidden_size"], DNCState]:
        """One step; the maps in the dtype of the weights, the memory in that of its state."""
        (x,) = drive_t
        seen = self.input_norm(torch.cat([x, state.reads.flatten(1).to(x.dtype)], dim=1))
        hidden, controller = self.controller(seen, state.controller)
        hidden = self.hidden_norm(hidden)
        reads, external = self.memory(hidden, state.external)
        said = torch.cat([hidden, reads.flatten(1).to(x.dtype)], dim=1)
        return self.output(self.output_norm(said)), DNCState(controller, external, reads)

    def forward(
        self, x_t: Float[Tensor, "rows input_size"], state: DNCState
    ) -> tuple[Float[Tensor, "rows hidden_size"], DNCState]:
        """One step from the raw input."""
        return self.step((x_t,), state)


def _kind(memory: DNCMemory) -> type[DynamicMemory] | type[SimpleMemory]:
    return SimpleMemory if memory.simple else DynamicMemory
