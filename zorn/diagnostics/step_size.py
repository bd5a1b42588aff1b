"""The loss along −ĝ: how far a plain gradient step may go."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zorn.checks import check_number, wrong
from zorn.diagnostics.gradients import products, sampling
from zorn.errors import NonFiniteLossError
from zorn.estimators.arguments import check_batch
from zorn.estimators.population import Objective
from zorn.models import row_losses

LENGTHS = tuple(10 ** (power / 4) for power in range(-16, 1))
"""1e-4 to 1 in quarter decades: the steps that `step_curve` tries, as shares of ‖θ‖."""


@dataclass(frozen=True, kw_only=True)
class StepPoint:
    """The loss after a step θ − η ĝ.

    Attributes:
        length: η ‖ĝ‖ / ‖θ‖.
        learning_rate: η, of plain SGD.
        loss: L(θ − η ĝ); infinite where it is not finite.
    """

    length: float
    learning_rate: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class StepCurve:
    """The findings of `step_curve`.

    Attributes:
        loss: L(θ), before any step.
        points: one for each length, ascending.
        best: the point with the least loss; None where none is below L(θ).
    """

    loss: float
    points: tuple[StepPoint, ...]
    best: StepPoint | None


def step_curve(
    model: Any,
    batch: Any,
    objective: Objective,
    estimator: Any,
    *,
    probe: Any = None,
    lengths: Sequence[float] = LENGTHS,
    time_chunk: int | None = None,
) -> StepCurve:
    """Estimate the gradient once and follow −ĝ: the losses at θ − η ĝ for a range of step sizes η. The
    weights are back bit for bit afterwards, see `zorn.diagnostics.sampling`.

    Steps are given relative to ‖θ‖, so that one range fits every scale of the loss. They are plain SGD's:
    Adam divides each number by its own size first.

    Args:
        model: any `nn.Module`.
        batch: what the gradient is estimated on.
        objective: as for the estimator.
        estimator: any estimator.
        probe: the batch that the losses are evaluated on, best a fresh one: on its own batch a step looks
            better than it is. None is `batch`.
        lengths: η ‖ĝ‖ / ‖θ‖, each above 0, at least one.
        time_chunk: time steps run at once for the losses; changes nothing but memory and rounding.

    Raises:
        ConfigError: an argument outside its range, or an estimate or weights that are all zero.
        NonFiniteLossError: the loss before any step is not finite, or as the estimator raises it.

    Example:
        >>> import torch, zorn
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> batch = zorn.Batch(torch.ones(2, 1), torch.zeros(2, 1))
        >>> def square(outputs, targets):
        ...     return outputs.square().mean(-1)
        >>> curve = step_curve(model, batch, square, zorn.BPTT(), lengths=[0.5, 1.0, 1.5])
        >>> [round(point.loss, 2) for point in curve.points], curve.best.learning_rate
        ([0.25, 0.0, 0.25], 0.5)
    """
    shares = list(lengths)
    if not shares:
        raise wrong("lengths", "at least one step length", "none", "for example [0.001, 0.01]")
    for length in shares:
        check_number("lengths", length, above=True)
    if probe is not None:
        check_batch(probe)
    with sampling(model, batch, objective, estimator) as sampler:
        gradient, _, _ = sampler.draw(0)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        start = {name: parameter.detach().clone() for name, parameter in trained.items()}
        unit = math.sqrt(float(products(start, start).sum() / products(gradient, gradient).sum()))
        if not 0 < unit < math.inf:
            fix = "give a model and a batch that have a gradient"
            raise wrong("weights and estimate", "other than zero to follow", "all zeros in one of them", fix)

        def loss() -> float:
            where = batch if probe is None else probe
            return float(row_losses(model, where, objective, time_chunk=time_chunk).mean())

        before = loss()
        if not math.isfinite(before):
            raise NonFiniteLossError(
                f"the loss before any step is {before}: check the batch and the objective"
            )
        points = []
        for length in sorted(shares):
            for name, parameter in trained.items():
                parameter.copy_(start[name].to(gradient[name].dtype) - length * unit * gradient[name])
            found = loss()
            found = found if math.isfinite(found) else math.inf
            points.append(StepPoint(length=length, learning_rate=length * unit, loss=found))
    best = min(points, key=lambda point: point.loss)
    return StepCurve(loss=before, points=tuple(points), best=best if best.loss < before else None)
