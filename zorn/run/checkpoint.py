"""Checkpoints: a folder of safetensors files that counts only with its manifest, which is written last.

    checkpoints/step-00000123/model.safetensors        the weights, each storage once; shards where they are
                                                       large, see `zorn.run.tensor_file`
                              optimizer.safetensors    the optimizer's tensors (absent without an optimizer)
                              estimator.safetensors    the estimator's tensors (absent where it has none)
                              manifest.json            everything else, with size and SHA-256 of each file

A checkpoint is written to a temporary folder beside its place, synchronised to the disk, then renamed: a
process that dies at any moment leaves the former checkpoints as they were, and a disk that refuses leaves
no trace of the attempt. Tensors are written from where they lie and read to where they belong, with no second
copy in memory. No pickle is written or read.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zorn
from zorn.checks import some
from zorn.errors import CheckpointError
from zorn.run.files import synchronise, write_whole
from zorn.run.tensor_file import TensorFiles, write_tensors
from zorn.run.tensor_tree import join_tree, split_tree, stored_tensors

FORMAT = 5
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
ESTIMATOR = "estimator.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a run: the content of a checkpoint beside the weights and the optimizers' states."""

    step: int
    """Steps done, which is also the position in the data: the next batch is `training_batch(step)`."""
    seconds: float
    """Seconds of training so far, over all sessions."""
    forward_passes: int
    """Rows put through the model in training so far."""
    dropped: int
    """Members dropped so far for a non-finite loss."""
    seed: int
    """The run's seed."""
    estimator: Mapping[str, Any] = field(default_factory=dict)
    """The estimator's own state, tensors among it; empty where only the manifest was read."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings that determine the run, by field: JSON values."""
    text: Mapping[str, Any] | None = None
    """Size ("bytes") and "sha256" of the text that is learned, and the SHA-256 of its learned "tokenizer";
    None for a task without a text."""


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    keep: int = 2,
) -> Path:
    """Write `folder/step-XXXXXXXX` atomically, delete all but the `keep` newest, and return its path.

    Raises CheckpointError for state that cannot be saved without pickle, OSError when the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    target = checkpoint_path(folder, progress.step)
    try:
        temporary = folder / f".saving-{target.name}"
        _write(temporary, progress, model, optimizers)
        if target.exists():
            target.rename(folder / f".replaced-{target.name}")
        temporary.rename(target)
        synchronise(folder)
        for old in checkpoints(folder)[:-keep]:
            (old / MANIFEST).unlink()  # without it the folder is no checkpoint, however far the deletion gets
            shutil.rmtree(old)
    finally:
        _remove_leftovers(folder)
    return target


def _write(
    folder: Path, progress: Progress, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Make a new folder and write a checkpoint's files into it, all of them on the disk at the end."""
    folder.mkdir()
    files = write_tensors(folder / MODEL, stored_tensors(model))
    plain = None
    if optimizers:
        states = [optimizer.state_dict() for optimizer in optimizers]
        plain, tensors = split_tree(states, "optimizers")
        files += write_tensors(folder / OPTIMIZER, tensors)
    estimator, tensors = split_tree(dict(progress.estimator), "estimator")
    if tensors:
        files += write_tensors(folder / ESTIMATOR, tensors)
    manifest = {
        "format": FORMAT,
        "zorn": zorn.__version__,
        "torch": torch.__version__,
        "progress": dataclasses.asdict(dataclasses.replace(progress, estimator={})),
        "estimator": estimator,
        "model": _table(model),
        "optimizers": plain,
        "files": {file: _fingerprint(folder / file) for file in files},
    }
    manifest["sha256"] = _manifest_hash(manifest)
    write_whole(folder / MANIFEST, _manifest_text(manifest))


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies.

    >>> checkpoint_path(Path("checkpoints"), 123).name
    'step-00000123'
    """
    return folder / f"step-{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first: those whose manifest is whole.

    What the tensors' files hold is verified by `load_checkpoint` only.
    """
    return [path for path in _candidates(folder) if _read_manifest(path) is not None]


