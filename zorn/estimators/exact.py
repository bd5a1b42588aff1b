"""What the exact estimators share: the gradient by autograd, piece by piece, behind the contract of the
estimators."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zorn.checks import check_whole_number
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators.arguments import check_batch, check_model, check_update
from zorn.estimators.estimate import Estimate
from zorn.models import Batch, TokenObjective, mean_tokens
from zorn.perturbations import Draw, FusedSGD, GradientBlock, Objective, Target
from zorn.perturbations.targets import trainable_targets


class ExactGradient(ABC):
    """An estimator that differentiates the loss, one piece of it after another.

    The model is left in the mode that it is in (dropout and the like stay on in training mode).

    Args:
        micro_batch: sequences differentiated together, at least 1; None for the whole batch. Bounds memory,
            changes nothing else.

    Attributes:
        step: counts the estimates.

    Raises:
        ConfigError: an argument outside its range.
    """

    def __init__(self, *, micro_batch: int | None = None) -> None:
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
        check_update(update)
        self._check(model, batch, objective)
        targets = trainable_targets(model)
        if update is not None:
            update.check(targets)
        sequences = len(batch.inputs)
        normaliser = mean_tokens(objective, batch.targets) if isinstance(objective, TokenObjective) else None
        _clear(targets)
        total, differentiable = 0.0, False
        for inputs, wanted in zip(
            *(part.split(self.micro_batch or sequences) for part in batch), strict=True
        ):
            for losses in self._losses(model, Batch(inputs, wanted), objective, normaliser):
                loss = losses.sum() / sequences
                if loss.requires_grad:  # a piece in which no token counts may be a constant
                    loss.backward()
                    differentiable = True
                total += float(loss.detach())
        if not differentiable:
            raise ConfigError(
                f"{type(self).__name__} needs an objective that torch can differentiate, but the losses do "
                "not depend on the weights through autograd: use a differentiable objective, or CDRGE, which "
                "needs no derivative"
            )
        norm = _norm(targets)
        step, self.step = self.step, self.step + 1
        if not (math.isfinite(total) and math.isfinite(norm)):
            _clear(targets)
            raise NonFiniteLossError(
                f"step {step}: the loss is {total} and the gradient's norm {norm}: lower the learning rate "
                "or clip the gradient; the weights are unchanged"
            )
        if update is not None:
            update.apply(_blocks(targets), Draw(seed=0, step=step, epsilon=1.0))
        return Estimate(
            loss=total,
            coefficients=torch.zeros(0, dtype=torch.float64),
            gradient_norm=norm,
            forward_passes=3 * sequences,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.step = state["step"]

    @abstractmethod
    def _check(self, model: nn.Module, batch: Batch, objective: Objective) -> None:
        """Raise `ConfigError` for what the estimator cannot differentiate, before any work."""

    @abstractmethod
    def _losses(
        self, model: nn.Module, batch: Batch, objective: Objective, normaliser: float | None
    ) -> Iterator[Tensor]:
        """The loss of each row, [rows], in pieces that add up to it; each is differentiated before the next
        one is computed."""


def _clear(targets: list[Target]) -> None:
    for target in targets:
        target.parameter.grad = None


def _norm(targets: list[Target]) -> float:
    grads = [target.parameter.grad for target in targets if target.parameter.grad is not None]
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _blocks(targets: list[Target]) -> Iterator[GradientBlock]:
    for target in targets:
        grad = target.parameter.grad
        if grad is not None:
            yield GradientBlock(target, 0, grad.flatten().to(torch.promote_types(grad.dtype, torch.float32)))
