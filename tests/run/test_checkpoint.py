"""Checkpoints: what is saved comes back, damage is noticed, and a crash while saving loses nothing."""

import contextlib
import dataclasses
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from zorn.errors import CheckpointError
from zorn.run.checkpoint import (
    Progress,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)

OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.001, momentum=0.9),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.1, amsgrad=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=torch.tensor(0.1)),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.1, centered=True),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.1),
    "lbfgs": lambda weights: torch.optim.LBFGS(weights, lr=0.1, history_size=3),
    "rprop": lambda weights: torch.optim.Rprop(weights, lr=0.1),
    "nadam": lambda weights: torch.optim.NAdam(weights, lr=0.1),
}


class Tied(nn.Module):
    """An embedding that is its own output matrix."""

    def __init__(self, size: int = 4, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(7, size, _weight=torch.randn(7, size, generator=generator))
        self.head = nn.Linear(size, 7)
        self.head.bias.data = torch.randn(7, generator=generator)
        self.head.weight = self.embedding.weight
        self.register_buffer("count", torch.tensor(seed))


def progress(step: int) -> Progress:
    estimator = {"step": step, "seed": 5, "epsilon": 0.1 + 0.2}
    return Progress(
        step=step,
        seconds=step / 3,
        forward_passes=8 * step,
        dropped=1,
        seed=5,
        estimator=estimator,
        settings={"hidden_size": 8, "time_chunk": None},
        text={"bytes": 3, "sha256": "ab"},
    )


def train(model, optimizer, steps):
    def closure():
        optimizer.zero_grad()
        loss = (model.head(model.embedding.weight) - 1).square().sum()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_goes_on_bit_for_bit(tmp_path, name):
    model = Tied()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 3)
    path = save_checkpoint(tmp_path, progress(3), model, [optimizer])
    train(model, optimizer, 3)

    other = Tied(seed=1)
    again = OPTIMIZERS[name](other.parameters())
    assert load_checkpoint(path, other, [again]) == progress(3)
    train(other, again, 3)
    for (key, expected), (_, got) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert expected.isfinite().all(), key
        assert torch.equal(expected, got), key


def test_an_estimators_state_may_hold_tensors(tmp_path):
    carried = [torch.tensor([[0.5, -0.5]]), torch.tensor([True, False])]
    state = {"step": 4, "sizes": {"head": 0.25}, "segment": {"lost": carried[1], "states": carried[:1]}}
    path = save_checkpoint(tmp_path, dataclasses.replace(progress(4), estimator=state), Tied(), [])
    assert (path / "estimator.safetensors").is_file()
    assert read_progress(path) == dataclasses.replace(progress(4), estimator={})
    back = load_checkpoint(path, Tied()).estimator
    assert back["step"] == 4
    assert back["sizes"] == {"head": 0.25}
    assert torch.equal(back["segment"]["lost"], carried[1])
    assert torch.equal(back["segment"]["states"][0], carried[0])
    (path / "estimator.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"estimator\.safetensors is missing"):
        load_checkpoint(path, Tied())


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    path = save_checkpoint(tmp_path, progress(0), Tied(size=500), [])
    assert (path / "model.safetensors").stat().st_size < 1.5 * 7 * 500 * 4
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "model.safetensors"]
    other = Tied(size=500, seed=1)
    load_checkpoint(path, other)
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other.head.weight, Tied(size=500).head.weight)
    assert other.count == 0


def test_bfloat16_comes_back_bit_for_bit(tmp_path):
    model = nn.Linear(3, 2).to(torch.bfloat16)
    path = save_checkpoint(tmp_path, progress(0), model, [])
    other = nn.Linear(3, 2).to(torch.bfloat16)
    load_checkpoint(path, other)
    assert torch.equal(model.weight.view(torch.int16), other.weight.view(torch.int16))


def test_the_newest_are_kept(tmp_path):
    model = Tied()
    for step in (0, 5, 10, 2000):
        save_checkpoint(tmp_path, progress(step), model, [], keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010", "step-00002000"]
    assert len(list(tmp_path.iterdir())) == 2
    assert latest_checkpoint(tmp_path).name == "step-00002000"


def test_saving_a_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, progress(1), Tied(), [])
    path = save_checkpoint(tmp_path, progress(1), Tied(seed=1), [])
    model = Tied()
    load_checkpoint(path, model)
    assert torch.equal(model.head.weight, Tied(seed=1).head.weight)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]


def test_a_folder_without_a_whole_manifest_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* name the folder of a run"):
        latest_checkpoint(tmp_path / "absent")
    model = Tied()
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, progress(step), model, [], keep=9)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    (tmp_path / ".saving-step-00000004").mkdir()
    (tmp_path / "step-of-mine").mkdir()
    assert latest_checkpoint(tmp_path).name == "step-00000002"
    with pytest.raises(
        CheckpointError, match=r"step-00000003 is no checkpoint.*step-00000002 before it is intact"
    ):
        load_checkpoint(tmp_path / "step-00000003", model)
    save_checkpoint(tmp_path, progress(5), model, [], keep=9)
    assert not (tmp_path / ".saving-step-00000004").exists()
    assert (tmp_path / "step-of-mine").exists()


