"""One run in several processes: the device of each, files for a new one, and what all have to agree on."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from zorn.config import Config
from zorn.distributed import Group
from zorn.errors import ConfigError
from zorn.run.checkpoint import MANIFEST, checkpoints, latest_checkpoint, read_progress
from zorn.run.folder import RunFolder
from zorn.run.identity import run_settings
from zorn.run.journal import last_step
from zorn.run.lock import locked

SENT_AT_ONCE = 1 << 24
"""Bytes of a file that are sent at once."""


def on_device_of(group: Group, config: Config) -> Config:
    """The settings with the device that is this process's own where they name a kind of which each has one.

    >>> from zorn.config import BudgetConfig
    >>> on_device_of(Group(), Config(budget=BudgetConfig(steps=1))).run.device
    'cpu'
    """
    if group.size == 1 or config.run.device != group.device.type:
        return config
    return dataclasses.replace(config, run=dataclasses.replace(config.run, device=str(group.device)))


def fetch_run(group: Group, folder: RunFolder) -> None:
    """Give every process the run that rank 0 resumes: where a machine has no disk in common with it, its
    newest checkpoint, journal and settings are sent. Nothing is sent where all see the same files, and
    nothing that is there is removed; all call it together.

    Raises:
        CheckpointError: rank 0 has no checkpoint.
        ConfigError: another process trains in the folder; or a machine has another run there, or a later
            checkpoint of this one.
        WorkerError: another process failed.
        OSError: a disk that refuses.
    """
    if group.size == 1:
        return
    owned = group.is_main and folder.path.is_dir()
    with group.together(), locked(folder.path) if owned else nullcontext():
        files = _files(folder) if group.is_main else []
        names = group.collect(files)[0]
        digests = group.collect(_digest(folder.path, names))
        if all(digest == digests[0] for digest in digests):
            return
        settings = group.collect(_settings(folder) if group.is_main else {})[0]
        wanted = digests[group.rank] != digests[0]
        if wanted:
            _check_place(folder, settings, names[-1])
        group.message()  # or a process that refuses would leave the others in the middle of a file
        failure = None
        for name in names:
            failure = _send(group, folder.path / name, write=wanted and failure is None) or failure
        group.message(failure=failure)


def is_orphan(parent: int) -> bool:
    """True if torchrun started this process and is gone.

    Then nobody would start it again, and another launch waits for its folder.

    Args:
        parent: the process that started this one.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != parent


def state_of(folder: RunFolder, config: Config) -> Literal["other", "begun", "saved", "done"]:
    """The state of a run of these (resolved) settings in a folder.

    Returns:
        "other": the folder is empty, or holds another run; "begun": the run has not saved yet; "saved": it
        has a checkpoint; "done": its budget is used.
    """
    if not checkpoints(folder.checkpoints):
        empty = not folder.journal.exists() or last_step(folder.journal) == 0
        unsaved = folder.config.exists() and empty
        return "begun" if unsaved and _settings(folder) == run_settings(config) else "other"
    progress = read_progress(latest_checkpoint(folder.checkpoints))
    if dict(progress.settings) != run_settings(config):
        return "other"
    used = config.budget.progress(progress.step, progress.seconds)
    return "done" if used >= 1 and folder.summary.exists() else "saved"


def check_same_settings(group: Group, config: Config) -> None:
    """Raise ConfigError, on all processes, unless all have the same settings."""
    shared_by_all = ("partial_steps", "check_replicas", "evaluations")
    facts = run_settings(config) | {name: getattr(config.run, name) for name in shared_by_all}
    facts |= {"steps": config.budget.steps, "seconds": config.budget.seconds}
    group.message(facts={name: repr(value) for name, value in facts.items()})


def _settings(folder: RunFolder) -> dict[str, Any]:
    return run_settings(folder.read_config())


def _check_place(folder: RunFolder, settings: dict[str, Any], manifest: str) -> None:
    """Raise ConfigError where files of rank 0 would hide what is in the folder here."""
    if folder.config.exists() and _settings(folder) != settings:
        raise ConfigError(
            f"{folder.path} holds another run on this machine than on that of rank 0: move it away, or "
            "choose another folder"
        )
    saved = checkpoints(folder.checkpoints)
    if saved and saved[-1].name > Path(manifest).parent.name:
        raise ConfigError(
            f"{saved[-1]} on this machine is later than rank 0's {Path(manifest).parent.name}: start this "
            "machine as rank 0, or move its folder away"
        )


def _files(folder: RunFolder) -> list[str]:
    """The files that another process needs to resume, by their names; a checkpoint's manifest comes last."""
    newest = latest_checkpoint(folder.checkpoints)
    saved = sorted(newest.iterdir(), key=lambda path: path.name == MANIFEST)
    whole = [path for path in (folder.config, folder.tokenizer, folder.journal) if path.exists()]
    return [str(path.relative_to(folder.path)) for path in (*whole, *saved)]


def _digest(folder: Path, names: list[str]) -> str:
    """Of the files' contents, but of a checkpoint its manifest, which has the digests of the others."""
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        if not path.exists():
            return "missing"
        if path.suffix != ".safetensors":
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _send(group: Group, path: Path, *, write: bool) -> OSError | None:
    """Send a file of rank 0 to all, and write it where it is wanted; returns why the disk refused, if so, as
    the others continue meanwhile."""
    size = torch.tensor([path.stat().st_size if group.is_main else 0])
    group.broadcast(size, 0)
    temporary, failure = path.with_name(path.name + ".fetched"), None
    with path.open("rb") if group.is_main else nullcontext() as source:
        for start in range(0, int(size), SENT_AT_ONCE):
            count = min(SENT_AT_ONCE, int(size) - start)
            data = bytearray(count) if source is None else bytearray(source.read(count))
            group.broadcast(torch.frombuffer(data, dtype=torch.uint8), 0)
            if not write or failure is not None:
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("ab" if start else "wb") as file:
                    file.write(data)
            except OSError as error:
                failure = OSError(f"{path} of rank 0 cannot be written here ({error}): make room for it")
    if failure is not None:
        temporary.unlink(missing_ok=True)
    elif write:
        temporary.replace(path)
    return failure
