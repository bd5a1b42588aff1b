"""Checks of what every estimator is called with, before any work."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.estimators.update import FusedSGD
from zorn.models import Batch, TokenObjective
from zorn.noise import Perturbation
from zorn.noise.targets import check_materialised


def check_model(model: object) -> None:
    """Checks that `model` is a module whose parameters have their shapes.

    Raises:
        ConfigError: it is not, or it holds lazy layers that have not run yet.

    Example:
        >>> check_model(nn.Linear(3, 1))
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model must be a torch.nn.Module, got {described(model)}: an estimate moves its parameters"
        )
    check_materialised(model)


def check_batch(batch: object) -> None:
    """Checks that `batch` is a `Batch` of two tensors with the same number of rows, at least one.

    Raises:
        ConfigError: it is not.

    Example:
        >>> check_batch((torch.zeros(2, 3), torch.zeros(2)))
        Traceback (most recent call last):
        zorn.errors.ConfigError: batch must be zorn.Batch(inputs, targets), got (Tensor, Tensor): wrap it
    """
    if not isinstance(batch, Batch):
        raise ConfigError(f"batch must be zorn.Batch(inputs, targets), got {described(batch)}: wrap it")
    for name, part in batch._asdict().items():
        if not isinstance(part, Tensor) or part.ndim == 0:
            got = f"a tensor of shape {tuple(part.shape)}" if isinstance(part, Tensor) else described(part)
            raise ConfigError(f"batch.{name} must be a tensor whose first dimension is rows, got {got}")
    if len(batch.inputs) != len(batch.targets) or len(batch.inputs) == 0:
        raise ConfigError(
            f"batch must have as many rows of targets as of inputs, at least 1, got {len(batch.inputs)} rows "
            f"of inputs and {len(batch.targets)} of targets"
        )


def check_objective(objective: object) -> None:
    """Checks that `objective` is a function of (outputs, targets), or has the methods of a token objective.

    Raises:
        ConfigError: it is neither, such as a class in place of an instance.

    Example:
        >>> from zorn.tasks import TokenCrossEntropy
        >>> check_objective(TokenCrossEntropy)
        Traceback (most recent call last):
        zorn.errors.ConfigError: objective: got the class TokenCrossEntropy, not an instance of it, expected \
a token objective (token_losses and counts) or a function of (outputs, targets): write TokenCrossEntropy()
    """
    a_class = isinstance(objective, type)
    if a_class or not (isinstance(objective, TokenObjective) or callable(objective)):
        fix = f": write {objective.__name__}()" if isinstance(objective, type) else ""
        raise ConfigError(
            f"objective: got {described(objective)}, expected a token objective (token_losses and counts) "
            f"or a function of (outputs, targets){fix}"
        )


def check_state(state: object, names: Sequence[str]) -> None:
    """Checks that `state` is a dictionary with these names, as `state_dict` gives it.

    Raises:
        ConfigError: it is not.

    Example:
        >>> check_state({"step": 3}, ["seed", "step"])
        Traceback (most recent call last):
        zorn.errors.ConfigError: state must be what state_dict() gave, with seed, step, got one without seed
    """
    if not isinstance(state, Mapping):
        raise ConfigError(f"state must be what state_dict() gave, got {described(state)}")
    missing = [name for name in names if name not in state]
    if missing:
        raise ConfigError(
            f"state must be what state_dict() gave, with {', '.join(names)}, got one without "
            f"{', '.join(missing)}"
        )


def check_update(update: object) -> None:
    """Checks that `update` is a fused update or None.

    Raises:
        ConfigError: it is not.

    Example:
        >>> check_update(None)
    """
    if update is not None and not isinstance(update, FusedSGD):
        raise ConfigError(
            f"update must be zorn.estimators.FusedSGD(...) or None, got {described(update)}: to use "
            "a torch optimizer, leave it out and call optimizer.step() after the estimate"
        )


def check_perturbation(perturbation: object) -> None:
    """Checks that `perturbation` is a structure of directions.

    Raises:
        ConfigError: it is a name or a class, or something else.

    Example:
        >>> check_perturbation("dense")
        Traceback (most recent call last):
        zorn.errors.ConfigError: perturbation must be zorn.RankOne() or zorn.Dense(), got 'dense'
    """
    if not isinstance(perturbation, Perturbation):
        raise ConfigError(
            f"perturbation must be zorn.RankOne() or zorn.Dense(), got {described(perturbation)}"
        )


def as_losses(
    losses: Tensor | np.ndarray | Sequence[Sequence[float]], signs: tuple[int, ...], members: int
) -> Float64[Tensor, "signs members"]:
    """The losses that `tell` is given, [len(signs), members], as float64 on the CPU, without a graph.

    Args:
        losses: a tensor, an array or nested sequences of real numbers.

    Raises:
        ConfigError: another shape, complex numbers, or no numbers.

    Example:
        >>> as_losses([[1.0, 2.0], [3.0, 4.0]], signs=(1, -1), members=2)
        tensor([[1., 2.],
                [3., 4.]], dtype=torch.float64)
    """
    try:
        found = losses.detach() if isinstance(losses, Tensor) else torch.tensor(np.asarray(losses))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"losses must be a table of real numbers, one row for each of the signs {signs}, got "
            f"{described(losses)} ({error})"
        ) from error
    if found.is_complex():
        raise ConfigError(f"losses must be real numbers, got {found.dtype}: take their real part or modulus")
    if found.shape != (len(signs), members):
        raise ConfigError(
            f"losses: got shape {tuple(found.shape)}, expected {(len(signs), members)}, one row for each of "
            f"{signs}"
        )
    return found.to("cpu", torch.float64)


def described(value: object) -> str:
    """A value in a few words, for a message: never a whole tensor."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance of it"
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return f"a value of type {type(value).__name__}"
