"""The common part of the exact estimators: the gradient by autograd, piece by piece, behind the contract of
the estimators."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zorn.checks import Count, wrong
from zorn.errors import NonFiniteLossError
from zorn.estimators.base import Estimator, Need
from zorn.estimators.estimate import Estimate
from zorn.estimators.population import Objective
from zorn.estimators.update import FusedSGD
from zorn.models import Batch, TokenObjective, mean_tokens, row_losses
from zorn.noise import Draw, GradientBlock, Target
from zorn.noise.targets import trainable_targets
from zorn.noise.weights.gradient_blocks import gradient_blocks, pieces


class Piece(NamedTuple):
    """A part of the batch's loss, and what else flows back through its graph."""

    loss: Tensor
    """Its share of the loss, a scalar; all pieces add up to the loss."""
    ends: Sequence[Tensor] = ()
    """Tensors in which the piece ends, the state that the next one starts from."""
    credits: Sequence[Tensor] = ()
    """The derivative of the later loss by each of `ends`, as far as it is known."""


class ExactGradient(Estimator):
    """An estimator that differentiates the loss, one piece of it after another.

    The model is left in the mode that it is in (dropout and the like stay on in training mode).

    Args:
        micro_batch: sequences differentiated together, at least 1; changes nothing but memory and speed.
            None: the whole batch.

    Attributes:
        step: counts the estimates.

    Raises:
        ConfigError: an argument outside its range.
    """

    needs = frozenset({Need.DERIVATIVE})
    deals = "rows"

    micro_batch: Count | None = 512

    @torch.inference_mode(mode=False)  # turns gradients on, whatever mode the caller is in
    def _estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None
    ) -> Estimate:
        self._check(model, batch, objective)
        targets = trainable_targets(model)
        if update is not None:
            update.check(targets)
        rows = self.workers.rows(len(batch.inputs))
        own, self._first_row = rows_of(batch, slice(rows.start, rows.stop)), rows.start
        normaliser = mean_tokens(objective, own.targets) if isinstance(objective, TokenObjective) else None
        parts = self.parts(model)
        _clear(parts)
        try:
            loss, norm = self._differentiate(self._pieces(model, own, objective, normaliser), parts)
            further_passes, dropped = self._finish()
            numbers = [loss, 3 * len(own.inputs) + further_passes, dropped]
            if self.workers.size > 1:
                norm, numbers = self._over_all_processes(parts, len(rows) * (normaliser or 1.0), numbers)
        except BaseException:
            _clear(parts)  # no gradient, rather than a part of one
            raise
        loss, passes, dropped = numbers
        if update is not None:
            update.apply(_blocks(targets), Draw(seed=0, step=self.step, epsilon=1.0))
        self.step += 1
        return Estimate(loss=loss, gradient_norm=norm, forward_passes=round(passes), dropped=round(dropped))

    def _differentiate(self, pieces: Iterator[Piece], parts: list[list[nn.Parameter]]) -> tuple[float, float]:
        """Add up the gradients of all pieces; returns the loss and the gradient's norm."""
        total, differentiable = 0.0, False
        for piece in pieces:
            self._backward(piece, parts)
            differentiable |= piece.loss.requires_grad  # where no token counts it may be a constant
            total += float(piece.loss.detach())
            del piece  # or its graph would live on while the next one is computed
        if not differentiable:
            expected = f"one that torch can differentiate for {type(self).__name__}"
            got = "losses that do not depend on the weights through autograd"
            raise wrong("objective", expected, got, "use another, or CDRGE, which needs no derivative")
        norm = _norm(_gradients(parts))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"step {self.step}: the loss is {total} and the gradient's norm {norm}: lower the learning "
                "rate or clip the gradient; the weights are unchanged"
            )
        return total, norm

    @torch.no_grad()
    def _over_all_processes(
        self, parts: list[list[nn.Parameter]], weight: float, numbers: list[float]
    ) -> tuple[float, list[float]]:
        """Add up the gradients of all processes' rows, each times its share of the tokens that count (of the
        rows, for another objective); returns the norm of the sum, and loss, passes and dropped draws of
        all."""
        flat = [parameter for part in parts for parameter in part]
        loss, passes, dropped = numbers
        held = [float(parameter.grad is not None) for parameter in flat]
        told = torch.tensor([weight, weight * loss, passes, dropped, *held], dtype=torch.float64)
        total, loss, passes, dropped, *anywhere = self.workers.sum(told).tolist()
        for parameter in (parameter for parameter, wanted in zip(flat, anywhere, strict=True) if wanted):
            wide = torch.promote_types(parameter.dtype, torch.float32)
            own = parameter.grad
            own = torch.zeros_like(parameter, dtype=wide) if own is None else own.to(wide)
            block = GradientBlock(Target("", 0, parameter), 0, (own * (weight / total)).contiguous())
            [block] = self.workers.sum_blocks(iter([block]))
            parameter.grad = block.values.to(parameter.dtype)
        norm = _norm(_gradients(parts))
        if not math.isfinite(norm):
            raise NonFiniteLossError(
                f"the norm of the gradient of all rows is {norm}: lower the learning rate or clip the "
                "gradient; the weights are unchanged"
            )
        return norm, [loss / total, passes, dropped]

    def passes(self, batch: int, steps: int) -> int | float:
        """One forward pass a sequence, and a backward pass, which counts as two."""
        del steps
        return 3 * batch

    def _check(self, model: nn.Module, batch: Batch, objective: Objective) -> None:
        """Raise `ConfigError` for what the estimator cannot differentiate, before any work; where it can all,
        `row_losses` says what is wrong with them."""

    def _pieces(
        self, model: nn.Module, batch: Batch, objective: Objective, normaliser: float | None
    ) -> Iterator[Piece]:
        """The loss of the batch, in pieces; each is differentiated before the next one is computed."""
        for rows in self._portions(batch):
            losses = row_losses(model, rows_of(batch, rows), objective, normaliser=normaliser)
            yield Piece(losses.sum() / len(batch.inputs))

    def _portions(self, batch: Batch) -> Iterator[slice]:
        """The sequences, those of a micro-batch at a time."""
        sequences = len(batch.inputs)
        size = self.micro_batch or sequences
        return (slice(start, min(start + size, sequences)) for start in range(0, sequences, size))

    def _backward(self, piece: Piece, parts: list[list[nn.Parameter]]) -> None:
        """Add the gradient of a piece to the `.grad` of the parts."""
        del parts
        if piece.loss.requires_grad:
            piece.loss.backward()

    def _finish(self) -> tuple[int, int]:
        """Called once, where an estimate has turned out well: its forward passes beyond one forward and one
        backward, and the draws that it dropped."""
        return 0, 0


