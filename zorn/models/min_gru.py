"""minGRU (Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, arXiv 2410.01201): gates of the input alone.

Letters: k = input size, H = hidden size.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zorn.errors import ConfigError
from zorn.models.cell import Cell
from zorn.models.initialise import Source, linear
from zorn.models.maps import Drive
from zorn.models.scan import linear_scan
from zorn.models.sizes import require_positive


class MinGRUState(NamedTuple):
    """State of a `MinGRUCell`; never below float32, so that small increments are not lost."""

    hidden: Float[Tensor, "rows hidden_size"]


class MinGRUCell(Cell):
    """One pure step of a minGRU, in the form whose state stays positive (appendix of the paper).

    (k, c) = W x + b;  z = σ(k);  h̃ = c + ½ where c ≥ 0, else σ(c);  h' = (1 − z) h + z h̃.
    No gate reads the state, so that the recurrence is linear in it and a chunk of time is one `linear_scan`
    (`parallel`). The first state is ½, what the paper's form makes of a state of 0.
    First values: Uniform(−1/√k, 1/√k), those of `nn.Linear`.

    Args:
        num_heads: 1. Heads are the blocks of a recurrent weight, and this cell has none.

    Raises:
        ConfigError: a size below 1, or more than one head.

    >>> cell = MinGRUCell(input_size=3, hidden_size=8)
    >>> y, state = cell(torch.ones(5, 3), cell.initial_state(rows=5))
    >>> y.shape, bool((y > 0).all())
    (torch.Size([5, 8]), True)
    """

    input_maps = ("input_map",)
    state_maps = ()

    def __init__(
        self, input_size: int, hidden_size: int, num_heads: int = 1, *, generator: Source = None
    ) -> None:
        require_positive(input_size=input_size, hidden_size=hidden_size)
        if num_heads != 1:
            raise ConfigError(
                f"num_heads must be 1 in a minGRU, got {num_heads!r}: heads are blocks of a recurrent "
                "weight, and it has none; take another cell"
            )
        super().__init__()
        self.input_map = linear(input_size, 2 * hidden_size, generator=generator)
        self.hidden_size, self.num_heads = hidden_size, num_heads

    def initial_state(self, rows: int) -> MinGRUState:
        """Halves `[rows, H]` on the device of the weights, in their dtype but never below float32."""
        weight = self.input_map.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return MinGRUState(weight.new_full((rows, self.hidden_size), 0.5, dtype=dtype))

    def drive(self, x: Float[Tensor, "time rows input_size"]) -> Drive:
        """(z, h̃) of a chunk of time, `[time, rows, H]` and never below float32; the map sees rows first."""
        gates = self.input_map(x.transpose(0, 1).contiguous()).transpose(0, 1)
        k, c = gates.to(torch.promote_types(gates.dtype, torch.float32)).chunk(2, dim=-1)
        # σ(c) is above c + ½ exactly where c < 0; the maximum of both is faster than torch.where.
        return k.sigmoid(), torch.maximum(c + 0.5, c.sigmoid())

    def step(
        self, drive_t: Drive, state: MinGRUState
    ) -> tuple[Float[Tensor, "rows hidden_size"], MinGRUState]:
        """One step from one time slice of the drive: a single elementwise operation."""
        z, candidate = drive_t
        hidden = state.hidden.lerp(candidate, z)
        return hidden.to(self.input_map.weight.dtype), MinGRUState(hidden)

    def parallel(
        self, drive: Drive, state: MinGRUState
    ) -> tuple[Float[Tensor, "time rows hidden_size"], MinGRUState]:
        """All steps of a drive at once; equal to `step` after `step`, in memory proportional to time."""
        z, candidate = drive
        hidden = linear_scan(1 - z, z * candidate, state.hidden)
        # The state is a copy: a view would keep the whole chunk in memory.
        return hidden.to(self.input_map.weight.dtype), MinGRUState(hidden[-1].clone())
