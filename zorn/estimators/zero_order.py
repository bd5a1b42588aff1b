"""Members drawn anew at every step: ask, evaluate, tell. The formula of each estimator is in a file of its
own."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from zorn.checks import Count, wrong
from zorn.estimators.arguments import check_call, check_model
from zorn.estimators.base import check_update
from zorn.estimators.estimate import Estimate, Population
from zorn.estimators.population import Objective, Workload, member_losses
from zorn.estimators.update import FusedSGD
from zorn.estimators.weight_noise import WeightNoise
from zorn.models import Batch
from zorn.noise import Draw


class ZeroOrderEstimator(WeightNoise):
    """An estimator whose members are drawn anew at every step.

    Nothing is differentiated and no weight is changed while losses are evaluated. Three ways to use one:
    `estimate`, which does all; `ask` and `tell`, for losses that are evaluated elsewhere; or the trainer.

    Args:
        time_chunk: steps after which a recurrent model's outputs are dropped (state is carried), at least 1;
            changes nothing but memory and speed. None: whole sequences.
    """

    time_chunk: Count | None = None

    def _estimate(
        self, model: nn.Module, batch: Batch, objective: Objective, update: FusedSGD | None
    ) -> Estimate:
        if update is not None:
            update.check(self.structure.bind(model).targets)
        population = self.ask(model)
        losses, passes = self._evaluate(model, population, batch, objective)
        return self._told(model, population, losses, update, passes)

    def ask(self, model: nn.Module) -> Population:
        """The next question: which members to evaluate, at which ε. Advances `step`.

        Raises:
            ConfigError: a model that is no module.
            UncoveredParameterError: a parameter without a rule.
        """
        check_model(model)
        self.structure.bind(model)
        draw = Draw(seed=self.seed, step=self.step, epsilon=self.epsilon)
        self.step += 1
        return Population(draw=draw, size=self.population, signs=self.signs, perturbation=self.structure)

    def evaluate(
        self, model: nn.Module, population: Population, batch: Batch, objective: Objective
    ) -> tuple[Tensor, int]:
        """Answer a question here: losses [len(signs), population] float64, and the forward passes that it
        took."""
        with self.workers.together(self, model, batch, objective):
            check_call(model, batch, objective)
            return self._evaluate(model, population, batch, objective)

    def _evaluate(
        self, model: nn.Module, population: Population, batch: Batch, objective: Objective
    ) -> tuple[Tensor, int]:
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
            fix = f"it was asked of another estimator than {type(self).__name__}"
            raise wrong("population", f"one with the signs {self.signs}", str(population.signs), fix)
        return self._told(model, population, losses, update, forward_passes)
