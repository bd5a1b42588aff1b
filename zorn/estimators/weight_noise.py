"""Noise on the weights: settings, coefficients and fold of the estimators whose gradient is a weighted sum of
directions. The formula of each is in a file of its own."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from zorn.checks import Count, Seed, Share, check_number, described, wrong
from zorn.errors import NonFiniteLossError
from zorn.estimators.base import Chosen, Estimator, Facts
from zorn.estimators.estimate import Estimate, Population
from zorn.estimators.fold import Fold
from zorn.estimators.population import Workload
from zorn.estimators.shaping import OF_SEVERAL, SHAPINGS, Shaping
from zorn.estimators.update import FusedSGD
from zorn.noise import Dense, Draw, NoiseKind, Perturbation, RankOne
from zorn.noise.targets import Target

PERTURBATIONS: dict[str, Any] = {"rank-one": RankOne, "dense": Dense}
"""The structures of directions by the names that settings use."""

DENSE_POPULATION = 96
"""The paper's smallest population: dense members run one at a time."""


class WeightNoise(Estimator):
    """An estimator whose gradient is a weighted sum of directions, ĝ = (1/n) Σ_j c_j z_j, from losses alone.

    Args:
        population: n, members a step, at least 1 (2 with shaping "zscore" or "std"). With sequences in B / g
            groups, a multiple of B / g.
        epsilon: ε > 0, the standard deviation of one weight's perturbation.
        perturbation: structure of the directions: "rank-one" (all members in one forward pass), "dense" (one
            member at a time, the paper's), or what `RankOne()` or `Dense()` made.
        noise: "rademacher" (signs) or "gaussian", of a structure that is given by its name; of another one
            its own.
        group_size: g, the sequences that each member is evaluated on, from 1 (one member a sequence, the
            lowest variance for the same forward passes) up to None (the whole batch, which suits "dense").
        seed: of the directions, 0 to 2**64 - 1.
        micro_batch: most rows in one forward pass, both signs counted, at least 1; changes nothing but memory
            and speed.
        shaping: "none", "zscore", "sign" or "std", or a function of the coefficients before they are folded,
            see `zorn.estimators.shaping`.
        maximum_nonfinite_share: 0 to 1; a member with a loss that is NaN or infinite is dropped (the average
            is over the rest), and more than this share of them raises instead.

    Attributes:
        step: of the next estimate; set it to repeat or resume a run.
        epsilon, population: may be set between steps, by a schedule; a `Population` carries the ε that it was
            drawn with and its own size.
        workers: the processes that share an evaluation; this one alone until `zorn.distributed.share`.

    Raises:
        ConfigError: an argument outside its range, or a `noise` that is not the given structure's.
    """

    scheduled = ("epsilon", "population")
    sizes = ("population",)
    saved = ("seed", "step", "epsilon", "population")
    journaled = True
    deals = "members"
    signs: ClassVar[tuple[int, ...]]
    """The signs of ε z_j under which a member's loss is evaluated; 0: θ itself, shared by the members."""

    population: Count = 1024
    epsilon: Annotated[float, partial(check_number, above=True, hint="0.001 to 0.1 suits most models")] = 0.02
    perturbation: Literal["rank-one", "dense"] | Perturbation = "rank-one"
    noise: NoiseKind = "rademacher"
    group_size: Count | None = 1
    seed: Seed = 0
    micro_batch: Count = 512
    shaping: Literal["none", "zscore", "sign", "std"] | Shaping = "none"
    maximum_nonfinite_share: Share = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.perturbation, str) and self.perturbation in PERTURBATIONS:
            self.perturbation = PERTURBATIONS[self.perturbation](noise=self.noise)
        if not isinstance(self.perturbation, Perturbation):
            expected = f"one of {', '.join(PERTURBATIONS)}, zorn.RankOne() or zorn.Dense()"
            raise wrong("perturbation", expected, described(self.perturbation))
        own = self.perturbation.noise if isinstance(self.perturbation, RankOne | Dense) else self.noise
        if self.noise not in (own, WeightNoise.noise):
            raise wrong("noise", f"{own!r} as that of the perturbation", f"{self.noise!r}", "leave it out")
        self.noise = own
        if not callable(self.shaping) and not (isinstance(self.shaping, str) and self.shaping in SHAPINGS):
            raise wrong("shaping", f"one of {', '.join(SHAPINGS)}, or a function", described(self.shaping))
        self.population = self.population  # once more, with the shaping

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "population" and value == 1 and self._shape in OF_SEVERAL:
            expected = (
                f"at least 2 with shaping {self._shape.__name__}, which makes 0 of a single coefficient"
            )
            raise wrong("population", expected, "1", "for example 64, or shaping none")
        super().__setattr__(name, value)

    @property
    def _shape(self) -> Shaping:
        return SHAPINGS[self.shaping] if isinstance(self.shaping, str) else self.shaping

    @property
    def structure(self) -> Perturbation:
        """The structure of the directions, `perturbation`."""
        assert isinstance(self.perturbation, Perturbation)
        return self.perturbation

    @classmethod
    def choose(cls, given: Mapping[str, Any], facts: Facts) -> Chosen:
        """Few members on the whole batch with dense directions, else members that use all sequences equally
        often."""
        chosen: dict[str, tuple[Any, str]] = {}
        dense = given.get("perturbation") == "dense"
        group = given.get("group_size", None if dense else 1)
        if dense and "group_size" not in given:
            chosen["group_size"] = None, "the whole batch for each of few members, which run one at a time"
        if "population" in given or facts.batch is None:
            return chosen
        multiple = max(1, facts.batch // (group or facts.batch))
        size = DENSE_POPULATION if dense else 1024
        rounded = math.ceil(size / multiple) * multiple
        why = "dense members run one at a time" if dense else "text and copy learn with about 1024 members"
        chosen["population"] = rounded, f"{why}; a multiple of {multiple} uses all sequences equally often"
        return chosen

    def check(self, facts: Facts) -> None:
        """Raise ConfigError for members that do not cover the batch evenly."""
        if facts.batch is not None:
            Workload(self.population, self.group_size or facts.batch, self.micro_batch).check(facts.batch)

    def population_multiple(self, batch: int) -> int:
        """B / g: a multiple of it uses all sequences equally often."""
        return max(1, batch // (self.group_size or batch))

    def passes(self, batch: int, steps: int) -> int | float:
        """n g for each sign, and the batch once where θ itself is evaluated."""
        del steps
        rows = self.population * (self.group_size or batch)
        return sum(rows if sign else batch for sign in self.signs)

    @torch.no_grad()
    def refold(self, model: nn.Module, fold: Fold, update: FusedSGD | None = None) -> float:
        """Fill `.grad`, or apply `update`, from the fold of an earlier estimate; returns the norm."""
        return fold.apply(self.structure.bind(model), update)

    @torch.inference_mode(mode=False)  # or a caller's inference mode would get into .grad
    @torch.no_grad()
    def _told(
        self,
        model: nn.Module,
        population: Population,
        losses: Tensor | np.ndarray | Sequence[Sequence[float]],
        update: FusedSGD | None,
        forward_passes: int,
        origin: int | None = None,
        draws: int = 1,
    ) -> Estimate:
        """Fold losses [signs, members] into `.grad` or the weights; `origin` and `draws` are the `Fold`'s."""
        table = _as_table(losses, population.signs, population.size)
        finite = table.isfinite().all(0)
        kept = int(finite.sum())
        dropped = population.size - kept
        if kept == 0 or dropped > self.maximum_nonfinite_share * population.size:
            raise NonFiniteLossError(
                f"step {population.draw.step}: the losses of {dropped} of {population.size} members were "
                f"not finite (at most {self.maximum_nonfinite_share:.0%} are dropped): lower the learning "
                f"rate or epsilon (epsilon is {population.draw.epsilon:g}), or check the objective; the "
                "weights are unchanged"
            )
        coefficients = torch.zeros(population.size, dtype=torch.float64)
        coefficients[finite] = self.coefficients(table[:, finite], population.draw.epsilon)
        weights = torch.zeros_like(coefficients)
        weights[finite] = self._shaped(coefficients[finite]) / kept
        bound = population.perturbation.bind(model)
        wide = self._is_wide(population.draw, weights, bound.targets)
        fold = Fold.of(population.draw, weights, wide=wide, origin=origin, draws=draws)
        norm = fold.apply(bound, update)
        return Estimate(
            loss=float(self.loss(table[:, finite])),
            coefficients=coefficients,
            gradient_norm=norm,
            forward_passes=forward_passes,
            dropped=dropped,
            fold=fold,
        )

    def _is_wide(self, draw: Draw, weights: Tensor, targets: Sequence[Target]) -> bool:
        """True where a gradient is float64; NonFiniteLossError where one could not hold the weights' sum."""
        formats = [torch.promote_types(target.parameter.dtype, torch.float32) for target in targets]
        total = float(weights.abs().sum())
        if not 10 * total < min(torch.finfo(each).max for each in formats):
            # 10: more than an element of normal noise ever is
            raise NonFiniteLossError(
                f"step {draw.step}: the coefficients are not finite or too large for the gradient's number "
                f"format (their sum is {total:g}): scale the objective down, or check the shaping; the "
                "weights are unchanged"
            )
        return torch.float64 in formats

    def _shaped(self, coefficients: Tensor) -> Tensor:
        """The coefficients after the shaping, which is the user's."""
        shaped: object = self._shape(coefficients)
        if not isinstance(shaped, Tensor) or shaped.shape != coefficients.shape:
            got = str(tuple(shaped.shape)) if isinstance(shaped, Tensor) else type(shaped).__name__
            expected = f"of shape {tuple(coefficients.shape)}, one number for each coefficient"
            raise wrong("what shaping returns", f"a tensor {expected}", got, "see zorn.estimators.shaping")
        return shaped

    @abstractmethod
    def coefficients(
        self, losses: Float64[Tensor, "signs members"], epsilon: float
    ) -> Float64[Tensor, " members"]:
        """c, from finite losses in the order of `signs`."""

    def loss(self, losses: Float64[Tensor, "signs members"]) -> Float64[Tensor, ""]:
        """The loss to report, from finite losses: the mean of L(θ) where it is evaluated, else of all."""
        return (losses[self.signs.index(0)] if 0 in self.signs else losses).mean()


def _as_table(losses: Any, signs: tuple[int, ...], members: int) -> Float64[Tensor, "signs members"]:
    """The losses that `tell` is given, as float64 on the CPU, without a graph; ConfigError for another shape,
    complex numbers, or no numbers."""
    expected = f"a table of real numbers, one row for each of the signs {signs}"
    try:
        found = losses.detach() if isinstance(losses, Tensor) else torch.tensor(np.asarray(losses))
    except (TypeError, ValueError) as error:
        raise wrong("losses", expected, f"{described(losses)} ({error})") from error
    if found.is_complex():
        raise wrong("losses", expected, str(found.dtype), "take their real part or modulus")
    if found.shape != (len(signs), members):
        raise wrong("losses", f"{expected}, of shape {(len(signs), members)}", f"shape {tuple(found.shape)}")
    return found.to("cpu", torch.float64)
