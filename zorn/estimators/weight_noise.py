"""Noise on the weights: settings, coefficients and fold of the estimators whose gradient is a weighted sum of
directions. The formula of each is in a file of its own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from zorn.checks import check_number, check_seed, check_whole_number
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators.arguments import as_losses, check_state, described
from zorn.estimators.base import Chosen, Estimator, Facts
from zorn.estimators.estimate import Estimate, Population
from zorn.estimators.fold import Fold
from zorn.estimators.population import Workload
from zorn.estimators.shaping import OF_SEVERAL, SHAPINGS, Shaping
from zorn.estimators.update import FusedSGD
from zorn.noise import Dense, Draw, NoiseKind, Perturbation, RankOne
from zorn.noise.draw import check_noise_kind
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
        noise: "rademacher" (signs) or "gaussian", of a structure that is given by its name.
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
        ConfigError: an argument outside its range.
    """

    scheduled = ("epsilon", "population")
    sizes = ("population",)
    journaled = True
    deals = "members"
    signs: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        *,
        population: int = 1024,
        epsilon: float = 0.02,
        perturbation: Literal["rank-one", "dense"] | Perturbation = "rank-one",
        noise: NoiseKind = "rademacher",
        group_size: int | None = 1,
        seed: int = 0,
        micro_batch: int = 512,
        shaping: Literal["none", "zscore", "sign", "std"] | Shaping = "none",
        maximum_nonfinite_share: float = 0.5,
    ) -> None:
        check_whole_number("micro_batch", micro_batch, minimum=1)
        if group_size is not None:
            check_whole_number("group_size", group_size, minimum=1)
        check_noise_kind(noise)
        check_seed(seed)
        check_number("maximum_nonfinite_share", maximum_nonfinite_share, maximum=1.0)
        self._shape = _shaping(shaping)
        self.population = population
        self.epsilon = epsilon
        self.perturbation = _structure(perturbation, noise)
        self.noise = noise
        self.group_size = group_size
        self.seed = seed
        self.micro_batch = micro_batch
        self.shaping = shaping
        self.maximum_nonfinite_share = maximum_nonfinite_share
        self.step = 0

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

    @property
    def population(self) -> int:
        """n, the members of the next step."""
        return self._population

    @population.setter
    def population(self, members: int) -> None:
        check_whole_number("population", members, minimum=1)
        if members == 1 and self._shape in OF_SEVERAL:
            raise ConfigError(
                f"population must be at least 2 with shaping {self._shape.__name__}, which makes 0 of a "
                "single coefficient, got 1, so that nothing would be learned: for example 64, or shaping none"
            )
        self._population = members

    @property
    def epsilon(self) -> float:
        """ε, the standard deviation of one weight's perturbation."""
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        check_number("epsilon", value, above=True, hint="0.001 to 0.1 suits most models")
        self._epsilon = float(value)

    def passes(self, batch: int, steps: int) -> int | float:
        """n g for each sign, and the batch once where θ itself is evaluated."""
        del steps
        rows = self.population * (self.group_size or batch)
        return sum(rows if sign else batch for sign in self.signs)

    @torch.no_grad()
    def refold(self, model: nn.Module, fold: Fold, update: FusedSGD | None = None) -> float:
        """Fill `.grad`, or apply `update`, from the fold of an earlier estimate; returns the gradient's
        norm."""
        return fold.apply(self.perturbation.bind(model), update)

    @torch.inference_mode(mode=False)  # or a caller's inference mode would get into .grad
    @torch.no_grad()
    def _told(
        self,
        model: nn.Module,
        population: Population,
        losses: Tensor | np.ndarray | Sequence[Sequence[float]],
        update: FusedSGD | None,
        forward_passes: int,
    ) -> Estimate:
        """Fold losses [signs, members] into `.grad`, or into the weights."""
        table = as_losses(losses, population.signs, population.size)
        finite = table.isfinite().all(0)
        kept = int(finite.sum())
        dropped = population.size - kept
        if kept == 0 or dropped > self.maximum_nonfinite_share * population.size:
            raise NonFiniteLossError(
                f"step {population.draw.step}: the losses of {dropped} of {population.size} members were "
                "not finite "
                f"(at most {self.maximum_nonfinite_share:.0%} are dropped): lower the learning rate or "
                "epsilon "
                f"(epsilon is {population.draw.epsilon:g}), or check the objective; the weights are unchanged"
            )
        coefficients = torch.zeros(population.size, dtype=torch.float64)
        coefficients[finite] = self.coefficients(table[:, finite], population.draw.epsilon)
        weights = torch.zeros_like(coefficients)
        weights[finite] = self._shaped(coefficients[finite]) / kept
        bound = population.perturbation.bind(model)
        fold = self._fold(population.draw, weights, bound.targets)
        norm = fold.apply(bound, update)
        return Estimate(
            loss=float(self.loss(table[:, finite])),
            coefficients=coefficients,
            gradient_norm=norm,
            forward_passes=forward_passes,
            dropped=dropped,
            fold=fold,
        )

    def _fold(self, draw: Draw, weights: Tensor, targets: Sequence[Target]) -> Fold:
        """The weights as they are folded and recorded; NonFiniteLossError where a gradient could not hold
        their sum."""
        formats = [torch.promote_types(target.parameter.dtype, torch.float32) for target in targets]
        total = float(weights.abs().sum())
        if not 10 * total < min(torch.finfo(each).max for each in formats):
            # 10: more than an element of normal noise ever is
            raise NonFiniteLossError(
                f"step {draw.step}: the coefficients are not finite or too large for the "
                f"gradient's number format (their sum is {total:g}): scale the objective down, or check "
                "the shaping; the weights are unchanged"
            )
        return Fold.of(draw, weights, wide=torch.float64 in formats)

    def _shaped(self, coefficients: Tensor) -> Tensor:
        """The coefficients after the shaping, which is the user's."""
        shaped: object = self._shape(coefficients)
        if not isinstance(shaped, Tensor) or shaped.shape != coefficients.shape:
            got = tuple(shaped.shape) if isinstance(shaped, Tensor) else type(shaped).__name__
            raise ConfigError(
                f"shaping must return a tensor of shape {tuple(coefficients.shape)}, one number for each "
                f"coefficient, got {got}: see zorn.estimators.shaping"
            )
        return shaped

    def state_dict(self) -> dict[str, Any]:
        """The state of a resumed run: seed, step, and what schedules move, ε and the population."""
        return {
            "seed": self.seed,
            "step": self.step,
            "epsilon": self.epsilon,
            "population": self.population,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; ConfigError for something else."""
        check_state(state, ("seed", "step", "epsilon", "population"))
        self.seed, self.step = state["seed"], state["step"]
        self.epsilon, self.population = state["epsilon"], state["population"]

    @abstractmethod
    def coefficients(
        self, losses: Float64[Tensor, "signs members"], epsilon: float
    ) -> Float64[Tensor, " members"]:
        """c, from finite losses in the order of `signs`."""

    @abstractmethod
    def loss(self, losses: Float64[Tensor, "signs members"]) -> Float64[Tensor, ""]:
        """The loss to report, from finite losses."""


def _structure(perturbation: object, noise: NoiseKind) -> Perturbation:
    """The structure of directions that a setting names, or is."""
    if isinstance(perturbation, str) and perturbation in PERTURBATIONS:
        return PERTURBATIONS[perturbation](noise=noise)
    if isinstance(perturbation, Perturbation):
        return perturbation
    raise ConfigError(
        f"perturbation must be one of {', '.join(PERTURBATIONS)}, zorn.RankOne() or zorn.Dense(), got "
        f"{described(perturbation)}"
    )


def _shaping(shaping: Any) -> Any:
    """The function that a setting names, or is."""
    if isinstance(shaping, str) and shaping in SHAPINGS:
        return SHAPINGS[shaping]
    if callable(shaping):
        return shaping
    raise ConfigError(
        f"shaping must be one of {', '.join(SHAPINGS)}, or a function, got {described(shaping)}"
    )
