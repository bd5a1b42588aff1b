"""Named settings: the numbers of the main jobs."""

from pathlib import Path
from typing import Any

from zorn.config.change import change
from zorn.config.config import Config
from zorn.config.groups import BudgetConfig
from zorn.settings import Choice

QUICKSTART = change(
    Config(
        task=Choice("text", source="python-docs", tokenizer="alphabet"), budget=BudgetConfig(seconds=180.0)
    ),
    batch=64,
    length=32,
    hidden_size=64,
    schedule="cosine",
    schedule_floor=0.02,
    out=Path("runs/quickstart"),
    threads=1,  # small products: two threads gain nothing
)

COPY = change(
    Config(task=Choice("copy"), budget=BudgetConfig(seconds=180.0)),
    batch=64,
    minimum_length=1,
    maximum_length=3,
    hidden_size=64,
    estimator="cd-rge",
    population=1024,
    epsilon=0.02,
    optimizer="adam",
    learning_rate=0.01,
    out=Path("runs/copy"),
)


def _copy_baseline(name: str, **settings: Any) -> Config:
    """Task and model of `copy`, trained by backpropagation.

    The learning rates are the best on the validation split, seed 0: first of the decades after 20 seconds,
    then of the half-decades around the best after 1,000 steps. Validation loss after 1,000 steps:

        adamw       0.003: 0.016    0.01: 0.007    0.03: 0.018    decades 1e-4 to 1e-1
        sgd         0.3:   0.008    1.0:  0.002    3.0:  0.643    decades 1e-3 to 10
        tbptt(3)    0.003: 0.128    0.01: 0.338    0.03: 0.962    decades 1e-4 to 1e-1, AdamW
        tbptt(4)    0.003: 0.150    0.01: 0.198    0.03: 0.223    AdamW
    """
    return change(COPY, seconds=20.0, out=Path("runs") / name, threads=1, **settings)


def _paper(population: int, learning_rate: float) -> Config:
    """The smallest LSTM of Chaubard and Kochenderfer (arXiv 2505.17852, 2025) as they train it on copy.

    Dense Rademacher directions, the whole batch for each member, plain SGD, ε tied to the learning rate.
    Not the paper's: the budget of five minutes, and what the settings do not tell (the first values of the
    weights, the encoding of the task).
    """
    sizes = {"batch": 1024, "minimum_length": 2, "maximum_length": 10}
    sizes |= {"hidden_size": 240, "num_heads": 12, "embedding_size": 100, "population": population}
    steps = {
        "optimizer": "sgd",
        "learning_rate": learning_rate,
        "epsilon": learning_rate,
        "tie_epsilon": True,
    }
    run = {"seconds": 300.0, "out": Path(f"runs/paper-{population}")}
    return change(COPY, perturbation="dense", group_size=None, **sizes, **steps, **run)


PRESETS: dict[str, Config] = {
    "quickstart": QUICKSTART,
    "quickstart-bptt": change(
        QUICKSTART,
        length=64,
        estimator="bptt",
        optimizer="adamw",
        learning_rate=0.01,
        seconds=45.0,
        out=Path("runs/quickstart-bptt"),
    ),
    "copy": COPY,
    "copy-adamw": _copy_baseline("copy-adamw", estimator="bptt", optimizer="adamw", learning_rate=0.01),
    "copy-sgd": _copy_baseline(
        "copy-sgd", estimator="bptt", optimizer="sgd", learning_rate=1.0, momentum=0.9, clip_norm=1.0
    ),
    "copy-tbptt": _copy_baseline(
        "copy-tbptt", estimator="tbptt", truncation=3, optimizer="adamw", learning_rate=0.003
    ),
    "paper-96": _paper(96, learning_rate=0.1),
    "paper-512": _paper(512, learning_rate=0.5),
}
"""Settings by name, for `zorn train --preset NAME`; each trains into `runs/NAME`."""
