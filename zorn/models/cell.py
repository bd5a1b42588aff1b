"""A recurrent cell is one pure step; `run` takes it over a chunk of time."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zorn.errors import ZornError
from zorn.models.fast_paths import fast_rollout
from zorn.models.maps import Drive
from zorn.models.state import State
from zorn.settings import docstring_of

DRIVE_STEPS = 8
"""Steps whose drive is made at once: enough for an efficient product, few enough to stay in the cache."""


@runtime_checkable
class RecurrentCell(Protocol):
    """The methods of a cell that `run` calls. Tensors are time-major, and no argument is ever modified."""

    def initial_state(self, rows: int) -> State:
        """The state before the first step."""
        ...

    def drive(self, x: Tensor) -> Drive:
        """The part of `[time, rows, k]` steps that needs no state: tensors `[time, rows, …]`."""
        ...

    def step(self, drive_t: Drive, state: State) -> tuple[Tensor, State]:
        """One step: output `[rows, H]` and the next state."""
        ...


@runtime_checkable
class ParallelCell(RecurrentCell, Protocol):
    """A cell that can also take a whole chunk of time at once, its recurrence being a scan."""

    def parallel(self, drive: Drive, state: State) -> tuple[Tensor, State]:
        """All steps of a drive: outputs `[time, rows, H]` and the last state; equal to step after step."""
        ...


class Cell(nn.Module):
    """Base of cells: a `RecurrentCell` that says of itself what estimators and the command line ask.

    A cell is made as `cell(input_size, hidden_size, num_heads, generator=…, **settings)`, its settings being
    the further arguments of its constructor. It implements `initial_state`, `drive` and `step`. zorn's cells
    are those of `CELLS`; `LanguageModel` takes the class of any other.

    Noise on the state in place of noise on every gate (`zorn.ActivityCredit`) is for cells that say where
    the state is: instead of `step` they implement `advance(drive_t, state)`, the new state `[rows, units]`,
    and `read(new, state)`, the output and the state made of it.

    Args:
        input_size: k, at least 1.
        hidden_size: H, at least 1, a multiple of `num_heads`.
        num_heads: blocks of the recurrent weight, at least 1; 1 is dense.
        generator: source of the first values; None is torch's global one.

    Attributes:
        input_maps: names of the modules inside that read the input alone.
        state_maps: names of the modules inside whose last input is the state: the paths that `EProp` leaves
            out. Nothing but a call may read the weights of these and of `input_maps`.
    """

    input_maps: ClassVar[tuple[str, ...]] = ()
    state_maps: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__doc__ = docstring_of(cls)

    def initial_state(self, rows: int) -> Any:
        """The state before the first step; the first dimension of every tensor is rows."""
        raise NotImplementedError

    def drive(self, x: Tensor) -> Drive:
        """The part of `[time, rows, k]` steps that needs no state; by default the input as it is."""
        return (x,)

    def step(self, drive_t: Drive, state: Any) -> tuple[Tensor, Any]:
        """One step: output `[rows, H]` and the next state; by default `read` of what `advance` gives."""
        return self.read(self.advance(drive_t, state), state)

    def advance(self, drive_t: Drive, state: Any) -> Tensor:
        """The new state of every unit, `[rows, units]`, a tensor of its own, differentiable."""
        raise NotImplementedError

    def read(self, new: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The output `[rows, H]` and the next state of what `advance` gave, with or without noise on it."""
        raise NotImplementedError

    def forward(self, x_t: Float[Tensor, "rows input_size"], state: Any) -> tuple[Tensor, Any]:
        """One step from the raw input: output `[rows, H]` and the next state."""
        return self.step(tuple(part[0] for part in self.drive(x_t.unsqueeze(0))), state)


def run(
    cell: RecurrentCell, x: Float[Tensor, "time rows input_size"], state: State
) -> tuple[Float[Tensor, "time rows hidden_size"], State]:
    """Take `cell` over a chunk of time: outputs of every step, and the state to carry into the next chunk.

    Equal to calling the cell step by step; only faster, since one product serves the input of several
    steps. A `ParallelCell` runs in parallel where gradients are recorded, as in BPTT: autograd keeps every
    step there anyway, so that memory proportional to time is no loss. Without gradients, as under every
    zero-order estimator, each cell goes step by step and holds no more than its state, its outputs and the
    drive of a few steps; where a cell has a fast path (`zorn.models.fast_paths`), that runs in place of it.
    The state that comes in is left as it was.

    Raises:
        ZornError: a chunk without a time step.

    >>> from zorn.models import LSTMCell
    >>> cell = LSTMCell(3, 8)
    >>> y, state = run(cell, torch.zeros(10, 5, 3), cell.initial_state(rows=5))
    >>> y.shape, state.cell.shape
    (torch.Size([10, 5, 8]), torch.Size([5, 8]))
    """
    if x.shape[0] == 0:
        raise ZornError(f"the input {tuple(x.shape)} [time, rows, size] has no time step: give at least one.")
    if torch.is_grad_enabled() and isinstance(cell, ParallelCell):
        return cell.parallel(cell.drive(x), state)
    rollout = getattr(cell, "rollout", None)
    done = fast_rollout(cell, x, state) if rollout is None else rollout(x, state)
    if done is not None:
        return done
    outputs = []
    for steps in x.split(DRIVE_STEPS):
        for drive_t in zip(*(part.unbind(0) for part in cell.drive(steps)), strict=True):
            y, state = cell.step(drive_t, state)
            outputs.append(y)
    return torch.stack(outputs), state
