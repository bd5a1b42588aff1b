"""Diagnostics: how much of an estimate is signal, how many members it needs, which ε, and how far to step."""

from zorn.diagnostics.diagnosis import Diagnosis, diagnose
from zorn.diagnostics.epsilon import EpsilonPoint, EpsilonSweep, NoPlateauError, find_epsilon
from zorn.diagnostics.gradients import Estimator, Gradient, Sampler, cosine, sampling
from zorn.diagnostics.ladder import LadderFit, fit_ladder
from zorn.diagnostics.measured import Measured
from zorn.diagnostics.signal import LayerSignal, Rung, Signal, measure_signal
from zorn.diagnostics.step_size import StepCurve, StepPoint, step_curve

__all__ = [
    "Diagnosis",
    "EpsilonPoint",
    "EpsilonSweep",
    "Estimator",
    "Gradient",
    "LadderFit",
    "LayerSignal",
    "Measured",
    "NoPlateauError",
    "Rung",
    "Sampler",
    "Signal",
    "StepCurve",
    "StepPoint",
    "cosine",
    "diagnose",
    "find_epsilon",
    "fit_ladder",
    "measure_signal",
    "sampling",
    "step_curve",
]
