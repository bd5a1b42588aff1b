"""GPU kernels in Triton, each beside a twin in plain PyTorch that runs where the kernel does not.

Importing them needs no Triton; `available` says whether a device runs them.
"""

from zorn.kernels.availability import available
from zorn.kernels.counter import sign_words
from zorn.kernels.dense_linear import perturbed_linear, perturbed_linear_reference
from zorn.kernels.fold import (
    fold_dense_,
    fold_dense_reference_,
    fold_rank_one_,
    fold_rank_one_reference_,
)
from zorn.kernels.fused_step import gru_step, gru_step_reference, lstm_step, lstm_step_reference
from zorn.kernels.min_gru import min_gru_steps, min_gru_steps_reference
from zorn.kernels.rank_one_noise import RankOneNoise

__all__ = [
    "RankOneNoise",
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
