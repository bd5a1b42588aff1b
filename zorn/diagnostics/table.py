"""A diagnosis as tables for a terminal."""

from rich import box
from rich.console import Group
from rich.table import Table

from zorn.diagnostics.diagnosis import Diagnosis
from zorn.diagnostics.epsilon import EpsilonSweep
from zorn.diagnostics.signal import Signal
from zorn.diagnostics.step_size import StepCurve

WANTED = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The cosines for which it is told how many members, or draws, they need."""


def tables(diagnosis: Diagnosis) -> Group:
    """The signal by parameter, the ladder and what it foretells, the ε sweep, and the steps."""
    parts: list[Table | str] = [_head(diagnosis.signal)]
    parts += [_signal(diagnosis.signal), _ladder(diagnosis.signal)]
    parts.append(_forecast(diagnosis.signal))
    if diagnosis.epsilon is not None:
        parts += [_epsilons(diagnosis.epsilon), _recommendation(diagnosis.epsilon)]
    return Group(*parts, _steps(diagnosis.step), _best(diagnosis.step))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _head(signal: Signal) -> str:
    return (
        f"{signal.estimator}: {signal.estimates} estimates of {signal.forward_passes:,} forward passes, "
        f"{signal.seconds:.3g} processor seconds each; loss {signal.loss:.4f}\n"
    )


def _signal(signal: Signal) -> Table:
    exact = signal.whole.cosine is not None
    compared = ("cosine to the gradient", "norm / gradient's norm") if exact else ()
    table = _table("Signal by parameter", "parameter", "numbers", "SNR of two estimates", *compared)
    for layer in (*signal.layers, signal.whole):
        values = (layer.snr, layer.cosine, layer.relative_norm) if exact else (layer.snr,)
        style = "bold" if layer is signal.whole else None
        table.add_row(layer.name, f"{layer.numbers:,}", *map(str, values), style=style)
    return table


def _ladder(signal: Signal) -> Table:
    exact = signal.whole.cosine is not None
    fitted = "fitted cosine" if exact else "fitted cosine to the mean"
    compared = ("cosine to the gradient",) if exact else ()
    units = (signal.unit,) if signal.unit != "estimates" else ()
    table = _table("Estimates averaged", "estimates", *units, "SNR of two", *compared, fitted)
    for rung in signal.ladder:
        fit = f"{signal.fit.cosine(rung.members):.3f}" if signal.fit is not None else "–"
        values = (rung.snr, rung.cosine) if exact else (rung.snr,)
        sizes = (f"{rung.members:,}" for _ in units)
        table.add_row(str(rung.averaged), *sizes, *map(str, values), fit)
    return table


def _forecast(signal: Signal) -> str:
    fit = signal.fit
    if fit is None:
        return f"No signal in the averages: more {signal.unit} are needed.\n"
    error = f" ± {fit.ceiling_error:.2g}" if signal.whole.cosine is not None else ", as a bias is not seen"
    lines = [f"cos(n) = {fit.ceiling:.3f} / sqrt(1 + {fit.noise:,.4g} / n); ceiling {fit.ceiling:.3f}{error}"]
    members = [(wanted, fit.members_for(wanted)) for wanted in WANTED]
    told = [f"{wanted:g}: " + ("never" if n is None else f"{n:,}") for wanted, n in members]
    lines.append(f"{signal.unit} for a cosine of {', '.join(told)}")
    return "\n".join(lines) + "\n"


def _epsilons(sweep: EpsilonSweep) -> Table:
    exact = sweep.measure == "cosine"
    compared = ("cosine to the gradient",) if exact else ()
    table = _table("Sweep of epsilon", "epsilon", "agreement with its neighbours", *compared, "plateau")
    low, high = sweep.plateau
    for point in sweep.points:
        values = (point.agreement, point.cosine) if exact else (point.agreement,)
        mark = "recommended" if point.epsilon == sweep.epsilon else "yes" * (low <= point.epsilon <= high)
        table.add_row(f"{point.epsilon:.3g}", *map(str, values), mark)
    return table


def _recommendation(sweep: EpsilonSweep) -> str:
    low, high = sweep.plateau
    below, above = ("" if ends else " or beyond" for ends in sweep.ends)
    return f"plateau from {low:.3g}{below} to {high:.3g}{above}; recommended epsilon {sweep.epsilon:.3g}\n"


def _steps(curve: StepCurve) -> Table:
    table = _table("Loss along a step", "step / weights' norm", "learning rate (SGD)", "loss", "change")
    for point in curve.points:
        style = "bold" if point == curve.best else None
        change = f"{point.loss - curve.loss:+.4f}"
        row = (f"{point.length:.3g}", f"{point.learning_rate:.3g}", f"{point.loss:.4f}", change)
        table.add_row(*row, style=style)
    return table


def _best(curve: StepCurve) -> str:
    if curve.best is None:
        return f"no step lowers the loss {curve.loss:.4f}: the estimate is noise, or the steps are too long"
    return f"largest fall at learning rate {curve.best.learning_rate:.3g} of plain SGD"
