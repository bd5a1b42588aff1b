"""The noise of the members that share one forward pass, as a rule sees it.

Rows lie as [signs, members, group], flattened. No factor is expanded over signs or group: tensors are viewed
as (S, M, g, …) and the members' factors broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zorn.errors import ConfigError
from zorn.native import LaneNoise, add_rank_one_, usable
from zorn.noise.layout import Layout


@dataclass
class Factors:
    """The factors of one parameter's noise: z = a bᵀ, for every member.

    Args:
        layout: of the parameter.
        rows: a, [members, blocks, rows].
        columns: b, [members, blocks, columns]; ones for one column with a row factor of its own (a vector, or
            the weight of a layer with one input), whose noise is a.
    """

    layout: Layout
    rows: Tensor
    columns: Tensor

    def rows_at(self, index: Tensor) -> Tensor:
        """Entries of a in block 0 that an index [S, M, …] names, each of its own member: of its shape."""
        members = torch.arange(index.shape[1], device=index.device)
        return self.rows[members.view(-1, *(1,) * (index.dim() - 2)), 0, index]

    def rows_between(self, first: int, last: int) -> Tensor:
        """Entries first .. last of a in every block, [members, blocks, last − first]."""
        return self.rows[:, :, first:last]


class MemberNoise:
    """The noise of the members in one forward pass: it adds each row's own perturbation to an output.

    A `Rule` gets one. `affine_`, `lookup_`, `scale` and `shift_` serve most layers. They are built from
    `split`, `signed` and `factors`, which serve the others.

    Args:
        factors: of the site's perturbed parameters by their names in the module; frozen ones are absent.
        signs: [S] tensor of the signs evaluated side by side (+1, −1).
        members: M, their number.
        group: g, the sequences of a member in this pass; None: whatever the number of rows gives.
        epsilon: ε.
        site: the module's name, for messages.
    """

    def __init__(
        self,
        factors: dict[str, Factors],
        *,
        signs: Tensor,
        members: int,
        group: int | None,
        epsilon: float,
        site: str,
    ) -> None:
        self.factors, self.members, self.signs, self.site = factors, members, len(signs), site
        self.visited, self._group = False, group
        self._lane_noise: dict[tuple[str, str | None], LaneNoise] = {}
        scale = signs.double() * epsilon
        self._scales = {dtype: scale.to(dtype) for dtype in (torch.float32, torch.float64)}

    def rows_of(self, index: Tensor) -> Tensor:
        """`index` with rows in front: an index without them, [time] or [1, time] as of positions, is every
        row's.

        One that has them is returned as it is, and so is any where all rows belong to one member and sign.
        """
        lanes = self.signs * self.members
        if lanes == 1 or self._group is None or index.dim() == 0 or len(index) == lanes * self._group:
            return index
        shared = index.unsqueeze(0) if index.dim() == 1 else index
        return shared.expand(lanes * self._group, *shared.shape[1:]) if len(shared) == 1 else index

    def split(self, x: Tensor) -> Tensor:
        """`x` with its rows viewed as (S, M, g): [S·M·g, ..] to [S, M, g, ..].

        Raises:
            ConfigError: the first dimension does not hold the rows.
        """
        return x.unflatten(0, (self.signs, self.members, self._sequences(x)))

    def _sequences(self, x: Tensor) -> int:
        """g of the rows of `x`, checked; the module has been visited then."""
        rows, pairs = len(x), self.signs * self.members
        if rows % pairs or (self._group is not None and rows != pairs * self._group and pairs > 1):
            expected = f"{pairs * self._group}" if self._group else f"a multiple of {pairs}"
            raise ConfigError(
                f"module {self.site!r} was called with a tensor of shape {tuple(x.shape)}; members side by "
                f"side need the rows in front (expected {expected}: {self.signs} signs × {self.members} "
                "members × their sequences). Keep the batch in front in the model's forward, or use the "
                "Dense structure"
            )
        self.visited = True
        return rows // pairs

    def lanes(self, x: Tensor, weight: str, bias: str | None = None, rows: Tensor | None = None) -> LaneNoise:
        """The noise of W x + b as the compiled kernels take it; x: [rows, …].

        `rows` is a, [members, blocks, rows], where it is not that of the weight or the bias.

        Raises:
            ConfigError: the first dimension does not hold the rows.
        """
        self._sequences(x)
        found = self._lane_noise.get((weight, bias))
        if found is None:
            column, offset = self.factors.get(weight), self.factors.get(bias or "")
            owner = column or offset or next(iter(self.factors.values()))
            found = self._lane_noise[weight, bias] = LaneNoise(
                self._scales[torch.float32],
                owner.rows if rows is None else rows,
                None if column is None else column.columns,
                None if offset is None else offset.columns,
            )
        return found

    def moved(self, parameter: Tensor, name: str, lane: int) -> Tensor:
        """θ + s ε z of one lane; lane l holds the rows of sign l // M and member l % M, in their order.

        Summed at least in float32, then rounded to the parameter's dtype. For a layout of one column and a
        row factor of its own.
        """
        sign, member = divmod(lane, self.members)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        z = self.factors[name].rows[member].to(wide)
        scale = float(self._scales[torch.float64][sign])
        moved = torch.add(parameter.to(wide), z.view(parameter.shape), alpha=scale)
        return moved.to(parameter.dtype)

    def signed(self, scores: Tensor, trailing: int) -> Tensor:
        """`scores` [.., S, M, g, `trailing` more] times each row's s ε, multiplied at least in float32."""
        wide = torch.promote_types(scores.dtype, torch.float32)
        return (scores * self._scales[wide].view(-1, *(1,) * (2 + trailing))).to(scores.dtype)

    def scores(self, x: Tensor, weight: str, bias: str | None = None) -> Tensor | None:
        """b · x + b₀: x [rows, rest.., blocks·columns] to [S, M, g, rest.., blocks], without what is frozen;
        None if both are."""
        column, offset = self.factors.get(weight), self.factors.get(bias or "")
        if column is None and offset is None:
            return None
        lanes, found = self.split(x), None
        spread = self.members, *(1,) * (lanes.dim() - 3)  # the members' factors over g and rest
        if column is not None:
            parts = lanes.unflatten(-1, (column.layout.blocks, column.layout.columns))
            found = (parts * column.columns.view(*spread, *column.columns.shape[1:])).sum(-1)
        if offset is not None:
            blocks = offset.layout.blocks
            found = x.new_zeros(*lanes.shape[:-1], blocks) if found is None else found
            found.add_(offset.columns.view(*spread, blocks))
        return found

    def add_rows_(self, y: Tensor, scores: Tensor | None, a: Tensor) -> Tensor:
        """Add s ε score a to `y` [rows, rest.., blocks·rows], in place; None adds nothing."""
        target = self.split(y)
        if scores is not None:
            blocks, rows = a.shape[1:]
            rest = target.dim() - 4
            spread = a.view(self.members, *(1,) * (1 + rest), blocks, rows)
            view = target.unflatten(-1, (blocks, rows))
            view.addcmul_(self.signed(scores, rest + 1).unsqueeze(-1), spread)
        return y

    def affine_(self, y: Tensor, x: Tensor, weight: str, bias: str | None = None) -> Tensor:
        """Add to y = W x + b its perturbation s ε (b·x + b₀) a, in place, and return it.

        Args:
            y: [rows, …, outputs], a tensor of its own (not an input, not a parameter).
            x: [rows, …, inputs].
            weight, bias: names in the module; the bias's layout names the weight as `row_source`.
        """
        if weight not in self.factors and (bias is None or bias not in self.factors):
            self.visited = True
            return y
        if usable(y, x) and y.is_contiguous():
            self._sequences(x)
            noise = self.lanes(y, weight, bias)
            if noise.fits(y.dtype, len(y), noise.blocks, x.shape[-1] // noise.blocks):
                return add_rank_one_(y, x, noise)
        owner = self.factors[weight] if weight in self.factors else self.factors[bias or ""]
        return self.add_rows_(y, self.scores(x, weight, bias), owner.rows)

    def lookup_(self, y: Tensor, index: Tensor, weight: str) -> Tensor:
        """Add to y = W[index] its perturbation s ε a[index] b, in place. y: [rows, …, columns], index: [rows,
        …]."""
        if weight not in self.factors:
            return y
        factors = self.factors[weight]
        target, index = self.split(y), self.split(index)
        rest = index.dim() - 3
        spread = factors.columns.view(self.members, *(1,) * (1 + rest), -1)
        target.addcmul_(self.signed(factors.rows_at(index), rest).unsqueeze(-1), spread)
        return y

    def vector(self, name: str, dimensions: int) -> Tensor | None:
        """s ε z of a vector parameter, [S, M, 1, 1 (`dimensions` − 2 times), size], to broadcast over split
        rows; None if frozen."""
        if name not in self.factors:
            return None
        z = self.factors[name].rows.flatten(1).view(self.members, *(1,) * (dimensions - 1), -1)
        return self.signed(z.unsqueeze(0), z.dim() - 2)

    def scale(self, x: Tensor, gain: Tensor | None, name: str) -> Tensor:
        """x · (gain + its perturbation), a new tensor. x: [rows, …, size]; `gain` [size], or None for a layer
        without one."""
        if gain is None:
            return x
        z = self.vector(name, x.dim())
        if z is None:
            return x * gain.flatten()
        return (self.split(x) * (z.to(x.dtype) + gain.flatten())).flatten(0, 2)

    def shift_(self, y: Tensor, name: str) -> Tensor:
        """Add the perturbation of a vector parameter that was added to y, in place. y: [rows, …, size]."""
        z = self.vector(name, y.dim())
        if z is not None:
            self.split(y).add_(z)
        return y
