"""LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), block-diagonal over heads.

Letters: k = input size, H = hidden size, d = H / heads units per head (arXiv 2505.17852, 2025).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zorn.models.cell import Cell
from zorn.models.fast_paths import fast_step
from zorn.models.initialise import Source
from zorn.models.maps import Drive, RecurrentMap


class LSTMState(NamedTuple):
    """State of an `LSTMCell`; `cell` is never below float32, so that small increments are not lost."""

    hidden: Float[Tensor, "rows hidden_size"]
    cell: Float[Tensor, "rows hidden_size"]


class LSTMCell(Cell):
    """One pure step of an LSTM; with one head the equations of `torch.nn.LSTM`, less its second, redundant,
    bias.

    (i, f, o, u) = W x + R h + b, R block-diagonal over heads;
    c' = σ(f) c + σ(i) tanh(u);  h' = σ(o) tanh(c').
    First values: Uniform(−1/√H, 1/√H), with 1 added to the bias of the forget gate (Jozefowicz et al. 2015).

    Raises:
        ConfigError: a size below 1, or a hidden size that the heads do not divide.

    >>> cell = LSTMCell(input_size=3, hidden_size=8, num_heads=2)
    >>> y, state = cell(torch.ones(5, 3), cell.initial_state(rows=5))
    >>> y.shape, bool((y == state.hidden).all())
    (torch.Size([5, 8]), True)
    """

    state_maps = ("map",)

    def __init__(
        self, input_size: int, hidden_size: int, num_heads: int = 1, *, generator: Source = None
    ) -> None:
        super().__init__()
        self.map = RecurrentMap(input_size, hidden_size, 4, num_heads, generator=generator)
        self.hidden_size, self.num_heads = hidden_size, num_heads
        with torch.no_grad():
            self.map.bias.view(num_heads, 4, -1)[:, 1] += 1

    def initial_state(self, rows: int) -> LSTMState:
        """Zeros `[rows, H]` on the device of the weights, in their dtype; `cell` never below float32."""
        hidden = self.map.bias.new_zeros(rows, self.hidden_size)
        return LSTMState(hidden, hidden.to(torch.promote_types(hidden.dtype, torch.float32)))

    def drive(self, x: Float[Tensor, "time rows input_size"]) -> Drive:
        """The part of the gates that needs no state, for a chunk of time."""
        return self.map.drive(x)

    def step(self, drive_t: Drive, state: LSTMState) -> tuple[Float[Tensor, "rows hidden_size"], LSTMState]:
        """One step from one time slice of the drive; gate arithmetic in the dtype of `state.cell`.

        Compiled on the CPU where nothing is recorded; the step in torch below is its reference.
        """
        done = fast_step(self, drive_t, state)
        if done is not None:
            return done
        gates, dtype = self.map(drive_t, state.hidden), state.cell.dtype
        i, f, o, u = gates.view(len(gates), self.num_heads, 4, -1).unbind(2)
        # Gate by gate: a float32 copy of all four would fall out of the cache.
        cell = f.to(dtype).sigmoid() * state.cell.view(i.shape)
        cell = cell.addcmul_(i.to(dtype).sigmoid(), u.to(dtype).tanh())
        hidden = (o.to(dtype).sigmoid() * cell.tanh()).to(state.hidden.dtype).flatten(1)
        return hidden, LSTMState(hidden, cell.flatten(1))
