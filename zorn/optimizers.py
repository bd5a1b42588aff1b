"""The optimizers of a run, by name: functions that make a torch optimizer, whose arguments are its
settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from zorn.checks import check_number, wrong
from zorn.estimators.update import FusedSGD
from zorn.registry import Registry

PLAIN_RATE = 0.1
"""Step size of the optimizers that do not adapt: the paper's smaller one. The best depends on the objective's
scale."""

LARGEST_RATE = 1e30
"""Beyond it float32 overflows."""


Weights: TypeAlias = Iterable[nn.Parameter]


@dataclass(frozen=True)
class Kind:
    """One kind of optimizer.

    Attributes:
        make: called with the parameters and the settings; returns a torch optimizer, or a `FusedSGD`.
        adaptive: True where its steps do not depend on the scale of the gradient, as Adam's.
        in_place: True where it writes the update straight into the weights and holds no gradient.
    """

    make: Callable[..., Any]
    adaptive: bool = False
    in_place: bool = False


def adam(parameters: Weights, /, *, learning_rate: float | None = None, weight_decay: float = 0.0) -> Any:
    """Adam (Kingma and Ba 2015).

    Args:
        learning_rate: step size, above 0. None: chosen for the estimator and the optimizer.
        weight_decay: pull towards zero, at least 0, part of the gradient.
    """
    return torch.optim.Adam(parameters, **_checked(learning_rate, weight_decay))


def adamw(parameters: Weights, /, *, learning_rate: float | None = None, weight_decay: float = 0.0) -> Any:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
        learning_rate: step size, above 0. None: chosen for the estimator and the optimizer.
        weight_decay: pull towards zero, at least 0, decoupled from the gradient.
    """
    return torch.optim.AdamW(parameters, **_checked(learning_rate, weight_decay))


def sgd(
    parameters: Weights,
    /,
    *,
    learning_rate: float | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> Any:
    """Stochastic gradient descent.

    Args:
        learning_rate: step size, above 0. None: chosen for the estimator and the optimizer.
        momentum: share of the last update that is kept, from 0 up to 1.
        weight_decay: pull towards zero, at least 0, part of the gradient.
    """
    check_number("momentum", momentum, below=1.0)
    return torch.optim.SGD(parameters, momentum=momentum, **_checked(learning_rate, weight_decay))


def fused_sgd(_: Weights, /, *, learning_rate: float | None = None, weight_decay: float = 0.0) -> FusedSGD:
    """Stochastic gradient descent in place, without a gradient buffer: least memory.

    Args:
        learning_rate: step size, above 0. None: chosen for the estimator and the optimizer.
        weight_decay: pull towards zero, at least 0, decoupled from the gradient.
    """
    rate, decay = _checked(learning_rate, weight_decay).values()
    return FusedSGD(learning_rate=rate, weight_decay=decay)


def _checked(learning_rate: float | None, weight_decay: float) -> dict[str, Any]:
    """Both as arguments of torch's optimizers, if they are in their ranges."""
    if learning_rate is None:
        raise wrong("learning_rate", "a number", None, "choose it with zorn.config.resolve, or give one")
    check_number("learning_rate", learning_rate, above=True, maximum=LARGEST_RATE)
    check_number("weight_decay", weight_decay, maximum=LARGEST_RATE)
    return {"lr": learning_rate, "weight_decay": weight_decay}


OPTIMIZERS: Registry[Any] = Registry(
    "optimizer",
    {
        "adam": Kind(adam, adaptive=True),
        "adamw": Kind(adamw, adaptive=True),
        "sgd": Kind(sgd),
        "fused-sgd": Kind(fused_sgd, in_place=True),
    },
)
"""The optimizers by the names that settings use."""


def optimizer_kind(name: str) -> Kind:
    """The kind of optimizer of a name; a function from outside is taken as one that does not adapt."""
    found = OPTIMIZERS[name]
    return found if isinstance(found, Kind) else Kind(found)
