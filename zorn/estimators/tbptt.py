"""TBPTT: backpropagation through time, truncated; the state is carried on, the gradient is not.

The sequence is read in chunks of k steps. Each starts from the state that the one before it ended in, cut off
from what made it: the losses of a chunk see the weights' effect within the chunk only. Memory is that of k
steps, whatever the context, and the price is a bias: no credit reaches further back than the start of a
chunk. One update a batch, from the sum over its chunks.

Williams and Peng (1990), "An efficient gradient-based algorithm for on-line training of recurrent network
trajectories" (their BPTT(h; h'), with h = h' = k); Jaeger (2002), "A tutorial on training recurrent neural
networks".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from zorn.checks import check_whole_number
from zorn.errors import ConfigError
from zorn.estimators.exact import ExactGradient
from zorn.models import Batch, RecurrentModel, State, TokenObjective, map_state, row_losses
from zorn.perturbations import Objective


@final
class TBPTT(ExactGradient):
    """The gradient within chunks of `truncation` steps, in the memory of one chunk. For a model with an
    explicit state, and an objective that adds up over tokens.

    Args:
        truncation: k, steps that the gradient flows through, at least 1; from the length of the sequence on
            it is `BPTT`.
        micro_batch: see `ExactGradient`.

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import zorn
        >>> model = zorn.LanguageModel(29, 16)
        >>> task = zorn.CopyTask(batch=8, minimum_length=2, maximum_length=4, seed=0)
        >>> estimator = zorn.TBPTT(truncation=3)
        >>> estimate = estimator.estimate(model, task.training_batch(0), zorn.TokenCrossEntropy())
        >>> estimate.forward_passes
        24
    """

    def __init__(self, *, truncation: int, micro_batch: int | None = None) -> None:
        check_whole_number("truncation", truncation, minimum=1)
        super().__init__(micro_batch=micro_batch)
        self.truncation = truncation

    def _check(self, model: nn.Module, batch: Batch, objective: Objective) -> None:
        if not isinstance(model, RecurrentModel):
            raise ConfigError(
                f"TBPTT carries a model's state over time, but {type(model).__name__} has no "
                "initial_state(rows): give it one and an explicit state, or use BPTT"
            )
        if not isinstance(objective, TokenObjective):
            raise ConfigError(
                "TBPTT needs an objective that adds up over tokens (token_losses and counts, as "
                f"TokenCrossEntropy has), got {getattr(objective, '__name__', type(objective).__name__)}: "
                "use BPTT"
            )
        if batch.inputs.ndim < 2 or batch.inputs.shape[:2] != batch.targets.shape[:2]:
            raise ConfigError(
                f"TBPTT needs one target a time step: got inputs {tuple(batch.inputs.shape)} and targets "
                f"{tuple(batch.targets.shape)}, expected [rows, time, …] of both"
            )

    def _losses(
        self, model: nn.Module, batch: Batch, objective: Objective, normaliser: float | None
    ) -> Iterator[Tensor]:
        assert isinstance(model, RecurrentModel)
        carried = _Carried(model, model.initial_state(len(batch.inputs)))
        for inputs, targets in zip(*(part.split(self.truncation, dim=1) for part in batch), strict=True):
            yield row_losses(carried, Batch(inputs, targets), objective, normaliser=normaliser)


@dataclass
class _Carried:
    """A recurrent model that starts where its last call ended, without the graph of that call."""

    model: RecurrentModel
    state: State

    def initial_state(self, rows: int) -> State:
        del rows  # the rows of the state that is carried
        return self.state

    def __call__(self, inputs: Any, state: State) -> tuple[Any, State]:
        outputs, state = self.model(inputs, state)
        self.state = map_state(Tensor.detach, state)
        return outputs, state