def test_a_damaged_manifest_of_the_newest_is_an_error_and_never_an_older_checkpoint(tmp_path):
    model = Tied()
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, progress(step), model, [], keep=9)
    newest = tmp_path / "step-00000003"
    manifest = newest / "manifest.json"
    whole = manifest.read_bytes()
    for damaged in (b"", b"[]", whole[:-30], whole.replace(b"float32", b"float33")):
        manifest.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            latest_checkpoint(tmp_path)
        assert str(caught.value) == (
            f"the manifest of the newest checkpoint {newest} is damaged; {tmp_path / 'step-00000002'} before "
            f"it is intact: move or delete {newest} to resume from there"
        )
    shutil.rmtree(newest)
    assert latest_checkpoint(tmp_path).name == "step-00000002"


def test_the_newest_is_the_one_of_the_largest_step_not_of_the_last_name(tmp_path):
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, progress(step), Tied(), [])
    assert latest_checkpoint(tmp_path).name == "step-100000000"
    save_checkpoint(tmp_path, progress(100_000_001), Tied(), [])
    assert [path.name for path in checkpoints(tmp_path)] == ["step-100000000", "step-100000001"]


def test_a_checkpoint_under_another_name_loads_and_its_damage_is_told(tmp_path):
    path = save_checkpoint(tmp_path, progress(1), Tied(), []).rename(tmp_path / "best")
    assert load_checkpoint(path, Tied()) == progress(1)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"best/model\.safetensors is missing; no intact checkpoint"):
        load_checkpoint(path, Tied())


@contextlib.contextmanager
def file_size_limit(size):
    """The system refuses to make files longer than this, as a full disk does at some byte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("refused", ["model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_disk_that_refuses_is_an_os_error_and_leaves_what_was_there(tmp_path, refused):
    """At the last byte of one of the files, each longer than the one before."""
    model = Tied(size=1)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 1)
    path = save_checkpoint(tmp_path, progress(1), model, [optimizer], keep=1)
    before = {file: file.read_bytes() for file in path.iterdir()}
    sizes = {file.name: len(content) for file, content in before.items()}
    assert sizes["model.safetensors"] < sizes["optimizer.safetensors"] < sizes["manifest.json"]
    with file_size_limit(sizes[refused] - 1), pytest.raises(OSError, match="File too large"):
        save_checkpoint(tmp_path, progress(2), model, [optimizer], keep=1)
    assert list(tmp_path.iterdir()) == [path]
    assert {file: file.read_bytes() for file in path.iterdir()} == before


def test_a_step_whose_replacement_fails_stays(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, progress(1), Tied(), [])
    rename = Path.rename

    def refuse(self, target):
        if self.name.startswith(".saving-"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        save_checkpoint(tmp_path, progress(1), Tied(seed=1), [])
    model = Tied(seed=2)
    load_checkpoint(latest_checkpoint(tmp_path), model)
    assert torch.equal(model.head.weight, Tied().head.weight)
    assert list(tmp_path.iterdir()) == [path]


def test_every_damaged_byte_and_every_cut_is_noticed(tmp_path):
    """One flipped bit at many places of each file, and the file cut short at many places."""
    model = Tied()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 1)
    save_checkpoint(tmp_path, progress(1), model, [optimizer])
    path = save_checkpoint(tmp_path, progress(2), model, [optimizer])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    picks = random.Random(0)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        last = len(whole.rstrip()) - 1  # the manifest ends in a newline, which carries nothing
        for _ in range(12):
            place = picks.randint(0, last)
            flipped = bytearray(whole)
            flipped[place] ^= 1 << picks.randint(0, 7)
            for damaged in (bytes(flipped), whole[:place]):
                file.write_bytes(damaged)
                with pytest.raises(
                    CheckpointError,
                    match=r"step-00000001 before it is intact: move or delete .*step-00000002",
                ):
                    load_checkpoint(path, model, [optimizer])
        file.unlink()
        with pytest.raises(CheckpointError, match="missing"):
            load_checkpoint(path, model, [optimizer])
        file.write_bytes(whole)
    assert load_checkpoint(path, model, [optimizer]) == progress(2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_without_an_intact_one_the_message_says_so(tmp_path):
    path = save_checkpoint(tmp_path, progress(1), Tied(), [])
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is damaged: it has .* no intact checkpoint is left"
    ):
        load_checkpoint(path, Tied())


def test_a_checkpoint_of_another_model_is_refused_with_sorted_names(tmp_path):
    path = save_checkpoint(tmp_path, progress(1), Tied(), [])
    other = Tied(size=5)
    other.extra = nn.Parameter(torch.zeros(1))
    other.bonus = nn.Parameter(torch.zeros(1))
    del other.count
    with pytest.raises(
        CheckpointError,
        match=r"of another model: missing bonus; missing extra; unexpected count; embedding\.weight is "
        r"float32 \[7, 4\] in the checkpoint and float32 \[7, 5\] in the model; build the model",
    ):
        load_checkpoint(path, other)
    with pytest.raises(
        CheckpointError, match=r"head\.bias is float32 \[7\] in the checkpoint and bfloat16 \[7\]"
    ):
        load_checkpoint(path, Tied().to(torch.bfloat16))


def test_an_optimizer_needs_saved_state(tmp_path):
    path = save_checkpoint(tmp_path, progress(1), Tied(), [])
    model = Tied(seed=1)
    with pytest.raises(CheckpointError, match="holds no optimizer state"):
        load_checkpoint(path, model, [OPTIMIZERS["adam"](model.parameters())])
    assert model.count == 1


def test_another_format_is_refused_by_number(tmp_path, monkeypatch):
    monkeypatch.setattr("zorn.run.checkpoint.FORMAT", 6)
    path = save_checkpoint(tmp_path, progress(1), Tied(), [])
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="is of checkpoint format 6, this zorn reads format 5"):
        load_checkpoint(path, Tied())


def test_the_format_is_frozen(tmp_path):
    """Old checkpoints must stay readable: a change here needs a new format number."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.zero_()
    path = save_checkpoint(tmp_path, progress(3), model, [torch.optim.SGD(model.parameters(), lr=0.5)])
    manifest = json.loads((path / "manifest.json").read_text())
    assert list(manifest) == [
        *("format", "zorn", "torch", "progress", "estimator", "model", "optimizers", "files"),
        "sha256",
    ]
    assert list(manifest["progress"]) == [
        *("step", "seconds", "forward_passes", "dropped", "seed", "estimator", "settings", "text"),
    ]
    assert manifest["format"] == 5
    assert manifest["progress"]["estimator"] == {}
    assert manifest["estimator"]["dict"][0] == ["step", {"value": 3}]
    assert manifest["model"] == {"weight": "float32 [1, 2]", "bias": "float32 [1]"}
    (optimizer,) = manifest["optimizers"]["list"]
    assert optimizer["dict"][0] == ["state", {"dict": []}]
    assert manifest["files"]["model.safetensors"] == {
        "bytes": 140,
        "sha256": "ee25b67978a51a6e52ac9e42f558ad05445fddffa5aae299ef143433899babe1",
    }


