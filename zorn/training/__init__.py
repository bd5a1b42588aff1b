"""Training: settings, the trainer, checkpoints, logs and the picture at the end."""

from zorn.config import PRESETS, BudgetConfig, Choice, Config, RunConfig, ScheduleConfig, resolve
from zorn.training.checkpoint import (
    Progress,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from zorn.training.journal import Journal, JournalEntry, read_journal
from zorn.training.load import load_run
from zorn.training.run_folder import RunFolder
from zorn.training.trainer import Trainer

__all__ = [
    "PRESETS",
    "BudgetConfig",
    "Choice",
    "Config",
    "Journal",
    "JournalEntry",
    "Progress",
    "RunConfig",
    "RunFolder",
    "ScheduleConfig",
    "Trainer",
    "checkpoints",
    "latest_checkpoint",
    "load_checkpoint",
    "load_run",
    "read_journal",
    "resolve",
    "save_checkpoint",
]
