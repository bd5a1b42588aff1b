"""A diagnosis as a picture of four panels."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zorn.diagnostics.diagnosis import Diagnosis
from zorn.diagnostics.epsilon import EpsilonSweep
from zorn.diagnostics.signal import Signal
from zorn.diagnostics.step_size import StepCurve

INK, QUIET, BLUE, ORANGE = "#222222", "#8a8a8a", "#1f5fa8", "#b8560f"
MOST_BARS = 24
"""Parameters that the panel of parameters has room for: the largest."""


def draw_diagnosis(path: Path, diagnosis: Diagnosis) -> None:
    """Write a PNG: the ladder with its fit, the signal by parameter, the ε sweep with its plateau, the loss
    along a step. No window is opened, and no global state of matplotlib is changed."""
    from matplotlib.figure import Figure  # here: matplotlib takes most of a second to import

    figure = Figure(figsize=(11, 8), dpi=150, layout="constrained")
    signal, panels = diagnosis.signal, figure.subplots(2, 2).flat
    draw: list[tuple[Callable[..., tuple[str, str]], Any]] = [
        (_draw_ladder, signal),
        (_draw_layers, signal),
        (_draw_sweep, diagnosis.epsilon),
        (_draw_step, diagnosis.step),
    ]
    for axes, (drawn, found) in zip(panels, draw, strict=True):
        if found is None:
            axes.set_axis_off()
            continue
        title, across = drawn(axes, found)
        axes.set_title(title, loc="left", color=INK, fontsize=10)
        axes.set_xlabel(across, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
    title = (
        f"{signal.estimator}, {signal.whole.numbers:,} parameters, {signal.forward_passes:,} forward passes"
    )
    figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=11)
    figure.savefig(path)


def _draw_ladder(axes: Any, signal: Signal) -> tuple[str, str]:
    members = [rung.members for rung in signal.ladder]
    cosines = [rung.cosine for rung in signal.ladder if rung.cosine is not None]
    if cosines:
        values = [cosine.mean for cosine in cosines]
        errors = np.nan_to_num([cosine.standard_error for cosine in cosines])
        axes.errorbar(members, values, errors, fmt="o", color=BLUE, label="cosine to the gradient")
    roots = [math.sqrt(max(rung.snr.mean, 0.0)) for rung in signal.ladder]
    axes.plot(members, roots, "s", color=ORANGE, markersize=4, label="√SNR of two estimates")
    if signal.fit is not None:
        wide = np.geomspace(members[0] / 4, members[-1] * 64, 200)
        fit = [signal.fit.cosine(float(n)) for n in wide]
        label = f"{signal.fit.ceiling:.2f} / √(1 + {signal.fit.noise:,.3g} / n)"
        axes.plot(wide, fit, color=QUIET, linewidth=1.2, label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.05)
    axes.legend(fontsize=8, frameon=False)
    return f"signal and {signal.unit}", f"{signal.unit} n"


def _draw_layers(axes: Any, signal: Signal) -> tuple[str, str]:
    kept = sorted(signal.layers, key=lambda layer: layer.numbers, reverse=True)[:MOST_BARS]
    layers = [layer for layer in signal.layers if layer in kept]
    places = np.arange(len(layers))
    *values, whole = [(layer.cosine or layer.snr).mean for layer in (*layers, signal.whole)]
    axes.barh(places, values, color=BLUE, height=0.7)
    axes.axvline(whole, color=INK, linewidth=0.8, linestyle=(0, (5, 4)))
    axes.set_yticks(places, [layer.name for layer in layers])
    axes.invert_yaxis()
    named = "cosine to the gradient" if signal.whole.cosine else "SNR of two estimates"
    return "signal by parameter", f"{named} (dashed: all parameters)"


def _draw_sweep(axes: Any, sweep: EpsilonSweep) -> tuple[str, str]:
    epsilons = [point.epsilon for point in sweep.points]
    axes.axvspan(*sweep.plateau, color=BLUE, alpha=0.1)
    axes.plot(epsilons, [point.agreement.mean for point in sweep.points], "o-", color=BLUE, markersize=4)
    if sweep.measure == "cosine":
        cosines = [point.cosine.mean for point in sweep.points if point.cosine is not None]
        axes.plot(epsilons, cosines, "s-", color=ORANGE, markersize=4)
    axes.axvline(sweep.epsilon, color=INK, linewidth=0.8, linestyle=(0, (5, 4)))
    axes.set_xscale("log")
    return "agreement with neighbouring epsilon, plateau", "epsilon (dashed: recommended)"


def _draw_step(axes: Any, curve: StepCurve) -> tuple[str, str]:
    points = [point for point in curve.points if math.isfinite(point.loss)]
    axes.axhline(curve.loss, color=QUIET, linewidth=0.8)
    axes.plot([p.learning_rate for p in points], [p.loss for p in points], "o-", color=BLUE, markersize=4)
    if curve.best is not None:
        axes.plot(curve.best.learning_rate, curve.best.loss, "o", color=ORANGE, markersize=8)
        fall = curve.loss - curve.best.loss
        axes.set_ylim(curve.best.loss - 0.3 * fall, curve.loss + 2 * fall)
    axes.set_xscale("log")
    return "loss along a step", "learning rate of plain SGD"
