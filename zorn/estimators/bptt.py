"""BPTT: the exact gradient by backpropagation through time, the baseline that every estimate is compared
with.

Rumelhart, Hinton and Williams (1986); Werbos (1990). Memory grows with the context: every activation is kept.
"""

import math
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import nn

from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators.estimate import Estimate
from zorn.models import Batch, TokenObjective, mean_tokens, row_losses
from zorn.perturbations import Draw, FusedSGD, GradientBlock, Objective, Target
from zorn.perturbations.targets import trainable_targets


@final
class BPTT:
    """The exact gradient of the batch's loss, by autograd, behind the contract of the estimators.

    The model is left in the mode that it is in (dropout and the like stay on in training mode).

    Args:
        micro_batch: sequences differentiated together, at least 1; None for the whole batch. Bounds memory,
            changes nothing else.

    Attributes:
        step: counts the estimates.

    Example:
        >>> import torch, zorn
        >>> model = torch.nn.Linear(3, 1)
        >>> batch = zorn.Batch(torch.randn(8, 3), torch.randn(8, 1))
        >>> def squared_error(outputs, targets):
        ...     return (outputs - targets).square().mean(-1)
        >>> estimate = zorn.BPTT().estimate(model, batch, squared_error)
        >>> estimate.forward_passes
        24
    """

    def __init__(self, *, micro_batch: int | None = None) -> None:
        if micro_batch is not None and micro_batch < 1:
            raise ConfigError(
                f"micro_batch: got {micro_batch}, expected 1 or more, or None for the whole batch"
            )
        self.micro_batch = micro_batch
        self.step = 0

    def estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None = None
    ) -> Estimate:
        """Fill `.grad` (replacing what was there), or apply `update`, as `ZeroOrderEstimator.estimate` does.
        Counts 3 B forward passes.

        Raises:
            NonFiniteLossError: loss or gradient is not finite; the weights are unchanged, `.grad` is cleared.
        """
        targets = trainable_targets(model)
        if update is not None:
            update.check(targets)
        for target in targets:
            target.parameter.grad = None
        sequences = len(batch.inputs)
        normaliser = mean_tokens(objective, batch.targets) if isinstance(objective, TokenObjective) else None
        total = 0.0
        for inputs, wanted in zip(
            *(part.split(self.micro_batch or sequences) for part in batch), strict=True
        ):
            rows = row_losses(model, Batch(inputs, wanted), objective, normaliser=normaliser)
            if not rows.requires_grad:
                raise ConfigError(
                    "BPTT needs an objective that torch can differentiate, but the losses do not depend "
                    "on the "
                    "weights through autograd: use a differentiable objective, or CDRGE, which needs no "
                    "derivative"
                )
            loss = rows.sum() / sequences
            loss.backward()
            total += float(loss.detach())
        grads = [t.parameter.grad for t in targets if t.parameter.grad is not None]
        norm = float(
            torch.linalg.vector_norm(
                torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads])
            )
        )
        step, self.step = self.step, self.step + 1
        finite = math.isfinite(total) and math.isfinite(norm)
        if update is not None and finite:
            update.apply(_blocks(targets), Draw(seed=0, step=step, epsilon=1.0))
        if not finite:
            for target in targets:
                target.parameter.grad = None
        if not finite:
            raise NonFiniteLossError(
                f"step {step}: the loss is {total} and the gradient's norm {norm}: lower the learning rate "
                "or clip the gradient; "
                "the weights are unchanged"
            )
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


def _blocks(targets: list[Target]) -> Iterator[GradientBlock]:
    for target in targets:
        grad = target.parameter.grad
        if grad is not None:
            yield GradientBlock(target, 0, grad.flatten().to(torch.promote_types(grad.dtype, torch.float32)))
