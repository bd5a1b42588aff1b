"""`zorn train`."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from zorn.cli.flags import Start, read
from zorn.cli.parsing import UsageError
from zorn.cli.process import STOPPED
from zorn.config import Config, resolve
from zorn.distributed import Group, start
from zorn.run.folder import RunFolder
from zorn.training.together import state_of
from zorn.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Train(Start):
    """Train a model with forward passes only.

    Without flags this is the main job (the preset quickstart), in runs/ and the time of the start. Flags
    change a preset's settings, or those of a file; --steps and --seconds replace its budget. What is left
    open is chosen when the run starts, which says so. --help-all lists every setting; name an estimator to
    see its own.
    """


def command(words: Sequence[str]) -> int:
    """Train from command-line words; returns the exit code."""
    config, overwrite = settings(words)
    named = any(word.partition("=")[0] in ("--out", "--preset") for word in words)
    with start(timeout=config.run.process_timeout) as group, group.together():
        if group.size > 1 and not named:
            raise UsageError("--out must be given where several processes train: they use one folder")
        if "TORCHELASTIC_RUN_ID" in os.environ and overwrite:
            raise UsageError(
                "--overwrite would be done again each time that torchrun starts the processes anew: remove "
                "the folder instead"
            )
        trainer = _trainer(config, group, overwrite=overwrite)
        return 0 if trainer is None else train_to_the_end(trainer)


def _trainer(config: Config, group: Group, *, overwrite: bool) -> Trainer | None:
    """A new run; or, under torchrun, which starts processes anew after a failure and when others join, the
    one in the folder where that has these settings: None where nothing of it is left to do."""
    state, out = "other", config.run.out
    if "TORCHELASTIC_RUN_ID" in os.environ and out is not None and group.is_main:
        state = state_of(RunFolder(out), resolve(config)[0])
    state = group.collect(state)[0]
    if state == "done":
        return None
    if state == "saved" and out is not None:
        budget = {"steps": config.budget.steps, "seconds": config.budget.seconds}
        return Trainer.resume(out, **budget, group=group)
    return Trainer(config, overwrite=overwrite or state == "begun", group=group)


def settings(words: Sequence[str]) -> tuple[Config, bool]:
    """The configuration that command-line words ask for, and whether to overwrite."""
    asked, config = read(Train, words, prog="zorn train")
    return config, asked.overwrite


def train_to_the_end(trainer: Trainer) -> int:
    """Run a trainer: 0 when its budget is used, 130 when it was stopped by Ctrl-C or a signal.

    The step that is named then is the one that is saved; raises KeyboardInterrupt when none is.
    """
    try:
        trainer.run()
    except KeyboardInterrupt:
        if trainer.saved_step is None:
            raise
        path = shlex.quote(str(trainer.folder.path))
        line = f"stopped after step {trainer.saved_step}; resume with: zorn resume {path}"
        trainer.console.print(line, highlight=False, markup=False, soft_wrap=True)
        return STOPPED
    return 0
