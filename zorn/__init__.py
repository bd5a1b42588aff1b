"""zorn: Zero-Order Recurrent Networks, trained with forward passes only.

The public surface, by room: models and batches, perturbation structures and rules, estimators, tasks and
objectives. The trainer is `zorn.training`, the command line `zorn`.
"""

from zorn.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteLossError,
    UncoveredParameterError,
    ZornError,
)
from zorn.estimators import BPTT, CDRGE, FDRGE, Estimate, Population
from zorn.models import Batch, LanguageModel, sample
from zorn.perturbations import Dense, FusedSGD, Layout, MemberNoise, RankOne, Rule, register_rule
from zorn.tasks import CopyTask, TextTask, TokenCrossEntropy

__version__ = "0.1.0"

__all__ = [
    "BPTT",
    "CDRGE",
    "FDRGE",
    "Batch",
    "CheckpointError",
    "ConfigError",
    "CopyTask",
    "Dense",
    "Estimate",
    "FusedSGD",
    "LanguageModel",
    "Layout",
    "MemberNoise",
    "NonFiniteLossError",
    "Population",
    "RankOne",
    "Rule",
    "TextTask",
    "TokenCrossEntropy",
    "UncoveredParameterError",
    "ZornError",
    "register_rule",
    "sample",
]
