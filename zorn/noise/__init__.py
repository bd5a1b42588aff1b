"""Perturbation structures: how a model is run under the noise of many members, and how their coefficients
fold into a gradient."""

from zorn.noise.activity.site import SiteActivity
from zorn.noise.activity.structure import Activity, BoundActivity
from zorn.noise.draw import Draw, NoiseKind
from zorn.noise.inspection import ParameterReport, inspect_model
from zorn.noise.layout import Layout
from zorn.noise.rules import standard as standard
from zorn.noise.rules.memberwise import MemberwiseRule
from zorn.noise.rules.rule import Rule, find_rule, register_rule
from zorn.noise.targets import Target
from zorn.noise.weights.dense import Dense
from zorn.noise.weights.member_noise import MemberNoise
from zorn.noise.weights.rank_one import RankOne
from zorn.noise.weights.structure import BoundPerturbation, GradientBlock, Perturbation

__all__ = [
    "Activity",
    "BoundActivity",
    "BoundPerturbation",
    "Dense",
    "Draw",
    "GradientBlock",
    "Layout",
    "MemberNoise",
    "MemberwiseRule",
    "NoiseKind",
    "ParameterReport",
    "Perturbation",
    "RankOne",
    "Rule",
    "SiteActivity",
    "Target",
    "find_rule",
    "inspect_model",
    "register_rule",
]
