"""The rule of torch's own recurrent layers: `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells, on the weights
that they hold.

W x + b and R h + b' of a layer borrow the row factor a of R: the noise of a step is (b·x + β + b'·h + β') a,
two inner products and one pass over the gates. Steps run compiled where zorn's own cells would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from zorn.errors import ConfigError
from zorn.native import Summands, gru_step, lstm_step, scores, usable
from zorn.noise.layout import Layout
from zorn.noise.rules.rule import Rule
from zorn.noise.weights.member_noise import MemberNoise
from zorn.noise.weights.recurrent_forms import STEPS, Layer, State, in_time, run_stack

OPERATIONS = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}
"""torch's function for a module's `mode`."""


_COMPILED = (torch.lstm, torch.lstm_cell, torch.gru, torch.gru_cell)
"""Operations whose steps are compiled."""


class _Parts:
    """One layer in one direction: its parameters, and their names in the module.

    Args:
        module: the layer's.
        suffix: what its parameters' names end with: "_l0", "_l1_reverse", or nothing for a cell.
    """

    def __init__(self, module: nn.Module, suffix: str) -> None:
        self.weight, self.recurrent, self.bias, self.recurrent_bias, self.projection = (
            name + suffix for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        )
        self._module = module

    def __getitem__(self, name: str) -> Any:
        """A parameter, None where the layer has none."""
        return getattr(self._module, name, None)

    def layouts(self) -> dict[str, Layout]:
        """All maps of the layer have the row factor of R."""
        rows, units = self[self.recurrent].shape
        found = {
            self.weight: Layout(rows=rows, columns=self[self.weight].shape[1], row_source=self.recurrent),
            self.recurrent: Layout(rows=rows, columns=units),
        }
        for bias in (self.bias, self.recurrent_bias):
            if self[bias] is not None:
                found[bias] = Layout(rows=rows, row_source=self.recurrent)
        if self[self.projection] is not None:
            rows, columns = self[self.projection].shape
            found[self.projection] = Layout(rows=rows, columns=columns)
        return found


def _layers_of(module: nn.RNNBase) -> list[_Parts]:
    """Directions one after another, layer by layer."""
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    return [_Parts(module, f"_l{layer}{end}") for layer in range(module.num_layers) for end in suffixes]


class _Steps:
    """The steps of one layer under the noise of the members.

    Args:
        operation: torch's function.
        parts: the layer's.
        noise: of the module.
        x: [time, rows, inputs].
    """

    def __init__(self, operation: Any, parts: _Parts, noise: MemberNoise, x: Tensor) -> None:
        self._operation, self._parts, self._noise = operation, parts, noise
        self._of_gru = operation in (torch.gru, torch.gru_cell)
        owner = next((noise.factors[name] for name in parts.layouts() if name in noise.factors), None)
        self._a = None if owner is None else owner.rows
        weight, bias, recurrent_bias = parts[parts.weight], parts[parts.bias], parts[parts.recurrent_bias]
        self._recurrent_weight, self._projection = parts[parts.recurrent], parts[parts.projection]
        kernels = operation in _COMPILED and self._a is not None and self._projection is None
        self._compiles = kernels and x.dtype == torch.float32 and usable(x, self._recurrent_weight)
        rows_first, self._scores = x.transpose(0, 1).contiguous(), None
        if self._of_gru:  # its reset gate acts on R h + b' alone, so that the two sums stay apart
            drive = noise.affine_(F.linear(rows_first, weight, bias), rows_first, parts.weight, parts.bias)
            self.drive, offset = drive.transpose(0, 1), parts.recurrent_bias
        else:
            self.drive = F.linear(x, weight, bias if recurrent_bias is None else bias + recurrent_bias)
            offset = None
            found = self._input_scores(x, rows_first)
            more = noise.scores(x[0], "", parts.recurrent_bias)
            if more is not None:
                more = more.flatten(0, 2)
                found = more.expand(len(x), *more.shape) if found is None else found + more
            self._scores = None if found is None else found.contiguous()
        self._lanes = noise.lanes(x[0], parts.recurrent, offset, rows=self._a) if self._compiles else None
        self._bias = recurrent_bias if self._of_gru else None
        noise.visited = True

    def _input_scores(self, x: Tensor, rows_first: Tensor) -> Tensor | None:
        """b·x + β of the input, [time, rows, 1]; None where it has no noise."""
        parts, noise = self._parts, self._noise
        if self._compiles and (parts.weight in noise.factors or parts.bias in noise.factors):
            return scores(x, noise.lanes(x[0], parts.weight, parts.bias, rows=self._a))
        found = noise.scores(rows_first, parts.weight, parts.bias)
        return None if found is None else found.flatten(0, 2).transpose(0, 1)

    def __call__(self, t: int, state: State) -> State:
        """The state after time step t."""
        if self._compiles:
            product = torch.mm(state[0], self._recurrent_weight.t()).unsqueeze(0)
            if self._of_gru:
                summands = Summands(product, self._bias, self._lanes, None)
                return (gru_step(self.drive[t], summands, state[0], state[0])[1],)
            carried = None if self._scores is None else self._scores[t]
            summands = Summands(product, None, self._lanes, carried)
            return lstm_step(self.drive[t], summands, *state, output_last=True)
        done = STEPS[self._operation](self.drive[t], self._recurrent(t, state[0]), state)
        if self._projection is None:
            return done
        y = self._noise.affine_(F.linear(done[0], self._projection), done[0], self._parts.projection)
        return (y, *done[1:])

    def _recurrent(self, t: int, h: Tensor) -> Tensor:
        """R h + b' with its noise, and with that of W x + b where one score serves both."""
        parts, noise = self._parts, self._noise
        gates = F.linear(h, self._recurrent_weight, self._bias)
        if self._of_gru:
            return noise.affine_(gates, h, parts.recurrent, parts.recurrent_bias)
        found = noise.scores(h, parts.recurrent)
        if self._scores is not None:
            of_input = noise.split(self._scores[t])
            found = of_input if found is None else found + of_input
        return gates if self._a is None else noise.add_rows_(gates, found, self._a)


