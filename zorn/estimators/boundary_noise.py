"""Noise on the state at the boundaries of chunks: drawn, added, and measured for its scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zorn.estimators.carry import state_tensors
from zorn.estimators.workers import Workers
from zorn.models import State, TokenObjective, map_state
from zorn.noise import Draw, NoiseKind
from zorn.noise.draw import noise

STREAM = 0
"""The random stream of the noise: of the elements of the state, boundary after boundary."""

NOISE_AT_ONCE = 2**20
"""Elements of noise drawn at once: those of several boundaries where they are small."""


@dataclass(frozen=True)
class Discounted:
    """A token objective whose losses count γⁿ, n steps after the first of those that it is given."""

    objective: TokenObjective
    discount: float

    def token_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses [rows, time], discounted."""
        losses = self.objective.token_losses(outputs, targets)
        powers = self.discount ** torch.arange(losses.shape[1], device=losses.device, dtype=torch.float64)
        return losses * powers

    def counts(self, targets: Tensor) -> Tensor:
        """Tokens that count, [rows, time]."""
        return self.objective.counts(targets)


@dataclass
class BoundaryNoise:
    """The noise at the boundaries of a portion of the batch: for each member (a draw of a sequence; those of
    one sequence side by side) one vector over all floating tensors of the state.

    Args:
        members: numbers of the members.
        boundaries: how many there are.
        floats: the floating tensors of a state, for their shapes.
        scales: ε of each of them.
    """

    kind: NoiseKind
    draw: Draw
    members: range
    boundaries: int
    floats: list[Tensor]
    scales: list[float]

    def __post_init__(self) -> None:
        self.sizes = [tensor[0].numel() for tensor in self.floats]
        self.device = self.floats[0].device
        self.scale = torch.tensor(self.scales, device=self.device).repeat_interleave(
            torch.tensor(self.sizes, device=self.device), output_size=sum(self.sizes)
        )
        self._together = max(1, NOISE_AT_ONCE // (len(self.members) * sum(self.sizes)))
        self._first, self._drawn = 0, torch.empty(0)

    def at(self, boundary: int) -> Tensor:
        """ξ at a boundary, [members, size] float32."""
        size, first = sum(self.sizes), boundary - boundary % self._together
        if len(self._drawn) == 0 or first != self._first:
            self._first, count = first, min(self._together, self.boundaries - first) * size
            self._drawn = noise(
                self.kind,
                self.draw,
                self.members,
                STREAM,
                count,
                offset=first * size,
                dtype=torch.float32,
                device=self.device,
            )
        return self._drawn[:, (boundary - first) * size : (boundary - first + 1) * size]

    def added(self, state: State, boundary: int) -> State:
        """The state of rows [signs, members] with ±ε ξ of the boundary."""
        step = self.at(boundary) * self.scale
        parts = iter(self.split(torch.cat([step, -step])))
        return map_state(lambda tensor: tensor + next(parts) if tensor.is_floating_point() else tensor, state)

    def split(self, vectors: Tensor) -> list[Tensor]:
        """[rows, size] in the shapes and dtypes of the state's floating tensors."""
        parts = zip(vectors.split(self.sizes, dim=1), self.floats, strict=True)
        return [part.reshape(-1, *like.shape[1:]).to(like.dtype) for part, like in parts]


class MeanSquares:
    """Mean squares of the floating tensors of a state, over rows and boundaries."""

    def __init__(self) -> None:
        self._norms: list[Tensor] = []
        self._elements: list[list[int]] = []

    def add(self, floats: Sequence[Tensor]) -> None:
        """See one state more."""
        norms = [torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64) for tensor in floats]
        self._norms.append(torch.stack(norms))
        self._elements.append([tensor.numel() for tensor in floats])

    def means(self, workers: Workers) -> list[float]:
        """The mean square of each tensor, over all processes; empty where nothing was seen."""
        if not self._norms:
            return []
        squares = torch.stack(self._norms).square().sum(0).cpu()
        elements = torch.tensor(self._elements, dtype=torch.float64).sum(0)
        squares, elements = workers.sum(torch.cat([squares, elements])).chunk(2)
        return (squares / elements).tolist()


def floats_of(state: State) -> list[Tensor]:
    """The floating tensors of a state, which get noise."""
    return [tensor for tensor in state_tensors(state) if tensor.is_floating_point()]
