"""Tensors in safetensors files, written and read without a second copy in memory.

    model.safetensors                                    up to `SHARD_BYTES` in all, else
    model-00001-of-00003.safetensors, …                  shards of at most as much (a larger tensor is one)
    model.safetensors.index.json                         which shard holds which tensor

This is the layout of Hugging Face's libraries, so that either reads what the other wrote.
"""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from zorn.errors import CheckpointError
from zorn.run.tensor_tree import independent_copy

SHARD_BYTES = 5 * 10**9
"""Tensors of more bytes than this are written as several files; what Hugging Face's libraries take."""

READ_BYTES = 2**22
"""Bytes read at once for a tensor that does not lie on the CPU."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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
        >>> TensorFiles(folder / "model.safetensors").read("b")
        tensor([1., 1.])
    """
    _check_room(path.parent, sum(tensor.nbytes for tensor in tensors.values()))
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        _write(path, shards[0])
        return [path.name]
    names = [f"{path.stem}-{n:05d}-of-{len(shards):05d}{path.suffix}" for n in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write(path.with_name(name), shard)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    place = _index_of(path)
    place.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    synchronise(place)
    return [*names, place.name]


class TensorFiles:
    """Tensors of a file or of its shards, read one by one straight into their place.

    Args:
        path: NAME.safetensors; where there is none, NAME.safetensors.index.json names the shards.

    Attributes:
        names: of the tensors.

    Raises:
        CheckpointError: a file that is missing, or no safetensors file.

    Example: see `write_tensors`.
    """

    def __init__(self, path: Path) -> None:
        self._entries: dict[str, tuple[Path, dict[str, Any]]] = {}
        for file in _files(path):
            for name, entry in _header(file).items():
                self._entries[name] = file, entry
        self.names = list(self._entries)

    def read(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU; CheckpointError where there is none."""
        _, entry = self._found(name)
        tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="cpu")
        self.read_into(name, tensor)
        return tensor

    @torch.no_grad()
    def read_into(self, name: str, tensor: Tensor) -> None:
        """Fill `tensor`, of any device, with the one of that name; in place, through no other memory than a
        few MiB for another device than the CPU.

        Raises:
            CheckpointError: there is none of that name, shape and dtype.
        """
        path, entry = self._found(name)
        shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        if shape != tuple(tensor.shape) or dtype != tensor.dtype:
            raise CheckpointError(
                f"{name} is {dtype} {list(shape)} in {path} and {tensor.dtype} {list(tensor.shape)} in the "
                "model: build the model with the settings of that file"
            )
        if not tensor.is_contiguous():
            tensor.copy_(self.read(name))
            return
        raw = tensor.detach().reshape(-1).view(torch.uint8)
        with path.open("rb", buffering=0) as file:
            file.seek(entry["data_offsets"][0])
            if raw.device.type == "cpu":
                _read_exactly(file, raw, path)
                return
            for part in raw.split(READ_BYTES):
                here = torch.empty_like(part, device="cpu")
                _read_exactly(file, here, path)
                part.copy_(here)

    def _found(self, name: str) -> tuple[Path, dict[str, Any]]:
        if name not in self._entries:
            raise CheckpointError(f"no tensor {name} is stored: the names are {', '.join(self.names)}")
        return self._entries[name]


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Windows has no such wait for a folder."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows asks for leave to write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")


def _files(path: Path) -> list[Path]:
    """The file itself, or the shards that its index names."""
    index = _index_of(path)
    if path.is_file() or not index.is_file():
        return [path]
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of shards ({error}): restore it from a copy") from error
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise CheckpointError(f"{index} names files outside its folder: restore it from a copy")
    return [path.with_name(name) for name in sorted(names)]


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """Dtype, shape and place in the file, from its start, of each tensor of a safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            header = json.loads(file.read(min(length, size)))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        for entry in entries.values():
            entry["data_offsets"] = tuple(8 + length + offset for offset in entry["data_offsets"])
        whole = all(_is_inside(entry, size) for entry in entries.values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is no safetensors file ({error}): copy it again") from error
    if not whole:
        raise CheckpointError(f"{path} is cut short: copy it again")
    return entries


def _is_inside(entry: dict[str, Any], size: int) -> bool:
    """True where a tensor has as many bytes as its shape needs, all of them within a file of `size`."""
    first, last = entry["data_offsets"]
    return last - first == _DTYPES[entry["dtype"]].itemsize * math.prod(entry["shape"]) and last <= size


def _read_exactly(file: BinaryIO, raw: Tensor, path: Path) -> None:
    """Fill a contiguous CPU tensor of bytes from where the file stands."""
    view = raw.numpy().data
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError(f"{path} ends too early: copy it again")
        view = view[count:]
