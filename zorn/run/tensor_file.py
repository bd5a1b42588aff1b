"""Tensors in safetensors files, written and read without a second copy in memory.

    model.safetensors                                    up to `SHARD_BYTES` in all, else
    model-00001-of-00003.safetensors, …                  shards of at most as much (a larger tensor is one)
    model.safetensors.index.json                         which shard holds which tensor

This is the layout of Hugging Face's libraries, which read such files.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zorn.errors import CheckpointError
from zorn.run.files import synchronise
from zorn.run.tensor_tree import independent_copy

SHARD_BYTES = 5 * 10**9
"""Tensors of more bytes than this are written as several files; what Hugging Face's libraries take."""

READ_BYTES = 2**26
"""Bytes of a tensor that are read at once: what is mapped beside the tensors that are filled."""


def write_tensors(path: Path, tensors: dict[str, Tensor], shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write tensors to `path` (NAME.safetensors), or to shards and an index beside it; each is on the disk
    afterwards.

    Nothing is copied but tensors that are not contiguous on the CPU, shard by shard.

    Args:
        shard_bytes: of a file at most, but for one with a single larger tensor.

    Returns:
        The names of the files, in the folder of `path`.

    Raises:
        OSError: the disk has no room, which is checked first, or refuses.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_tensors(folder / "model.safetensors", {"a": torch.zeros(2), "b": torch.ones(2)})
        ['model.safetensors']
        >>> TensorFiles([folder / "model.safetensors"]).read("b")
        tensor([1., 1.])
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    _check_room(path.parent, total)
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        _write(path, shards[0])
        return [path.name]
    names = [f"{path.stem}-{n:05d}-of-{len(shards):05d}{path.suffix}" for n in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write(path.with_name(name), shard)
    places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = path.with_name(f"{path.name}.index.json")
    content = {"metadata": {"total_size": total}, "weight_map": places}
    index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    synchronise(index)
    return [*names, index.name]


class TensorFiles:
    """Tensors of one or more safetensors files, read one by one straight into their place.

    Args:
        paths: of the files.

    Attributes:
        names: of the tensors.

    Raises:
        CheckpointError: a file that is missing, or no whole safetensors file.

    Example: see `write_tensors`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._places: dict[str, Path] = {}
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    self._places |= dict.fromkeys(file.keys(), path)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{path} is no whole safetensors file ({error}): copy it again"
                ) from error
        self.names = list(self._places)

    def read(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU, in memory of its own; CheckpointError where there is none."""
        return self._mapped(name).clone()

    @torch.no_grad()
    def read_into(self, name: str, tensor: Tensor) -> None:
        """Fill `tensor`, of any device, with the one of that name; in place, through no other memory than
        `READ_BYTES`, or a row of it where that is more.

        Raises:
            CheckpointError: there is none of that name, shape and dtype.
        """
        saved = self._mapped(name)
        if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
            raise CheckpointError(
                f"{name} is {saved.dtype} {list(saved.shape)} in {self._places[name]} and {tensor.dtype} "
                f"{list(tensor.shape)} in the model: build the model with the settings of that file"
            )
        place = torch.atleast_1d(tensor)
        rows = max(1, READ_BYTES * len(place) // max(1, tensor.nbytes))
        for start in range(0, len(place), rows):
            here = slice(
                start, start + rows
            )  # mapped anew, as the pages of a mapping stay once they are read
            place[here] = torch.atleast_1d(self._mapped(name))[here]

    def _mapped(self, name: str) -> Tensor:
        """The tensor in the mapped file, of which nothing is read yet."""
        if name not in self._places:
            raise CheckpointError(f"no tensor {name} is stored: the names are {', '.join(self.names)}")
        with safe_open(self._places[name], framework="pt") as file:
            return file.get_tensor(name)


def _shards(tensors: dict[str, Tensor], shard_bytes: int) -> list[dict[str, Tensor]]:
    """The tensors in their order, cut where a shard would become too large; at least one shard."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        place = folder.parent if folder.name.startswith(".saving-") else folder  # that one goes again
        raise OSError(
            f"{_shown(needed)} of tensors do not fit on the disk of {place}, which has {_shown(free)} left: "
            "make room, or keep fewer checkpoints"
        )


def _shown(size: int) -> str:
    """Bytes, in a unit that leaves a difference to be seen in one decimal."""
    for unit, bytes_ in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= 10 * bytes_:
            return f"{size / bytes_:,.1f} {unit}"
    return f"{size / 2**10:,.1f} KiB"


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(independent_copy(tensors), path)
    except SafetensorError as error:  # what its writer makes of an OSError
        raise OSError(f"cannot write {path}: {error}") from error
    synchronise(path)
