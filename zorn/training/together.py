"""What a run needs where several processes train together: one estimator for all, files that a new process
lacks, and a log that writes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path
from typing import final

import torch

from zorn.distributed import Group, SharedEstimator, share
from zorn.training.build import Estimator
from zorn.training.checkpoint import MANIFEST, latest_checkpoint
from zorn.training.config import Config, RunConfig
from zorn.training.loggers import Record
from zorn.training.run_folder import RunFolder

SENT_AT_ONCE = 1 << 24
"""Bytes of a file that are sent at once."""


def on_device_of(group: Group, config: Config) -> Config:
    """The settings with the device that is this process's own where they name a kind of which each has one.

    >>> from zorn.training import BudgetConfig
    >>> on_device_of(Group(), Config(budget=BudgetConfig(steps=1))).run.device
    'cpu'
    """
    if group.size == 1 or config.run.device != group.device.type:
        return config
    return dataclasses.replace(config, run=dataclasses.replace(config.run, device=str(group.device)))


def shared(estimator: Estimator, group: Group, settings: RunConfig) -> SharedEstimator:
    """The estimator whose work the processes share, as the settings say.

    Raises:
        ConfigError: a way to share it that the estimator does not have.
    """
    return share(
        estimator,
        group,
        mode=settings.exchange,
        balance=settings.balance,
        partial=settings.partial_steps,
        check_every=settings.check_replicas,
    )


def fetch_run(group: Group, folder: RunFolder) -> None:
    """Give every process the run that rank 0 goes on with: where a machine has no disk in common with it, its
    newest checkpoint, journal and settings are sent. Nothing is sent where all see the same files; all call
    it together.

    Raises:
        CheckpointError: rank 0 has no checkpoint.
        OSError: a disk that refuses.
    """
    if group.size == 1:
        return
    files = _files(folder) if group.is_main else []
    names = group.collect(files)[0]
    digests = group.collect(_digest(folder.path, names))
    if all(digest == digests[0] for digest in digests):
        return
    wanted = digests[group.rank] != digests[0]
    if wanted:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    for name in names:
        _send(group, folder.path / name, write=wanted)


def is_orphan(parent: int) -> bool:
    """Whether torchrun started this process and is gone: nobody would start it again, and another launch
    waits for its folder. `parent`: the process that started it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != parent


@final
class SilentLog:
    """In place of a `MetricsLog`, in processes that write nothing.

    >>> with SilentLog() as log:
    ...     log.write({"kind": "train", "step": 1})
    """

    def __enter__(self) -> SilentLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, record: Record) -> None:
        """Nothing."""


def _files(folder: RunFolder) -> list[str]:
    """What another process needs to go on, by the names in the folder; a checkpoint's manifest comes last."""
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
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _send(group: Group, path: Path, *, write: bool) -> None:
    """Send a file of rank 0 to all, and write it where it is wanted."""
    size = torch.tensor([path.stat().st_size if group.is_main else 0])
    group.broadcast(size, 0)
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".fetched")
    source = path.open("rb") if group.is_main else None
    target = temporary.open("wb") if write else None
    try:
        for start in range(0, int(size), SENT_AT_ONCE):
            count = min(SENT_AT_ONCE, int(size) - start)
            data = bytearray(count) if source is None else bytearray(source.read(count))
            group.broadcast(torch.frombuffer(data, dtype=torch.uint8), 0)
            if target is not None:
                target.write(data)
    finally:
        for file in (source, target):
            if file is not None:
                file.close()
    if write:
        temporary.replace(path)
