"""Dense directions: every weight has its own noise. The structure of Chaubard and Kochenderfer (2025, arXiv
2505.17852).

Members are evaluated one at a time, each sign on a scratch copy of the weights: θ itself is never changed, so
nothing drifts. It needs no rules and so serves any module, and it is the reference that the others are tested
against.

A direction is drawn once for both signs and all micro-batches of its member, and once more for the fold. In
between its signs are kept in one bit a weight (a thirty-second of float32 weights); normals are kept as they
are, which takes the memory of one more copy of the weights. On a GPU with kernels the maps of zorn's own
cells are not copied: their signs are made inside the product, see `zorn.noise.weights.dense_maps`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.kernels import fold_dense_
from zorn.noise.attach import replaced_methods
from zorn.noise.draw import Draw, NoiseKind, check_noise_kind, noise, stream_of
from zorn.noise.open_blocks import open_block
from zorn.noise.targets import Target, trainable_targets
from zorn.noise.weights.dense_maps import maps_in_kernels, perturb_map
from zorn.noise.weights.kernel_fold import KernelPart, with_kernels
from zorn.noise.weights.structure import BoundPerturbation, GradientBlock, Perturbation, fold_elements
from zorn.random import SIGNS_PER_WORD, sign_words, unpack_signs


@dataclass(frozen=True, kw_only=True)
class Dense(Perturbation):
    """Directions with independent entries; one member at a time, on a scratch copy of the weights.

    Args:
        noise: "rademacher" (signs, the default, as in the paper) or "gaussian", which holds a copy more of
            the weights.

    Raises:
        ConfigError: an unknown `noise`.

    Example:
        >>> import zorn
        >>> estimator = zorn.CDRGE(population=96, epsilon=0.1, perturbation=zorn.Dense())
    """

    noise: NoiseKind = "rademacher"

    side_by_side: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_noise_kind(self.noise)

    def bind(self, model: nn.Module) -> "_BoundDense":
        """See `Perturbation.bind`; no rule is needed."""
        return _BoundDense(self, model)


class _BoundDense(BoundPerturbation):
    def __init__(self, structure: Dense, model: nn.Module) -> None:
        self._structure = structure
        self.targets = trainable_targets(model)
        self._padding = {  # the elements of padding rows, which are never trained
            id(module.weight): range(
                module.padding_idx * module.embedding_dim, (module.padding_idx + 1) * module.embedding_dim
            )
            for module in model.modules()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
        }
        self._maps = maps_in_kernels(model) if structure.noise == "rademacher" else []
        in_kernels = {id(parameter) for map in self._maps for parameter in map.parameters()}
        self._copied = [target for target in self.targets if id(target.parameter) not in in_kernels]
        self._numbers = {id(target.parameter): target.number for target in self.targets}
        self._scratch: list[Tensor] | None = None  # of what is copied, from the first use on
        self._kept_of: tuple[int, int, range] | None = None  # seed, step and member of what is kept
        self._kept: dict[tuple[int, int], Tensor] = {}  # its direction: (parameter, start of the slice) to z

    @contextmanager
    def members(
        self, draw: Draw, members: range, signs: tuple[int, ...], group: int | None = None
    ) -> Iterator[None]:
        del group  # all rows are this member's
        if len(members) != 1 or len(signs) != 1:
            raise ConfigError(
                f"the Dense structure evaluates one member and one sign at a time, got {len(members)} "
                f"members and {len(signs)} signs: loop over them, or use RankOne"
            )
        everything = [target.parameter for target in self.targets]
        parameters = [target.parameter for target in self._copied]
        with open_block(written=everything, read=()), replaced_methods() as replace:
            for map in self._maps:
                perturb_map(map, self._numbers, draw, members, signs[0], replace)
            scratch = self._moved(draw, members, signs[0])
            originals = [parameter.data for parameter in parameters]
            try:
                for parameter, moved in zip(parameters, scratch, strict=True):
                    parameter.data = moved
                yield
            finally:
                for parameter, original in zip(parameters, originals, strict=True):
                    parameter.data = original

    def fold(self, draw: Draw, weights: Tensor) -> Iterator[GradientBlock]:
        signs = self._structure.noise == "rademacher"
        parts = [self._kernel_part(target) for target in self.targets] if signs else []
        return with_kernels(self._blocks(draw, weights), parts, draw, weights)

    def _kernel_part(self, target: Target) -> KernelPart:
        shape, fixed = tuple(target.parameter.shape), self._padding.get(id(target.parameter), range(0))
        return KernelPart(target, fold_dense_, (stream_of(target.number, 0),), shape, fixed)

    def _blocks(self, draw: Draw, weights: Tensor) -> Iterator[GradientBlock]:
        """The fold, slice by slice, members in fixed pieces."""
        for target in self.targets:
            size = target.parameter.numel()
            wide = torch.promote_types(target.parameter.dtype, torch.float32)
            scaled = weights.to(target.parameter.device, wide)
            at_once = fold_elements(target.parameter)
            elements_at_once = max(1, min(size, max(4096, at_once // len(weights))))
            members_at_once = max(1, at_once // elements_at_once)
            for start in range(0, size, elements_at_once):
                count = min(elements_at_once, size - start)
                total = torch.zeros(count, dtype=wide, device=target.parameter.device)
                for piece in range(0, len(weights), members_at_once):
                    members = range(piece, min(piece + members_at_once, len(weights)))
                    z = self._direction(target, draw, members, start, count).to(wide)
                    total.addmv_(z.t(), scaled[members.start : members.stop])
                yield GradientBlock(target, start, total)

    @torch.inference_mode(mode=False)  # or a caller's inference mode would get into the scratch copy
    @torch.no_grad()
    def _moved(self, draw: Draw, members: range, sign: int) -> list[Tensor]:
        """θ + s ε z of what is copied, on the scratch copy, in slices, computed at least in float32."""
        if self._scratch is None:
            self._scratch = [
                torch.empty_like(t.parameter, memory_format=torch.contiguous_format) for t in self._copied
            ]
        key = draw.seed, draw.step, members
        if self._kept_of != key:
            self._kept_of, self._kept = key, {}
        for target, scratch in zip(self._copied, self._scratch, strict=True):
            weight, result = target.parameter.reshape(-1), scratch.view(-1)
            at_once = fold_elements(weight)
            for start in range(0, weight.numel(), at_once):
                part = weight[start : start + at_once]
                z = self._kept_direction(target, draw, members, start, part.numel())
                wide = torch.promote_types(part.dtype, torch.float32)
                result[start : start + part.numel()] = torch.add(part.to(wide), z, alpha=sign * draw.epsilon)
        return self._scratch

    def _kept_direction(self, target: Target, draw: Draw, members: range, start: int, count: int) -> Tensor:
        """Elements start .. start + count of the one member's z, drawn where they are not kept, and kept."""
        place, kept, parameter = (target.number, start), self._kept, target.parameter
        if self._structure.noise != "rademacher":
            if place not in kept:
                kept[place] = self._direction(target, draw, members, start, count)[0]
            return kept[place]
        before = start % SIGNS_PER_WORD  # signs of the first word that are not asked for
        if place not in kept:
            stream, first = stream_of(target.number, 0), start - before
            counter = draw.seed, draw.step, members, stream
            kept[place] = sign_words(*counter, before + count, offset=first, device=parameter.device)
        z = unpack_signs(kept[place], before + count, parameter.dtype)[0, before:]
        return self._without_padding(target, z, start)

    def _direction(self, target: Target, draw: Draw, members: range, start: int, count: int) -> Tensor:
        """Elements start .. start + count of z, [len(members), count]; 0 in a padding row."""
        kind, parameter, stream = self._structure.noise, target.parameter, stream_of(target.number, 0)
        place = {"dtype": parameter.dtype, "device": parameter.device}
        z = noise(kind, draw, members, stream, count, offset=start, **place)
        return self._without_padding(target, z, start)

    def _without_padding(self, target: Target, z: Tensor, start: int) -> Tensor:
        """z [.., elements start and after] with zeros for those of a padding row, in place."""
        padding = self._padding.get(id(target.parameter), range(0))
        z[..., max(padding.start - start, 0) : max(padding.stop - start, 0)] = 0
        return z
