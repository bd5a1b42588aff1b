"""The settings of a run: frozen dataclasses that are checked when made and saved as `config.json`.

Field names are unique over the groups, because each is one flat flag of `zorn train` (`hidden_size` is
`--hidden-size`). The string under a field is its help text and states unit and range.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zorn.errors import ConfigError

LARGEST = 1e30
"""The largest step size or perturbation scale: beyond it float32 overflows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """What is learned, and the batches it is learned from."""

    task: Literal["text", "copy"] = "text"
    """text: predict the next token of a text. copy: read symbols, then write them again."""
    source: str = "python-docs"
    """text: python-docs (the documentation that ships with Python), or the path of a text file."""
    tokenizer: Literal["bytes", "alphabet", "bpe"] = "bytes"
    """text: bytes (256 tokens), alphabet (the bytes that occur, and an escape), or bpe (learned pairs)."""
    vocabulary_size: int = 512
    """text with bpe: number of tokens, at least 257."""
    batch: int = 256
    """Sequences in a batch, at least 1."""
    length: int = 32
    """text: tokens predicted per sequence, at least 1."""
    minimum_length: int = 1
    """copy: fewest symbols to copy, at least 1."""
    maximum_length: int = 5
    """copy: most symbols to copy, at least the minimum length."""
    overfit: bool = False
    """copy: train on one batch, the same at every step, instead of fresh ones."""

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self.source != "", "source", self.source, "a name or a path", "python-docs")
        if self.tokenizer == "bpe":
            _require(self.vocabulary_size > 256, "vocabulary_size", self.vocabulary_size, "at least 257", 512)
        _require(self.batch >= 1, "batch", self.batch, "at least 1", 256)
        _require(self.length >= 1, "length", self.length, "at least 1", 32)
        _require(self.minimum_length >= 1, "minimum_length", self.minimum_length, "at least 1", 1)
        rule = f"at least the minimum length, {self.minimum_length}"
        fits = self.maximum_length >= self.minimum_length
        _require(fits, "maximum_length", self.maximum_length, rule, self.minimum_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The recurrent language model."""

    cell: Literal["lstm", "gru"] = "lstm"
    """The recurrent cell."""
    hidden_size: int = 64
    """Units per layer, at least 1, a multiple of the number of heads."""
    parameters: int | None = None
    """Aim at this many trained parameters, at least 1: chooses the hidden size in place of --hidden-size."""
    embedding_size: int | None = None
    """Size of a token's vector, at least 1. None: the hidden size."""
    num_layers: int = 1
    """Recurrent layers, at least 1."""
    num_heads: int = 1
    """Blocks of the recurrent matrix, at least 1. 1: dense recurrence."""
    tie_embedding: bool = False
    """Use the embedding as the output matrix too (needs embedding size = hidden size)."""

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self.hidden_size >= 1, "hidden_size", self.hidden_size, "at least 1", 64)
        _require(self.num_layers >= 1, "num_layers", self.num_layers, "at least 1", 1)
        _require(self.num_heads >= 1, "num_heads", self.num_heads, "at least 1", 1)
        _require_positive_or_none("parameters", self.parameters, 50_000)
        _require_positive_or_none("embedding_size", self.embedding_size, 64)
        one_dial = self.parameters is None or self.embedding_size is None
        rule = "None with --parameters, which chooses all sizes"
        _require(one_dial, "embedding_size", self.embedding_size, rule, None)
        if self.parameters is None:
            rule = f"a multiple of the number of heads, {self.num_heads}"
            fits = self.hidden_size % self.num_heads == 0
            _require(fits, "hidden_size", self.hidden_size, rule, self.num_heads * 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorConfig:
    """How the gradient is estimated."""

    estimator: Literal["cd-rge", "fd-rge", "bptt"] = "cd-rge"
    """cd-rge: central differences. fd-rge: forward differences. bptt: exact, by backpropagation."""
    structure: Literal["rank-one", "dense"] = "rank-one"
    """rank-one: all members in one forward pass. dense: one member at a time, the paper's (slow)."""
    noise: Literal["rademacher", "gaussian"] = "rademacher"
    """Distribution of a perturbation's elements: signs, or normal numbers."""
    rank: int = 1
    """rank-one: outer products summed per matrix, at least 1."""
    population: int = 1024
    """Members in a step, at least 1."""
    group_size: int = 1
    """Sequences that each member is evaluated on, 1 to the batch. 0: the whole batch."""
    epsilon: float = 0.02
    """Perturbation scale, above 0: the standard deviation of one weight's perturbation."""
    shaping: Literal["none", "zscore", "sign", "std"] = "none"
    """What the coefficients go through before the fold."""
    micro_batch: int = 512
    """Most rows in one forward pass, at least 1; changes nothing but memory and speed."""
    time_chunk: int | None = None
    """Time steps run at once, at least 1; changes nothing but memory and speed. None: all. Not for bptt."""
    maximum_nonfinite_share: float = 0.5
    """Stop when more than this share of the members has a NaN or infinite loss, 0 to 1."""

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self.rank >= 1, "rank", self.rank, "at least 1", 1)
        _require(self.population >= 1, "population", self.population, "at least 1 member", 1024)
        _require(self.group_size >= 0, "group_size", self.group_size, "at least 0 (0: the whole batch)", 1)
        _require(0 < self.epsilon <= LARGEST, "epsilon", self.epsilon, "above 0 and at most 1e30", 0.02)
        _require(self.micro_batch >= 1, "micro_batch", self.micro_batch, "at least 1", 512)
        _require_positive_or_none("time_chunk", self.time_chunk, 100)
        share = self.maximum_nonfinite_share
        _require(0 <= share <= 1, "maximum_nonfinite_share", share, "from 0 to 1", 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """How the weights follow the gradient, and how the step sizes move over the run."""

    optimizer: Literal["adam", "adamw", "sgd", "fused-sgd"] = "adam"
    """adam, adamw, sgd: torch's. fused-sgd: in place, without a gradient buffer (least memory)."""
    learning_rate: float = 0.01
    """Step size, above 0."""
    momentum: float = 0.0
    """sgd: share of the last update that is kept, from 0 up to 1."""
    weight_decay: float = 0.0
    """Pull towards zero, at least 0; decoupled from the gradient for adamw and fused-sgd."""
    clip_norm: float | None = None
    """Scale the gradient down to this norm when it is longer, above 0. None: never."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate moves over the budget. cosine: falls along half a cosine to the floor."""
    warmup_steps: int = 0
    """Steps in which the learning rate climbs in a line from near 0, at least 0."""
    epsilon_schedule: Literal["constant", "cosine"] = "constant"
    """How epsilon moves over the budget. cosine: falls along half a cosine to the floor."""
    schedule_floor: float = 0.1
    """Where a cosine ends, as a share of where it began, 0 to 1 (above 0 for epsilon)."""
    tie_epsilon: bool = False
    """Set epsilon to the learning rate at every step, as in the paper; --epsilon is then not used."""

    def __post_init__(self) -> None:
        _check_types(self)
        rate = self.learning_rate
        _require(0 < rate <= LARGEST, "learning_rate", rate, "above 0 and at most 1e30", 0.01)
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "from 0 up to, not including, 1", 0.9)
        decays = 0 <= self.weight_decay <= LARGEST
        _require(decays, "weight_decay", self.weight_decay, "from 0 to 1e30", 0.0)
        clips = self.clip_norm is None or 0 < self.clip_norm < math.inf
        _require(clips, "clip_norm", self.clip_norm, "above 0 and finite, or None", 1.0)
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0 steps", 0)
        _require(0 <= self.schedule_floor <= 1, "schedule_floor", self.schedule_floor, "from 0 to 1", 0.1)
        only_sgd = self.momentum == 0 or self.optimizer == "sgd"
        _require(only_sgd, "momentum", self.momentum, f"0 with {self.optimizer}: only sgd uses it", 0.0)
        fused_clip = self.optimizer == "fused-sgd" and self.clip_norm is not None
        rule = "None with fused-sgd, which holds no gradient to clip"
        _require(not fused_clip, "clip_norm", self.clip_norm, rule, None)
        two_rules = self.tie_epsilon and self.epsilon_schedule != "constant"
        rule = "constant with --tie-epsilon: epsilon follows the learning rate"
        _require(not two_rules, "epsilon_schedule", self.epsilon_schedule, rule, "constant")
        epsilon_falls = self.epsilon_schedule == "cosine" or (self.tie_epsilon and self.schedule == "cosine")
        rule = "above 0 where epsilon follows a cosine: epsilon must stay above 0"
        _require(not (epsilon_falls and self.schedule_floor == 0), "schedule_floor", 0.0, rule, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """How long to train: steps or seconds, not both.

    With a budget in steps a run is reproducible bit for bit, also over a stop and a resume. With a budget in
    seconds the number of steps depends on the clock, and so does what a cosine schedule sets.
    """

    steps: int | None = None
    """Train for this many steps in all, at least 1."""
    seconds: float | None = None
    """Train for this many seconds in all, above 0, with evaluations and saving counted in."""

    def __post_init__(self) -> None:
        _check_types(self)
        if (self.steps is None) == (self.seconds is None):
            raise ConfigError(
                "the budget must be steps or seconds, exactly one of them, "
                f"got steps {self.steps} and seconds {self.seconds}: for example --steps 1000"
            )
        _require_positive_or_none("steps", self.steps, 1000)
        runs = self.seconds is None or 0 < self.seconds < math.inf
        _require(runs, "seconds", self.seconds, "above 0 and finite", 180)

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the budget that is used, from 0 to 1.

        >>> BudgetConfig(steps=200).progress(50, 9.0)
        0.25
        """
        used = seconds / self.seconds if self.seconds is not None else steps / (self.steps or 1)
        return min(1.0, used)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where the run lives, and how it computes, evaluates and saves."""

    out: Path | None = None
    """The run's folder. None: runs/ and the time of the start."""
    seed: int = 0
    """Determines weights, batches and perturbations, 0 to 2**64 - 1."""
    device: str = "cpu"
    """Where to compute, in torch's words: cpu, cuda, cuda:1."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights."""
    threads: int | None = None
    """CPU threads, at least 1. None: torch's choice."""
    evaluations: int = 20
    """Evaluations on the validation split, at least 1, spread over the budget (and one at the start)."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, at least 0. 0: one after every step. The end is always saved."""
    keep: int = 2
    """Checkpoints to keep, at least 1: the newest."""

    def __post_init__(self) -> None:
        _check_types(self)
        _require(0 <= self.seed < 2**64, "seed", self.seed, "from 0 to 2**64 - 1", 0)
        _require(self.device != "", "device", self.device, "a device's name", "cpu")
        _require_positive_or_none("threads", self.threads, 1)
        _require(self.evaluations >= 1, "evaluations", self.evaluations, "at least 1", 20)
        waits = 0 <= self.checkpoint_seconds < math.inf
        _require(waits, "checkpoint_seconds", self.checkpoint_seconds, "at least 0 and finite", 60)
        _require(self.keep >= 1, "keep", self.keep, "at least 1", 2)


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
        loses_updates = self.run.dtype == "bfloat16" and self.optimizer.optimizer != "fused-sgd"
        rule = f"float32 with {self.optimizer.optimizer}, which loses small updates (fused-sgd keeps them)"
        _require(not loses_updates, "dtype", self.run.dtype, rule, "float32")
        group, batch = self.estimator.group_size, self.task.batch
        rule = f"a divisor of the batch, {batch} sequences (0: the whole batch)"
        _require(group == 0 or (group <= batch and batch % group == 0), "group_size", group, rule, 0)
        exact = self.estimator.estimator == "bptt"
        if exact:
            chunk = self.estimator.time_chunk
            _require(chunk is None, "time_chunk", chunk, "None with --estimator bptt", None)
        else:
            population, blocks = self.estimator.population, batch // (group or batch)
            rule = (
                f"a multiple of {blocks} (batch / group size), so that all sequences are used equally often"
            )
            _require(population % blocks == 0, "population", population, rule, 4 * blocks)


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


def flag(name: str) -> str:
    """The command-line flag of a field.

    >>> flag("hidden_size")
    '--hidden-size'
    """
    return "--" + name.replace("_", "-")


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
    if isinstance(annotation, types.UnionType):
        (inner,) = (kind for kind in typing.get_args(annotation) if kind is not types.NoneType)
        return None if value is None else _read(value, inner, where)
    if typing.get_origin(annotation) is Literal:
        return value  # _check_types names the choices
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is not annotation:
        raise ConfigError(f"{where} must be of type {annotation.__name__}, got {value!r}: correct the file")
    return value


def _check_types(group: Any) -> None:
    """What the fields' types imply: a choice is one of its values, a whole number has 31 bits."""
    for name, annotation in typing.get_type_hints(type(group)).items():
        if typing.get_origin(annotation) is Literal:
            choices = typing.get_args(annotation)
            value = getattr(group, name)
            _require(value in choices, name, value, f"one of {', '.join(choices)}", choices[0])
        elif int in (annotation, *typing.get_args(annotation)) and name != "seed":
            value = getattr(group, name)
            _require(value is None or value < 2**31, name, value, "below 2**31", 100)


def _require_positive_or_none(name: str, value: int | None, example: int) -> None:
    _require(value is None or value >= 1, name, value, "at least 1, or None", example)


def _require(condition: bool, name: str, got: object, rule: str, example: object) -> None:
    if not condition:
        shown = "an empty text" if got == "" else got
        raise ConfigError(f"{name} must be {rule}, got {shown}: for example {flag(name)} {example}")
