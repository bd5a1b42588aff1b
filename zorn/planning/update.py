"""What the optimizer holds between steps, and while it moves the weights."""

from __future__ import annotations

from zorn.perturbations.perturbation import FOLD_ELEMENTS
from zorn.planning.cells import WIDE
from zorn.planning.sizes import ModelSizes
from zorn.planning.stages import Stage
from zorn.training.config import Config

NORM = 8
"""Bytes of a number whose norm is taken: torch copies what it takes the norm of into float64."""

FINITE = 6
"""Bytes of a number of which is asked whether it is finite: its magnitude and two comparisons."""

FOLDED = 32
"""Bytes for each number of a fold's largest block: factors, their product, what random bits are made in."""

ROUNDING = 8
"""Bytes a number while a block of a bfloat16 parameter is rounded stochastically: its new value, and its
random bits, in whose place they are put together; see `FusedSGD.apply`."""


def moments(config: Config) -> int:
    """Copies of the weights that the optimizer keeps: two for Adam's moments, one for momentum; a bridge
    with separate parts has two Adams.

    >>> from zorn.training import BudgetConfig, OptimizerConfig
    >>> moments(Config(budget=BudgetConfig(steps=1), optimizer=OptimizerConfig(optimizer="adamw")))
    2
    """
    settings = config.optimizer
    first = {"adam": 2, "adamw": 2, "fused-sgd": 0, "sgd": int(settings.momentum > 0)}
    return first[settings.optimizer or "adam"] + (2 if config.two_part else 0)


def is_fused(config: Config) -> bool:
    """Whether weights are updated in place, without an optimizer of torch."""
    return config.optimizer.optimizer == "fused-sgd"


def between_steps(sizes: ModelSizes, config: Config) -> Stage:
    """What is there before a step, from the second one on: weights and moments."""
    return Stage(weights=sizes.weight_bytes, optimizer=moments(config) * sizes.weight_bytes)


def update_stage(sizes: ModelSizes, config: Config, *, whole: bool) -> Stage:
    """The update, beside weights and moments and the gradient in `.grad`.

    Adam makes a parameter's denominator in two copies, with coupled decay a third. Fused: a gradient that is
    there `whole` goes in blocks, too; one that is folded is not counted here.
    """
    settings, gradient = config.optimizer, sizes.weight_bytes
    if is_fused(config):
        if not whole:
            return Stage()
        block = min(FOLD_ELEMENTS, sizes.largest) * (sizes.element < WIDE)
        return Stage(gradients=gradient + block * WIDE, optimizer=block * ROUNDING)
    parts = 2 if config.two_part else 1
    copies = 0 if settings.optimizer == "sgd" else 2
    copies += settings.weight_decay > 0 and settings.optimizer != "adamw"
    return Stage(gradients=parts * gradient, optimizer=copies * sizes.largest * sizes.element)


def folded_bytes(sizes: ModelSizes) -> int:
    """A fold's temporaries: it goes in blocks, and so does the copy of the weights of a dense member."""
    return FOLDED * min(FOLD_ELEMENTS, sizes.largest)


def norm_bytes(sizes: ModelSizes) -> int:
    """The copy of a block of a gradient of which the norm is taken."""
    return NORM * min(FOLD_ELEMENTS, sizes.largest)
