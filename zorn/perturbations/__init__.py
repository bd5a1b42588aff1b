"""Perturbation structures: how a model is run under the noise of many members, and how their coefficients
fold into a gradient."""

from zorn.perturbations import standard_rules as standard_rules
from zorn.perturbations.activity import Activity, BoundActivity
from zorn.perturbations.dense import Dense
from zorn.perturbations.draw import Draw, NoiseKind
from zorn.perturbations.evaluate import Objective, Workload, member_losses
from zorn.perturbations.fold import FusedSGD, fold_into_grad
from zorn.perturbations.inspection import ParameterReport, inspect_model
from zorn.perturbations.layout import Layout
from zorn.perturbations.member_noise import MemberNoise
from zorn.perturbations.memberwise import MemberwiseRule
from zorn.perturbations.perturbation import BoundPerturbation, GradientBlock, Perturbation
from zorn.perturbations.rank_one import RankOne
from zorn.perturbations.rules import Rule, find_rule, register_rule
from zorn.perturbations.site_activity import SiteActivity
from zorn.perturbations.targets import Target

__all__ = [
    "Activity",
    "BoundActivity",
    "BoundPerturbation",
    "Dense",
    "Draw",
    "FusedSGD",
    "GradientBlock",
    "Layout",
    "MemberNoise",
    "MemberwiseRule",
    "NoiseKind",
    "Objective",
    "ParameterReport",
    "Perturbation",
    "RankOne",
    "Rule",
    "SiteActivity",
    "Target",
    "Workload",
    "find_rule",
    "fold_into_grad",
    "inspect_model",
    "member_losses",
    "register_rule",
]
