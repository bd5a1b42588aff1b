"""What a run will need, before it runs: memory by estimator, what fits, forward passes and seconds a step."""

from zorn.planning.available import available_bytes, parse_bytes, show_bytes
from zorn.planning.calibrate import Calibration, calibrate
from zorn.planning.cluster import (
    StepSeconds,
    StepWork,
    WorkerCosts,
    fold_bound_workers,
    predict,
    simulate,
)
from zorn.planning.fit import Attempt, Proposal, largest_micro_batch, propose
from zorn.planning.memory import step_memory
from zorn.planning.plan import Plan, Planned, plan
from zorn.planning.sizes import ModelSizes
from zorn.planning.stages import PARTS, Memory, Stage
from zorn.planning.table import lines_of, memory_table, parameter_table
from zorn.planning.work import forward_passes

__all__ = [
    "PARTS",
    "Attempt",
    "Calibration",
    "Memory",
    "ModelSizes",
    "Plan",
    "Planned",
    "Proposal",
    "Stage",
    "StepSeconds",
    "StepWork",
    "WorkerCosts",
    "available_bytes",
    "calibrate",
    "fold_bound_workers",
    "forward_passes",
    "largest_micro_batch",
    "lines_of",
    "memory_table",
    "parameter_table",
    "parse_bytes",
    "plan",
    "predict",
    "propose",
    "show_bytes",
    "simulate",
    "step_memory",
]
