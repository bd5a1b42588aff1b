"""Checks of what an estimator is called with, before any work."""

from torch import Tensor, nn

from zorn.checks import described, wrong
from zorn.models import Batch, RecurrentModel, TokenObjective
from zorn.noise.targets import check_materialised


def check_call(model: object, batch: object, objective: object) -> None:
    """Checks the model, the batch and the objective of an estimate.

    Raises:
        ConfigError: one of them is of another kind.

    Example:
        >>> from zorn.tasks import TokenCrossEntropy
        >>> check_call(nn.Linear(3, 1), ([1], [2]), TokenCrossEntropy())
        Traceback (most recent call last):
        zorn.errors.ConfigError: batch must be zorn.Batch(inputs, targets), got (list, list): wrap it
        >>> batch = Batch(Tensor([1]), Tensor([2]))
        >>> check_call(nn.Linear(3, 1), batch, TokenCrossEntropy)
        Traceback (most recent call last):
        zorn.errors.ConfigError: objective must be a token objective (token_losses and counts) or a function \
of (outputs, targets), got the class TokenCrossEntropy, not an instance of it: write TokenCrossEntropy()
    """
    check_model(model)
    check_batch(batch)
    a_class = objective if isinstance(objective, type) else None
    if a_class or not (isinstance(objective, TokenObjective) or callable(objective)):
        expected = "a token objective (token_losses and counts) or a function of (outputs, targets)"
        raise wrong("objective", expected, described(objective), a_class and f"write {a_class.__name__}()")


def check_model(model: object) -> None:
    """Raise ConfigError unless this is a module whose parameters have their shapes: lazy layers have run."""
    if not isinstance(model, nn.Module):
        raise wrong("model", "a torch.nn.Module", described(model), "an estimate moves its parameters")
    check_materialised(model)


def check_batch(batch: object) -> None:
    """Raise ConfigError unless this is a `Batch` of two tensors with as many rows, at least one."""
    if not isinstance(batch, Batch):
        raise wrong("batch", "zorn.Batch(inputs, targets)", described(batch), "wrap it")
    for name, part in batch._asdict().items():
        if not isinstance(part, Tensor) or part.ndim == 0:
            got = "a tensor of shape ()" if isinstance(part, Tensor) else described(part)
            raise wrong(f"batch.{name}", "a tensor whose first dimension is rows", got)
    rows = len(batch.inputs), len(batch.targets)
    if rows[0] != rows[1] or rows[0] == 0:
        got = f"{rows[0]} rows of inputs and {rows[1]} of targets"
        raise wrong("batch", "as many rows of targets as of inputs, at least 1", got)


def check_recurrent(model: object, of: str, instead: str) -> RecurrentModel:
    """The model, if it has the explicit state that `of` carries over time; ConfigError where it has none."""
    if isinstance(model, RecurrentModel):
        return model
    fix = f"give it one and an explicit state, or {instead}"
    raise wrong("model", f"one with initial_state(rows) for {of}", type(model).__name__, fix)


def check_streams(rows: int, carried: int) -> None:
    """Raise ConfigError for a batch of another number of rows than the carried state."""
    if rows != carried:
        fix = "keep the number of streams, or call reset() before new sequences"
        raise wrong("the rows of the batch", f"{carried}, as many as those of the carried state", rows, fix)
