"""GPU kernels in Triton, each beside a twin in plain PyTorch that runs where the kernel does not.

Importing them needs no Triton; `available` says whether a device runs them. Each function is a `Twins`: a
call takes its `kernel` or its `reference`, whichever serves the first argument.
"""

from zorn.kernels.availability import available
from zorn.kernels.dense_linear import DenseNoise, perturbed_linear
from zorn.kernels.fold import fold_dense_, fold_rank_one_
from zorn.kernels.fold_kernels import Fold
from zorn.kernels.fused_step import gru_step, lstm_step
from zorn.kernels.min_gru import min_gru_steps
from zorn.kernels.rank_one_noise import RankOneNoise
from zorn.kernels.twins import Twins

__all__ = [
    "DenseNoise",
    "Fold",
    "RankOneNoise",
    "Twins",
    "available",
    "fold_dense_",
    "fold_rank_one_",
    "gru_step",
    "lstm_step",
    "min_gru_steps",
    "perturbed_linear",
]
