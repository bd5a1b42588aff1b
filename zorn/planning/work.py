"""The work of a step: its rows, in forward passes."""

from __future__ import annotations

from zorn.planning.activity_space import exact_output
from zorn.planning.differentiating import differentiated_steps
from zorn.training.config import Config
from zorn.training.usage import WEIGHT_SPACE

BACKWARD = 2
"""Forward passes that a backward pass counts as."""


def forward_passes(config: Config, steps: int) -> int:
    """Rows through the model in a step, as estimates count them: 2 n g of central differences, n g + B of
    forward ones, (2 D + 1) B of activity noise or (D + 2) B with an exact output layer, 3 B of what
    differentiates, and 2 D B more of a bridge that has a boundary to cross: their mean,
    where only some steps have credit.

    Args:
        config: settings that leave nothing open.
        steps: T, time steps of a sequence.

    >>> from zorn.training import BudgetConfig, EstimatorConfig, resolve
    >>> settings = EstimatorConfig(estimator="cd-rge", population=512)
    >>> forward_passes(resolve(Config(estimator=settings, budget=BudgetConfig(steps=1)))[0], steps=32)
    1024
    """
    settings, batch = config.estimator, config.task.batch
    name, draws = settings.estimator, settings.draws or 1
    if name in WEIGHT_SPACE:
        rows = (settings.population or 1) * (settings.group_size or batch)
        clean = batch if name in ("fd-rge", "spsa-1.5") else 0
        return clean + (rows if name == "fd-rge" else 2 * rows)
    if name == "activity":
        return batch * (draws + 2 if exact_output(config) else 2 * draws + 1)
    crosses = name == "bridge" and differentiated_steps(config, steps) < steps
    return batch * (1 + BACKWARD) + round(batch * 2 * draws * crosses / (settings.credit_every or 1))


def most_rows(config: Config) -> int:
    """The micro-batch beyond which a larger one changes nothing: all of a step's rows at once."""
    settings, batch = config.estimator, config.task.batch
    draws = settings.draws or 1
    if settings.estimator in WEIGHT_SPACE:
        group = settings.group_size or batch
        return group if settings.structure == "dense" else 2 * (settings.population or 1) * group
    if settings.estimator == "activity":
        return batch * (1 + draws if exact_output(config) else 2 * draws)
    return batch
