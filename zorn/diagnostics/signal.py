"""Signal and noise of an estimator: its cosine to the exact gradient, its split-half SNR, and how both grow
when estimates are averaged.

Two independent estimates share the signal and no noise, so SNR = ⟨ĝ₁, ĝ₂⟩ / (‖ĝ₁‖‖ĝ₂‖) tells the share of
signal in one of them without any backward pass. It does not see a bias; the cosine to the gradient does.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from zorn.checks import Count, check_whole_number, checked, wrong
from zorn.diagnostics.gradients import Gradient, Sampler, products, sampling
from zorn.diagnostics.ladder import LadderFit, fit_ladder
from zorn.diagnostics.measured import Measured, measured
from zorn.estimators import Estimate
from zorn.estimators.population import Objective


@dataclass(frozen=True, kw_only=True)
class LayerSignal:
    """The signal in one parameter's gradient, or in the whole.

    Attributes:
        name: of the parameter.
        numbers: how many numbers it has.
        snr: ⟨ĝ₁, ĝ₂⟩ / (‖ĝ₁‖‖ĝ₂‖) of two independent estimates, -1 to 1.
        cosine: of an estimate to the exact gradient, -1 to 1; None where that was not computed.
        relative_norm: ‖ĝ‖ / ‖g‖, at least 0; None likewise.

    A parameter whose gradient is zero has NaN for all three.
    """

    name: str
    numbers: int
    snr: Measured
    cosine: Measured | None
    relative_norm: Measured | None


@dataclass(frozen=True, kw_only=True)
class Rung:
    """The signal in the average of several estimates.

    Attributes:
        averaged: how many estimates.
        members: what that comes to in the signal's `unit`.
        samples: how many such averages the cosine is the mean of; the SNR is that of half as many pairs.
        snr, cosine: as in `LayerSignal`, of the whole gradient.
    """

    averaged: int
    members: int
    samples: int
    snr: Measured
    cosine: Measured | None


@dataclass(frozen=True, kw_only=True)
class Signal:
    """The findings of `measure_signal`.

    Attributes:
        estimator: its class.
        loss: mean of what the estimates report.
        estimates: how many were made.
        unit: the unit of the ladder and of the fit: "members" of the population, "draws" of the noise of each
            sequence, or "estimates" where there is neither.
        forward_passes: of one estimate.
        seconds: of processor time of one estimate, the median.
        whole: the signal in the whole gradient.
        layers: the signal in each parameter's.
        ladder: the rungs, from one estimate up to half of them averaged.
        fit: of the ladder; None where it shows no signal. With the exact gradient, of the cosines to it;
            without, of the SNR: then its cosine is to the estimator's own mean, and c_max is 1.
    """

    estimator: str
    loss: float
    estimates: int
    unit: str
    forward_passes: int
    seconds: float
    whole: LayerSignal
    layers: tuple[LayerSignal, ...]
    ladder: tuple[Rung, ...]
    fit: LadderFit | None


def measure_signal(
    model: Any,
    batch: Any,
    objective: Objective,
    estimator: Any,
    *,
    estimates: Any = 32,
    exact: bool = True,
    exact_micro_batch: Any = None,
) -> Signal:
    """Make independent estimates of a batch's gradient and compare them: pairs of them, pairs of averages of
    two, of four, …; and each with the exact gradient. Nothing is changed, see `sampling`.

    Holds log₂(estimates) + 2 gradients at most.

    Args:
        model: any `nn.Module`.
        batch: the sequences, on the model's device; cosines are to the gradient of this batch.
        objective: as for the estimator; with `exact` one that torch can differentiate.
        estimator: any estimator, at its next step; averages of `estimates` steps from there on are looked at.
        estimates: a power of two, at least 4; standard errors fall with its root.
        exact: whether to compare with the gradient by backpropagation, which must fit the memory.
        exact_micro_batch: sequences that are differentiated together for it; None for all at once.

    Raises:
        ConfigError: an argument outside its range, or an objective without a derivative and `exact`.
        NonFiniteLossError: as the estimator raises it.

    Example:
        >>> import zorn
        >>> model = zorn.LanguageModel(29, 8)
        >>> task = zorn.tasks.CopyTask(batch=4, minimum_length=2, maximum_length=2, seed=0)
        >>> estimator = zorn.CDRGE(population=256, epsilon=0.01, group_size=1)
        >>> found = measure_signal(model, task.training_batch(0), task.objective, estimator, estimates=8)
        >>> 0.2 < found.whole.cosine.mean < 0.8, [rung.members for rung in found.ladder]
        (True, [256, 512, 1024])
    """
    check_whole_number("estimates", estimates, minimum=4)
    if estimates & (estimates - 1):
        nearest = 2 ** round(math.log2(estimates))
        fix = f"for example {nearest}, as they are averaged by two, by four, and so on"
        raise wrong("estimates", "a power of two", estimates, fix)
    checked("exact_micro_batch", exact_micro_batch, Count | None)
    with sampling(model, batch, objective, estimator) as sampler:
        gradient = sampler.exact(exact_micro_batch) if exact else None
        halving = _Halving(sampler, gradient)
        halving.average(int(math.log2(estimates)))
        return halving.signal()


@dataclass
class _Level:
    """Inner products of the averages of one size, each [parameters]."""

    squares: list[Tensor] = field(default_factory=list)
    to_exact: list[Tensor] = field(default_factory=list)
    pairs: list[Tensor] = field(default_factory=list)


class _Halving:
    """The averages of 1, 2, 4, … estimates, made two by two from the bottom up, and their inner products."""

    def __init__(self, sampler: Sampler, exact: Gradient | None) -> None:
        self.sampler, self.exact = sampler, exact
        self.exact_squares = None if exact is None else products(exact, exact)
        self.levels: dict[int, _Level] = {}
        self.records: list[Estimate] = []
        self.seconds: list[float] = []
        self.names: dict[str, int] = {}

    def average(self, level: int) -> Gradient:
        """The average of the next 2**level estimates."""
        if level == 0:
            gradient, record, seconds = self.sampler.draw(len(self.records))
            self.records.append(record)
            self.seconds.append(seconds)
            self.names = {name: values.numel() for name, values in gradient.items()}
            return gradient
        first, second = self.average(level - 1), self.average(level - 1)
        below = self.levels.setdefault(level - 1, _Level())
        below.pairs.append(products(first, second))
        for half in (first, second):
            below.squares.append(products(half, half))
            if self.exact is not None:
                below.to_exact.append(products(half, self.exact))
        return {name: (values + second[name]) / 2 for name, values in first.items()}

    def signal(self) -> Signal:
        members, unit = size_of(self.sampler.estimator)
        rungs = [
            Rung(
                averaged=2**level,
                members=members * 2**level,
                samples=len(found.squares),
                snr=(whole := self._whole(found)).snr,
                cosine=whole.cosine,
            )
            for level, found in sorted(self.levels.items())
        ]
        return Signal(
            estimator=type(self.sampler.estimator).__name__,
            loss=sum(record.loss for record in self.records) / len(self.records),
            estimates=len(self.records),
            unit=unit,
            forward_passes=self.records[0].forward_passes,
            seconds=sorted(self.seconds)[len(self.seconds) // 2],
            whole=self._whole(self.levels[0]),
            layers=tuple(
                self._signal(name, numbers, self.levels[0], slice(index, index + 1))
                for index, (name, numbers) in enumerate(self.names.items())
            ),
            ladder=tuple(rungs),
            fit=_fit(rungs),
        )

    def _whole(self, level: _Level) -> LayerSignal:
        return self._signal("all parameters", sum(self.names.values()), level, slice(None))

    def _signal(self, name: str, numbers: int, level: _Level, part: slice) -> LayerSignal:
        def over(tables: list[Tensor]) -> Float64[Tensor, " samples"]:
            return torch.stack(tables)[:, part].sum(1)

        norms = over(level.squares).sqrt()
        snr = measured(over(level.pairs) / (norms[::2] * norms[1::2]))
        if self.exact_squares is None:
            return LayerSignal(name=name, numbers=numbers, snr=snr, cosine=None, relative_norm=None)
        length = self.exact_squares[part].sum().sqrt()
        return LayerSignal(
            name=name,
            numbers=numbers,
            snr=snr,
            cosine=measured(over(level.to_exact) / (norms * length)),
            relative_norm=measured(norms / length) if length > 0 else Measured(math.nan, math.nan),
        )


def size_of(estimator: Any) -> tuple[int, str]:
    """The size of an estimate, in the unit that makes it better, and the unit; 1 estimate where there is
    none.

    >>> import zorn
    >>> size_of(zorn.CDRGE(population=8, epsilon=0.1)), size_of(zorn.BPTT())
    ((8, 'members'), (1, 'estimates'))
    """
    for name in estimator.sizes:
        return getattr(estimator, name), "members" if name == "population" else name
    return 1, "estimates"


def _fit(rungs: list[Rung]) -> LadderFit | None:
    """The fit of the cosines where they were computed, else of the SNR; None for a gradient of zero."""
    exact = rungs[0].cosine is not None
    values = [rung.snr if rung.cosine is None else rung.cosine for rung in rungs]
    if not all(math.isfinite(value.mean) for value in values):
        return None
    samples = [rung.samples if exact else rung.samples // 2 for rung in rungs]
    return fit_ladder(
        [rung.members for rung in rungs],
        [value.mean for value in values],
        samples,
        of="cosine" if exact else "snr",
        deviation=values[0].standard_error * math.sqrt(samples[0]),
    )
