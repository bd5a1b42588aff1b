"""All diagnostics of an estimator on one model and batch, together, and as JSON."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zorn.diagnostics.epsilon import EpsilonSweep, NoPlateauError, find_epsilon
from zorn.diagnostics.signal import Signal, measure_signal
from zorn.diagnostics.step_size import StepCurve, step_curve
from zorn.estimators.population import Objective

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The findings of `diagnose`.

    Attributes:
        signal: cosine to the exact gradient, SNR, both for each parameter too, and the ladder over members.
        epsilon: the ε sweep; None for an estimator without ε, or where no ε gives any signal.
        step: the loss along −ĝ.
    """

    signal: Signal
    epsilon: EpsilonSweep | None
    step: StepCurve

    def to_json(self) -> str:
        """All numbers, as one JSON object; what is not finite is null.

        Example:
            >>> import torch, zorn
            >>> model = torch.nn.Linear(3, 1)
            >>> batch = zorn.Batch(torch.ones(4, 3), torch.zeros(4, 1))
            >>> def square(outputs, targets):
            ...     return outputs.square().mean(-1)
            >>> found = diagnose(model, batch, square, zorn.BPTT(), estimates=4)
            >>> json.loads(found.to_json())["signal"]["whole"]["name"]
            'all parameters'
        """
        return json.dumps(_plain(dataclasses.asdict(self)), indent=1) + "\n"

    def table(self) -> "RenderableType":
        """Tables for a rich console: signal by parameter, ladder, ε sweep, steps."""
        from zorn.diagnostics.table import tables  # here: importing zorn loads no rich

        return tables(self)

    def draw(self, path: Path) -> None:
        """Write a picture of the ladder, the signal by parameter, the ε sweep and the steps, as PNG."""
        from zorn.diagnostics.picture import draw_diagnosis  # here: matplotlib takes long to import

        draw_diagnosis(path, self)


def diagnose(
    model: Any,
    batch: Any,
    objective: Objective,
    estimator: Any,
    *,
    probe: Any = None,
    estimates: Any = 32,
    exact: bool = True,
    exact_micro_batch: Any = None,
    time_chunk: int | None = None,
) -> Diagnosis:
    """Measure how good an estimator is here: `measure_signal`, `find_epsilon` (where it has an ε) and
    `step_curve`. Weights, `.grad` and the estimator are left as they were.

    Args:
        model: any `nn.Module`.
        batch: `Batch(inputs, targets)` on the model's device.
        objective: as for the estimator; with `exact` one that torch can differentiate.
        estimator: any estimator.
        probe: a fresh batch for the losses along −ĝ; None is `batch`.
        estimates: independent estimates for the signal, a power of two, at least 4.
        exact: whether to compare with the gradient by backpropagation, which must fit the memory.
        exact_micro_batch: sequences that are differentiated together for it; None for all at once.
        time_chunk: time steps run at once for the losses along −ĝ.

    Raises:
        ConfigError: as the three functions raise it.
        NonFiniteLossError: losses at the estimator's own ε, or at the weights, are not finite.

    Example:
        >>> import zorn
        >>> model = zorn.LanguageModel(29, 8)
        >>> task = zorn.tasks.CopyTask(batch=4, minimum_length=2, maximum_length=2, seed=0)
        >>> estimator = zorn.CDRGE(population=64, epsilon=0.01, group_size=1)
        >>> found = diagnose(model, task.training_batch(0), task.objective, estimator, estimates=8)
        >>> found.signal.whole.snr.mean > 0, found.step.best is not None
        (True, True)
    """
    options: dict[str, Any] = {"exact": exact, "exact_micro_batch": exact_micro_batch}
    signal = measure_signal(model, batch, objective, estimator, estimates=estimates, **options)
    sweeps = getattr(estimator, "epsilon", None) is not None
    try:
        sweep = find_epsilon(model, batch, objective, estimator) if sweeps else None
    except NoPlateauError:
        sweep = None
    step = step_curve(model, batch, objective, estimator, probe=probe, time_chunk=time_chunk)
    return Diagnosis(signal=signal, epsilon=sweep, step=step)


def _plain(value: Any) -> Any:
    """The same with None for every number that is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
