"""What all estimators from forward passes share: ask, evaluate, tell. The formula of each is in a file of its
own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from zorn.checks import check_number, check_seed, check_whole_number
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators.arguments import (
    as_losses,
    check_batch,
    check_model,
    check_objective,
    check_perturbation,
    check_shaping,
    check_state,
    check_update,
)
from zorn.estimators.estimate import Estimate, Population
from zorn.estimators.fold import Fold
from zorn.estimators.shaping import Shaping, none
from zorn.models import Batch
from zorn.perturbations import (
    Draw,
    FusedSGD,
    Objective,
    Perturbation,
    RankOne,
    Workload,
    member_losses,
)
from zorn.perturbations.evaluate import ALONE, Workers
from zorn.perturbations.targets import Target


class ZeroOrderEstimator(ABC):
    """An estimator whose gradient is a weighted sum of directions, ĝ = (1/n) Σ_j c_j z_j, from losses alone.

    Nothing is differentiated and no weight is changed while losses are evaluated. Three ways to use one:
    `estimate`, which does all; `ask` and `tell`, for losses that are evaluated elsewhere; or the trainer.

    Args:
        population: n, members a step, at least 1. With sequences in B / g groups, a multiple of B / g.
        epsilon: ε > 0, the standard deviation of one weight's perturbation.
        perturbation: the structure of the directions; `RankOne()` or `Dense()`.
        group_size: g, the sequences that each member is evaluated on: 1 (one member a sequence) up to None
            (the whole batch).
            None suits `Dense`; with `RankOne`, 1 usually has the lowest variance for the same forward passes
            (unless the gradients of the sequences all but cancel).
        seed: of the directions, 0 to 2**64 - 1.
        micro_batch: rows of one forward pass at most, both signs counted; bounds memory, changes nothing
            else.
        time_chunk: steps after which a recurrent model's outputs are dropped (state is carried); None for
            whole sequences.
        shaping: function of the coefficients before they are folded, see `zorn.estimators.shaping`.
        maximum_nonfinite_share: 0 to 1; a member with a loss that is NaN or infinite is dropped (the average
            is over the rest), and more than this share of them raises instead.

    Attributes:
        step: of the next `ask`; set it to repeat or resume a run.
        epsilon, population: may be set between steps, by a schedule; a `Population` carries the ε that it was
            drawn with and its own size.
        workers: the processes that share an evaluation; this one alone until `zorn.distributed.share`.
        half_weights: fold weights that are rounded to float16 times a power of two, so that a record of the
            step (see `Fold`) needs 2 bytes a member instead of 4; False at first.

    Raises:
        ConfigError: an argument outside its range.
    """

    signs: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        *,
        population: int,
        epsilon: float,
        perturbation: Perturbation | None = None,
        group_size: int | None = None,
        seed: int = 0,
        micro_batch: int = 512,
        time_chunk: int | None = None,
        shaping: Shaping = none,
        maximum_nonfinite_share: float = 0.5,
    ) -> None:
        perturbation = perturbation if perturbation is not None else RankOne()
        check_perturbation(perturbation)
        check_whole_number("micro_batch", micro_batch, minimum=1)
        for name, size in (("group_size", group_size), ("time_chunk", time_chunk)):
            if size is not None:
                check_whole_number(name, size, minimum=1)
        check_seed(seed)
        check_shaping(shaping)
        check_number("maximum_nonfinite_share", maximum_nonfinite_share, maximum=1.0)
        self.population = population
        self.epsilon = epsilon
        self.perturbation = perturbation
        self.group_size = group_size
        self.seed = seed
        self.micro_batch = micro_batch
        self.time_chunk = time_chunk
        self.shaping = shaping
        self.maximum_nonfinite_share = maximum_nonfinite_share
        self.half_weights = False
        self.step = 0
        self.workers: Workers = ALONE

    @property
    def population(self) -> int:
        """n, the members of the next step."""
        return self._population

    @population.setter
    def population(self, members: int) -> None:
        check_whole_number("population", members, minimum=1)
        self._population = members

    @property
    def epsilon(self) -> float:
        """ε, the standard deviation of one weight's perturbation."""
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        check_number("epsilon", value, above=True, hint="0.001 to 0.1 suits most models")
        self._epsilon = float(value)

    def estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None = None
    ) -> Estimate:
        """Estimate the gradient of the batch's loss and fill `.grad`, or apply `update` to the weights in
        place.

        Args:
            model: any `nn.Module`; recurrent ones (with `initial_state`) run in time chunks. Evaluated in
                eval mode.
            batch: `Batch(inputs, targets)` on the model's device, first dimension rows.
            objective: a token objective such as `TokenCrossEntropy`, or any callable (outputs, targets) ->
                [rows].
            update: None fills `.grad`, replacing what was there; `FusedSGD` updates the weights without a
                gradient buffer.

        Raises:
            ConfigError: members that do not cover the batch evenly, or a batch that the model cannot run.
            UncoveredParameterError: a parameter without a rule.
            NonFiniteLossError: more members than allowed had losses that are not finite; nothing was changed.
        """
        check_model(model)
        check_batch(batch)
        check_objective(objective)
        check_update(update)
        if update is not None:
            update.check(self.perturbation.bind(model).targets)
        population = self.ask(model)
        losses, passes = self.evaluate(model, population, batch, objective)
        return self.tell(model, population, losses, update, forward_passes=passes)

    def ask(self, model: nn.Module) -> Population:
        """The next question: which members to evaluate, at which ε. Advances `step`.

        Raises:
            ConfigError: a model that is no module.
            UncoveredParameterError: a parameter without a rule.
        """
        check_model(model)
        self.perturbation.bind(model)
        draw = Draw(seed=self.seed, step=self.step, epsilon=self.epsilon)
        self.step += 1
        return Population(draw=draw, size=self.population, signs=self.signs, perturbation=self.perturbation)

    def evaluate(
        self, model: nn.Module, population: Population, batch: Batch, objective: Objective
    ) -> tuple[Tensor, int]:
        """Answer a question here: losses [len(signs), population] float64, and the forward passes that it
        took."""
        check_model(model)
        check_batch(batch)
        check_objective(objective)
        bound = population.perturbation.bind(model)
        work = Workload(
            population=population.size,
            group=self.group_size if self.group_size is not None else len(batch.inputs),
            micro_batch=self.micro_batch,
            time_chunk=self.time_chunk,
        )
        return member_losses(
            model,
            bound,
            population.draw,
            population.signs,
            batch,
            objective,
            work,
            side_by_side=population.perturbation.side_by_side,
            workers=self.workers,
        )

    @torch.inference_mode(mode=False)  # or a caller's inference mode would get into .grad
    @torch.no_grad()
    def tell(
        self,
        model: nn.Module,
        population: Population,
        losses: Tensor | np.ndarray | Sequence[Sequence[float]],
        update: FusedSGD | None = None,
        *,
        forward_passes: int = 0,
    ) -> Estimate:
        """Fold the answer of a question into `.grad`, or into the weights. A pure function of its arguments:
        no schedule is read again.

        Args:
            model: with the weights that the losses were evaluated at.
            population: from `ask`.
            losses: [len(population.signs), population.size] real numbers: a tensor, an array or nested
                sequences.
            update: as in `estimate`.
            forward_passes: of the evaluation, for the record.

        Raises:
            ConfigError: losses of another shape or that are not real, or a population of another estimator.
            NonFiniteLossError: more members than allowed had losses that are not finite; nothing was changed.
        """
        check_model(model)
        check_update(update)
        if population.signs != self.signs:
            raise ConfigError(
                f"population: got one with signs {population.signs}, expected {self.signs}: it was asked of "
                f"another estimator than {type(self).__name__}"
            )
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
        return Fold.of(draw, weights, half=self.half_weights, wide=torch.float64 in formats)

    def _shaped(self, coefficients: Tensor) -> Tensor:
        """The coefficients after the shaping, which is the user's."""
        shaped: object = self.shaping(coefficients)
        if not isinstance(shaped, Tensor) or shaped.shape != coefficients.shape:
            got = tuple(shaped.shape) if isinstance(shaped, Tensor) else type(shaped).__name__
            raise ConfigError(
                f"shaping must return a tensor of shape {tuple(coefficients.shape)}, one number for each "
                f"coefficient, got {got}: see zorn.estimators.shaping"
            )
        return shaped

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: seed, step, and what schedules move, ε and the population."""
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
