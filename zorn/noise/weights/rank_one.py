"""Rank-one directions: members side by side in one forward pass, no weight touched.

The direction of a matrix W [m, k] is z = a bᵀ with signs (or normals) a and b, so y = W x + ε (b·x) a: the
weights are read once for all members. Its entries have unit variance and are pairwise uncorrelated, so E[z
zᵀ] = I and, for signs, |z|² = d, as for dense noise: the same mean to first order and the same total
variance. (Low-rank members in evolution strategies: Sarkar et al. 2025, arXiv 2511.16652.)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn

from zorn.kernels import available, fold_dense_, fold_rank_one_
from zorn.noise.attach import Replace, refuse_silent, replaced_methods
from zorn.noise.draw import Draw, NoiseKind, check_noise_kind, noise, noise_table
from zorn.noise.open_blocks import open_block
from zorn.noise.rules.memberwise import MemberwiseRule
from zorn.noise.targets import Site, StructuredTarget, every_target
from zorn.noise.weights.drawn_factors import LARGEST_TABLE, DrawnFactors
from zorn.noise.weights.fused_cells import fuse_cells
from zorn.noise.weights.kernel_fold import KernelPart, with_kernels
from zorn.noise.weights.lanes import Lanes, kept_tensors
from zorn.noise.weights.member_noise import Factors, MemberNoise
from zorn.noise.weights.operations import side_by_side
from zorn.noise.weights.proof import Way, prove, remembered
from zorn.noise.weights.read_ahead import ReadAhead
from zorn.noise.weights.structure import BoundPerturbation, GradientBlock, Perturbation, fold_elements

_Place = tuple[torch.dtype, torch.device]


@dataclass(frozen=True, kw_only=True)
class RankOne(Perturbation):
    """Directions that are rank-one for every matrix and dense for every vector; many members in one forward
    pass.

    Members run by layer where rules cover the model, else by operation or one at a time; the noise is the
    same. The first estimate of a model proves its way, see `zorn.noise.weights.proof`.

    Args:
        noise: "rademacher" (signs, the default) or "gaussian".

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import zorn
        >>> estimator = zorn.CDRGE(population=64, epsilon=0.01, perturbation=zorn.RankOne())
    """

    noise: NoiseKind = "rademacher"

    side_by_side: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_noise_kind(self.noise)

    def bind(self, model: nn.Module) -> "_BoundRankOne":
        """See `Perturbation.bind`; every module with trainable parameters needs a rule."""
        return _BoundRankOne(self, model)


class _BoundRankOne(BoundPerturbation):
    def __init__(self, structure: RankOne, model: nn.Module) -> None:
        self._structure = structure
        self._model = model
        self._targets, sites = every_target(model)
        self._sites = sites or []
        self._key = (
            structure,
            tuple(id(target.parameter) for target in self._targets),
            tuple(map(type, model.modules())),
        )
        self.way: Way = remembered(model, self._key) or ("by operation" if sites is None else "by layer")
        self.targets = list(self._targets)
        self._has_kernels = (  # on some of its devices
            structure.noise == "rademacher"
            and any(available(device) for device in {t.parameter.device for t in self._targets})
            and all(len(target.layout.fixed_rows) <= 1 for target in self._targets)
        )

    def prove(self, inputs: Tensor) -> None:
        if not self._proved():
            self.way = prove(self._model, self._key, self.way, self._running, inputs)

    def _proved(self) -> bool:
        """True for a model that was proved, or is one of zorn's with zorn's and torch's layers alone."""
        own = self.way == "by layer" and type(self._model).__module__.startswith("zorn.")
        places = "zorn.", "torch.nn."
        known = own and all(type(each).__module__.startswith(places) for each in self._model.modules())
        return known or remembered(self._model, self._key) is not None

    @contextmanager
    def members(
        self, draw: Draw, members: range, signs: tuple[int, ...], group: int | None = None
    ) -> Iterator[None]:
        run = self._by_layer if self.way == "by layer" else self._whole
        with run(draw, members, signs, group):
            yield

    @contextmanager
    def _running(self, way: Way, draw: Draw, members: range) -> Iterator[Lanes]:
        """A block as `members` opens it, one sequence a member, and the noise of its lanes."""
        self.way = way
        with self.members(draw, members, (1, -1), 1):
            yield self._lanes(draw, members, (1, -1))

    def _lanes(self, draw: Draw, members: range, signs: tuple[int, ...]) -> Lanes:
        factors = self._factors(draw, members)
        pairs = [(target.parameter, factors[target.number]) for target in self._targets]
        return Lanes(pairs, signs, len(members), draw.epsilon)

    @contextmanager
    def _whole(self, draw: Draw, members: range, signs: tuple[int, ...], group: int | None) -> Iterator[None]:
        """The members as an axis of the whole model, or one after another."""
        del group  # a call tells
        lanes, model = self._lanes(draw, members, signs), self._model
        alone = len(lanes) == 1 or self.way == "one at a time"
        run = lanes.one_at_a_time if alone else partial(side_by_side, lanes=lanes)
        parameters = [target.parameter for target in self._targets]
        written = [model, *(parameters if alone else ())]
        with open_block(written=written, read=parameters), kept_tensors(model), replaced_methods() as replace:
            replace(model, {"forward": run(model.forward)})
            yield

    @contextmanager
    def _by_layer(
        self, draw: Draw, members: range, signs: tuple[int, ...], group: int | None
    ) -> Iterator[None]:
        moved = [
            target.parameter
            for site in self._sites
            if isinstance(site.rule, MemberwiseRule)
            for target in site.targets.values()
        ]
        modules, parameters = [site.module for site in self._sites], [t.parameter for t in self._targets]
        with open_block(written=[*modules, *moved], read=parameters), replaced_methods() as replace:
            attached = self._attach(draw, members, signs, group, replace)
            calls: list[nn.Module] = []
            with self._model.register_forward_pre_hook(lambda module, inputs: calls.append(module)):
                yield
        visited = [own.visited for _, own in attached]
        silent = [
            target.name for site, own in attached if not own.visited for target in site.targets.values()
        ]
        if calls or any(visited):
            refuse_silent(silent)

    def _attach(
        self, draw: Draw, members: range, signs: tuple[int, ...], group: int | None, replace: Replace
    ) -> list[tuple[Site, MemberNoise]]:
        """Put every site under the noise of the members."""
        sign_vector = torch.tensor(signs, device=self._targets[0].parameter.device)
        factors = self._factors(draw, members)
        attached: list[tuple[Site, MemberNoise]] = []
        for site in self._sites:
            member_noise = MemberNoise(
                {name: factors[target.number] for name, target in site.targets.items()},
                signs=sign_vector,
                members=len(members),
                group=group,
                epsilon=draw.epsilon,
                site=site.name,
            )
            attached.append((site, member_noise))
            replace(site.module, site.rule.perturbed(site.module, member_noise))
        if self._has_kernels:
            fuse_cells(self._model, attached, draw, members, signs, replace)
        return attached

    def fold(self, draw: Draw, weights: Tensor) -> Iterator[GradientBlock]:
        blocks = chain.from_iterable(self._fold_target(target, draw, weights) for target in self._targets)
        parts = [_kernel_part(target) for target in self._targets] if self._has_kernels else []
        return with_kernels(blocks, parts, draw, weights)

    def _factors(self, draw: Draw, members: range) -> dict[int, Factors]:
        """The factors of every target, by its number; signs of all streams come from one pass over the
        counters."""
        requests: dict[_Place, dict[int, int]] = {}
        for target in self._targets:
            layout, streams = target.layout, requests.setdefault(_place(target), {})
            if not self._is_drawn_when_read(target):
                streams[target.row_stream] = layout.blocks * layout.rows
            if layout.has_column_factor:
                streams[target.column_stream] = layout.blocks * layout.columns
        drawn = {
            place: noise_table(self._structure.noise, draw, members, streams, dtype=place[0], device=place[1])
            for place, streams in requests.items()
        }
        return {target.number: self._shaped(target, draw, members, drawn) for target in self._targets}

    def _is_drawn_when_read(self, target: StructuredTarget) -> bool:
        """True if a row factor is long and its signs can be drawn one by one."""
        layout = target.layout
        return self._structure.noise == "rademacher" and layout.blocks == 1 and layout.rows > LARGEST_TABLE

    def _shaped(
        self, target: StructuredTarget, draw: Draw, members: range, drawn: dict[_Place, dict[int, Tensor]]
    ) -> Factors:
        layout, (dtype, device) = target.layout, _place(target)
        streams = drawn[dtype, device]
        if layout.has_column_factor:
            b = streams[target.column_stream].view(len(members), layout.blocks, layout.columns)
        else:
            b = torch.ones(len(members), layout.blocks, 1, dtype=dtype, device=device)
        if self._is_drawn_when_read(target):
            return DrawnFactors(layout, b, draw, members, target.row_stream)
        a = layout.without_fixed_rows_(streams[target.row_stream])
        return Factors(layout, a.view(len(members), layout.blocks, layout.rows), b)

    def _read_ahead(self, target: StructuredTarget, draw: Draw, *, rows: bool) -> ReadAhead:
        """a of all blocks, one after another, or b: ones where it is one column that needs none."""
        layout, kind, (dtype, device) = target.layout, self._structure.noise, _place(target)
        stream, size = target.column_stream, layout.columns
        if rows:
            stream, size = target.row_stream, layout.rows

        def drawn(members: range, start: int, count: int) -> Tensor:
            if not (rows or layout.has_column_factor):
                return torch.ones(len(members), count, dtype=dtype, device=device)
            found = noise(kind, draw, members, stream, count, offset=start, dtype=dtype, device=device)
            return layout.without_fixed_rows_(found, start) if rows else found

        return ReadAhead(drawn, layout.blocks * size, 2 * fold_elements(target.parameter))

    def _fold_target(self, target: StructuredTarget, draw: Draw, weights: Tensor) -> Iterator[GradientBlock]:
        """(w ∘ A)ᵀ B of each block of the parameter: small blocks together, large ones in slices of rows,
        summed over members in fixed pieces."""
        layout, parameter = target.layout, target.parameter
        wide = torch.promote_types(parameter.dtype, torch.float32)
        scaled = weights.to(parameter.device, wide).view(-1, 1, 1)
        row_factor = self._read_ahead(target, draw, rows=True)
        column_factor = self._read_ahead(target, draw, rows=False)
        at_once = fold_elements(parameter)
        members_at_once = max(1, min(len(weights), at_once // layout.columns))
        rows_at_once = max(1, min(layout.rows, at_once // max(members_at_once, layout.columns)))
        blocks_at_once = max(1, at_once // (layout.rows * max(members_at_once, layout.columns)))
        for first in range(0, layout.blocks, blocks_at_once):
            blocks = min(blocks_at_once, layout.blocks - first)
            for start in range(0, layout.rows, rows_at_once):
                rows = min(rows_at_once, layout.rows - start)
                begin = first * layout.rows + start
                total = None
                for piece in range(0, len(weights), members_at_once):
                    members = range(piece, min(piece + members_at_once, len(weights)))
                    w = scaled[members.start : members.stop]
                    a = row_factor(members, begin, blocks * rows).unflatten(1, (blocks, rows)) * w
                    b = column_factor(members, first * layout.columns, blocks * layout.columns)
                    b = b.unflatten(1, (blocks, layout.columns)).to(wide)
                    product = a.permute(1, 2, 0), b.transpose(0, 1)
                    total = torch.bmm(*product) if total is None else total.baddbmm_(*product)
                assert total is not None
                yield GradientBlock(target, begin * layout.columns, total.view(-1))


def _place(target: StructuredTarget) -> _Place:
    return target.parameter.dtype, target.parameter.device


def _kernel_part(target: StructuredTarget) -> KernelPart:
    """The fold of a parameter's signs by a kernel."""
    layout = target.layout
    matrix = layout.has_column_factor
    start = layout.fixed_rows[0] * layout.columns if layout.fixed_rows else 0
    return KernelPart(
        target=target,
        twins=fold_rank_one_ if matrix else fold_dense_,
        streams=(target.row_stream, target.column_stream) if matrix else (target.row_stream,),
        shape=(layout.blocks, layout.rows, layout.columns),
        fixed=range(start, start + len(layout.fixed_rows) * layout.columns),
    )