def latest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint in a folder.

    A folder without a manifest is what a crash left while it was deleted, and is passed over. Raises
    CheckpointError when there is no checkpoint, or the newest has a manifest that is damaged: an older one is
    never taken in its place without being asked for.
    """
    found = _candidates(folder)
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}: name the folder of a run that has saved one")
    if _read_manifest(found[-1]) is None:
        raise CheckpointError(
            f"the manifest of the newest checkpoint {found[-1]} is damaged{_way_out(found[-1])}"
        )
    return found[-1]


def newest_mark(folder: Path) -> tuple[Path, int] | None:
    """A mark that changes when a checkpoint is saved, also one of the same step; None where there is none."""
    try:
        newest = _candidates(folder)[-1]
        return newest, (newest / MANIFEST).stat().st_mtime_ns
    except (IndexError, FileNotFoundError):
        return None


def read_progress(path: Path) -> Progress:
    """The content of a checkpoint beside weights and states; CheckpointError unless its manifest is whole."""
    return Progress(**_manifest(path)["progress"])


def _candidates(folder: Path) -> list[Path]:
    """The folders of checkpoints that have a manifest, in the order of their steps."""
    found = [manifest.parent for manifest in folder.glob(f"step-*/{MANIFEST}")]
    return sorted((path for path in found if checkpoint_step(path) >= 0), key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's name; -1 for another name.

    >>> checkpoint_step(Path("checkpoints/step-00000123"))
    123
    """
    number = path.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def load_checkpoint(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = ()
) -> Progress:
    """Put a checkpoint into `model` (and `optimizers`, when given) in place; the rest is returned.

    Everything is checked before anything is changed: the files against their size and SHA-256, the weights
    against the model's names, shapes and dtypes. Raises CheckpointError saying which file or weight is wrong,
    and what to do.
    """
    manifest = _manifest(path)
    if (damage := _damage(path, manifest)) is not None:
        raise CheckpointError(f"{damage}{_way_out(path)}")
    _check_table(path, manifest["model"], _table(model))
    if optimizers and manifest["optimizers"] is None:
        raise CheckpointError(
            f"{path} holds no optimizer state, and one is wanted: load it without an optimizer"
        )
    saved = _files(path, manifest, MODEL)
    for name, tensor in stored_tensors(model).items():
        saved.read_into(name, tensor)
    if optimizers:
        states = join_tree(manifest["optimizers"], _read_all(path, manifest, OPTIMIZER))
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(state)
    estimator = join_tree(manifest["estimator"], _read_all(path, manifest, ESTIMATOR))
    return Progress(**manifest["progress"] | {"estimator": estimator})


def _files(path: Path, manifest: dict[str, Any], name: str) -> TensorFiles:
    """The file of that name, or its shards."""
    stem, suffix = name.split(".")
    return TensorFiles(
        [path / file for file in manifest["files"] if file.startswith(stem) and file.endswith(suffix)]
    )


def _read_all(path: Path, manifest: dict[str, Any], name: str) -> dict[str, Tensor]:
    files = _files(path, manifest, name)
    return {tensor: files.read(tensor) for tensor in files.names}


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; CheckpointError unless it is whole."""
    manifest = _read_manifest(path)
    if manifest is None:
        raise CheckpointError(
            f"{path} is no checkpoint: its {MANIFEST} is missing or damaged{_way_out(path)}"
        )
    return manifest


def _damage(path: Path, manifest: dict[str, Any]) -> str | None:
    """The damage of a checkpoint's files, in words; None when they are intact."""
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{file} is damaged: it has {file.stat().st_size} bytes, not {expected['bytes']}"
        if _fingerprint(file) != expected:
            return f"{file} is damaged: its SHA-256 is not the one in {MANIFEST}"
    return None


def _way_out(path: Path) -> str:
    """Advice for a damaged checkpoint: the newest intact one before it."""
    step = checkpoint_step(path)
    for earlier in reversed([other for other in checkpoints(path.parent) if checkpoint_step(other) < step]):
        if _damage(earlier, _read_manifest(earlier) or {}) is None:
            return f"; {earlier} before it is intact: move or delete {path} to resume from there"
    return "; no intact checkpoint is left before it: restore it from a copy or train again"


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """A checkpoint's manifest, or None where it is missing, cut short or altered."""
    try:
        data = (path / MANIFEST).read_bytes()
        manifest = json.loads(data)
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("sha256") != _manifest_hash(manifest):
        return None
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is of checkpoint format {manifest['format']}, this zorn reads format {FORMAT}: "
            f"load it with zorn {manifest['zorn']}"
        )
    return manifest if data == _manifest_text(manifest).encode() else None


def _manifest_text(manifest: dict[str, Any]) -> str:
    """The one way to write it: another text of the same content is damaged, too."""
    return json.dumps(manifest, indent=1) + "\n"


def _manifest_hash(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _table(model: nn.Module) -> dict[str, str]:
    """Name -> "dtype [shape]" of every tensor of the model that is stored."""
    return {
        name: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in stored_tensors(model).items()
    }


def _check_table(path: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    problems = [f"missing {name}" for name in sorted(wanted.keys() - saved.keys())]
    problems += [f"unexpected {name}" for name in sorted(saved.keys() - wanted.keys())]
    problems += [
        f"{name} is {saved[name]} in the checkpoint and {wanted[name]} in the model"
        for name in sorted(saved.keys() & wanted.keys())
        if saved[name] != wanted[name]
    ]
    if problems:
        raise CheckpointError(
            f"{path} is of another model: {some(problems, '; ')}; "
            "build the model with the settings that the checkpoint was trained with"
        )


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _remove_leftovers(folder: Path) -> None:
    """Delete what saves that were cut short left, and put back what none of them replaced."""
    for replaced in folder.glob(".replaced-*"):
        place = folder / replaced.name.removeprefix(".replaced-")
        if not place.exists():
            replaced.rename(place)
    for leftover in [*folder.glob(".saving-*"), *folder.glob(".replaced-*")]:
        shutil.rmtree(leftover)
