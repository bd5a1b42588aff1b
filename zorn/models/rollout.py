"""The rollout: a model run over a batch, and the loss of each of its rows.

A recurrent model runs in chunks of time with its state carried from one to the next. With an objective that
adds up over tokens the outputs of a chunk die with it, so that memory does not grow with the context.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor, nn

from zorn.checks import check_number
from zorn.errors import ConfigError, ZornError
from zorn.models.sizes import require_positive
from zorn.models.state import State

COUNTED_AT_ONCE = 2**14
"""Time steps whose targets are looked at together."""


class Batch(NamedTuple):
    """Inputs and targets of a training step; the first dimension of both is rows, at least 1.

    Args:
        inputs: of the model, `[rows, time, …]` for a recurrent model, else `[rows, …]`.
        targets: of the objective; `[rows, time, …]` for a token objective, else `[rows, …]`.

    >>> batch = Batch(torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64))
    >>> batch.inputs.shape, batch.targets.shape
    (torch.Size([4, 10]), torch.Size([4]))
    """

    inputs: Shaped[Tensor, "rows ..."]
    targets: Shaped[Tensor, "rows ..."]


@runtime_checkable
class RecurrentModel(Protocol):
    """A model that is run in chunks of time, its state explicit."""

    def initial_state(self, rows: int) -> State:
        """The state before the first step; the first dimension of every tensor is rows."""
        ...

    def __call__(self, inputs: Any, state: State, /) -> tuple[Any, State]:
        """Outputs `[rows, time, …]` for inputs `[rows, time, …]`, and the next state."""
        ...


@runtime_checkable
class TokenObjective(Protocol):
    """An objective that adds up over tokens, so that it can be evaluated chunk by chunk."""

    def token_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each token, `[rows, time]`; 0 where a token does not count."""
        ...

    def counts(self, targets: Tensor) -> Tensor:
        """Mask of the tokens that count, `[rows, time]` bool."""
        ...


RowObjective: TypeAlias = Callable[[Any, Any], Tensor]
"""Any function of (outputs, targets) that returns a loss per row, `[rows]`, differentiable or not."""


def row_losses(
    model: Callable[..., Any],
    batch: Batch,
    objective: TokenObjective | RowObjective,
    *,
    time_chunk: int | None = None,
    normaliser: float | None = None,
    rows: Int64[Tensor, " chosen"] | None = None,
) -> Float64[Tensor, " chosen"]:
    """Run `model` over `batch` and return each row's loss; differentiable where gradients are on.

    A token objective gives row i the loss Σ_t loss_it / `normaliser`. With the default normaliser,
    `mean_tokens` of this batch, the mean over rows is the mean over the tokens that count, also when rows
    differ in length. Its memory does not grow with time when `time_chunk` is set. Any other objective is
    called once, as `objective(outputs, targets)`, with the outputs of all chunks concatenated along time:
    memory grows with time.

    Args:
        model: a `RecurrentModel`, or any callable of the inputs, which is then called once.
        batch: inputs `[rows, time, …]` for a recurrent model, else `[rows, …]`; targets `[rows, …]`.
        objective: a `TokenObjective`, or any callable that returns a real number for each row.
        time_chunk: time steps that run at a time, at least 1; None runs all of them at once. Changes nothing
            but memory, speed and rounding.
        normaliser: tokens per row to divide by, for a batch that is a part of a larger one; None is this
            batch's.
        rows: which sequences of the batch to run, in this order, any of them more than once; None is each
            once. They are copied chunk by chunk, never the whole context.

    Raises:
        ConfigError: settings outside their range, or that do not fit the model or the objective.
        ZornError: a batch or an objective's result of the wrong shape, or no token that counts.

    >>> from zorn.models import LanguageModel
    >>> tokens = torch.zeros(4, 10, dtype=torch.int64)
    >>> score = lambda logits, targets: logits.mean((1, 2))
    >>> row_losses(LanguageModel(50, 16), Batch(tokens, tokens), score, time_chunk=3).shape
    torch.Size([4])
    """
    _check(model, batch, objective, time_chunk, normaliser)
    chunks = _outputs(model, batch.inputs, time_chunk, rows)
    if isinstance(objective, TokenObjective):
        tokens = mean_tokens(objective, batch.targets) if normaliser is None else normaliser
        return _summed_token_losses(chunks, batch.targets, rows, objective) / tokens
    outputs = list(chunks)
    targets = _chosen(batch.targets, rows)
    losses = objective(outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), targets)
    return as_row_losses(losses, rows=len(targets))


