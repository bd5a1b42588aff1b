"""The recurrent operations of torch (`nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells) from their equations, for
members side by side: torch's own kernels know one set of weights a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Affine: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""W x + b of x, W and b, the noise of a member included."""
State: TypeAlias = tuple[Tensor, ...]


def lstm_step(drive: Tensor, recurrent: Tensor, state: State) -> State:
    """(h, c) from W_ih x + b_ih and W_hh h + b_hh, gates in torch's order i, f, g, o."""
    i, f, g, o = (drive + recurrent).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(drive: Tensor, recurrent: Tensor, state: State) -> State:
    """h, gates in torch's order r, z, n; the reset gate acts on W_hn h + b_hn."""
    (r, z, n), (of_r, of_z, of_n) = drive.chunk(3, -1), recurrent.chunk(3, -1)
    n = (n + (r + of_r).sigmoid() * of_n).tanh()
    return (n + (z + of_z).sigmoid() * (state[0] - n),)


def tanh_step(drive: Tensor, recurrent: Tensor, state: State) -> State:
    """h = tanh(W_ih x + b_ih + W_hh h + b_hh)."""
    del state
    return ((drive + recurrent).tanh(),)


def relu_step(drive: Tensor, recurrent: Tensor, state: State) -> State:
    """h = max(0, W_ih x + b_ih + W_hh h + b_hh)."""
    del state
    return ((drive + recurrent).relu(),)


STEPS: dict[Any, Callable[[Tensor, Tensor, State], State]] = {
    torch.lstm: lstm_step,
    torch.gru: gru_step,
    torch.rnn_tanh: tanh_step,
    torch.rnn_relu: relu_step,
    torch.lstm_cell: lstm_step,
    torch.gru_cell: gru_step,
    torch.rnn_tanh_cell: tanh_step,
    torch.rnn_relu_cell: relu_step,
}


Layer: TypeAlias = Callable[[int, Tensor, State, bool], tuple[Tensor, State]]
"""(number, x [time, rows, inputs], first state, whether time runs backwards) to outputs and last state."""


def run_stack(
    layer: Layer,
    x: Tensor,
    hx: Tensor | Sequence[Tensor],
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """The outputs of the last layer, and each last state, in the layouts of torch; directions are numbered
    one after another, layer by layer."""
    initial = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
    finals: list[State] = []
    if batch_first:
        x = x.transpose(0, 1)
    for first in range(0, layers * (1 + bidirectional), 1 + bidirectional):
        outputs = []
        for number in range(first, first + 1 + bidirectional):
            y, final = layer(number, x, tuple(state[number] for state in initial), number > first)
            outputs.append(y)
            finals.append(final)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    if batch_first:
        x = x.transpose(0, 1)
    return (x, *(torch.stack(states) for states in zip(*finals, strict=True)))


def in_time(
    step: Callable[[int, State], State], steps: int, state: State, reverse: bool
) -> tuple[Tensor, State]:
    """The outputs [time, rows, units] of a layer whose output is the first tensor of its state."""
    outputs: list[Tensor] = []
    for t in reversed(range(steps)) if reverse else range(steps):
        state = step(t, state)
        outputs.append(state[0])
    if reverse:
        outputs.reverse()
    return torch.stack(outputs), state


def run_layers(
    func: Any,
    affine: Affine,
    x: Tensor,
    hx: Tensor | Sequence[Tensor],
    params: list[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...] | None:
    """`torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu` of padded sequences, called as torch
    calls it; None where dropout acts between layers."""
    if dropout and train and layers > 1:
        return None
    each = len(params) // (layers * (1 + bidirectional))

    def layer(number: int, x: Tensor, state: State, reverse: bool) -> tuple[Tensor, State]:
        weight, recurrent, *further = params[number * each : (number + 1) * each]
        biases = further[:2] if has_biases else (None, None)
        projection = further[2 * has_biases :]
        drive = affine(x, weight, biases[0])

        def step(t: int, state: State) -> State:
            h, *rest = STEPS[func](drive[t], affine(state[0], recurrent, biases[1]), state)
            return (affine(h, projection[0], None) if projection else h, *rest)

        return in_time(step, len(drive), state, reverse)

    return run_stack(layer, x, hx, layers, bidirectional, batch_first)


def run_cell(
    func: Any,
    affine: Affine,
    x: Tensor,
    hx: Tensor | tuple[Tensor, ...] | list[Tensor],
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    recurrent_bias: Tensor | None = None,
) -> Tensor | State:
    """`torch.lstm_cell`, `torch.gru_cell`, `torch.rnn_tanh_cell` or `torch.rnn_relu_cell`, called as torch
    calls it."""
    state = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
    found = STEPS[func](affine(x, weight, bias), affine(state[0], recurrent, recurrent_bias), state)
    return found if isinstance(hx, tuple | list) else found[0]
