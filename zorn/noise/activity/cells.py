"""Activity noise on the state of recurrent cells, in place of noise on every gate.

A gate acts through the new state of its own unit alone. The derivative of one step there is elementwise and
known, so noise on the state serves all gates. It has fewer dimensions a step: H for the GRU and the minGRU
instead of 6 H and 2 H; 2 H for the LSTM instead of 4 H (its memory c, and the output gate, which does not act
on c). The mean is the same, the variance smaller.

The scale of the noise, for elements a and b of the state, has a best value. Let

    E_b = (∂loss / ∂element b)²                   the loss's sensitivity to element b
    w_a = ‖pullback of element a‖²                element a's weight in the gradient
    variance = Σ_b σ_b² E_b · Σ_a w_a / σ_a²      for noise of scale σ_a on element a

By the Cauchy-Schwarz inequality the variance is least at σ_a = (w_a / E_a)^¼. This lies half way between
noise of one size at the gates and noise of one size at the outputs. The factors that one step contributes to
w and E are elementwise and known from the sequence so far. They make the unit of the noise on an LSTM's
state. The unit is computed from every row's own state, noisy or not, which changes the mean by O(ε²) only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from zorn.models import Cell, GRUCell, LSTMCell, LSTMState, MinGRUCell, map_state
from zorn.models.gru import GRUState
from zorn.models.maps import Drive
from zorn.models.min_gru import MinGRUState
from zorn.models.state import State
from zorn.noise.activity.site import SiteActivity
from zorn.noise.rules.rule import Replaced
from zorn.noise.rules.standard import block_products

STATE_UNIT = 2.0
"""The noise of a cell is ε times its unit times this, since the embedding before it needs half as much."""

LEAST_GAIN = 0.01
"""Added to w^½ and E^½ of an element, so that the noise on a saturated one is neither zero nor unbounded."""

KEPT_MEMORY = 0.3
"""Added to E^½ of an LSTM's memory: its effect on later steps, even where its output gate is closed now."""


