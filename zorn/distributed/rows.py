"""Exact gradients and bridge over a group: each process differentiates its rows of the batch."""

from typing import Any

import torch
from torch import nn

from zorn.distributed.workers import GroupWorkers
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators import Bridge, Estimate, ExactGradient
from zorn.estimators.two_part import GRADIENTS
from zorn.models import Batch, TokenObjective, mean_tokens
from zorn.perturbations import Draw, FusedSGD, GradientBlock, Objective, Target
from zorn.perturbations.blocks import gradient_blocks
from zorn.perturbations.targets import trainable_targets


def estimate_of_rows(
    estimator: ExactGradient,
    workers: GroupWorkers,
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    update: FusedSGD | None,
) -> Estimate:
    """One estimate, each process on its rows; their gradients are weighted by the tokens that count (rows,
    for another objective), and added up in float32.

    Args:
        batch: the whole one, on all processes.

    Raises:
        ConfigError, NonFiniteLossError: as the estimator; where it fails, no gradient is left.
    """
    targets = trainable_targets(model)
    if update is not None:
        if isinstance(estimator, Bridge) and estimator.separate:
            raise ConfigError(
                "update must be None with separate=True, whose two parts go to TwoPartOptimizer, got FusedSGD"
            )
        update.check(targets)
    rows, step = workers.rows(len(batch.inputs)), estimator.step
    own = Batch(*(part[rows.start : rows.stop] for part in batch))
    if isinstance(estimator, Bridge):
        estimator.first_row = rows.start
    try:
        found = estimator.estimate(model, own, objective)
        tokens = isinstance(objective, TokenObjective)
        weight = len(rows) * (mean_tokens(objective, own.targets) if tokens else 1.0)
        numbers = [weight, weight * found.loss, found.forward_passes, found.dropped]
        held = [float(_part(target, name) is not None) for name in GRADIENTS for target in targets]
        total, loss, passes, dropped, *anywhere = workers.sum(
            torch.tensor([*numbers, *held], dtype=torch.float64)
        ).tolist()
        norm = _reduce(targets, anywhere, weight / total, workers)
    except BaseException:
        for target in targets:
            target.parameter.grad = None
            vars(target.parameter).pop("credit_grad", None)
        raise
    if update is not None:
        blocks = (
            block
            for target in targets
            if target.parameter.grad is not None
            for block in gradient_blocks(target, target.parameter.grad)
        )
        update.apply(blocks, Draw(seed=0, step=step, epsilon=1.0))
    return Estimate(
        loss=loss / total,
        coefficients=found.coefficients,
        gradient_norm=norm,
        forward_passes=round(passes),
        dropped=round(dropped),
    )


@torch.no_grad()
def _reduce(targets: list[Target], anywhere: list[float], share: float, workers: GroupWorkers) -> float:
    """Replace the gradients by their sums over processes, each times its share; returns the norm of the sum
    of both parts."""
    wanted = iter(anywhere)
    total: dict[int, torch.Tensor] = {}
    for name in GRADIENTS:
        for target in targets:
            if not next(wanted):
                continue
            parameter = target.parameter
            wide = torch.promote_types(parameter.dtype, torch.float32)
            part = _part(target, name)
            values = torch.zeros_like(parameter, dtype=wide) if part is None else part.to(wide) * share
            [block] = workers.sum_blocks(iter([GradientBlock(target, 0, values.contiguous())]))
            setattr(parameter, name, block.values.to(parameter.dtype))
            earlier = total.get(target.number)
            total[target.number] = block.values if earlier is None else earlier + block.values
    norms = [torch.linalg.vector_norm(values, dtype=torch.float64) for values in total.values()]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if not norm < float("inf"):
        raise NonFiniteLossError(
            f"the norm of the gradient of all rows is {norm}: lower the learning rate or clip the gradient; "
            "the weights are unchanged"
        )
    return norm


def _part(target: Target, name: str) -> Any:
    return getattr(target.parameter, name, None)
