"""A trained model back from its run, for evaluation and generation."""

from pathlib import Path

from zorn.models import LanguageModel
from zorn.tasks import CopyTask, TextTask
from zorn.training.build import build_model, build_task, set_threads
from zorn.training.checkpoint import latest_checkpoint, load_checkpoint
from zorn.training.run_folder import RunFolder


def load_run(path: Path) -> tuple[TextTask | CopyTask, LanguageModel]:
    """The task of a run and its model at the newest checkpoint; changes nothing in the folder.

    Raises ConfigError when the folder is no run's, CheckpointError when the checkpoint is missing or damaged.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    set_threads(config.run.threads)
    task = build_task(config, folder)
    model = build_model(config, task.vocabulary)
    load_checkpoint(latest_checkpoint(folder.checkpoints), model)
    return task, model
