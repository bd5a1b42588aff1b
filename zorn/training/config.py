"""All settings of a run: frozen dataclasses that are checked when made and saved as `config.json`."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zorn.errors import ConfigError
from zorn.training.checks import require, without_none
from zorn.training.groups import (
    BudgetConfig,
    EstimatorConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
)
from zorn.training.usage import DIFFERENTIATING, STREAMING, check_used

__all__ = [
    "BudgetConfig",
    "Config",
    "EstimatorConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "TaskConfig",
    "config_from_json",
    "config_to_json",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a run.

    >>> config = Config(budget=BudgetConfig(steps=10), model=ModelConfig(hidden_size=8))
    >>> config.model.hidden_size, config.task.task
    (8, 'text')
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    budget: BudgetConfig
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        optimizer = self.optimizer.optimizer
        loses_updates = self.run.dtype == "bfloat16" and optimizer not in (None, "fused-sgd")
        rule = f"float32 with {optimizer}, which loses small updates (fused-sgd keeps them)"
        require(not loses_updates, "dtype", self.run.dtype, rule, "float32")
        self._check_groups()
        if self.estimator.estimator != "auto":
            self._check_estimator(self.estimator.estimator)

    def _check_groups(self) -> None:
        group, batch = self.estimator.group_size or 0, self.task.batch
        rule = f"a divisor of the batch, {batch} sequences (0: the whole batch)"
        require(group == 0 or (group <= batch and batch % group == 0), "group_size", group, rule, 0)
        blocks = self.population_multiple
        for name in ("population", "final_population"):
            size = getattr(self.estimator, name)
            rule = (
                f"a multiple of {blocks} (batch / group size), so that all sequences are used equally often"
            )
            require(size is None or size % blocks == 0, name, size, rule, 4 * blocks)

    def _check_estimator(self, estimator: str) -> None:
        """What an estimator that is named asks of the other groups."""
        objective = self.task.objective
        check_used(self.task, estimator)
        check_used(self.optimizer, estimator)
        plain = objective == "cross-entropy"
        rule = f"cross-entropy with --estimator {estimator}, which differentiates it"
        require(plain or estimator not in DIFFERENTIATING, "objective", objective, rule, "cross-entropy")
        rule = f"1 with --objective {objective}, which is one number a sequence"
        discount = self.estimator.discount
        require(plain or discount in (None, 1.0), "discount", discount, rule, 1.0)
        rule = f"no with --objective {objective}: only cross-entropy has such an error"
        output = self.estimator.exact_output
        require(plain or output != "yes", "exact_output", output, rule, "no")
        streams = self.task.stream is not None or estimator not in STREAMING
        require(streams, "stream", None, f"at least 1 with --estimator {estimator}", 32)
        if not self.two_part:
            rule = f"{{}} with {estimator} unless its two parts are separate"
            for name, default in (("credit_learning_rate", None), ("credit_momentum", 0.99)):
                value = getattr(self.optimizer, name)
                require(value == default, name, value, rule.format(default), default)
        optimizer = self.optimizer.optimizer
        moments = not self.two_part or optimizer in (None, "adam", "adamw")
        rule = f"False with {optimizer}: only adam and adamw have moments to keep apart"
        require(moments, "separate", True, rule, False)

    @property
    def population_multiple(self) -> int:
        """Batch / group size: a population of a multiple of it uses all sequences equally often.

        >>> task, estimator = TaskConfig(batch=64), EstimatorConfig(group_size=16)
        >>> Config(task=task, estimator=estimator, budget=BudgetConfig(steps=1)).population_multiple
        4
        """
        group = 1 if self.estimator.group_size is None else self.estimator.group_size
        return self.task.batch // (group or self.task.batch)

    @property
    def two_part(self) -> bool:
        """Whether the gradient comes in two parts, for an optimizer that keeps them apart."""
        return self.estimator.estimator == "bridge" and self.estimator.separate


def config_to_json(config: Config) -> str:
    """The text of `config.json`: one object per group, one line per field."""
    groups = dataclasses.asdict(config)
    return json.dumps(groups, indent=2, default=str) + "\n"


def config_from_json(text: str, origin: str = "config.json") -> Config:
    """Read a configuration back, strictly: each field present, none unknown, each of the right type.

    Raises ConfigError naming the fields; `origin` names the file in the message.

    >>> config = Config(budget=BudgetConfig(steps=10))
    >>> config_from_json(config_to_json(config)) == config
    True
    """
    try:
        groups = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{origin} is not valid JSON ({error}): restore it or train again") from error
    made = {}
    hints = typing.get_type_hints(Config)
    _check_names(groups, set(hints), origin, "")
    for group, kind in hints.items():
        annotations = typing.get_type_hints(kind)
        _check_names(groups[group], set(annotations), origin, f"{group}.")
        made[group] = kind(
            **{
                name: _read(value, annotations[name], f"{origin}: {group}.{name}")
                for name, value in groups[group].items()
            }
        )
    return Config(**made)


def _check_names(got: Any, expected: set[str], origin: str, prefix: str) -> None:
    if not isinstance(got, dict):
        raise ConfigError(f"{origin}: {prefix.rstrip('.') or 'the file'} must be an object, got {got!r}")
    missing = ", ".join(prefix + name for name in sorted(expected - got.keys()))
    unknown = ", ".join(prefix + name for name in sorted(got.keys() - expected))
    if missing or unknown:
        raise ConfigError(
            f"{origin} does not fit this version of zorn: missing {missing or 'nothing'}, "
            f"unknown {unknown or 'nothing'}; add or remove those fields, or train again"
        )


def _read(value: Any, annotation: Any, where: str) -> Any:
    """Turn a JSON value into a field's type: the few types that the groups use, and nothing else."""
    annotation, optional = without_none(annotation)
    if value is None and optional:
        return None
    if typing.get_origin(annotation) is Literal:
        return value  # check_types names the choices
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is not annotation:
        raise ConfigError(f"{where} must be of type {annotation.__name__}, got {value!r}: correct the file")
    return value
