"""Tensors come back bit for bit from one file or many, and what is damaged is named."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import zorn
from zorn.errors import CheckpointError
from zorn.run import checkpoint as checkpoints
from zorn.run.checkpoint import Progress, load_checkpoint, save_checkpoint
from zorn.run.tensor_file import TensorFiles, write_tensors
from zorn.training.limits import is_finite, out_of_memory


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(7, 5, generator=generator),
        "b": torch.randn(9, generator=generator).to(torch.bfloat16),
        "c": torch.arange(4),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(True),
        "turned": torch.randn(3, 4, generator=generator).t(),
    }


@pytest.mark.parametrize("shard_bytes", [10, 150, 10**6])
def test_every_tensor_comes_back_in_place(tmp_path, shard_bytes):
    path, saved = tmp_path / "model.safetensors", tensors()
    files = write_tensors(path, saved, shard_bytes)
    assert (files == ["model.safetensors"]) == (shard_bytes == 10**6)
    assert sorted(files) == sorted(file.name for file in tmp_path.iterdir())
    found = TensorFiles([tmp_path / file for file in files if file.endswith(".safetensors")])
    assert sorted(found.names) == sorted(saved)
    for name, tensor in saved.items():
        place = torch.empty_like(tensor)  # "turned" is not contiguous
        found.read_into(name, place)
        assert torch.equal(place, tensor)
        assert torch.equal(found.read(name), tensor)


def test_the_layout_is_that_of_hugging_face(tmp_path):
    saved = tensors()
    write_tensors(tmp_path / "model.safetensors", saved, 150)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in saved.values())}
    assert set(index["weight_map"]) == set(saved)
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], saved[name])
    count = len(set(index["weight_map"].values()))
    assert set(index["weight_map"].values()) == {
        f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)
    }


def test_a_file_with_metadata_of_another_library_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path, metadata={"format": "pt"})
    assert TensorFiles([path]).names == ["a"]


def test_what_does_not_fit_the_place_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.ones(3)})
    files = TensorFiles([path])
    for place in (torch.ones(4), torch.ones(3, dtype=torch.float64)):
        with pytest.raises(CheckpointError, match=r"a is torch.float32 \[3\] in .* build the model"):
            files.read_into("a", place)
    with pytest.raises(CheckpointError, match="no tensor b is stored: the names are a"):
        files.read("b")


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_a_file_that_is_cut_short_is_named(tmp_path, cut):
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        CheckpointError, match=r"model.safetensors is no whole safetensors file .* copy it again"
    ):
        TensorFiles([path])


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent.safetensors is no whole safetensors file"):
        TensorFiles([tmp_path / "absent.safetensors"])


def test_a_tensor_is_read_in_parts_into_any_place(tmp_path, monkeypatch):
    """Parts of two rows, and of one row that is longer than a part."""
    path, saved = tmp_path / "model.safetensors", tensors()
    write_tensors(path, saved)
    for size in (40, 1):
        monkeypatch.setattr("zorn.run.tensor_file.READ_BYTES", size)
        for name, tensor in saved.items():
            place = torch.empty_like(tensor)
            TensorFiles([path]).read_into(name, place)
            assert torch.equal(place, tensor)


PEAK = """
import sys, torch
from pathlib import Path
from zorn.run.summary import peak_memory_bytes
from zorn.run.tensor_file import TensorFiles
place = torch.zeros(64, 2**20)  # 256 MiB
place.fill_(1.0)
files = TensorFiles([Path(sys.argv[1])])
before = peak_memory_bytes()
files.read_into("large", place)
assert place.sum() == 0
print((peak_memory_bytes() - before) / 2**20)
"""


def test_a_large_tensor_is_read_without_a_second_copy_in_memory(tmp_path):
    """Pages of the mapped file count as memory, too."""
    path = tmp_path / "model.safetensors"
    save_file({"large": torch.zeros(64, 2**20)}, path)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], stdout=subprocess.PIPE, text=True, check=True, timeout=240
    )
    assert float(done.stdout) < 100


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    saved = tensors() | {"large": torch.zeros(2**19)}
    left = {2**11: "2,048.2 KiB .* 2.0 KiB left", 2**21 - 2**10: "2,048.2 KiB .* 2,047.0 KiB left"}
    for free, figures in left.items():
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        with pytest.raises(OSError, match=rf"{figures}: make room"):
            write_tensors(tmp_path / "model.safetensors", saved)
        assert list(tmp_path.iterdir()) == []


def progress(step):
    return Progress(
        step=step, seconds=0.0, forward_passes=0, dropped=0, seed=0, estimator={"e": torch.ones(2)}
    )


def test_a_checkpoint_of_shards_is_verified_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoints, "write_tensors", lambda path, saved: write_tensors(path, saved, shard_bytes=100)
    )
    model = zorn.LanguageModel(7, 4, tie_embedding=True, seed=1, dtype=torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    path = save_checkpoint(tmp_path, progress(1), model, [optimizer])
    assert len(list(path.glob("model-*-of-*.safetensors"))) > 1
    other = zorn.LanguageModel(7, 4, tie_embedding=True, seed=2, dtype=torch.bfloat16)
    storages = [parameter.data_ptr() for parameter in other.parameters()]
    restored = torch.optim.Adam(other.parameters())
    assert load_checkpoint(path, other, [restored]).estimator["e"].tolist() == [1, 1]
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(optimizer.state[mine]["exp_avg"], restored.state[theirs]["exp_avg"])
    assert [parameter.data_ptr() for parameter in other.parameters()] == storages
    shard = next(path.glob("model-00002-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CheckpointError, match=rf"{shard.name} is damaged"):
        load_checkpoint(path, other)


def test_no_room_for_a_checkpoint_keeps_the_old_one(tmp_path, monkeypatch):
    model = zorn.LanguageModel(7, 4)
    save_checkpoint(tmp_path, progress(1), model, [], keep=1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(OSError, match=rf"do not fit on the disk of {tmp_path}, which has 0.0 KiB left"):
        save_checkpoint(tmp_path, progress(2), model, [], keep=1)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["step-00000001"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_number_that_is_not_finite_is_found_in_any_slice():
    weight = torch.zeros(2**20 + 5, dtype=torch.bfloat16)
    assert is_finite(weight)
    for place in (0, 2**20 + 4):
        bad = weight.clone()
        bad[place] = float("inf")
        assert not is_finite(bad)


def test_only_a_refusal_of_memory_is_one():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60)
    assert "memory" in (out_of_memory(refused.value) or "")
    assert out_of_memory(MemoryError()) == "no memory is left"
    assert out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered")) is None
