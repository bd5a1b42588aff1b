"""Resuming a run: how far its journal takes it, and how its log and its journal fit each other. A step's
line can be made from its entry, so that no crash between the two writes loses a line or doubles one."""

from collections import Counter
from pathlib import Path

from zorn.config import Config
from zorn.errors import CheckpointError
from zorn.estimators import ESTIMATORS, Need
from zorn.estimators.fold import Fold
from zorn.run.checkpoint import Progress
from zorn.run.journal_entry import JournalEntry
from zorn.run.loggers import Record, read_metrics, truncate_metrics
from zorn.tasks import Task

_SHARED = ("step", "seconds", "forward_passes", "loss", "gradient_norm", "dropped")
"""Fields of both a step's line and its entry."""


def last_to_replay(config: Config, task: Task, saved: int, last: int) -> int:
    """The step up to which a resumed run takes its journal; from there on it trains.

    That is the journal's last step, with one exception. The members of pes and nres carry states along the
    stream, which only forward passes make, and making them again costs what the steps cost: such a run goes
    back to the last step where a segment begins, or its checkpoint, which has the states, if that is later.

    Args:
        task: says where segments begin.
        saved: the step of the checkpoint.
        last: of the journal.

    >>> from zorn.tasks import TextTask
    >>> from zorn.config import BudgetConfig, Choice
    >>> stream = Choice("text", source="python-docs", stream=4)
    >>> nres = Config(task=stream, estimator=Choice("nres"), budget=BudgetConfig(steps=99))
    >>> task = TextTask(source="python-docs", batch=1, length=8, seed=0, stream=4)
    >>> last_to_replay(nres, task, saved=1, last=11), last_to_replay(nres, task, saved=9, last=11)
    (8, 9)
    """
    if Need.STREAM in ESTIMATORS[config.estimator.name].needs:
        return next((step for step in range(last, saved, -1) if task.begins(step)), saved)
    return last


def check_states(config: Config, task: Task, path: Path, progress: Progress) -> None:
    """Raise CheckpointError for a checkpoint in the middle of a segment that lacks the states of the members
    of pes or nres: `zorn replay` made it.

    Args:
        path: of the checkpoint.
        progress: read from it.
    """
    streaming = Need.STREAM in ESTIMATORS[config.estimator.name].needs
    if not streaming or task.begins(progress.step) or progress.estimator["segment"] is not None:
        return
    begun = next(step for step in range(progress.step, -1, -1) if task.begins(step))
    raise CheckpointError(
        f"{path} has the weights after step {progress.step}, in the middle of a segment, without the states "
        f"of the members of {config.estimator.name}, which no journal holds: it can be evaluated; to go "
        f"on, replay the run up to step {begun}, where the segment begins (--to-step {begun})"
    )


def entry_of(line: Record, fold: Fold, rate_factor: float) -> JournalEntry:
    """The journal's entry of a step.

    Args:
        line: of kind "train", from the log of the step.
        fold: of its estimate.
        rate_factor: what the first learning rates were multiplied by.
    """
    return JournalEntry(fold=fold, rate_factor=rate_factor, **{name: line[name] for name in _SHARED})


def used(fold: Fold | None) -> Record:
    """Fields of a step's log beside the schedules: ε and population that its members had, which a segment
    keeps from its beginning on; nothing for an estimate that is no fold.

    >>> used(None)
    {}
    """
    return {} if fold is None else {"epsilon": fold.draw.epsilon, "population": len(fold.coded)}


def line_of(entry: JournalEntry, learning_rate: float) -> Record:
    """The log's line of a step, from its entry and the first learning rate.

    >>> import torch
    >>> from zorn.noise import Draw
    >>> fold = Fold.of(Draw(seed=0, step=4, epsilon=0.1), torch.zeros(2, dtype=torch.float64))
    >>> line = line_of(JournalEntry(step=5, fold=fold, rate_factor=0.5), learning_rate=0.01)
    >>> line["learning_rate"], line["population"], line["step"]
    (0.005, 2, 5)
    >>> line_of(entry_of(line, fold, 0.5), 0.01) == line
    True
    """
    return {
        "kind": "train",
        "learning_rate": learning_rate * entry.rate_factor,
        **used(entry.fold),
        **{name: getattr(entry, name) for name in _SHARED},
    }


def mend_metrics(path: Path, step: int, splits: int) -> int:
    """Drop from a metrics file what was logged after `step`, and the last step's lines where its evaluation
    was cut short; returns the step of the last training line that is left, 0 for none.

    Args:
        splits: lines of a whole evaluation.
    """
    truncate_metrics(path, step)
    lines = Counter(record["step"] for record in read_metrics(path) if record["kind"] == "evaluation")
    last = max(lines, default=0)
    if lines and lines[last] < splits:
        truncate_metrics(path, last - 1)
    return max((line["step"] for line in read_metrics(path) if line["kind"] == "train"), default=0)