def mean_tokens(objective: TokenObjective, targets: Shaped[Tensor, "rows time ..."]) -> float:
    """Tokens that count, per row: what the token losses of a row are divided by.

    Raises:
        ZornError: no token counts.
    """
    # In parts, or the mask of a million tokens would show in the memory.
    parts = targets.split(COUNTED_AT_ONCE, dim=min(1, targets.dim() - 1))
    counted = sum(int(objective.counts(part).sum()) for part in parts)
    if counted == 0:
        raise ZornError(
            f"no token of the targets {tuple(targets.shape)} counts for {type(objective).__name__}, so "
            "their mean loss does not exist: check the mask or the batch."
        )
    return counted / targets.shape[0]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode inside the `with` block; every submodule's own flag comes back after it.

    >>> dropout = nn.Dropout()
    >>> with evaluation_mode(dropout):
    ...     dropout.training
    False
    >>> dropout.training
    True
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _chosen(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None else tensor.index_select(0, rows)


def _outputs(
    model: Callable[..., Any], inputs: Tensor, time_chunk: int | None, rows: Tensor | None
) -> Iterator[Any]:
    """Outputs, chunk of time by chunk of time; one chunk for a model without state."""
    if not isinstance(model, RecurrentModel):
        yield model(_chosen(inputs, rows))
        return
    state = model.initial_state(len(inputs) if rows is None else len(rows))
    length = time_chunk or inputs.shape[1]
    for start in range(0, inputs.shape[1], length):
        outputs, state = model(_chosen(inputs[:, start : start + length], rows), state)
        yield outputs
        del outputs  # or they would live on while the next chunk runs


def _summed_token_losses(
    chunks: Iterator[Any], all_targets: Tensor, rows: Tensor | None, objective: TokenObjective
) -> Tensor:
    """Sum of each row's token losses, in float64."""
    count = len(all_targets) if rows is None else len(rows)
    start, total = 0, torch.zeros(count, dtype=torch.float64).to(all_targets.device)
    for outputs in chunks:
        targets = _chosen(all_targets[:, start : start + outputs.shape[1]], rows)
        losses = objective.token_losses(outputs, targets)
        if losses.shape != targets.shape[:2]:
            raise ZornError(
                f"{type(objective).__name__}.token_losses returned the shape {tuple(losses.shape)}, but it "
                f"must be {tuple(targets.shape[:2])} [rows, time]: one loss per token, not their mean."
            )
        total = total + losses.sum(dim=1, dtype=torch.float64)
        start += outputs.shape[1]
        del outputs, losses
    if start != (time := all_targets.shape[1]):
        raise ZornError(f"the model gave outputs for {start} time steps, but the targets have {time}.")
    return total


def as_row_losses(losses: object, rows: int) -> Tensor:
    """The result of a row objective, checked and in float64."""
    if not isinstance(losses, Tensor) or losses.shape != (rows,) or losses.is_complex():
        got = f"{losses.dtype} {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ZornError(
            f"the objective returned {got}, but it must return a real tensor of shape ({rows},): one loss "
            "per row. Reduce over every dimension except the first."
        )
    return losses.to(torch.float64)


def _check(
    model: Callable[..., Any],
    batch: Batch,
    objective: object,
    time_chunk: int | None,
    normaliser: float | None,
) -> None:
    """Raise for a user's mistake before the model runs."""
    inputs, targets = batch
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ZornError(
            f"the batch has {len(inputs)} rows of inputs and {len(targets)} of targets: give the same "
            "number, at least 1."
        )
    recurrent = isinstance(model, RecurrentModel)
    if recurrent and (inputs.ndim < 2 or inputs.shape[1] == 0):
        raise ZornError(
            f"the inputs have the shape {tuple(inputs.shape)}, but a recurrent model reads [rows, time, …] "
            "with at least one time step."
        )
    if time_chunk is not None:
        require_positive(time_chunk=time_chunk)
        if not recurrent:
            raise ConfigError(
                f"time_chunk is {time_chunk}, but {type(model).__name__} has no initial_state, so its time "
                "cannot be cut: leave time_chunk out, or give the model an initial_state(rows) and explicit "
                "state."
            )
    if isinstance(objective, TokenObjective):
        if targets.ndim < 2 or (recurrent and inputs.shape[1] != targets.shape[1]):
            raise ZornError(
                f"the targets have the shape {tuple(targets.shape)} for inputs {tuple(inputs.shape)}, but "
                f"{type(objective).__name__} needs one target per time step: give targets [rows, time, …]."
            )
        if normaliser is not None:
            check_number("normaliser", normaliser, above=True, hint="see mean_tokens")
    elif not callable(objective):
        raise ConfigError(
            f"the objective {type(objective).__name__} is neither a function of (outputs, targets) nor an "
            "object with the methods token_losses and counts: give one of the two."
        )
    elif normaliser is not None:
        raise ConfigError(
            f"normaliser is {normaliser}, but only an objective with token_losses and counts is normalised: "
            "leave it out."
        )
