"""`zorn replay`."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from zorn.checks import check_whole_number
from zorn.cli.output import console
from zorn.cli.parsing import parse
from zorn.training.replay import replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Make the weights of a run after any step again, from its journal: without data and without a forward
    pass, bit for bit. They come in a run folder of their own, which zorn evaluate and zorn resume take."""

    run: tyro.conf.Positional[Path]
    """The run's folder; it is only read."""
    to_step: int
    """Steps done, from where the journal begins (0 unless one before it was lost) to its last."""
    out: Path | None = None
    """The new folder. None: the run's own name with the step, beside it."""


def command(words: Sequence[str]) -> int:
    """Replay from command-line words; returns the exit code."""
    asked = parse(Replay, words, prog="zorn replay")
    check_whole_number("to_step", asked.to_step, minimum=0)
    run = asked.run.absolute()
    out = asked.out or run.with_name(f"{run.name}-step-{asked.to_step}")
    made = replay(asked.run, asked.to_step, out)
    console().print(
        f"{made}: the weights after step {asked.to_step}; evaluate them with: zorn evaluate "
        f"{shlex.quote(str(out))}"
    )
    return 0
