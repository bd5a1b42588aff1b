"""The folder of a run: checkpoints, journal, log, summary and picture, and what keeps them whole."""

from zorn.run.checkpoint import (
    Progress,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from zorn.run.folder import RunFolder
from zorn.run.journal import Journal, JournalEntry, read_journal

__all__ = [
    "Journal",
    "JournalEntry",
    "Progress",
    "RunFolder",
    "checkpoints",
    "latest_checkpoint",
    "load_checkpoint",
    "read_journal",
    "save_checkpoint",
]
