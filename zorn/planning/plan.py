"""The plan of a run: what it will hold, what fits, what a step costs; before anything runs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch

from zorn.planning.available import available_bytes
from zorn.planning.calibrate import Calibration, calibrate
from zorn.planning.fit import MARGIN, PROCESS_BYTES, Proposal, largest_micro_batch, propose
from zorn.planning.kinds import compared, kind_of, label_of
from zorn.planning.memory import step_memory
from zorn.planning.sizes import ModelSizes
from zorn.planning.stages import PARTS, Memory
from zorn.planning.work import forward_passes
from zorn.training.build import build_task
from zorn.training.config import Config
from zorn.training.defaults import resolve


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
    forward_passes: int


@dataclass(frozen=True)
class Plan:
    """What a run needs.

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
                    "fullest_stage": planned.memory.fullest,
                    **{f"{part}_bytes": planned.memory.part(part) for part in PARTS},
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
                "config": None if fitting is None else dataclasses.asdict(fitting),
                "does_not_fit": [dataclasses.asdict(attempt) for attempt in self.proposal.attempts],
            }
        return json.dumps(found, indent=2, default=str) + "\n"


def time_steps(config: Config) -> int:
    """T of a training batch, without making one: a text's windows have the set length, and sequences of
    another task are all padded to one, whatever the batch.

    >>> from zorn.training import BudgetConfig, TaskConfig
    >>> copy = TaskConfig(task="copy", batch=10**9, minimum_length=1, maximum_length=20)
    >>> time_steps(Config(task=copy, budget=BudgetConfig(steps=1)))
    41
    """
    if config.task.task == "text":
        return config.task.length
    of_one_row = dataclasses.replace(config.task, batch=1)
    task = build_task(Config(task=of_one_row, budget=config.budget))
    return task.training_batch(0).inputs.shape[1]


def plan(
    config: Config, *, memory: int | None = None, fit: int | None = None, calibration: bool = True
) -> Plan:
    """Plan a run, without running it: the model is counted on the meta device.

    Args:
        config: the settings of the run.
        memory: bytes that its process may take; None: what is free.
        fit: bytes to propose settings for; None: propose none.
        calibration: do a few small steps, to estimate the seconds of a step; some seconds at most. The model
            and a batch are made for it, if both fit in a tenth of the memory.

    Raises:
        ConfigError: settings that cannot work.

    Example:
        >>> from zorn.training import BudgetConfig, ModelConfig
        >>> model = ModelConfig(hidden_size=30_000, num_heads=100)
        >>> config = Config(model=model, budget=BudgetConfig(steps=1))
        >>> found = plan(config, memory=8 * 2**30, calibration=False)
        >>> found.configured.name, found.parameters["layers"]
        ('activity', 3636120000)
    """
    config, _ = resolve(config)
    task = build_task(config)
    steps = time_steps(config)
    sizes = ModelSizes.of(config.model, task.vocabulary, getattr(torch, config.run.dtype))
    available = available_bytes(config.run.device) if memory is None else memory
    planned = tuple(
        Planned(
            label_of(other),
            name == kind_of(config),
            step_memory(sizes, other, steps),
            largest_micro_batch(sizes, other, steps, available),
            forward_passes(other, steps),
        )
        for name, other in compared(config).items()
    )
    return Plan(
        config=config,
        parameters=sizes.by_part(),
        steps=steps,
        memory=available,
        estimators=planned,
        calibration=calibrate(sizes, config, task, steps, available) if calibration else None,
        proposal=None if fit is None else propose(sizes, config, steps, fit),
    )
