"""The public names of `zorn`, which loads this file, and torch with it, when the first of them is used."""

from zorn.diagnostics import diagnose
from zorn.estimators import (
    BPTT,
    CDRGE,
    FDRGE,
    NRES,
    PES,
    SPSA15,
    TBPTT,
    ActivityCredit,
    Bridge,
    EProp,
    Estimator,
)
from zorn.models import Batch, LanguageModel
from zorn.noise import Dense, RankOne, inspect_model, register_rule
from zorn.tasks import RowScore, TokenCrossEntropy

__all__ = [
    "BPTT",
    "CDRGE",
    "FDRGE",
    "NRES",
    "PES",
    "SPSA15",
    "TBPTT",
    "ActivityCredit",
    "Batch",
    "Bridge",
    "Dense",
    "EProp",
    "Estimator",
    "LanguageModel",
    "RankOne",
    "RowScore",
    "TokenCrossEntropy",
    "diagnose",
    "inspect_model",
    "register_rule",
]
