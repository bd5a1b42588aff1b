"""GPU kernels in Triton, each beside a twin in plain PyTorch that runs where the kernel does not.

Importing them needs no Triton; `available` says whether a device runs them. Each function checks its
arguments and hands them to its `Twins`, which are the same function for callers who know that they fit.
"""

from zorn.kernels.availability import available
from zorn.kernels.counter import sign_words
from zorn.kernels.dense_linear import PERTURBED_LINEAR, perturbed_linear, perturbed_linear_reference
from zorn.kernels.fold import (
    FOLD_DENSE,
    FOLD_RANK_ONE,
    fold_dense_,
    fold_dense_reference_,
    fold_rank_one_,
    fold_rank_one_reference_,
)
from zorn.kernels.fused_step import (
    GRU_STEP,
    LSTM_STEP,
    gru_step,
    gru_step_reference,
    lstm_step,
    lstm_step_reference,
)
from zorn.kernels.min_gru import MIN_GRU_STEPS, min_gru_steps, min_gru_steps_reference
from zorn.kernels.rank_one_noise import RankOneNoise
from zorn.kernels.twins import Twins

__all__ = [
    "FOLD_DENSE",
    "FOLD_RANK_ONE",
    "GRU_STEP",
    "LSTM_STEP",
    "MIN_GRU_STEPS",
    "PERTURBED_LINEAR",
    "RankOneNoise",
    "Twins",
    "available",
    "fold_dense_",
    "fold_dense_reference_",
    "fold_rank_one_",
    "fold_rank_one_reference_",
    "gru_step",
    "gru_step_reference",
    "lstm_step",
    "lstm_step_reference",
    "min_gru_steps",
    "min_gru_steps_reference",
    "perturbed_linear",
    "perturbed_linear_reference",
    "sign_words",
]
