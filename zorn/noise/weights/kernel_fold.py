"""Folds by GPU kernels: directions are made where they are added, and no gradient is held."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zorn.kernels import Fold, Twins
from zorn.noise.draw import Draw
from zorn.noise.targets import Target
from zorn.noise.weights.structure import GradientBlock

FOLDED = (torch.float32, torch.bfloat16)
"""The dtypes that the kernels fold into."""


class KernelPart(NamedTuple):
    """Σ_j w_j z_j of one parameter, by a kernel.

    Args:
        target: the parameter.
        twins: `fold_rank_one_` or `fold_dense_`.
        streams: of its signs, as the kernel takes them.
        shape: the parameter as the kernel sees it.
        fixed: elements of the flattened parameter without noise.
    """

    target: Target
    twins: Twins
    streams: tuple[int, ...]
    shape: tuple[int, ...]
    fixed: range

    @property
    def serves(self) -> bool:
        """True if the kernel can add to the parameter."""
        parameter = self.target.parameter
        return parameter.dtype in FOLDED and parameter.is_contiguous() and self.twins.serves(parameter)


class KernelFold(Iterator[GradientBlock]):
    """A fold that gives its blocks one by one, or lets kernels add them to the weights without making them.

    Args:
        blocks: as a fold without kernels makes them.
        parts: all parameters.
        draw: of the directions.
        weights: w, [members] float64.
    """

    def __init__(
        self, blocks: Iterator[GradientBlock], parts: Sequence[KernelPart], draw: Draw, weights: Tensor
    ) -> None:
        self._blocks, self.parts, self._draw, self._weights = blocks, parts, draw, weights

    def __next__(self) -> GradientBlock:
        return next(self._blocks)

    def add_to(
        self,
        part: KernelPart,
        tensor: Tensor,
        *,
        keep: float = 1.0,
        scale: float = 1.0,
        rounding: tuple[int, int, int] | None = None,
    ) -> Tensor:
        """tensor ← keep · tensor + scale · Σ_j w_j z_j of one parameter, in place; returns |Σ_j w_j z_j|² in
        float64. The tensor is contiguous, of the parameter's size, dtype and device."""
        fold = Fold(
            seed=self._draw.seed,
            step=self._draw.step,
            members=range(len(self._weights)),
            keep=keep,
            scale=scale,
            rounding=rounding,
            fixed=part.fixed,
        )
        weights = self._weights.to(tensor.device, torch.float32)
        return part.twins(tensor.view(part.shape), weights, part.streams, fold)


def with_kernels(
    blocks: Iterator[GradientBlock], parts: Sequence[KernelPart], draw: Draw, weights: Tensor
) -> Iterator[GradientBlock]:
    """A fold that kernels take part in where they serve every parameter; else its blocks."""
    if parts and all(part.serves for part in parts):
        return KernelFold(blocks, parts, draw, weights)
    return blocks
