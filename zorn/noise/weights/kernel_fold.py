"""Folds by GPU kernels: directions are made where they are added, and no gradient is held."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zorn.kernels import Twins
from zorn.noise.draw import Draw
from zorn.noise.targets import Target
from zorn.noise.weights.structure import GradientBlock

FOLDED = (torch.float32, torch.bfloat16)
"""The dtypes that the kernels fold into."""


@dataclass(frozen=True, kw_only=True)
class KernelPart:
    """Σ_j w_j z_j of one parameter, by a kernel.

    Args:
        target: the parameter.
        twins: `FOLD_RANK_ONE` or `FOLD_DENSE`.
        streams: of its signs, by the names that the kernel gives them.
        shape: the parameter as the kernel sees it.
        fixed: elements of the flattened parameter without noise.
    """

    target: Target
    twins: Twins
    streams: dict[str, int]
    shape: tuple[int, ...]
    fixed: range = range(0)

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
        """tensor ← keep · tensor + scale · Σ_j w_j z_j of one parameter, in place.

        Args:
            tensor: contiguous, of the parameter's size, dtype and device.
            rounding: (seed, step, stream) of what rounds bfloat16 stochastically; None: to nearest.

        Returns:
            |Σ_j w_j z_j|², float64.
        """
        return part.twins.run(
            tensor,
            tensor.view(part.shape),
            self._weights.to(tensor.device, torch.float32),
            seed=self._draw.seed,
            step=self._draw.step,
            members=range(len(self._weights)),
            **part.streams,
            keep=keep,
            scale=scale,
            rounding=rounding,
            fixed=part.fixed,
        )


def with_kernels(
    blocks: Iterator[GradientBlock], parts: Sequence[KernelPart], draw: Draw, weights: Tensor
) -> Iterator[GradientBlock]:
    """A fold that kernels take part in where they serve every parameter; else its blocks."""
    if parts and all(part.serves for part in parts):
        return KernelFold(blocks, parts, draw, weights)
    return blocks
