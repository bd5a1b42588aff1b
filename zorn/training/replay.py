"""Steps made again from a run's journal, without data and without a forward pass."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zorn.config import Config
from zorn.errors import JournalError
from zorn.estimators import ESTIMATORS, Estimator
from zorn.run.checkpoint import (
    Progress,
    checkpoint_step,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from zorn.run.folder import RunFolder
from zorn.run.identity import check_settings, check_tokenizer, run_settings
from zorn.run.journal import base_step, check_identity, read_journal, run_identity
from zorn.run.journal_entry import JournalEntry
from zorn.run.lock import locked
from zorn.training.build import (
    build_estimator,
    build_model,
    build_optimizers,
    build_task,
    set_threads,
)
from zorn.training.step import move_weights


def journal_identity(config: Config, model: nn.Module, text: Mapping[str, Any] | None) -> bytes:
    """The identity of a run's journal.

    Args:
        config: without anything left open.
        model: with its first weights, those of the seed.
        text: fingerprint of the text, from `text_fingerprint` or a checkpoint.
    """
    settings = run_settings(config) | {"text": text}
    return run_identity(settings, model)


def replay_steps(
    config: Config,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    estimator: Estimator,
    entries: Iterable[JournalEntry],
    *,
    after: int,
) -> Iterator[JournalEntry]:
    """Take the steps of some entries again, one at each `next`; yields each entry once it is taken.

    On the kind of device that the run computed on, weights and optimizer are then the run's, bit for bit.

    Args:
        model, optimizers: as they were after step `after`; changed in place.
        entries: of the steps after it.

    Raises:
        JournalError: entries that do not begin there.
    """
    for entry in entries:
        if entry.step != after + 1:
            raise JournalError(
                f"the journal has step {entry.step} next, expected step {after + 1}, which follows the "
                "present weights: take a checkpoint that the journal reaches"
            )
        move_weights(
            config,
            model,
            optimizers,
            entry.rate_factor,
            lambda update, fold=entry.fold: estimator.refold(model, fold, update),
        )
        after = entry.step
        yield entry


def replay(run: Path, step: int, out: Path) -> Path:
    """Make the weights and the optimizer's state of a run after any step again, in a run folder of its own.

    The new run can be evaluated and resumed. The replay starts from the newest checkpoint up to that step, or
    from the seed where none is kept. A journal does not hold the states of the members of pes and nres: their
    new run can be resumed only if a segment begins at the step.

    Args:
        run: the run's folder; only read.
        step: steps done, from 0 to the last one in the journal.
        out: a folder that is new or empty.

    Returns:
        the path of the new checkpoint.

    Raises:
        ConfigError: `run` is no run's folder, its settings were changed, or `out` holds something.
        JournalError: an estimator that keeps no journal; a journal that is missing, damaged or of another
            run; a step that it does not reach.
        CheckpointError: a checkpoint that is damaged, or none at all.

    Example:
        >>> import io, tempfile
        >>> from rich.console import Console
        >>> from zorn.config import BudgetConfig, Choice, RunConfig
        >>> from zorn.training import Trainer
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name) / "run"
        >>> config = Config(
        ...     task=Choice("copy", batch=4, maximum_length=2), model=Choice("lstm", hidden_size=4),
        ...     estimator=Choice("cd-rge", population=4), budget=BudgetConfig(steps=3),
        ...     run=RunConfig(out=path, evaluations=1),
        ... )
        >>> _ = Trainer(config, console=Console(file=io.StringIO())).run()
        >>> replay(path, 2, Path(folder.name) / "again").name
        'step-00000002'
        >>> folder.cleanup()
    """
    source, target = RunFolder(run), RunFolder(out)
    config = source.read_config()
    check_replayable(config)
    newest = _newest_progress(source, config)
    target.check_new(overwrite=False, otherwise="remove it")
    set_threads(config.run.threads)
    model = build_model(config, _vocabulary(config, source))
    check_identity(source.journal, journal_identity(config, model, newest.text))
    begins = base_step(source.journal)
    if step < begins:
        raise JournalError(
            f"step must be at least {begins}, got {step}: the journal of {run} begins there: name a "
            "later step"
        )
    estimator = build_estimator(config)
    optimizers = build_optimizers(config, model, estimator)
    progress = dataclasses.replace(newest, step=0, seconds=0.0, forward_passes=0, dropped=0)
    progress = dataclasses.replace(progress, estimator=estimator.state_dict())
    bases = [path for path in checkpoints(source.checkpoints) if begins <= checkpoint_step(path) <= step]
    if bases:
        progress = load_checkpoint(bases[-1], model, optimizers)
    elif begins > 0:
        raise JournalError(
            f"step {step} needs weights from step {begins}, where the journal of {run} begins, or later, "
            "and no such checkpoint is kept: restore one from a copy, or name a later step"
        )
    entries = itertools.takewhile(
        lambda entry: entry.step <= step, read_journal(source.journal, after=progress.step)
    )
    for entry in replay_steps(config, model, optimizers, estimator, entries, after=progress.step):
        progress = after_entry(progress, entry)
    if progress.step != step:
        raise JournalError(
            f"step must be at most {progress.step}, the last in the journal of {run}, got {step}"
        )
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, out=out))
    with locked(out):
        target.create(source.read_asked(), config, overwrite=False, tokenizer=source.tokenizer_json())
        return save_checkpoint(target.checkpoints, progress, model, optimizers)


def check_replayable(config: Config) -> None:
    """Raise JournalError for a run whose steps cannot be made again from numbers, saying why.

    >>> from zorn.config import BudgetConfig, Choice
    >>> check_replayable(Config(
    ...     estimator=Choice("bptt"), budget=BudgetConfig(steps=1)
    ... ))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    zorn.errors.JournalError: estimator bptt keeps no journal: an update of it is no sum of one number a ...
    """
    name = config.estimator.name
    if not ESTIMATORS[name].journaled:
        journaled = [each for each, kind in ESTIMATORS.items() if kind.journaled]
        raise JournalError(
            f"estimator {name} keeps no journal: an update of it is no sum of one number a member, it takes "
            f"the batch again: resume from a checkpoint, or train with one of {', '.join(journaled)}"
        )


def after_entry(progress: Progress, entry: JournalEntry) -> Progress:
    """The progress of a run once a step of its journal is taken, without what no journal holds: the states of
    members along a stream."""
    fold = entry.fold
    moved = {"step": fold.draw.step + 1, "epsilon": fold.draw.epsilon, "population": len(fold.coded)}
    if "segment" in progress.estimator:
        moved["segment"] = None
    return dataclasses.replace(
        progress,
        step=entry.step,
        seconds=entry.seconds,
        forward_passes=entry.forward_passes,
        dropped=progress.dropped + entry.dropped,
        estimator={**progress.estimator, **moved},
    )


def check_journal_of(run: Path) -> None:
    """Raise unless the journal in a run's folder is that of the run: its settings, seed, text and first
    weights, which are made again on the CPU.

    Raises:
        ConfigError: it is no run's folder, or its settings were changed.
        JournalError: a journal that is missing, of another run, or with a damaged header; an estimator that
            keeps none.
        CheckpointError: no checkpoint is kept.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    check_replayable(config)
    newest = _newest_progress(folder, config)
    on_cpu = dataclasses.replace(config, run=dataclasses.replace(config.run, device="cpu"))
    model = build_model(on_cpu, _vocabulary(config, folder))
    check_identity(folder.journal, journal_identity(config, model, newest.text))


def _newest_progress(folder: RunFolder, config: Config) -> Progress:
    """The progress in the newest checkpoint of a run whose settings and tokenizer are unchanged."""
    newest = read_progress(latest_checkpoint(folder.checkpoints))
    check_settings(newest.settings, config)
    if "tokenizer" in config.task.given:
        check_tokenizer(newest.text, folder.tokenizer_json())
    return newest


def _vocabulary(config: Config, folder: RunFolder) -> int:
    """The number of tokens of a run, without reading its text."""
    if "tokenizer" not in config.task.given:
        return build_task(config).vocabulary
    return folder.read_tokenizer(config.task.tokenizer).vocabulary
