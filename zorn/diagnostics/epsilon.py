"""The ε sweep: where the estimate does not depend on ε.

Below the plateau the difference of two losses drowns in their rounding, above it the curvature bends the
coefficients. The same directions are used at every ε, so that the noise of the population cancels and only
what ε does is seen (common random numbers). See Moré and Wild (2012), "Estimating derivatives of noisy
simulations", for the two errors that ε balances.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zorn.checks import check_number, check_whole_number, wrong
from zorn.diagnostics.gradients import Gradient, Sampler, cosine, sampling
from zorn.diagnostics.measured import Measured, measured
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators.population import Objective

HALF_DECADES = tuple(10 ** (power / 2) for power in range(-12, 1))
"""1e-6 to 1: what `find_epsilon` tries unless it is told otherwise."""

EXAMPLE = "for example [1e-4, 1e-3, 1e-2, 1e-1]"

FLAT = 0.95
"""Share of the best above which an ε is on the plateau."""


class NoPlateauError(ConfigError):
    """No ε of a sweep gives an estimate with any signal."""


@dataclass(frozen=True, kw_only=True)
class EpsilonPoint:
    """An estimate at one ε.

    Attributes:
        epsilon: ε > 0.
        agreement: the lesser of its cosines to the estimates at the two neighbouring ε, from the same
            directions, -1 to 1; 0 where the losses were not finite, or all differences were zero.
        cosine: to the exact gradient; None where that was not computed.
    """

    epsilon: float
    agreement: Measured
    cosine: Measured | None


@dataclass(frozen=True, kw_only=True)
class EpsilonSweep:
    """The findings of `find_epsilon`.

    Attributes:
        points: one for each ε, ascending.
        epsilon: the recommendation: the ε in the (geometric) middle of the plateau, farthest from both
            errors.
        plateau: smallest and largest ε that are as good as the best within 5 %, in one piece around it.
        measure: the measure of quality: "cosine" to the exact gradient, or "agreement".
        ends: True for the lower and the upper side of the plateau if it ends inside the sweep; if not, it may
            be wider.
    """

    points: tuple[EpsilonPoint, ...]
    epsilon: float
    plateau: tuple[float, float]
    measure: str
    ends: tuple[bool, bool]


def find_epsilon(
    model: Any,
    batch: Any,
    objective: Objective,
    estimator: Any,
    *,
    epsilons: Any = None,
    repeats: Any = 2,
    exact: bool = False,
) -> EpsilonSweep:
    """Sweep ε over decades and recommend one; nothing is changed, see `zorn.diagnostics.sampling`.

    Forward passes only, unless `exact`: `repeats` estimates at each ε. For `Bridge` what is compared is the
    part that depends on ε, its credit.

    Args:
        model: any `nn.Module`.
        batch: the sequences, on the model's device.
        objective: as for the estimator. One in steps, such as an error rate, has no plateau at small ε, where
            members no longer differ.
        estimator: with an `epsilon` that can be set: in its unit, so relative to the size of activities where
            the estimator's is.
        epsilons: at least three, each above 0; None is 1e-6 to 1 in half decades.
        repeats: sets of directions, at least 1.
        exact: whether to judge by the cosine to the gradient by backpropagation. Where population noise
            dominates, it forgives more than the agreement does.

    Raises:
        ConfigError: an argument outside its range; or an estimator without ε.
        NoPlateauError: no ε at which the losses are finite and the estimates not zero, for example a `Bridge`
            whose chunks are as long as the sequence.

    Example:
        >>> import zorn
        >>> model = zorn.LanguageModel(29, 8)
        >>> task = zorn.tasks.CopyTask(batch=4, minimum_length=2, maximum_length=2, seed=0)
        >>> estimator = zorn.CDRGE(population=16, epsilon=0.5, group_size=1)
        >>> sweep = find_epsilon(model, task.training_batch(0), task.objective, estimator)
        >>> 1e-5 < sweep.epsilon < 1e-1, estimator.epsilon
        (True, 0.5)
    """
    tried = _checked(HALF_DECADES if epsilons is None else epsilons)
    check_whole_number("repeats", repeats, minimum=1)
    if getattr(estimator, "epsilon", None) is None:
        got = f"{type(estimator).__name__}, which has none"
        raise wrong("estimator", "one with an epsilon to sweep", got, "take a zero-order estimator")
    with sampling(model, batch, objective, estimator) as sampler:
        gradient = sampler.exact() if exact else None
        swept = [_sweep(sampler, number, tried, gradient) for number in range(repeats)]
    agreements, cosines = torch.tensor(swept, dtype=torch.float64).unbind(1)  # [repeats, epsilons]
    points = [
        EpsilonPoint(epsilon=epsilon, agreement=measured(own), cosine=measured(to_exact) if exact else None)
        for epsilon, own, to_exact in zip(tried, agreements.t(), cosines.t(), strict=True)
    ]
    return _plateau(points, "cosine" if exact else "agreement")


def _sweep(
    sampler: Sampler, number: int, epsilons: Sequence[float], exact: Gradient | None
) -> tuple[list[float], list[float]]:
    """Agreements and cosines at each ε, with the directions of one step."""
    neighbours, cosines = [], []
    before: Gradient | None = None
    for index, epsilon in enumerate(epsilons):
        try:
            found = sampler.draw_noisy_part(number, epsilon)
            cosines.append(0.0 if exact is None else cosine(sampler.gradient(), exact))
        except NonFiniteLossError:
            found = None
            cosines.append(0.0)
        if index:
            neighbours.append(0.0 if found is None or before is None else cosine(before, found))
        before = found
    inner = [min(pair) for pair in itertools.pairwise(neighbours)]
    return [neighbours[0], *inner, neighbours[-1]], cosines


def _plateau(points: list[EpsilonPoint], measure: str) -> EpsilonSweep:
    values = [getattr(point, measure).mean for point in points]
    best = max(range(len(values)), key=values.__getitem__)
    if not values[best] > 0:
        raise NoPlateauError(
            f"no epsilon from {points[0].epsilon:g} to {points[-1].epsilon:g} gives an estimate with any "
            f"signal: the {measure} is {values[best]:.3g} at most, expected above 0: check that the loss is "
            "finite and depends on the weights, or sweep others"
        )
    low = high = best
    while low > 0 and values[low - 1] >= FLAT * values[best]:
        low -= 1
    while high < len(values) - 1 and values[high + 1] >= FLAT * values[best]:
        high += 1
    middle = math.sqrt(points[low].epsilon * points[high].epsilon)
    chosen = min(points[low : high + 1], key=lambda point: abs(math.log(point.epsilon / middle)))
    return EpsilonSweep(
        points=tuple(points),
        epsilon=chosen.epsilon,
        plateau=(points[low].epsilon, points[high].epsilon),
        measure=measure,
        ends=(low > 0, high < len(points) - 1),
    )


def _checked(epsilons: Any) -> list[float]:
    found = list(epsilons) if isinstance(epsilons, Iterable) else []
    for epsilon in found:
        check_number("epsilons", epsilon, above=True, hint=EXAMPLE)
    if len(set(found)) < 3:
        fix = f"a plateau needs neighbours, {EXAMPLE}"
        raise wrong("epsilons", "at least three different numbers", repr(epsilons), fix)
    return sorted({float(epsilon) for epsilon in found})
