"""A diagnosis as tables for a terminal."""

from rich import box
from rich.console import Group
from rich.table import Table

from zorn.diagnostics.diagnosis import Diagnosis
from zorn.diagnostics.epsilon import EpsilonSweep
from zorn.diagnostics.measured import Measured
from zorn.diagnostics.signal import Signal
from zorn.diagnostics.step_size import StepCurve

WANTED = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The cosines for which it is told how many members, or draws, they need."""


def tables(diagnosis: Diagnosis) -> Group:
    """The signal by parameter, the ladder and what it foretells, the ε sweep, and the steps."""
    parts: list[Table | str] = [*_signal(diagnosis.signal), *_ladder(diagnosis.signal)]
    parts += [] if diagnosis.epsilon is None else _epsilons(diagnosis.epsilon)
    return Group(*parts, *_steps(diagnosis.step))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _measured(*values: Measured | None) -> list[str]:
    """Those that were measured: there is no cosine without the exact gradient."""
    return [str(value) for value in values if value is not None]


def _signal(signal: Signal) -> tuple[str, Table]:
    compared = ("cosine to the gradient", "norm / gradient's norm") if signal.whole.cosine else ()
    table = _table("Signal by parameter", "parameter", "numbers", "SNR of two estimates", *compared)
    for layer in (*signal.layers, signal.whole):
        values = _measured(layer.snr, layer.cosine, layer.relative_norm)
        style = "bold" if layer is signal.whole else None
        table.add_row(layer.name, f"{layer.numbers:,}", *values, style=style)
    head = (
        f"{signal.estimator}: {signal.estimates} estimates of {signal.forward_passes:,} forward passes, "
        f"{signal.seconds:.3g} processor seconds each; loss {signal.loss:.4f}\n"
    )
    return head, table


def _ladder(signal: Signal) -> tuple[Table, str]:
    fit, exact = signal.fit, signal.whole.cosine is not None
    compared = ("cosine to the gradient", "fitted cosine") if exact else ("fitted cosine to the mean",)
    units = (signal.unit,) if signal.unit != "estimates" else ()
    table = _table("Estimates averaged", "estimates", *units, "SNR of two", *compared)
    for rung in signal.ladder:
        fitted = f"{fit.cosine(rung.members):.3f}" if fit is not None else "–"
        sizes = (f"{rung.members:,}" for _ in units)
        table.add_row(str(rung.averaged), *sizes, *_measured(rung.snr, rung.cosine), fitted)
    if fit is None:
        return table, f"No signal in the averages: more {signal.unit} are needed.\n"
    error = f" ± {fit.ceiling_error:.2g}" if exact else ", as a bias is not seen"
    needed = [(wanted, fit.members_for(wanted)) for wanted in WANTED]
    told = [f"{wanted:g}: " + ("never" if n is None else f"{n:,}") for wanted, n in needed]
    return table, (
        f"cos(n) = {fit.ceiling:.3f} / sqrt(1 + {fit.noise:,.4g} / n); ceiling {fit.ceiling:.3f}{error}\n"
        f"{signal.unit} for a cosine of {', '.join(told)}\n"
    )


def _epsilons(sweep: EpsilonSweep) -> tuple[Table, str]:
    compared = ("cosine to the gradient",) if sweep.measure == "cosine" else ()
    table = _table("Sweep of epsilon", "epsilon", "agreement with its neighbours", *compared, "plateau")
    low, high = sweep.plateau
    for point in sweep.points:
        mark = "recommended" if point.epsilon == sweep.epsilon else "yes" * (low <= point.epsilon <= high)
        table.add_row(f"{point.epsilon:.3g}", *_measured(point.agreement, point.cosine), mark)
    below, above = ("" if ends else " or beyond" for ends in sweep.ends)
    found = f"plateau from {low:.3g}{below} to {high:.3g}{above}"
    return table, f"{found}; recommended epsilon {sweep.epsilon:.3g}\n"


def _steps(curve: StepCurve) -> tuple[Table, str]:
    best, columns = curve.best, ("step / weights' norm", "learning rate (SGD)", "loss", "change")
    table = _table("Loss along a step", *columns)
    for point in curve.points:
        change = f"{point.loss - curve.loss:+.4f}"
        row = (f"{point.length:.3g}", f"{point.learning_rate:.3g}", f"{point.loss:.4f}", change)
        table.add_row(*row, style="bold" if point == best else None)
    if best is None:
        none = f"no step lowers the loss {curve.loss:.4f}: the estimate is noise, or the steps are too long"
        return table, none
    return table, f"largest fall at learning rate {best.learning_rate:.3g} of plain SGD"
