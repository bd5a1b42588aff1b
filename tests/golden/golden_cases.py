"""The cases of the golden runs: twenty steps of every estimator, cell and task, with every setting given."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zorn import native
from zorn.estimators import BPTT, CDRGE, FDRGE, NRES, PES, SPSA15, TBPTT, ActivityCredit, Bridge, EProp
from zorn.estimators.update import FusedSGD
from zorn.models import LanguageModel
from zorn.noise import Dense, RankOne
from zorn.tasks import CopyTask, TextTask, TokenCrossEntropy

STEPS = 20
TEXT = Path(__file__).with_name("text.txt")
CELLS = ("lstm", "gru", "min-gru", "dnc")
MEMBERS: dict[str, Any] = {"population": 16, "epsilon": 0.02, "group_size": 1, "seed": 3, "micro_batch": 512}

ESTIMATORS: dict[str, Any] = {
    "cd-rge": lambda: CDRGE(**MEMBERS, perturbation=RankOne()),
    "cd-rge dense": lambda: CDRGE(
        **{**MEMBERS, "population": 2, "group_size": None}, perturbation=Dense(), shaping=_zscore
    ),
    "fd-rge": lambda: FDRGE(**MEMBERS, perturbation=RankOne(), time_chunk=3),
    "spsa-1.5": lambda: SPSA15(**MEMBERS, perturbation=RankOne(), curvature_power=0.1, curvature_floor=1.0),
    "pes": lambda: PES(**MEMBERS, perturbation=RankOne()),
    "nres": lambda: NRES(**MEMBERS, perturbation=RankOne()),
    "activity": lambda: ActivityCredit(epsilon=0.05, draws=2, discount=0.9, seed=3, micro_batch=512),
    "activity noisy head": lambda: ActivityCredit(
        epsilon=0.05, draws=2, discount=0.9, seed=3, exact_output=False, noise="gaussian", time_chunk=4
    ),
    "bridge": lambda: Bridge(
        truncation=4, epsilon=0.1, draws=4, credit_every=2, separate=True, seed=3, micro_batch=None
    ),
    "bridge in one": lambda: Bridge(
        truncation=4, epsilon=0.1, draws=2, credit_every=1, separate=False, seed=3, micro_batch=3
    ),
    "bptt": lambda: BPTT(micro_batch=None),
    "tbptt": lambda: TBPTT(truncation=4, micro_batch=None),
    "e-prop": lambda: EProp(truncation=None, micro_batch=None),
}
STREAMING = ("pes", "nres")
IN_PLACE = ("cd-rge", "nres")
"""Estimators that are run with the update in place as well."""


@dataclass(frozen=True)
class Case:
    """One golden run."""

    task: str
    cell: str
    estimator: str
    optimizer: str

    @property
    def name(self) -> str:
        """What it is called in the record."""
        return f"{self.task}, {self.cell}, {self.estimator}, {self.optimizer}"


def cases() -> Iterator[Case]:
    """All of them."""
    for task in ("copy", "text"):
        for cell in CELLS:
            for estimator in ESTIMATORS:
                if task == "copy" and estimator in STREAMING:
                    continue
                yield Case(task, cell, estimator, "adam")
                if estimator in IN_PLACE and cell == "lstm":
                    yield Case(task, cell, estimator, "fused-sgd")


def run(case: Case) -> dict[str, Any]:
    """Losses of all steps in full precision, a digest of the weights after the last, and the norm of each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(case)
    finally:
        torch.set_num_threads(threads)


def _run(case: Case) -> dict[str, Any]:
    if case.task == "copy":
        task = CopyTask(batch=8, minimum_length=1, maximum_length=3, seed=0)
    else:
        stream = 4 if case.estimator in STREAMING else None
        task = TextTask(source=TEXT, tokenizer="alphabet", batch=8, length=7, seed=0, stream=stream)
    model = LanguageModel(task.vocabulary, 12, cell=case.cell, seed=0)
    estimator: Any = ESTIMATORS[case.estimator]()
    optimizers: list[torch.optim.Optimizer] = []
    if case.estimator == "bridge":
        optimizers.append(torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0))
        optimizers.append(torch.optim.Adam(estimator.credit_parameters(model), lr=0.01, betas=(0.99, 0.999)))
    elif case.optimizer == "adam":
        optimizers.append(torch.optim.Adam(model.parameters(), lr=0.01))
    losses = []
    for step in range(STEPS):
        if case.estimator in STREAMING and task.begins(step):
            estimator.reset()
        update = FusedSGD(learning_rate=0.05, weight_decay=0.01) if not optimizers else None
        found = estimator.estimate(model, task.training_batch(step), TokenCrossEntropy(), update)
        losses.append(found.loss)
        for optimizer in optimizers:
            optimizer.step()
    weights = hashlib.sha256()
    for parameter in model.parameters():
        weights.update(parameter.detach().numpy().tobytes())
    norms = [float(torch.linalg.vector_norm(p.detach(), dtype=torch.float64)) for p in model.parameters()]
    return {"losses": [loss.hex() for loss in losses], "weights": weights.hexdigest(), "norms": norms}


def machine() -> dict[str, Any]:
    """What the bits depend on beside the code."""
    return {
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "compiled steps": native.available(),
        "torch": torch.__version__.partition("+")[0],
    }


def _zscore(coefficients: torch.Tensor) -> torch.Tensor:
    centred = coefficients - coefficients.mean()
    deviation = centred.square().mean().sqrt()
    return centred / deviation if deviation > 0 else centred
