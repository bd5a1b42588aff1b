"""A plan as tables for people."""

from __future__ import annotations

from rich.table import Table

from zorn.plan.available import show_bytes
from zorn.plan.fit import MARGIN, PROCESS_BYTES
from zorn.plan.plan import Plan
from zorn.plan.step import PARTS


def memory_table(plan: Plan) -> Table:
    """A row an estimator, the run's own marked: peak, its parts, what fits.

    Working is what lives at the peak beside what stays from step to step.
    """
    process = PROCESS_BYTES if plan.config.run.device == "cpu" else 0
    beside = f" beside the process's own {show_bytes(process)}" if process else ""
    caption = (
        f"bytes at the peak of a step{beside}; micro-batch: the largest in {show_bytes(plan.memory)}, with a "
        f"margin of {MARGIN:.0%}"
    )
    table = Table("estimator", title="memory of a training step", caption=caption)
    table.add_column("peak", justify="right", style="bold")
    for part in PARTS:
        table.add_column(part, justify="right")
    for name in ("micro-batch", "forward passes"):
        table.add_column(name, justify="right")
    for planned in plan.estimators:
        table.add_row(
            ("* " if planned.configured else "  ") + planned.name,
            show_bytes(planned.memory.peak),
            *(show_bytes(round(getattr(planned.memory, part))) for part in PARTS),
            "none fits" if planned.micro_batch is None else f"{planned.micro_batch:,}",
            f"{planned.forward_passes:,.0f}",
        )
    return table


def parameter_table(plan: Plan) -> Table:
    """Trained parameters by part."""
    table = Table("part", title="parameters")
    table.add_column("parameters", justify="right")
    table.add_column("memory", justify="right")
    size = {"float32": 4, "bfloat16": 2}[plan.config.run.dtype]
    total = sum(plan.parameters.values())
    for part, count in {**plan.parameters, "all": total}.items():
        table.add_row(part, f"{count:,}", show_bytes(count * size))
    return table


def lines_of(plan: Plan) -> list[str]:
    """Time, and what a fit found, a line each."""
    own = plan.configured
    lines = [f"a step: {own.forward_passes:,.0f} forward passes of {plan.steps:,} tokens"]
    found = plan.calibration
    if found is not None and found.seconds is not None:
        lines.append(f"a step: about {found.seconds:.3g} seconds, from {len(found.steps)} smaller steps")
    elif found is not None:
        lines.append(f"seconds of a step are not known: {found.reason}")
    if plan.proposal is not None:
        lines += _fit_lines(plan)
    return lines


def _fit_lines(plan: Plan) -> list[str]:
    proposal = plan.proposal
    assert proposal is not None
    limit = show_bytes(proposal.limit)
    lines = [
        f"does not fit {limit}: {attempt.words} needs {show_bytes(attempt.needed)}, "
        f"{show_bytes(attempt.needed - proposal.limit)} too much"
        for attempt in proposal.attempts
    ]
    if proposal.config is None:
        lines.append(
            f"nothing fits {limit}; the least found is {show_bytes(proposal.needed)}: take a smaller "
            "--hidden-size or --parameters, or more heads"
        )
    else:
        lines.append(
            f"fits {limit}: needs {show_bytes(proposal.needed)}, with a margin of {MARGIN:.0%} for the step:"
        )
    return lines
