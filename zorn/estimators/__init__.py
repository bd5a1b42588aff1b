"""Estimators: the gradient of a batch's loss from forward passes, or exactly as the baseline, behind one
contract; and the loss that forward passes descend."""

from zorn.estimators.bptt import BPTT
from zorn.estimators.cd_rge import CDRGE
from zorn.estimators.estimate import Estimate, Population
from zorn.estimators.exact import ExactGradient
from zorn.estimators.fd_rge import FDRGE
from zorn.estimators.shaping import SHAPINGS, Shaping
from zorn.estimators.smoothed_loss import SmoothedLoss, smoothed_loss
from zorn.estimators.spsa_15 import SPSA15
from zorn.estimators.tbptt import TBPTT
from zorn.estimators.zero_order import ZeroOrderEstimator

__all__ = [
    "BPTT",
    "CDRGE",
    "FDRGE",
    "SHAPINGS",
    "SPSA15",
    "TBPTT",
    "Estimate",
    "ExactGradient",
    "Population",
    "Shaping",
    "SmoothedLoss",
    "ZeroOrderEstimator",
    "smoothed_loss",
]
