"""`zorn resume`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from zorn.cli.parsing import parse
from zorn.cli.train import train_to_the_end
from zorn.distributed import start
from zorn.run.folder import RunFolder
from zorn.training.trainer import Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Continue a run from its newest checkpoint, or extend one that is finished."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    steps: int | None = None
    """New budget in steps, counted from the start of the run. None: as it was."""
    seconds: float | None = None
    """New budget in seconds, counted from the start of the run. None: as it was."""


def command(words: Sequence[str]) -> int:
    """Resume from command-line words; returns the exit code."""
    asked = parse(Resume, words, prog="zorn resume")
    folder = RunFolder(asked.run)
    timeout = folder.read_config().run.process_timeout if folder.config.exists() else 600.0
    with start(timeout=timeout) as group, group.together():
        trainer = Trainer.resume(asked.run, steps=asked.steps, seconds=asked.seconds, group=group)
        return train_to_the_end(trainer)
