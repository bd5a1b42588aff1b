"""The step of a recurrent cell and rank-one noise on the CPU, compiled: fast twins of the steps in torch.

A small library in C, built with the package where there is a C compiler. Without it, or with the variable
ZORN_CPU_KERNELS=0 in the environment, everything runs in torch as before, only slower.
ZORN_CPU_KERNELS=baseline or avx2 caps the instructions that it uses: one machine shows what another computes.
"""

from zorn.native.arguments import LaneNoise, Summands
from zorn.native.loading import available, usable
from zorn.native.rollout import has_rollout, lstm_rollout
from zorn.native.steps import add_rank_one_, gru_step, lstm_step, scores

__all__ = [
    "LaneNoise",
    "Summands",
    "add_rank_one_",
    "available",
    "gru_step",
    "has_rollout",
    "lstm_rollout",
    "lstm_step",
    "scores",
    "usable",
]
