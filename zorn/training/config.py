"""All settings of a run: frozen dataclasses that are checked when made and saved as `config.json`."""

from __future__ import annotations

import json
import typing
from dataclasses import asdict, dataclass, field, fields, replace
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
from zorn.training.usage import DIFFERENTIATING, STREAMING, WEIGHT_SPACE, check_used

__all__ = [
    "BudgetConfig",
    "Chosen",
    "Config",
    "EstimatorConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "TaskConfig",
    "config_from_json",
    "config_to_json",
]

OPEN = (None, "auto")
"""Values of a setting that zorn chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What zorn chose in each group, because nobody gave it (see `zorn.training.resolve`): field -> value. A
    field that has another value by now was given since."""

    estimator: dict[str, Any] = field(default_factory=dict[str, Any])
    optimizer: dict[str, Any] = field(default_factory=dict[str, Any])
    run: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a run, and which of them zorn chose; two are equal whose settings are, whoever chose.

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
    chosen: Chosen = field(default_factory=Chosen, compare=False)

    def __post_init__(self) -> None:
        self._check_chosen()
        optimizer = self.optimizer.optimizer
        loses_updates = self.run.dtype == "bfloat16" and optimizer not in (None, "fused-sgd")
        rule = f"float32 with {optimizer}, which loses small updates (fused-sgd keeps them)"
        require(not loses_updates, "dtype", self.run.dtype, rule, "float32")
        self._check_groups()
        if self.estimator.estimator != "auto":
            self._check_estimator(self.estimator.estimator)

    def _check_chosen(self) -> None:
        for group in fields(self.chosen):
            names = getattr(self.chosen, group.name)
            can_be = [each.name for each in fields(getattr(self, group.name)) if each.default in OPEN]
            unknown = [name for name in names if name not in can_be]
            if unknown:
                raise ConfigError(
                    f"chosen.{group.name} must name settings that may be left open, of {', '.join(can_be)}, "
                    f"got {', '.join(unknown)}: take those names out"
                )

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
        halved = estimator in WEIGHT_SPACE or not self.run.journal_half
        rule = f"False with {estimator}: only {', '.join(WEIGHT_SPACE)} keep a journal"
        require(halved, "journal_half", self.run.journal_half, rule, False)
        if not self.two_part:
            rule = f"{{}} with {estimator} unless its two parts are separate"
            for name, default in (("credit_learning_rate", None), ("credit_momentum", 0.96)):
                value = getattr(self.optimizer, name)
                require(value == default, name, value, rule.format(default), default)
        optimizer = self.optimizer.optimizer
        rule = f"False with {optimizer}, which keeps no gradient, and so no two parts of one"
        require(not self.two_part or optimizer != "fused-sgd", "separate", True, rule, False)
        every = self.estimator.credit_every
        rule = "1, or None, unless the two parts of the gradient are separate"
        require(self.two_part or every in (None, 1), "credit_every", every, rule, None)

    @property
    def population_multiple(self) -> int:
        """Batch / group size: a population of a multiple of it uses all sequences equally often.

        >>> task, estimator = TaskConfig(batch=64), EstimatorConfig(group_size=16)
        >>> Config(task=task, estimator=estimator, budget=BudgetConfig(steps=1)).population_multiple
        4
        """
        group = 1 if self.estimator.group_size is None else self.estimator.group_size
        return self.task.batch // (group or self.task.batch)

    def reopened(self) -> Config:
        """The settings with what zorn chose left open again, so that `zorn.training.resolve` chooses anew.

        >>> from zorn.training import resolve
        >>> chosen, _ = resolve(Config(estimator=EstimatorConfig(draws=2), budget=BudgetConfig(steps=1)))
        >>> chosen.estimator.estimator, chosen.estimator.discount, chosen.estimator.draws
        ('activity', 0.6, 2)
        >>> again = chosen.reopened()
        >>> again.estimator.estimator, again.estimator.discount, again.estimator.draws
        ('auto', None, 2)
        """
        groups = {}
        for group in fields(self.chosen):
            settings, values = getattr(self, group.name), getattr(self.chosen, group.name)
            defaults = {each.name: each.default for each in fields(settings)}
            as_chosen = [name for name, value in values.items() if getattr(settings, name) == value]
            groups[group.name] = replace(settings, **{name: defaults[name] for name in as_chosen})
        return replace(self, **groups, chosen=Chosen())

    @property
    def journaled(self) -> bool:
        """Whether the run keeps a journal: its steps come down to a number for each member.

        >>> Config(estimator=EstimatorConfig(estimator="bptt"), budget=BudgetConfig(steps=1)).journaled
        False
        """
        return self.run.journal and self.estimator.estimator in WEIGHT_SPACE

    @property
    def two_part(self) -> bool:
        """Whether the gradient comes in two parts, for an optimizer that keeps them apart."""
        return self.estimator.estimator == "bridge" and self.estimator.separate


def config_to_json(config: Config) -> str:
    """The text of `config.json`: one object per group, one line per field; and what of it zorn chose."""
    groups = asdict(config)
    return json.dumps(groups, indent=2, default=str) + "\n"


def config_from_json(text: str, origin: str = "config.json") -> Config:
    """Read a configuration back, strictly: each field present, none unknown, each of the right type. Without
    "chosen", as in files of an earlier zorn, all settings count as given.

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
    if isinstance(groups, dict):
        groups = {"chosen": asdict(Chosen())} | groups
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
    if type(value) is not (typing.get_origin(annotation) or annotation):
        raise ConfigError(f"{where} must be of type {annotation.__name__}, got {value!r}: correct the file")
    return value