def _clear(parts: list[list[nn.Parameter]]) -> None:
    """Forget the gradient of the last estimate."""
    for parameter in (parameter for part in parts for parameter in part):
        parameter.grad = None


def _gradients(parts: list[list[nn.Parameter]]) -> list[Tensor]:
    """The sum of the parts of the gradient, parameter by parameter, without those that have none."""
    found = []
    for same in zip(*parts, strict=True):
        held = [parameter.grad for parameter in same if parameter.grad is not None]
        found += [sum(held[1:], start=held[0])] if held else []
    return found


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some of the sequences of a batch.

    >>> rows_of(Batch(torch.zeros(4, 3), torch.zeros(4)), slice(1, 3)).inputs.shape
    torch.Size([2, 3])
    """
    return Batch(batch.inputs[rows], batch.targets[rows])


def _norm(gradients: Iterable[Tensor]) -> float:
    """Euclidean, added up in float64, into which torch copies what it takes the norm of."""
    norms = [
        torch.linalg.vector_norm(piece, dtype=torch.float64)
        for gradient in gradients
        for piece in pieces(gradient)
    ]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _blocks(targets: list[Target]) -> Iterator[GradientBlock]:
    for target in targets:
        if target.parameter.grad is not None:
            yield from gradient_blocks(target, target.parameter.grad)
