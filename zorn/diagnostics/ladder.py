"""The quality of an estimate as a function of its members: cos(n) ≈ c_max / √(1 + κ / n).

An estimate is its mean μ plus noise of power V / n, which in many dimensions is almost orthogonal to all
else. So its cosine to the gradient g is cos(μ, g) ‖μ‖ / √(‖μ‖² + V / n). c_max = cos(μ, g) is the limit for
large populations (1 for an unbiased estimator). κ = V / ‖μ‖² members make noise and signal equal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zorn.checks import check_choice, check_number, wrong

SIGNIFICANT = 4
"""Standard errors from zero below which values are taken for noise."""


@dataclass(frozen=True, kw_only=True)
class LadderFit:
    """cos(n) ≈ c_max / √(1 + κ / n).

    Attributes:
        ceiling: c_max, 0 to 1: the cosine that ever more members would reach.
        ceiling_error: its standard error, roughly; 0 where it was given. Large as long as no rung comes near
            κ members: then only c_max / √κ is known well.
        noise: κ ≥ 0, in members.

    Example:
        >>> fit = LadderFit(ceiling=1.0, ceiling_error=0.0, noise=300.0)
        >>> fit.cosine(100)
        0.5
        >>> fit.members_for(0.5)
        100
    """

    ceiling: float
    ceiling_error: float
    noise: float

    def cosine(self, members: Any) -> float:
        """The cosine at n members, n > 0.

        Raises:
            ConfigError: n is no positive number.
        """
        check_number("members", members, above=True)
        return self.ceiling / math.sqrt(1 + self.noise / members)

    def members_for(self, cosine: Any) -> int | None:
        """n for a wanted cosine, above 0 and at most 1; None where no population reaches it.

        Raises:
            ConfigError: a cosine outside its range.
        """
        check_number("cosine", cosine, above=True, maximum=1.0)
        if cosine > self.ceiling or (cosine == self.ceiling and self.noise > 0):
            return None
        return max(1, math.ceil(self.noise / ((self.ceiling / cosine) ** 2 - 1))) if self.noise else 1


def fit_ladder(
    members: Sequence[float | int],
    values: Sequence[float | int],
    samples: Sequence[int],
    *,
    of: str = "cosine",
    deviation: float = 0.0,
) -> LadderFit | None:
    """Fit c_max and κ by least squares, each rung weighted with the samples it is the mean of.

    For each κ the best c_max is known in closed form; κ is found on a grid of its logarithm that is narrowed
    five times. The SNR of two estimates is the square of an estimate's cosine to its own mean: 1 / (1 + κ/n).

    Args:
        members: n of each rung, at least two different ones.
        values: measured at each rung.
        samples: how many samples each value is the mean of.
        of: what was measured: "cosine" to the gradient, or "snr" of two estimates, for which c_max is 1.
        deviation: standard deviation of a single sample, for `ceiling_error`, and to tell signal from noise.

    Returns:
        The fit; None where the values show no signal: none above zero, or none beyond four standard errors.

    Raises:
        ConfigError: fewer than two rungs, lists of different lengths, or another kind of value.

    Example:
        >>> fit = fit_ladder([1, 4, 16], [0.8 / 5**0.5, 0.8 / 2**0.5, 0.8 / 1.25**0.5], [16, 4, 1])
        >>> round(fit.ceiling, 3), round(fit.noise, 3)
        (0.8, 4.0)
    """
    if len(set(members)) < 2 or not len(members) == len(values) == len(samples):
        got = f"{len(members)} members, {len(values)} values and {len(samples)} samples"
        expected = "at least two rungs of different members, each with a value and its samples"
        raise wrong("a ladder", expected, got)
    check_choice("of", of, ("cosine", "snr"))
    n, c, weights = (np.asarray(list(column), dtype=float) for column in (members, values, samples))
    power = 0.5 if of == "cosine" else 1.0

    def shapes(log_noise: np.ndarray) -> np.ndarray:
        return (1 + np.exp(log_noise)[:, None] / n) ** -power

    def ceilings(shape: np.ndarray) -> np.ndarray:
        if of == "snr":
            return np.ones(len(shape))
        return np.clip((weights * shape * c).sum(1) / (weights * shape**2).sum(1), 0.0, 1.0)

    def errors(log_noise: np.ndarray) -> np.ndarray:
        shape = shapes(log_noise)
        return (weights * (c - ceilings(shape)[:, None] * shape) ** 2).sum(1)

    least, most = math.log(n.min()) - 10, math.log(n.max()) + 25
    low, high = least, most
    for _ in range(5):
        grid = np.linspace(low, high, 71)
        best = int(np.argmin(errors(grid)))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 70)]
    found = np.array([(low + high) / 2 if low > least else -math.inf])  # at the least there is no noise
    shape = shapes(found)
    ceiling, noise = float(ceilings(shape)[0]), float(np.exp(found)[0])
    explained = float((weights * c**2).sum() - errors(found)[0])
    if ceiling == 0 or high == most or explained <= (SIGNIFICANT * deviation) ** 2:
        return None
    spread = 0.0 if of == "snr" else _ceiling_error(n, shape[0], ceiling, noise, weights, deviation)
    return LadderFit(ceiling=ceiling, ceiling_error=spread, noise=noise)


def _ceiling_error(
    n: np.ndarray, shape: np.ndarray, ceiling: float, noise: float, weights: np.ndarray, deviation: float
) -> float:
    """The Gauss-Newton standard error of c_max, as if the rungs were independent."""
    by_noise = -ceiling / 2 * (noise / n) * shape**3
    a, b, d = ((weights * x * y).sum() for x, y in ((shape, shape), (shape, by_noise), (by_noise, by_noise)))
    determinant = a * d - b * b
    if d == 0:
        return deviation / math.sqrt(a)
    return deviation * math.sqrt(d / determinant) if determinant > 1e-12 * a * d else math.inf
