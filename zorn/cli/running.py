"""What `zorn train` and `zorn resume` share: running a trainer and saying how to go on when it is stopped."""

import shlex

from zorn.training.trainer import Trainer


def train_to_the_end(trainer: Trainer) -> int:
    """Run a trainer: 0 when its budget is used, 130 when it was stopped by Ctrl-C, after saving."""
    try:
        trainer.run()
    except KeyboardInterrupt:
        path = shlex.quote(str(trainer.folder.path))
        trainer.console.print(
            f"stopped after step {trainer.step}; go on with: zorn resume {path}",
            highlight=False,
            soft_wrap=True,
        )
        return 130
    return 0
