"""The trainer: from settings to a trained model in a run's folder, and a trained model back from one."""

from zorn.training.load import load_run
from zorn.training.trainer import Trainer

__all__ = ["Trainer", "load_run"]
