"""`zorn tune`."""

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zorn.cli.flags import Start, flag_names, read
from zorn.cli.process import STOPPED
from zorn.config import Config, to_json
from zorn.errors import ConfigError
from zorn.search import tune
from zorn.search.space import describe
from zorn.training.interruption import Interruption


@dataclass(frozen=True, kw_only=True)
class Tune(Start):
    """Find learning rate, epsilon, size of a step and discount for a training budget in seconds.

    Takes the flags of zorn train, as the settings to begin with, but that --out is the file for the settings
    that are found (tuned.json without it). Prints the command that trains with them. When it is stopped with
    Ctrl-C, the best so far are written. The test split is not used.
    """

    tune_seconds: float = 60.0
    """Seconds to search for, above 0."""


def command(words: Sequence[str]) -> int:
    """Tune from command-line words; returns the exit code."""
    own, config, file = settings(words)
    if file.is_dir() or not file.parent.is_dir():
        wrong = "is a folder" if file.is_dir() else f"is in no folder: there is no {file.parent}"
        raise ConfigError(
            f"--out must be a file to write to, got {file}, which {wrong}: choose another --out"
        )
    if file.exists() and not own.overwrite:
        raise ConfigError(f"{file} is there already: choose another --out, or replace it with --overwrite")
    say = partial(print, flush=True)
    with Interruption() as stop:
        found = tune(config, seconds=own.tune_seconds, report=say, goes_on=lambda: not stop.requested)
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_text(to_json(found.asked, found.config), encoding="utf-8")
        temporary.replace(file)
    say("the best of the longest trials, with the seconds that each got:")
    longest = {trial.config: trial for trial in found.trials}
    for trial in sorted(longest.values(), key=lambda trial: (-trial.round, trial.loss))[:8]:
        say(f"{trial.loss:10.4f} {trial.seconds:7.3g} s  {describe(trial.config, found.start)}")
    verb = "stopped after" if found.stopped else "found in"
    say(f"{verb} {found.seconds:.1f} s: {describe(found.config, found.start)}")
    say(f"{file} holds the settings; train with them:\nzorn train --config {shlex.quote(str(file))}")
    return STOPPED if found.stopped else 0


def settings(words: Sequence[str]) -> tuple[Tune, Config, Path]:
    """The command's own flags, the settings to begin with, and the file for those that are found."""
    own, config = read(Tune, words, prog="zorn tune")
    file = config.run.out if "out" in flag_names(words) else None
    return (
        own,
        dataclasses.replace(config, run=dataclasses.replace(config.run, out=None)),
        file or Path("tuned.json"),
    )
