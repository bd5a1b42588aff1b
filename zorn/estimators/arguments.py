"""Checks of what every estimator is called with, before any work."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from zorn.errors import ConfigError
from zorn.models import Batch
from zorn.perturbations import FusedSGD, Perturbation


def check_model(model: object) -> None:
    """Checks that `model` is a module.

    Raises:
        ConfigError: it is not.

    Example:
        >>> check_model(nn.Linear(3, 1))
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model must be a torch.nn.Module, got {_described(model)}: an estimate moves its parameters"
        )


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
        raise ConfigError(f"batch must be zorn.Batch(inputs, targets), got {_described(batch)}: wrap it")
    for name, part in batch._asdict().items():
        if not isinstance(part, Tensor) or part.ndim == 0:
            got = f"a tensor of shape {tuple(part.shape)}" if isinstance(part, Tensor) else _described(part)
            raise ConfigError(f"batch.{name} must be a tensor whose first dimension is rows, got {got}")
    if len(batch.inputs) != len(batch.targets) or len(batch.inputs) == 0:
        raise ConfigError(
            f"batch must have as many rows of targets as of inputs, at least 1, got {len(batch.inputs)} rows "
            f"of inputs and {len(batch.targets)} of targets"
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
            f"update must be zorn.FusedSGD(...) or None, got {_described(update)}: to use a torch optimizer, "
            "leave it out and call optimizer.step() after the estimate"
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
            f"perturbation must be zorn.RankOne() or zorn.Dense(), got {_described(perturbation)}"
        )


def check_shaping(shaping: object) -> None:
    """Checks that `shaping` is a function.

    Raises:
        ConfigError: it is a name, or something else.

    Example:
        >>> check_shaping("zscore")
        Traceback (most recent call last):
        zorn.errors.ConfigError: shaping must be a function, got 'zscore': see zorn.estimators.SHAPINGS
    """
    if not callable(shaping):
        raise ConfigError(
            f"shaping must be a function, got {_described(shaping)}: see zorn.estimators.SHAPINGS"
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
            f"{_described(losses)} ({error})"
        ) from error
    if found.is_complex():
        raise ConfigError(f"losses must be real numbers, got {found.dtype}: take their real part or modulus")
    if found.shape != (len(signs), members):
        raise ConfigError(
            f"losses: got shape {tuple(found.shape)}, expected {(len(signs), members)}, one row for each of "
            f"{signs}"
        )
    return found.to("cpu", torch.float64)


def _described(value: object) -> str:
    """A value in a few words, for a message: never a whole tensor."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance of it"
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return f"a value of type {type(value).__name__}"
