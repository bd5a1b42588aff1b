"""Named settings: the numbers of the main jobs."""

import dataclasses
from pathlib import Path

from zorn.config.config import Config
from zorn.config.groups import BudgetConfig, RunConfig, ScheduleConfig
from zorn.settings import Choice

QUICKSTART = Config(
    task=Choice("text", source="python-docs", tokenizer="alphabet", batch=64, length=32),
    model=Choice("lstm", hidden_size=64),
    schedule=ScheduleConfig(schedule="cosine", schedule_floor=0.02),
    budget=BudgetConfig(seconds=180.0),
    run=RunConfig(out=Path("runs/quickstart"), threads=1),  # small products: two threads gain nothing
)

COPY = Config(
    task=Choice("copy", batch=64, minimum_length=1, maximum_length=3),
    model=Choice("lstm", hidden_size=64),
    estimator=Choice("cd-rge", population=1024, epsilon=0.02),
    optimizer=Choice("adam", learning_rate=0.01),
    budget=BudgetConfig(seconds=180.0),
    run=RunConfig(out=Path("runs/copy")),
)


def _copy_baseline(
    name: str,
    estimator: Choice,
    optimizer: Choice,
    schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
) -> Config:
    """Task and model of `copy`, trained by backpropagation.

    The learning rates are the best on the validation split, seed 0: first of the decades after 20 seconds,
    then of the half-decades around the best after 1,000 steps. Validation loss after 1,000 steps:

        adamw       0.003: 0.016    0.01: 0.007    0.03: 0.018    decades 1e-4 to 1e-1
        sgd         0.3:   0.008    1.0:  0.002    3.0:  0.643    decades 1e-3 to 10
        tbptt(3)    0.003: 0.128    0.01: 0.338    0.03: 0.962    decades 1e-4 to 1e-1, AdamW
        tbptt(4)    0.003: 0.150    0.01: 0.198    0.03: 0.223    AdamW
    """
    return dataclasses.replace(
        COPY,
        estimator=estimator,
        optimizer=optimizer,
        schedule=schedule,
        budget=BudgetConfig(seconds=20.0),
        run=RunConfig(out=Path("runs") / name, threads=1),
    )


def _paper(population: int, learning_rate: float) -> Config:
    """The smallest LSTM of Chaubard and Kochenderfer (arXiv 2505.17852, 2025) as they train it on copy.

    Dense Rademacher directions, the whole batch for each member, plain SGD, ε tied to the learning rate.
    Not the paper's: the budget of five minutes, and what the settings do not tell (the first values of the
    weights, the encoding of the task).
    """
    return Config(
        task=Choice("copy", batch=1024, minimum_length=2, maximum_length=10),
        model=Choice("lstm", hidden_size=240, num_heads=12, embedding_size=100),
        estimator=Choice(
            "cd-rge", perturbation="dense", population=population, group_size=None, epsilon=learning_rate
        ),
        optimizer=Choice("sgd", learning_rate=learning_rate),
        schedule=ScheduleConfig(tie_epsilon=True),
        budget=BudgetConfig(seconds=300.0),
        run=RunConfig(out=Path(f"runs/paper-{population}")),
    )


PRESETS: dict[str, Config] = {
    "quickstart": QUICKSTART,
    "quickstart-bptt": dataclasses.replace(
        QUICKSTART,
        task=QUICKSTART.task.but(batch=64, length=64),
        estimator=Choice("bptt"),
        optimizer=Choice("adamw", learning_rate=0.01),
        budget=BudgetConfig(seconds=45.0),
        run=dataclasses.replace(QUICKSTART.run, out=Path("runs/quickstart-bptt")),
    ),
    "copy": COPY,
    "copy-adamw": _copy_baseline("copy-adamw", Choice("bptt"), Choice("adamw", learning_rate=0.01)),
    "copy-sgd": _copy_baseline(
        "copy-sgd",
        Choice("bptt"),
        Choice("sgd", learning_rate=1.0, momentum=0.9),
        ScheduleConfig(clip_norm=1.0),
    ),
    "copy-tbptt": _copy_baseline(
        "copy-tbptt", Choice("tbptt", truncation=3), Choice("adamw", learning_rate=0.003)
    ),
    "paper-96": _paper(96, learning_rate=0.1),
    "paper-512": _paper(512, learning_rate=0.5),
}
"""Settings by name, for `zorn train --preset NAME`; each trains into `runs/NAME`."""
