"""Recurrent cells under rank-one members on a GPU: a step, of a minGRU a chunk of steps, in one kernel.

The rules of a cell's maps have attached their noise; what they would run one by one, product, noise, gates
and new state, a kernel of `zorn.kernels` does at once, on the same bits. Where a map has a hook, a forward or
a rule that is not its own, where gradients are recorded, or where dtypes are mixed, the cell runs as the
rules have it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zorn.kernels import RankOneNoise, Twins, gru_step, lstm_step, min_gru_steps
from zorn.models import (
    BlockLinear,
    GRUCell,
    GRUState,
    LSTMCell,
    LSTMState,
    MinGRUCell,
    MinGRUState,
    RecurrentMap,
)
from zorn.models.cell import DRIVE_STEPS
from zorn.models.maps import Drive, has_hooks
from zorn.models.state import State
from zorn.noise.attach import Replace
from zorn.noise.draw import Draw
from zorn.noise.rules.rule import Replaced
from zorn.noise.rules.standard import BlockLinearRule, LinearRule, RecurrentMapRule
from zorn.noise.targets import Site
from zorn.noise.weights.member_noise import MemberNoise
from zorn.random import sign_words

Methods = dict[str, Callable[..., Any]]


class _Map(NamedTuple):
    """A cell's map under noise: its weight beside the signs as the kernels read them."""

    module: Any
    weight: Tensor
    noise: MemberNoise
    words: RankOneNoise

    def takes(self, *tensors: Tensor) -> bool:
        """True if a kernel may do the map's share of a step; the tensors must have the weight's dtype."""
        own = self.module.__dict__.get("forward")
        return (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and isinstance(own, Replaced)
            and not has_hooks(self.module)
            and all(tensor.dtype == self.weight.dtype for tensor in tensors)
        )


def fuse_cells(
    model: nn.Module,
    attached: Sequence[tuple[Site, MemberNoise]],
    draw: Draw,
    members: range,
    signs: tuple[int, ...],
    replace: Replace,
) -> None:
    """Put the kernels in place of the methods of the model's cells, on devices that have them, within a block
    in which the rules have attached the noise: rank-one, of signs."""
    sites = {id(site.module): (site, noise) for site, noise in attached}
    for cell in model.modules():
        fused = _FUSED.get(type(cell))
        if fused is None or {"drive", "step"} & cell.__dict__.keys():
            continue
        module = cell.get_submodule(fused.map)
        weight = getattr(module, fused.weight)
        site, noise = sites.get(id(module), (None, None))
        if site is None or noise is None or _RULES.get(type(module)) is not type(site.rule):
            continue  # its parameters are frozen, or its rule is not zorn's own
        if weight.is_contiguous() and fused.twins.serves(weight):
            words = _words(site, weight, draw, members, signs)
            replace(cell, fused.methods(cell, _Map(module, weight.detach(), noise, words)))


def _words(site: Site, weight: Tensor, draw: Draw, members: range, signs: tuple[int, ...]) -> RankOneNoise:
    """The signs of a map as the kernels read them."""
    targets = list(site.targets.values())  # all have the same row factor
    own = next((target for target in targets if target.parameter is weight), None)
    outputs, inputs = weight.shape[-2:]
    heads = weight.numel() // (outputs * inputs)
    scales = torch.tensor(signs, dtype=torch.float64) * draw.epsilon

    def table(stream: int, count: int) -> Tensor:
        return sign_words(draw.seed, draw.step, members, stream, count, device=weight.device)

    columns = None if own is None else table(own.column_stream, heads * inputs)
    rows = table(targets[0].row_stream, heads * outputs)
    return RankOneNoise(rows, columns, scales.to(weight.device, torch.float32))


def _lstm(cell: LSTMCell, map: _Map) -> Methods:
    """`step`; the drive of a noisy map carries the scores of the input."""
    plain = LSTMCell.step

    def step(drive_t: Drive, state: LSTMState) -> tuple[Tensor, State]:
        drive, *carried = drive_t
        if not map.takes(drive, state.hidden):
            return plain(cell, drive_t, state)
        map.noise.split(drive)
        scores = carried[0] if carried else None
        hidden, memory = lstm_step(drive, state.hidden, state.cell, map.weight, map.words, scores)
        return hidden, LSTMState(hidden, memory)

    return {"step": step}


def _gru(cell: GRUCell, map: _Map) -> Methods:
    """`step`; the drive has the noise of its own map in it."""
    if cell.state_map.bias is None:
        return {}
    plain, bias = GRUCell.step, cell.state_map.bias.detach()
    offsets = map.noise.factors.get("bias")

    def step(drive_t: Drive, state: GRUState) -> tuple[Tensor, State]:
        (drive,) = drive_t
        if not map.takes(drive):
            return plain(cell, drive_t, state)
        lanes = map.noise.split(drive)
        scores = None
        if offsets is not None:
            of_members = offsets.columns.squeeze(-1)  # [members, heads]
            scores = of_members[None, :, None].expand(*lanes.shape[:3], -1).flatten(0, 2)
        y, hidden = gru_step(drive, state.hidden, map.weight, bias, map.words, scores)
        return y, GRUState(hidden)

    return {"step": step}


def _min_gru(cell: MinGRUCell, map: _Map) -> Methods:
    """`rollout`, chunk by chunk: no gate reads the state, so that noise and recurrence are one pass."""
    if {"rollout", "parallel"} & cell.__dict__.keys():
        return {}
    weight, bias = cell.input_map.weight, cell.input_map.bias

    def rollout(x: Tensor, state: MinGRUState) -> tuple[Tensor, State] | None:
        if not map.takes(x):
            return None
        outputs, hidden = [], state.hidden
        for steps in x.split(DRIVE_STEPS):
            gates = F.linear(steps.contiguous(), weight, bias)
            rows_first = steps.transpose(0, 1)
            scores = map.noise.scores(rows_first, "weight", "bias")
            assert scores is not None
            scores = scores.flatten(0, 2).squeeze(-1).t()  # [time, rows]
            y, hidden = min_gru_steps(gates, hidden, map.words, scores)
            outputs.append(y)
        return torch.cat(outputs), MinGRUState(hidden)

    return {"rollout": rollout}


class _Fused(NamedTuple):
    """The kernel of a type of cell, the names of its map and of that map's weight, and the methods."""

    twins: Twins
    map: str
    weight: str
    methods: Callable[[Any, _Map], Methods]


_FUSED: dict[type[nn.Module], _Fused] = {
    LSTMCell: _Fused(lstm_step, "map", "weight_state", _lstm),
    GRUCell: _Fused(gru_step, "state_map", "weight", _gru),
    MinGRUCell: _Fused(min_gru_steps, "input_map", "weight", _min_gru),
}

_RULES: dict[type[nn.Module], type] = {
    RecurrentMap: RecurrentMapRule,
    BlockLinear: BlockLinearRule,
    nn.Linear: LinearRule,
}
"""The rules whose noise the kernels have; one that a user has registered in their place is left to run."""