class CellRule(ABC):
    """Activity noise on the state of one type of cell: `Rule.active` and `Rule.pullback` for a whole cell.

    Parameters have their names within the cell.

    Attributes:
        own_unit: the rule perturbs each element in a unit of its own, so that ε needs no other.
    """

    own_unit: ClassVar[bool] = False

    def active(self, cell: Any, site: SiteActivity) -> dict[str, Callable[..., Any]]:
        """The methods to replace: `step`, and `drive`, with the cell's input at the end."""
        plain = type(cell).drive
        return {"drive": lambda x: (*plain(cell, x), x), "step": partial(self.step, cell, site)}

    @abstractmethod
    def step(self, cell: Any, site: SiteActivity, drive_t: Drive, state: Any) -> tuple[Tensor, State]:
        """The cell's step, which passes a part of its state through `site.at`."""

    @abstractmethod
    def pullback(self, cell: Any, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """The gradient of the cell's parameters from a gradient at the noisy state, summed over rows."""


class _LSTMStep(NamedTuple):
    """One step of an LSTM: sigmoids of its gates, tanh of its update, the new memory, and the units of the
    noise on output gate and memory, all [rows, heads, d]."""

    i: Tensor
    f: Tensor
    o: Tensor
    u: Tensor
    memory: Tensor
    output_unit: Tensor
    memory_unit: Tensor


def _lstm_step(cell: LSTMCell, gates: Tensor, before: Tensor) -> tuple[Tensor, _LSTMStep]:
    """The output gate before its nonlinearity, and the rest."""
    i, f, o, u = gates.view(len(gates), cell.num_heads, 4, -1).to(before.dtype).unbind(2)
    before = before.view(i.shape)
    i, f, opened, u = i.sigmoid(), f.sigmoid(), o.sigmoid(), u.tanh()
    memory = torch.addcmul(f * before, i, u)
    shown = memory.tanh()
    felt_output = (opened * (1 - opened)).mul_(shown.abs())  # |dh / do|
    felt_memory = (1 - shown * shown).mul_(opened)  # dh / dc
    to_i, to_f, to_u = (1 - i).mul_(i).mul_(u), (1 - f).mul_(f).mul_(before), (1 - u * u).mul_(i)
    handed_on = to_i.square_().addcmul_(to_f, to_f).addcmul_(to_u, to_u).sqrt_()
    output_unit = felt_output.add_(LEAST_GAIN).rsqrt_().mul_(STATE_UNIT)
    memory_unit = handed_on.add_(LEAST_GAIN).div_(felt_memory.add_(KEPT_MEMORY)).sqrt_().mul_(STATE_UNIT)
    return o, _LSTMStep(i, f, opened, u, memory, output_unit, memory_unit)


class LSTMRule(CellRule):
    """Noise on the output gate before its nonlinearity, and on the memory before the output is read off, each
    element in its unit."""

    own_unit: ClassVar[bool] = True

    def step(
        self, cell: LSTMCell, site: SiteActivity, drive_t: Drive, state: LSTMState
    ) -> tuple[Tensor, State]:
        """Both parts of the noise in one."""
        plain, x = drive_t
        gates = cell.map((plain,), state.hidden)
        o, found = _lstm_step(cell, gates, state.cell)
        unit = torch.cat([found.output_unit.flatten(1), found.memory_unit.flatten(1)], dim=1)
        quiet = torch.cat([o.flatten(1), found.memory.flatten(1)], dim=1).div_(unit)
        o, memory = (site.at(quiet, x, state.hidden, state.cell, gates) * unit).chunk(2, dim=1)
        hidden = (o.sigmoid() * memory.tanh()).to(state.hidden.dtype)
        return hidden, LSTMState(hidden, memory)

    def pullback(self, cell: LSTMCell, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """Through c' = σ(f) c + σ(i) tanh(u) to the gates, and through them to the weights."""
        x, h, before, gates = inputs
        _, step = _lstm_step(cell, gates, before)
        to_output, to_memory = (part.reshape(step.i.shape) for part in gradient.chunk(2, dim=1))
        to_output, to_memory = to_output / step.output_unit, to_memory / step.memory_unit
        i, f, u = step.i, step.f, step.u
        to_gates = [
            to_memory * u * i * (1 - i),
            to_memory * before.view(i.shape) * f * (1 - f),
            to_output,
            to_memory * i * (1 - u * u),
        ]
        total = torch.stack(to_gates, dim=2).flatten(1).to(gates.dtype)
        return {
            "map.weight_input": total.mT @ x,
            "map.weight_state": block_products(cell.map.weight_state.shape, total, h),
            "map.bias": total.sum(0),
        }


class GRURule(CellRule):
    """Noise on the new state."""

    def step(
        self, cell: GRUCell, site: SiteActivity, drive_t: Drive, state: GRUState
    ) -> tuple[Tensor, State]:
        """The new state passes."""
        drive, x = drive_t
        recurrent = cell.state_map(state.hidden.to(drive.dtype))
        _, update, candidate, _ = _gru_gates(cell, drive, recurrent, state.hidden.dtype)
        hidden = candidate.lerp(state.hidden.view(candidate.shape), update).flatten(1)
        hidden = site.at(hidden, x, state.hidden, drive, recurrent)
        return hidden.to(drive.dtype), GRUState(hidden)

    def pullback(self, cell: GRUCell, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """Through h' = (1 − z) n + z h to the gates, and through them to both maps."""
        x, h, drive, recurrent = inputs
        r, z, n, h_n = _gru_gates(cell, drive, recurrent, gradient.dtype)
        g = gradient.view(n.shape)
        to_n = g * (1 - z) * (1 - n * n)
        to_z = g * (h.to(g.dtype).view(n.shape) - n) * z * (1 - z)
        to_r = to_n * h_n * r * (1 - r)
        to_input = torch.stack([to_r, to_z, to_n], dim=2).flatten(1).to(drive.dtype)
        to_state = torch.stack([to_r, to_z, to_n * r], dim=2).flatten(1).to(drive.dtype)
        return {
            "input_map.weight": to_input.mT @ x,
            "input_map.bias": to_input.sum(0),
            "state_map.weight": block_products(cell.state_map.weight.shape, to_state, h.to(drive.dtype)),
            "state_map.bias": to_state.sum(0),
        }


def _gru_gates(
    cell: GRUCell, drive: Tensor, recurrent: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """r, z, n and h_n, each [rows, heads, d]."""
    gates = (len(drive), cell.num_heads, 3, -1)
    x_r, x_z, x_n = drive.to(dtype).view(gates).unbind(2)
    h_r, h_z, h_n = recurrent.to(dtype).view(gates).unbind(2)
    r = (x_r + h_r).sigmoid()
    return r, (x_z + h_z).sigmoid(), torch.addcmul(x_n, r, h_n).tanh(), h_n


class MinGRURule(CellRule):
    """Noise on the new state."""

    def step(
        self, cell: MinGRUCell, site: SiteActivity, drive_t: Drive, state: MinGRUState
    ) -> tuple[Tensor, State]:
        """The new state passes."""
        z, candidate, x = drive_t
        hidden = site.at(state.hidden.lerp(candidate, z), x, state.hidden, z, candidate)
        return hidden.to(cell.input_map.weight.dtype), MinGRUState(hidden)

    def pullback(self, cell: MinGRUCell, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """Through h' = (1 − z) h + z h̃ to both halves of the map."""
        x, h, z, candidate = inputs
        slope = torch.where(candidate >= 0.5, 1.0, candidate * (1 - candidate))
        to_k, to_c = gradient * (candidate - h) * z * (1 - z), gradient * z * slope
        total = torch.cat([to_k, to_c], dim=1).to(x.dtype)
        return {"input_map.weight": total.mT @ x, "input_map.bias": total.sum(0)}


class StateRule(CellRule):
    """Noise on what `advance` gives; the derivative of one step is autograd's. For any cell that has
    `advance` and `read`."""

    def step(self, cell: Cell, site: SiteActivity, drive_t: Drive, state: State) -> tuple[Tensor, State]:
        """The new state passes."""
        *drive, x = drive_t
        new = cell.advance(tuple(drive), state)
        parts: list[Tensor] = []
        map_state(lambda part: parts.append(part) or part, state)
        return cell.read(site.at(new, x, *parts), state)

    def pullback(self, cell: Cell, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """Autograd of `advance`, called again with the input and the state."""
        named = {name: p for name, p in cell.named_parameters() if p.requires_grad}
        with torch.inference_mode(mode=False), torch.enable_grad():
            x, *parts = (tensor.clone() for tensor in inputs)
            left = iter(parts)
            state = map_state(lambda _: next(left), cell.initial_state(1))
            drive = type(cell).drive(cell, x.unsqueeze(0))
            new = cell.advance(tuple(part[0] for part in drive), state)
            found = torch.autograd.grad(
                new, list(named.values()), gradient.clone().to(new.dtype), materialize_grads=True
            )
        return dict(zip(named, found, strict=True))


_RULES: dict[type[nn.Module], CellRule] = {LSTMCell: LSTMRule(), GRUCell: GRURule(), MinGRUCell: MinGRURule()}
"""Rules that are faster than `StateRule`, or have a unit of their own, by the type of the cell."""


def find_cell_rule(module: nn.Module) -> CellRule | None:
    """The rule of a cell; None for any other module, and where someone has put methods or hooks of their own
    on it or on a map inside."""
    if any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules()):
        return None
    if any(not isinstance(module.__dict__.get(name), Replaced | None) for name in ("drive", "step")):
        return None
    known = _RULES.get(type(module))
    if known is None and isinstance(module, Cell) and type(module).advance is not Cell.advance:
        return StateRule()
    return known
