"""The plan of a run: what it will hold, what fits, what a step costs; before anything runs."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from zorn.config import Config, change, resolve, to_plain
from zorn.errors import ConfigError
from zorn.estimators import ESTIMATORS
from zorn.plan.available import available_bytes
from zorn.plan.calibrate import Calibration, calibrate
from zorn.plan.fit import (
    MARGIN,
    PROCESS_BYTES,
    Proposal,
    label_of,
    largest_micro_batch,
    propose,
    with_estimator,
)
from zorn.plan.step import PARTS, Memory, step_memory
from zorn.settings import settings_of
from zorn.training.build import build_estimator, build_task, model_of


@dataclass(frozen=True)
class Planned:
    """One estimator in a plan.

    Attributes:
        name: of the estimator, with the steps that it differentiates together.
        configured: whether it is the run's.
        memory: of its training step, without the process's own.
        micro_batch: the largest that fits the plan's memory with a margin, in rows; None: not a single row
            does.
        forward_passes: of a step, a backward pass counted as two.
    """

    name: str
    configured: bool
    memory: Memory
    micro_batch: int | None
    forward_passes: int | float


@dataclass(frozen=True)
class Plan:
    """The needs of a run.

    Attributes:
        config: the settings, with all that was chosen.
        parameters: trained, by part: embedding, layers, head.
        steps: T, time steps of a batch's sequences.
        memory: bytes that a process may take.
        estimators: the run's own and the others, for comparison.
        calibration: seconds of a step of the run's own; None where it was not wanted.
        proposal: settings that fit a memory; None where none was asked for.
    """

    config: Config
    parameters: dict[str, int]
    steps: int
    memory: int
    estimators: tuple[Planned, ...]
    calibration: Calibration | None
    proposal: Proposal | None

    @property
    def configured(self) -> Planned:
        """The run's own estimator."""
        return next(planned for planned in self.estimators if planned.configured)

    def to_json(self) -> str:
        """All figures: bytes, seconds, rows."""
        own = self.configured
        found: dict[str, Any] = {
            "parameters": {**self.parameters, "total": sum(self.parameters.values())},
            "time_steps": self.steps,
            "memory_bytes": self.memory,
            "process_bytes": PROCESS_BYTES if self.config.run.device == "cpu" else 0,
            "margin": MARGIN,
            "configured": own.name,
            "forward_passes": own.forward_passes,
            "seconds_per_step": None if self.calibration is None else self.calibration.seconds,
            "estimators": [
                {
                    "name": planned.name,
                    "configured": planned.configured,
                    "peak_bytes": planned.memory.peak,
                    **{f"{part}_bytes": round(getattr(planned.memory, part)) for part in PARTS},
                    "largest_micro_batch": planned.micro_batch,
                    "forward_passes": planned.forward_passes,
                }
                for planned in self.estimators
            ],
        }
        if self.proposal is not None:
            fitting = self.proposal.config
            found["fit"] = {
                "limit_bytes": self.proposal.limit,
                "needed_bytes": self.proposal.needed,
                "config": None if fitting is None else to_plain(fitting),
                "does_not_fit": [asdict(attempt) for attempt in self.proposal.attempts],
            }
        return json.dumps(found, indent=2, default=str) + "\n"


def time_steps(config: Config) -> int:
    """T of a training batch, without making one: a text's windows have the set length, and sequences of
    another task are all padded to one, whatever the batch.

    >>> from zorn.config import BudgetConfig, Choice
    >>> copy = Choice("copy", batch=10**9, minimum_length=1, maximum_length=20)
    >>> time_steps(Config(task=copy, budget=BudgetConfig(steps=1)))
    41
    """
    length = config.task.get("length")
    if length is not None:
        return length
    return build_task(change(config, batch=1)).training_batch(0).inputs.shape[1]


def compared(config: Config) -> list[Config]:
    """The settings with each kind of estimator that fits them, the run's own first. Of those whose step is
    the same code on the same sizes, one stands for all: they hold about the same.

    Args:
        config: resolved.
    """
    found = {_kind(config.estimator.name): config}
    for name in ESTIMATORS:
        if _kind(name) not in found:
            with contextlib.suppress(ConfigError):
                found[_kind(name)] = resolve(with_estimator(config, name))[0]
    return list(found.values())


def _kind(name: str) -> tuple[Any, ...]:
    kind = ESTIMATORS[name]
    told = tuple(each for each, setting in settings_of(kind).items() if setting.required)
    return kind._estimate, kind.needs, kind.sizes, told


def plan(
    config: Config, *, memory: int | None = None, fit: int | None = None, calibration: bool = True
) -> Plan:
    """Plan a run, without running it: its step is done on tensors that have sizes and no memory.

    Args:
        config: the settings of the run.
        memory: bytes that its process may take; None: what is free.
        fit: bytes to propose settings for; None: propose none.
        calibration: do a few small steps, to estimate the seconds of a step; some seconds at most. The model
            and a batch are made for it, if both fit in a tenth of the memory.

    Raises:
        ConfigError: settings that cannot work.

    Example:
        >>> from zorn.config import BudgetConfig, Choice
        >>> model = Choice("lstm", hidden_size=30_000, num_heads=100)
        >>> config = Config(model=model, budget=BudgetConfig(steps=1))
        >>> found = plan(config, memory=8 * 2**30, calibration=False)
        >>> found.configured.name, found.parameters["layers"]
        ('activity', 3636120000)
    """
    config, _ = resolve(config)
    task, steps = build_task(config), time_steps(config)
    vocabulary = task.vocabulary
    available = available_bytes(config.run.device) if memory is None else memory
    planned = tuple(
        Planned(
            label_of(near),
            near is config,
            step_memory(near, vocabulary, steps),
            largest_micro_batch(near, vocabulary, steps, available),
            build_estimator(near).passes(near.task.batch, steps),
        )
        for near in compared(config)
    )
    return Plan(
        config=config,
        parameters=parameters_by_part(config, vocabulary),
        steps=steps,
        memory=available,
        estimators=planned,
        calibration=calibrate(config, task, steps, available) if calibration else None,
        proposal=None if fit is None else propose(config, vocabulary, steps, fit),
    )


def parameters_by_part(config: Config, vocabulary: int) -> dict[str, int]:
    """Parameters of embedding, layers (with the norms) and head; a tied weight counts as embedding."""
    parts = {"embedding": 0, "layers": 0, "head": 0}
    for name, parameter in model_of(config.model, vocabulary, device="meta").named_parameters():
        part = name.split(".", 1)[0]
        parts[part if part in parts else "layers"] += parameter.numel()
    return parts
