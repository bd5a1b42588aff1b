"""Estimators: the gradient of a batch's loss from forward passes, or exactly as the baseline, behind one
contract."""

from zorn.estimators.bptt import BPTT
from zorn.estimators.cd_rge import CDRGE
from zorn.estimators.estimate import Estimate, Population
from zorn.estimators.fd_rge import FDRGE
from zorn.estimators.shaping import SHAPINGS, Shaping
from zorn.estimators.zero_order import ZeroOrderEstimator

__all__ = ["BPTT", "CDRGE", "FDRGE", "SHAPINGS", "Estimate", "Population", "Shaping", "ZeroOrderEstimator"]
