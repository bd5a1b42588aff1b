"""GRU (Cho et al. 2014) in the form that resets after the state's product, block-diagonal over heads.

Letters: k = input size, H = hidden size, d = H / heads units per head.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zorn.models.cell import Cell
from zorn.models.fast_paths import fast_step
from zorn.models.initialise import Source, linear
from zorn.models.maps import BlockLinear, Drive
from zorn.models.sizes import head_size, require_positive


class GRUState(NamedTuple):
    """State of a `GRUCell`; never below float32, so that small increments are not lost."""

    hidden: Float[Tensor, "rows hidden_size"]


class GRUCell(Cell):
    """One pure step of a GRU; with one head the equations of `torch.nn.GRU`.

    (x_r, x_z, x_n) = W x + b;  (h_r, h_z, h_n) = R h + b', R block-diagonal over heads;
    r = σ(x_r + h_r);  z = σ(x_z + h_z);  n = tanh(x_n + r h_n);  h' = (1 − z) n + z h.
    First values: Uniform(−1/√H, 1/√H).

    Raises:
        ConfigError: a size below 1, or a hidden size that the heads do not divide.

    >>> cell = GRUCell(input_size=3, hidden_size=8, num_heads=2)
    >>> y, state = cell(torch.ones(5, 3), cell.initial_state(rows=5))
    >>> y.shape, bool((y == state.hidden).all())
    (torch.Size([5, 8]), True)
    """

    input_maps = ("input_map",)
    state_maps = ("state_map",)

    def __init__(
        self, input_size: int, hidden_size: int, num_heads: int = 1, *, generator: Source = None
    ) -> None:
        require_positive(input_size=input_size)
        head_size(hidden_size, num_heads)
        super().__init__()
        self.input_map = linear(input_size, 3 * hidden_size, bound=hidden_size**-0.5, generator=generator)
        self.state_map = BlockLinear(hidden_size, 3 * hidden_size, num_heads, generator=generator)
        self.hidden_size, self.num_heads = hidden_size, num_heads

    def initial_state(self, rows: int) -> GRUState:
        """Zeros `[rows, H]` on the device of the weights, in their dtype but never below float32."""
        weight = self.state_map.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return GRUState(weight.new_zeros(rows, self.hidden_size, dtype=dtype))

    def drive(self, x: Float[Tensor, "time rows input_size"]) -> Drive:
        """The part of the gates that needs no state, for a chunk of time; the map sees rows first."""
        return (self.input_map(x.transpose(0, 1).contiguous()).transpose(0, 1),)

    def step(self, drive_t: Drive, state: GRUState) -> tuple[Float[Tensor, "rows hidden_size"], GRUState]:
        """One step from one time slice of the drive; gate arithmetic in the dtype of the state.

        Compiled on the CPU where nothing is recorded; the step in torch below is its reference.
        """
        done = fast_step(self, drive_t, state)
        if done is not None:
            return done
        (drive,) = drive_t
        dtype, gates = state.hidden.dtype, (len(drive), self.num_heads, 3, -1)
        x_r, x_z, x_n = drive.to(dtype).view(gates).unbind(2)
        h_r, h_z, h_n = self.state_map(state.hidden.to(drive.dtype)).to(dtype).view(gates).unbind(2)
        candidate = torch.addcmul(x_n, (x_r + h_r).sigmoid(), h_n).tanh()
        hidden = candidate.lerp(state.hidden.view(candidate.shape), (x_z + h_z).sigmoid()).flatten(1)
        return hidden.to(drive.dtype), GRUState(hidden)