KILLER = """
import os, random, signal, sys, time, torch
from pathlib import Path
from zorn.run.checkpoint import Progress, save_checkpoint

torch.set_num_threads(1)

model = torch.nn.Linear(300, 300)
optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)  # here, before the forks: torch imports late

def save_for_ever(folder, pipe):
    for step in range(1, 10**6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
                optimizer.state[parameter] = {"momentum_buffer": torch.full_like(parameter, step)}
        estimator = {"step": step}
        progress = Progress(
            step=step, seconds=0.0, forward_passes=step, dropped=0, seed=0, estimator=estimator
        )
        save_checkpoint(folder, progress, model, [optimizer], keep=2)
        os.write(pipe, b"%d " % step)

moments = random.Random(0)
for trial in range(int(sys.argv[2])):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        save_for_ever(Path(sys.argv[1]) / str(trial), writing)
    os.close(writing)
    reported = os.read(reading, 100)
    time.sleep(moments.uniform(0.0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 100):
        reported += more
    os.close(reading)
    print(reported.split()[-1].decode())
"""


def test_a_process_killed_while_saving_leaves_the_last_checkpoint_whole(tmp_path):
    """SIGKILL at random moments of loops that save all the time: what they reported as saved is there."""
    trials = 10
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), str(trials)],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    reported = [int(line) for line in done.stdout.split()]
    assert len(reported) == trials
    cut_short = 0
    for trial, last in enumerate(reported):
        folder = tmp_path / str(trial)
        model = nn.Linear(300, 300)
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
        step = load_checkpoint(latest_checkpoint(folder), model, [optimizer]).step
        assert step in (last, last + 1)
        assert all(bool((parameter == step).all()) for parameter in model.parameters())
        buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
        assert len(buffers) == 2
        assert all(bool((buffer == step).all()) for buffer in buffers)
        cut_short += any(not entry.name.startswith("step-") for entry in folder.iterdir())
        save_checkpoint(folder, progress(step + 1), model, [optimizer])
        assert all(entry.name.startswith("step-") for entry in folder.iterdir())
    assert cut_short > 0, "no kill hit a save: the test proves nothing"
