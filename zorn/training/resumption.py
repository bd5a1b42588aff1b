"""How a run's log and its journal fit each other: a step's line can be made from its entry, so that no crash
between the two writes loses a line or doubles one."""

from collections import Counter
from pathlib import Path

from zorn.estimators.fold import Fold
from zorn.training.journal_entry import JournalEntry
from zorn.training.loggers import Record, read_metrics, truncate_metrics


def entry_of(line: Record, fold: Fold, rate_factor: float) -> JournalEntry:
    """The journal's entry of a step.

    Args:
        line: of kind "train", from the log of the step.
        fold: of its estimate.
        rate_factor: what the first learning rates were multiplied by.
    """
    names = ("step", "loss", "gradient_norm", "forward_passes", "dropped", "seconds")
    return JournalEntry(fold=fold, rate_factor=rate_factor, **{name: line[name] for name in names})


def line_of(entry: JournalEntry, learning_rate: float) -> Record:
    """The log's line of a step, from its entry and the first learning rate.

    >>> import torch
    >>> from zorn.perturbations import Draw
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
        "epsilon": entry.fold.draw.epsilon,
        "population": len(entry.fold.coded),
        "step": entry.step,
        "seconds": entry.seconds,
        "forward_passes": entry.forward_passes,
        "loss": entry.loss,
        "gradient_norm": entry.gradient_norm,
        "dropped": entry.dropped,
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
