"""A fold that is shared: each process folds all members into some of the parameters, and sends those.

Half the bytes of an all-reduce, and the bits of one process: each element is the same sum over the same
members in the same order, whoever makes it.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from zorn.distributed.dealing import owners
from zorn.distributed.group import Group
from zorn.perturbations import BoundPerturbation, Draw, GradientBlock, Perturbation, Target
from zorn.perturbations.blocks import gradient_blocks


@final
@dataclass(frozen=True)
class SharedFold(Perturbation):
    """The directions of another structure, their fold shared over a group.

    A process holds its own share of the gradient, and one parameter's gradient more.

    Args:
        structure: whose directions they are.
        group: the processes, all of which fold at the same time.

    Example:
        >>> import zorn
        >>> SharedFold(zorn.RankOne(), Group()).side_by_side
        True
    """

    structure: Perturbation
    group: Group = field(repr=False)

    def __str__(self) -> str:
        return str(self.structure)

    @property
    def side_by_side(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the structure."""
        return self.structure.side_by_side

    def bind(self, model: nn.Module) -> BoundPerturbation:
        """See `Perturbation.bind`."""
        return _BoundSharedFold(self.structure, self.group, model)


class _BoundSharedFold(BoundPerturbation):
    def __init__(self, structure: Perturbation, group: Group, model: nn.Module) -> None:
        self._structure, self._group, self._model = structure, group, model
        self._bound = structure.bind(model)
        self.targets = self._bound.targets

    def members(
        self, draw: Draw, members: range, signs: tuple[int, ...], group: int | None = None
    ) -> AbstractContextManager[None]:
        return self._bound.members(draw, members, signs, group)

    def fold(self, draw: Draw, weights: Tensor) -> Iterator[GradientBlock]:
        belongs = owners([target.parameter.numel() for target in self.targets], self._group.size)
        mine = [t for t, owner in zip(self.targets, belongs, strict=True) if owner == self._group.rank]
        folded = {target.number: _room_for(target) for target in mine}
        if mine:
            with _trained_alone(self.targets, mine):
                bound = self._structure.bind(self._model)
            for block in bound.fold(draw, weights):
                end = block.start + block.values.numel()
                folded[block.target.number][block.start : end] = block.values
        self._group.message()  # that all have come so far
        for target, owner in zip(self.targets, belongs, strict=True):
            values = folded.pop(target.number, None)
            values = _room_for(target) if values is None else values
            self._group.broadcast(values, owner)
            yield from gradient_blocks(target, values)


def _room_for(target: Target) -> Tensor:
    """A flat gradient of a parameter: float32, or float64 for a float64 parameter."""
    parameter = target.parameter
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros(parameter.numel(), dtype=wide, device=parameter.device)


@contextmanager
def _trained_alone(targets: Sequence[Target], some: Sequence[Target]) -> Iterator[None]:
    """Within the `with` block all other targets are frozen: what is bound there has directions for some of
    the parameters only, and the same ones."""
    kept = {target.number for target in some}
    others = [target.parameter for target in targets if target.number not in kept]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
