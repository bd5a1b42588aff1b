"""The contract of a perturbation structure: bind to a model, run it under members, fold coefficients into a
gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from zorn.noise.draw import Draw
from zorn.noise.targets import Target

FOLD_ELEMENTS = 1 << 17  # elements of the largest temporary of a fold: 0.5 MiB in float32


def fold_elements(tensor: Tensor) -> int:
    """Elements of the largest temporary of a fold into a tensor. On sizes alone a 256th of it: a plan
    of a billion parameters would else go through thousands of pieces that are all the same.

    >>> import torch
    >>> fold_elements(torch.zeros(3)), fold_elements(torch.zeros(2**30, device="meta"))
    (131072, 4194304)
    """
    return max(FOLD_ELEMENTS, tensor.numel() // 256) if tensor.is_meta else FOLD_ELEMENTS


@dataclass(frozen=True)
class GradientBlock:
    """A piece of a gradient: elements start .. start + len(values) of the flattened parameter; values are
    float32 (float64 for float64)."""

    target: Target
    start: int
    values: Tensor


class BoundPerturbation(ABC):
    """A structure bound to one model for the length of one estimate. The model's weights are only ever
    read."""

    targets: list[Target]

    def prove(self, inputs: Tensor) -> None:  # noqa: B027 - an answer, not a gap
        """Before the first estimate of a model: see that members side by side are what they should be, on
        rows of a batch's inputs. This default has nothing to prove."""

    @abstractmethod
    def members(
        self, draw: Draw, members: range, signs: tuple[int, ...], group: int | None = None
    ) -> AbstractContextManager[None]:
        """Within the `with` block the model computes with θ + s ε z_j for each of `signs` (±1) and `members`.

        Rows lie as [signs, members, group], flattened, along the first dimension of the model's input;
        `group` None takes g from the number of rows. On leaving the block, also by an exception, the model is
        as it was.

        Raises:
            ConfigError: the model is perturbed in another block or thread; nothing is changed.
            UncoveredParameterError: on leaving, the model ran and a module to perturb was never called.
        """

    @abstractmethod
    def fold(self, draw: Draw, weights: Tensor) -> Iterator[GradientBlock]:
        """Σ_j w_j z_j, parameter by parameter, block by block; no direction is ever stored whole. weights:
        [n] float64."""


class Perturbation(ABC):
    """A structure of directions z with E[z zᵀ] = I."""

    side_by_side: ClassVar[bool]
    """True if one forward pass can hold many members; if not, each runs alone, one sign at a time."""

    @abstractmethod
    def bind(self, model: nn.Module) -> BoundPerturbation:
        """Find what is perturbed in `model`.

        Raises:
            UncoveredParameterError: a parameter that requires a gradient has no rule, or nothing requires a
            gradient.
        """
