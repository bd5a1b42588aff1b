"""Which estimators use which setting: one table, so that a setting that would be ignored is refused."""

from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar

from zorn.training.checks import require

Group = TypeVar("Group")

MEMBERS = ("cd-rge", "fd-rge", "spsa-1.5")
"""Weight-space estimators that draw their members anew at every step."""

STREAMING = ("pes", "nres")
"""Weight-space estimators whose members carry states of their own, over the windows of a stream."""

CREDIT = ("activity", "bridge")
"""Estimators that credit noise in time with the losses that follow it."""

DIFFERENTIATING = ("bridge", "bptt", "tbptt", "e-prop")
"""Estimators that differentiate the objective."""

WEIGHT_SPACE = (*MEMBERS, *STREAMING)
ZERO_ORDER = (*WEIGHT_SPACE, *CREDIT)
CARRYING = ("activity", "bridge", "tbptt", "e-prop", *STREAMING)

USED_BY: dict[str, tuple[str, ...]] = {
    "stream": CARRYING,
    "structure": WEIGHT_SPACE,
    "rank": WEIGHT_SPACE,
    "noise": ZERO_ORDER,
    "population": WEIGHT_SPACE,
    "final_population": WEIGHT_SPACE,
    "group_size": WEIGHT_SPACE,
    "epsilon": ZERO_ORDER,
    "relative_epsilon": CREDIT,
    "draws": CREDIT,
    "credit_every": ("bridge",),
    "discount": CREDIT,
    "exact_output": ("activity",),
    "separate": ("bridge",),
    "curvature_power": ("spsa-1.5",),
    "curvature_floor": ("spsa-1.5",),
    "truncation": ("bridge", "tbptt", "e-prop"),
    "shaping": WEIGHT_SPACE,
    "time_chunk": (*MEMBERS, "activity"),
    "maximum_nonfinite_share": ZERO_ORDER,
    "credit_learning_rate": ("bridge",),
    "credit_momentum": ("bridge",),
    "epsilon_schedule": ZERO_ORDER,
    "tie_epsilon": ZERO_ORDER,
}
"""Field of a group of settings -> the estimators that use it. What is not listed is used by all of them."""


def given(group: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and default of the listed fields of a group that have another value than their default.

    >>> from zorn.training import EstimatorConfig
    >>> list(given(EstimatorConfig(estimator="activity", draws=2)))
    [('draws', 2, None)]
    """
    for field in fields(group):
        value = getattr(group, field.name)
        if field.name in USED_BY and field.default is not MISSING and value != field.default:
            yield field.name, value, field.default


def check_used(group: Any, estimator: str) -> None:
    """Raise ConfigError for a setting that this estimator would ignore.

    >>> from zorn.training import EstimatorConfig
    >>> EstimatorConfig(estimator="bptt", curvature_floor=2.0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    zorn.errors.ConfigError: curvature_floor must be 1.0 with bptt: only spsa-1.5 uses it, got 2.0: for ...
    """
    for name, value, default in given(group):
        users = USED_BY[name]
        who = f"only {', '.join(users)} {'uses' if len(users) == 1 else 'use'} it"
        require(estimator in users, name, value, f"{default} with {estimator}: {who}", default)


def without_unused(group: Group, estimator: str) -> Group:
    """The group with what this estimator does not use at its default.

    >>> from zorn.training import OptimizerConfig
    >>> without_unused(OptimizerConfig(tie_epsilon=True), "bptt").tie_epsilon
    False
    """
    unused = {name: default for name, _, default in given(group) if estimator not in USED_BY[name]}
    return replace(group, **unused)  # pyright: ignore[reportArgumentType, reportCallIssue, reportUnknownVariableType]
