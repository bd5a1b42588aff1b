"""Named settings: where the numbers of the main job live."""

from pathlib import Path
from typing import Literal

from zorn.training.config import (
    BudgetConfig,
    Config,
    EstimatorConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
)

PresetName = Literal["quickstart", "copy"]
"""The names of the presets, as the command line lists them."""

PRESETS: dict[PresetName, Config] = {
    "quickstart": Config(
        task=TaskConfig(task="text", source="python-docs", tokenizer="alphabet", batch=2048, length=16),
        model=ModelConfig(cell="lstm", hidden_size=64),
        estimator=EstimatorConfig(estimator="cd-rge", structure="rank-one", population=2048, epsilon=0.02),
        optimizer=OptimizerConfig(
            optimizer="adam", learning_rate=0.02, schedule="cosine", schedule_floor=0.02
        ),
        budget=BudgetConfig(seconds=180.0),
        run=RunConfig(
            out=Path("runs/quickstart"), threads=1
        ),  # its products are small: two threads gain nothing
    ),
    "copy": Config(
        task=TaskConfig(task="copy", batch=64, minimum_length=1, maximum_length=3),
        model=ModelConfig(cell="lstm", hidden_size=64),
        estimator=EstimatorConfig(estimator="cd-rge", structure="rank-one", population=1024, epsilon=0.02),
        optimizer=OptimizerConfig(optimizer="adam", learning_rate=0.01),
        budget=BudgetConfig(seconds=180.0),
        run=RunConfig(out=Path("runs/copy")),
    ),
}
"""Settings by name, for `zorn train --preset NAME`; each trains into `runs/NAME`."""
