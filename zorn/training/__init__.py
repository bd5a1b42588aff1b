"""Training: settings, the trainer, checkpoints, logs and the picture at the end."""

from zorn.training.checkpoint import (
    Progress,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from zorn.training.config import (
    BudgetConfig,
    Config,
    EstimatorConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
)
from zorn.training.defaults import resolve
from zorn.training.journal import Journal, JournalEntry, read_journal
from zorn.training.load import load_run
from zorn.training.presets import PRESETS
from zorn.training.run_folder import RunFolder
from zorn.training.trainer import Trainer

__all__ = [
    "PRESETS",
    "BudgetConfig",
    "Config",
    "EstimatorConfig",
    "Journal",
    "JournalEntry",
    "ModelConfig",
    "OptimizerConfig",
    "Progress",
    "RunConfig",
    "RunFolder",
    "TaskConfig",
    "Trainer",
    "checkpoints",
    "latest_checkpoint",
    "load_checkpoint",
    "load_run",
    "read_journal",
    "resolve",
    "save_checkpoint",
]
