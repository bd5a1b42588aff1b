"""Estimators: the gradient of a batch's loss from forward passes, or exactly as the baseline, behind one
contract; and the loss that forward passes descend."""

from zorn.estimators.activity import ActivityCredit
from zorn.estimators.bptt import BPTT
from zorn.estimators.bridge import Bridge
from zorn.estimators.cd_rge import CDRGE
from zorn.estimators.e_prop import EProp
from zorn.estimators.estimate import Estimate, Population
from zorn.estimators.exact import ExactGradient
from zorn.estimators.fd_rge import FDRGE
from zorn.estimators.fold import Fold
from zorn.estimators.nres import NRES
from zorn.estimators.pes import PES
from zorn.estimators.shaping import SHAPINGS, Shaping
from zorn.estimators.smoothed_loss import SmoothedLoss, smoothed_loss
from zorn.estimators.spsa_15 import SPSA15
from zorn.estimators.streaming import StreamingEstimator
from zorn.estimators.tbptt import TBPTT
from zorn.estimators.two_part import TwoPartOptimizer
from zorn.estimators.zero_order import ZeroOrderEstimator

__all__ = [
    "BPTT",
    "CDRGE",
    "FDRGE",
    "NRES",
    "PES",
    "SHAPINGS",
    "SPSA15",
    "TBPTT",
    "ActivityCredit",
    "Bridge",
    "EProp",
    "Estimate",
    "ExactGradient",
    "Fold",
    "Population",
    "Shaping",
    "SmoothedLoss",
    "StreamingEstimator",
    "TwoPartOptimizer",
    "ZeroOrderEstimator",
    "smoothed_loss",
]
