"""What the exact estimators share: the gradient by autograd, piece by piece, behind the contract of the
estimators."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zorn.checks import check_whole_number
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators.arguments import check_batch, check_model, check_objective, check_update
from zorn.estimators.base import Estimator, Need
from zorn.estimators.estimate import Estimate
from zorn.models import Batch, TokenObjective, mean_tokens
from zorn.perturbations import Draw, FusedSGD, GradientBlock, Objective, Target
from zorn.perturbations.blocks import gradient_blocks, pieces
from zorn.perturbations.targets import trainable_targets


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

    def __init__(self, *, micro_batch: int | None = 512) -> None:
        if micro_batch is not None:
            check_whole_number("micro_batch", micro_batch, minimum=1)
        self.micro_batch = micro_batch
        self.step = 0

    @torch.inference_mode(mode=False)  # turns gradients on, whatever mode the caller is in
    def estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None = None
    ) -> Estimate:
        """Fill `.grad` (replacing what was there), or apply `update`, as `ZeroOrderEstimator.estimate` does.
        Counts 3 B forward passes: a backward pass as two.

        Raises:
            ConfigError: a model, batch or objective that this estimator cannot differentiate.
            NonFiniteLossError: loss or gradient is not finite; the weights are unchanged, `.grad` is cleared.
        """
        check_model(model)
        check_batch(batch)
        check_objective(objective)
        check_update(update)
        self._check(model, batch, objective)
        targets = trainable_targets(model)
        if update is not None:
            update.check(targets)
        normaliser = mean_tokens(objective, batch.targets) if isinstance(objective, TokenObjective) else None
        self._clear(targets)
        try:
            loss, norm = self._differentiate(self._pieces(model, batch, objective, normaliser), targets)
        except BaseException:
            self._clear(targets)  # no gradient, rather than a part of one
            raise
        further_passes, dropped = self._finish()
        if update is not None:
            update.apply(_blocks(targets), Draw(seed=0, step=self.step, epsilon=1.0))
        self.step += 1
        return Estimate(
            loss=loss,
            coefficients=torch.zeros(0, dtype=torch.float64),
            gradient_norm=norm,
            forward_passes=3 * len(batch.inputs) + further_passes,
            dropped=dropped,
        )

    def _differentiate(self, pieces: Iterator[Piece], targets: list[Target]) -> tuple[float, float]:
        """Add up the gradients of all pieces; returns the loss and the gradient's norm."""
        total, differentiable = 0.0, False
        for piece in pieces:
            self._backward(piece, targets)
            differentiable |= piece.loss.requires_grad  # where no token counts it may be a constant
            total += float(piece.loss.detach())
            del piece  # or its graph would live on while the next one is computed
        if not differentiable:
            raise ConfigError(
                f"{type(self).__name__} needs an objective that torch can differentiate, but the losses do "
                "not depend on the weights through autograd: use a differentiable objective, or CDRGE, which "
                "needs no derivative"
            )
        norm = _norm(self._gradients(targets))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"step {self.step}: the loss is {total} and the gradient's norm {norm}: lower the learning "
                "rate or clip the gradient; the weights are unchanged"
            )
        return total, norm

    def passes(self, batch: int, steps: int) -> float:
        """One forward pass a sequence, and a backward pass, which counts as two."""
        del steps
        return 3 * batch

    @abstractmethod
    def _check(self, model: nn.Module, batch: Batch, objective: Objective) -> None:
        """Raise `ConfigError` for what the estimator cannot differentiate, before any work."""

    @abstractmethod
    def _losses(
        self, model: nn.Module, batch: Batch, objective: Objective, normaliser: float | None
    ) -> Iterator[Tensor]:
        """The loss of each row, [rows], in pieces that add up to it; each is differentiated before the next
        one is computed."""

    def _pieces(
        self, model: nn.Module, batch: Batch, objective: Objective, normaliser: float | None
    ) -> Iterator[Piece]:
        """The loss of the batch, in pieces; each is differentiated before the next one is computed."""
        for rows in self._portions(batch):
            for losses in self._losses(model, rows_of(batch, rows), objective, normaliser):
                yield Piece(losses.sum() / len(batch.inputs))

    def _portions(self, batch: Batch) -> Iterator[slice]:
        """The sequences, those of a micro-batch at a time."""
        sequences = len(batch.inputs)
        size = self.micro_batch or sequences
        return (slice(start, min(start + size, sequences)) for start in range(0, sequences, size))

    def _backward(self, piece: Piece, targets: list[Target]) -> None:
        """Add the gradient of a piece to where the gradient goes."""
        del targets
        if piece.loss.requires_grad:
            piece.loss.backward()

    def _clear(self, targets: list[Target]) -> None:
        """Forget the gradient of the last estimate."""
        for target in targets:
            target.parameter.grad = None
            vars(target.parameter).pop("credit_grad", None)  # of a Bridge before

    def _gradients(self, targets: list[Target]) -> Iterable[Tensor]:
        """The gradient that was found, parameter by parameter, without those that have none."""
        return [target.parameter.grad for target in targets if target.parameter.grad is not None]

    def _finish(self) -> tuple[int, int]:
        """Called once, where an estimate has turned out well: its forward passes beyond one forward and one
        backward, and the draws that it dropped."""
        return 0, 0


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
