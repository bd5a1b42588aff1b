"""A diagnosis as a picture of four panels."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from zorn.diagnostics.diagnosis import Diagnosis
from zorn.diagnostics.epsilon import EpsilonSweep
from zorn.diagnostics.signal import LayerSignal, Signal
from zorn.diagnostics.step_size import StepCurve

INK, QUIET, BLUE, ORANGE = "#222222", "#8a8a8a", "#1f5fa8", "#b8560f"
MOST_BARS = 24
"""Parameters that the panel of parameters has room for: the largest."""


def draw_diagnosis(path: Path, diagnosis: Diagnosis) -> None:
    """Write a PNG: the ladder with its fit, the signal by parameter, the ε sweep with its plateau, the loss
    along a step. No window is opened, and no global state of matplotlib is changed."""
    from matplotlib.figure import Figure  # here: matplotlib takes most of a second to import

    figure = Figure(figsize=(11, 8), dpi=150, layout="constrained")
    ladder, layers, sweep, step = figure.subplots(2, 2).flat
    _draw_ladder(ladder, diagnosis.signal)
    _draw_layers(layers, diagnosis.signal)
    if diagnosis.epsilon is None:
        sweep.set_axis_off()
    else:
        _draw_sweep(sweep, diagnosis.epsilon)
    _draw_step(step, diagnosis.step)
    for axes in (ladder, layers, sweep, step):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
    signal = diagnosis.signal
    title = (
        f"{signal.estimator}, {signal.whole.numbers:,} parameters, {signal.forward_passes:,} forward passes"
    )
    figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=11)
    figure.savefig(path)


def _draw_ladder(axes: Any, signal: Signal) -> None:
    members = [rung.members for rung in signal.ladder]
    cosines = [rung.cosine for rung in signal.ladder if rung.cosine is not None]
    values = [cosine.mean for cosine in cosines]
    errors = [0.0 if math.isnan(cosine.standard_error) else cosine.standard_error for cosine in cosines]
    if cosines:
        axes.errorbar(members, values, errors, fmt="o", color=BLUE, label="cosine to the gradient")
    axes.plot(
        members,
        [math.sqrt(max(rung.snr.mean, 0.0)) for rung in signal.ladder],
        "s",
        color=ORANGE,
        markersize=4,
        label="√SNR of two estimates",
    )
    if signal.fit is not None:
        wide = np.geomspace(members[0] / 4, members[-1] * 64, 200)
        fit = [signal.fit.cosine(float(n)) for n in wide]
        label = f"{signal.fit.ceiling:.2f} / √(1 + {signal.fit.noise:,.3g} / n)"
        axes.plot(wide, fit, color=QUIET, linewidth=1.2, label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.05)
    axes.set_xlabel(f"{signal.unit} n", color=INK)
    axes.set_title(f"signal and {signal.unit}", loc="left", color=INK, fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def _draw_layers(axes: Any, signal: Signal) -> None:
    kept = sorted(signal.layers, key=lambda layer: layer.numbers, reverse=True)[:MOST_BARS]
    layers = [layer for layer in signal.layers if layer in kept]
    places = np.arange(len(layers))
    exact = signal.whole.cosine is not None

    def value(layer: LayerSignal) -> float:
        found = layer.snr if layer.cosine is None else layer.cosine
        return found.mean

    axes.barh(places, [value(layer) for layer in layers], color=BLUE, height=0.7)
    axes.axvline(value(signal.whole), color=INK, linewidth=0.8, linestyle=(0, (5, 4)))
    axes.set_yticks(places, [layer.name for layer in layers])
    axes.invert_yaxis()
    named = "cosine to the gradient" if exact else "SNR of two estimates"
    axes.set_xlabel(f"{named} (dashed: all parameters)", color=INK)
    axes.set_title("signal by parameter", loc="left", color=INK, fontsize=10)


def _draw_sweep(axes: Any, sweep: EpsilonSweep) -> None:
    epsilons = [point.epsilon for point in sweep.points]
    axes.axvspan(*sweep.plateau, color=BLUE, alpha=0.1)
    axes.plot(epsilons, [point.agreement.mean for point in sweep.points], "o-", color=BLUE, markersize=4)
    if sweep.measure == "cosine":
        cosines = [point.cosine.mean for point in sweep.points if point.cosine is not None]
        axes.plot(epsilons, cosines, "s-", color=ORANGE, markersize=4)
    axes.axvline(sweep.epsilon, color=INK, linewidth=0.8, linestyle=(0, (5, 4)))
    axes.set_xscale("log")
    axes.set_xlabel("epsilon (dashed: recommended)", color=INK)
    axes.set_title("agreement with neighbouring epsilon, plateau", loc="left", color=INK, fontsize=10)


def _draw_step(axes: Any, curve: StepCurve) -> None:
    points = [point for point in curve.points if math.isfinite(point.loss)]
    axes.axhline(curve.loss, color=QUIET, linewidth=0.8)
    axes.plot([p.learning_rate for p in points], [p.loss for p in points], "o-", color=BLUE, markersize=4)
    if curve.best is not None:
        axes.plot(curve.best.learning_rate, curve.best.loss, "o", color=ORANGE, markersize=8)
        fall = curve.loss - curve.best.loss
        axes.set_ylim(curve.best.loss - 0.3 * fall, curve.loss + 2 * fall)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of plain SGD", color=INK)
    axes.set_title("loss along a step", loc="left", color=INK, fontsize=10)
