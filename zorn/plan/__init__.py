"""The needs of a run, before it runs: memory by estimator, settings that fit, forward passes, seconds."""

from zorn.plan.available import available_bytes, parse_bytes, show_bytes
from zorn.plan.calibrate import Calibration, calibrate
from zorn.plan.fit import Attempt, Proposal, largest_micro_batch, propose
from zorn.plan.live import LiveBytes
from zorn.plan.plan import Plan, Planned, plan
from zorn.plan.step import PARTS, Memory, step_memory
from zorn.plan.table import lines_of, memory_table, parameter_table

__all__ = [
    "PARTS",
    "Attempt",
    "Calibration",
    "LiveBytes",
    "Memory",
    "Plan",
    "Planned",
    "Proposal",
    "available_bytes",
    "calibrate",
    "largest_micro_batch",
    "lines_of",
    "memory_table",
    "parameter_table",
    "parse_bytes",
    "plan",
    "propose",
    "show_bytes",
    "step_memory",
]
