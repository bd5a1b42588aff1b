"""A flipped byte, wherever it is in the journal or the checkpoints of a run, is detected: no command goes on
from it, and no weights come of it but those of the run."""

import contextlib
import io

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from zorn.cli import main
from zorn.config import BudgetConfig, Choice, Config, RunConfig
from zorn.errors import CheckpointError, JournalError
from zorn.run import checkpoints, latest_checkpoint
from zorn.run.checkpoint import Progress, load_checkpoint, save_checkpoint
from zorn.training import Trainer
from zorn.training.replay import replay

STEPS = 3
FLIPS = {"model": 0x01, "optimizer": 0x80, "estimator": 0xFF, "manifest": 0x20}
"""By kind of file, at every position; 0x20 makes a letter of JSON large or small."""

PLACES = st.integers(0, 10**9)
"""Positions, modulo a file's length."""

ANY_FLIP = st.integers(1, 255)


@contextlib.contextmanager
def flipped(file, position, flip):
    """A file with a byte flipped, in the `with` block."""
    data = file.read_bytes()
    damaged = bytearray(data)
    damaged[position] ^= flip
    file.write_bytes(damaged)
    try:
        yield
    finally:
        file.write_bytes(data)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint with all four kinds of files, each a few hundred bytes; and what is loaded into."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    progress = Progress(
        step=1, seconds=0.1 + 0.2, forward_passes=8, dropped=0, seed=5, estimator={"states": torch.ones(2)}
    )
    path = save_checkpoint(tmp_path_factory.mktemp("small"), progress, model, [optimizer])
    return path, model, [optimizer]


def is_noticed(path, model, optimizers):
    """Whether loading a checkpoint says that it is damaged."""
    try:
        load_checkpoint(path, model, optimizers)
    except CheckpointError as error:
        return path.name in str(error) and "damaged" in str(error)
    return False


@pytest.mark.parametrize(("kind", "flip"), FLIPS.items())
def test_any_byte_of_a_small_checkpoint(small, kind, flip):
    path, model, optimizers = small
    [file] = path.glob(f"{kind}.*")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    missed = []
    for position in range(file.stat().st_size):
        with flipped(file, position, flip):
            if not is_noticed(path, model, optimizers):
                missed.append(position)
    assert missed == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert load_checkpoint(path, model, optimizers).seconds == 0.1 + 0.2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's folder, with checkpoints of the start and the end."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = Config(
        task=Choice("copy", batch=4, minimum_length=1, maximum_length=1),
        model=Choice("lstm", hidden_size=2),
        estimator=Choice("cd-rge", population=4),
        optimizer=Choice("adamw"),
        budget=BudgetConfig(steps=STEPS),
        run=RunConfig(out=out, evaluations=1, checkpoint_seconds=1e6, threads=1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)
        Trainer(config, console=Console(file=io.StringIO())).run()
    assert (out / "journal.jsonl").read_bytes().count(b"\n") == 1 + STEPS
    return out


def printed(*words):
    """The exit code of a command, and all that it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(word) for word in words])
    return code, out.getvalue()


@given(PLACES, ANY_FLIP)
@settings(max_examples=15, deadline=None)
@example(0, 0xFF)
@example(130, 0x01)
@example(200, 0x80)
@example(-1, 0x01)
def test_a_byte_of_the_journal(run, place, flip):
    """Verify tells; the end is never made from it; and only damage at the very end, which is what a crash
    leaves, lets a run go on, from the step before."""
    file = run / "journal.jsonl"
    position = place % file.stat().st_size
    step = file.read_bytes().count(b"\n", 0, position)  # the lines before are the header and whole entries
    expected = f"step {step} " if step else "its header is damaged"
    ends = file.read_bytes()[position:] in (b"\n", b"\n" + file.read_bytes().splitlines(keepends=True)[-1])
    last = checkpoints(run / "checkpoints")[-1]
    hidden = last.rename(run / "hidden")
    try:
        with flipped(file, position, flip):
            code, said = printed("journal", "verify", run)
            assert code == 2
            assert expected in said
            with pytest.raises(JournalError):
                replay(run, STEPS, run.with_name("made"))
            if step == STEPS or ends:
                assert Trainer.resume(run, steps=9).step == step - 1
            else:
                with pytest.raises(JournalError, match=expected.strip()):
                    Trainer.resume(run, steps=9)
    finally:
        hidden.rename(last)
    assert not run.with_name("made").exists()


@given(st.sampled_from(["model.safetensors", "optimizer.safetensors", "manifest.json"]), PLACES, ANY_FLIP)
@settings(max_examples=15, deadline=None)
@example("model.safetensors", 0, 0x01)
@example("model.safetensors", 8, 0x01)
@example("optimizer.safetensors", -1, 0x80)
@example("manifest.json", -1, 0x2A)
def test_a_byte_of_a_checkpoint(run, name, place, flip):
    """The run does not go on from it, nor is it evaluated."""
    newest = latest_checkpoint(run / "checkpoints")
    position = place % (newest / name).stat().st_size
    with flipped(newest / name, position, flip):
        with pytest.raises(CheckpointError, match=f"{newest.name}.*damaged"):
            Trainer.resume(run, steps=9)
        code, said = printed("evaluate", run)
        assert (code, "damaged" in said) == (2, True)
