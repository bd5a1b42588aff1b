"""Running a trainer, and saying how to resume when it is stopped: for `zorn train` and `zorn resume`."""

import shlex

from zorn.cli.process import STOPPED
from zorn.training.trainer import Trainer


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
        trainer.console.print(
            f"stopped after step {trainer.saved_step}; resume with: zorn resume {path}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return STOPPED
    return 0
