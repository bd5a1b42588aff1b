"""Estimators: the gradient of a batch's loss from forward passes, or exactly as the baseline, behind one
contract; and the loss that forward passes descend."""

from zorn.estimators.activity import ActivityCredit
from zorn.estimators.base import Estimator, Facts, Need
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
from zorn.estimators.update import FusedSGD
from zorn.estimators.weight_noise import WeightNoise
from zorn.estimators.zero_order import ZeroOrderEstimator
from zorn.registry import Registry

ESTIMATORS: Registry[type[Estimator]] = Registry(
    "estimator",
    {
        "activity": ActivityCredit,
        "bridge": Bridge,
        "cd-rge": CDRGE,
        "fd-rge": FDRGE,
        "spsa-1.5": SPSA15,
        "pes": PES,
        "nres": NRES,
        "bptt": BPTT,
        "tbptt": TBPTT,
        "e-prop": EProp,
    },
    base=Estimator,
)
"""The estimators by the names that settings use."""

AUTOMATIC = ("activity", "cd-rge", "spsa-1.5", "nres")
"""The estimators that "auto" chooses from: the first that has every setting that is given. Forward passes
only."""

__all__ = [
    "AUTOMATIC",
    "BPTT",
    "CDRGE",
    "ESTIMATORS",
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
    "Estimator",
    "ExactGradient",
    "Facts",
    "Fold",
    "FusedSGD",
    "Need",
    "Population",
    "Shaping",
    "SmoothedLoss",
    "StreamingEstimator",
    "WeightNoise",
    "ZeroOrderEstimator",
    "smoothed_loss",
]