class TorchRecurrentRule(Rule):
    """`nn.LSTM`, `nn.GRU` and `nn.RNN`: any number of layers, both directions, projections, `batch_first`
    either way, packed sequences; states in torch's layout [layers · directions, rows, units]."""

    def layouts(self, module: nn.RNNBase) -> dict[str, Layout]:
        """One row factor for each layer and direction."""
        return {name: layout for parts in _layers_of(module) for name, layout in parts.layouts().items()}

    def perturbed(self, module: nn.RNNBase, noise: MemberNoise) -> dict[str, Callable[..., Any]]:
        """Called as the module is."""

        def forward(input: Tensor | PackedSequence, hx: Any = None) -> Any:
            lengths = None
            if isinstance(input, PackedSequence):
                x, lengths = pad_packed_sequence(input)
            else:
                x = input
                if x.dim() != 3:
                    raise ConfigError(
                        f"{noise.site} ({type(module).__name__}) was called with {tuple(x.shape)}: members "
                        "side by side need the batched form, [rows, time, inputs] or [time, rows, inputs]"
                    )
            batch_first = module.batch_first and lengths is None
            rows = x.shape[0 if batch_first else 1]
            hx = _zeros(module, x, rows) if hx is None else hx
            layer = _layer(module, noise, lengths)
            y, *states = run_stack(layer, x, hx, module.num_layers, module.bidirectional, batch_first)
            final = tuple(states) if len(states) > 1 else states[0]
            if isinstance(input, PackedSequence) and lengths is not None:
                return _packed_like(input, y, lengths), final
            return y, final

        return {"forward": forward}


def _layer(module: nn.RNNBase, noise: MemberNoise, lengths: Tensor | None) -> Layer:
    """A layer in one direction; where sequences have `lengths` of their own, a state stands still behind its
    end."""
    all_parts = _layers_of(module)

    def layer(number: int, x: Tensor, state: State, reverse: bool) -> tuple[Tensor, State]:
        steps = _Steps(OPERATIONS[module.mode], all_parts[number], noise, x)
        if lengths is None:
            return in_time(steps, len(x), state, reverse)

        ends = lengths.unsqueeze(1)

        def masked(t: int, state: State) -> State:
            inside = ends > t
            return tuple(map(lambda new, old: torch.where(inside, new, old), steps(t, state), state))

        return in_time(masked, len(x), state, reverse)

    return layer


def _zeros(module: nn.RNNBase, x: Tensor, rows: int) -> tuple[Tensor, ...]:
    """The states that torch begins with."""
    directions = module.num_layers * (1 + module.bidirectional)
    hidden = x.new_zeros(directions, rows, module.proj_size or module.hidden_size)
    return (hidden, x.new_zeros(directions, rows, module.hidden_size)) if module.mode == "LSTM" else (hidden,)


def _packed_like(packed: PackedSequence, y: Tensor, lengths: Tensor) -> PackedSequence:
    """Padded outputs [time, rows, units] in the order of the packed inputs."""
    order = packed.sorted_indices
    if order is not None:
        y, lengths = y.index_select(1, order), lengths.index_select(0, order.to(lengths.device))
    data = pack_padded_sequence(y, lengths).data
    return PackedSequence(data, packed.batch_sizes, order, packed.unsorted_indices)


class TorchCellRule(Rule):
    """`nn.LSTMCell`, `nn.GRUCell` and `nn.RNNCell`."""

    def layouts(self, module: nn.RNNCellBase) -> dict[str, Layout]:
        """One row factor for all."""
        return _Parts(module, "").layouts()

    def perturbed(self, module: nn.RNNCellBase, noise: MemberNoise) -> dict[str, Callable[..., Any]]:
        """Called as the module is."""
        if isinstance(module, nn.RNNCell):
            operation = torch.rnn_tanh_cell if module.nonlinearity == "tanh" else torch.rnn_relu_cell
        else:
            operation = torch.lstm_cell if isinstance(module, nn.LSTMCell) else torch.gru_cell
        parts = _Parts(module, "")

        def forward(input: Tensor, hx: Tensor | Sequence[Tensor] | None = None) -> Any:
            if hx is None:
                zeros = input.new_zeros(len(input), module.hidden_size)
                hx = (zeros, zeros) if isinstance(module, nn.LSTMCell) else zeros
            state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
            found = _Steps(operation, parts, noise, input.unsqueeze(0))(0, state)
            return found if isinstance(module, nn.LSTMCell) else found[0]

        return {"forward": forward}
