"""The journal of estimators whose members carry states along a stream: any step's weights are made again, and
a run that was killed goes back to where its segment began."""

import io
import json
import shutil

import pytest
from rich.console import Console

from zorn.config import BudgetConfig, Choice, Config, change
from zorn.errors import CheckpointError
from zorn.run import checkpoints, latest_checkpoint
from zorn.run.journal import read_journal
from zorn.run.loggers import MetricsLog, read_metrics
from zorn.training import Trainer
from zorn.training.load import load_run
from zorn.training.replay import replay

STREAM = 3
"""Windows of a segment: one begins before steps 0, 3 and 6."""

SCHEDULES = {"schedule": "cosine", "epsilon_schedule": "cosine"}
WAYS = {
    "pes": ({}, SCHEDULES, {}),
    "pes, fused bfloat16": ({"noise": "gaussian"}, {"optimizer": "fused-sgd"}, {"dtype": "bfloat16"}),
    "pes, growing": ({"final_population": 16}, SCHEDULES, {}),
    "nres": ({"shaping": "zscore"}, SCHEDULES | {"optimizer": "sgd", "momentum": 0.9}, {}),
    "nres, dense": ({"perturbation": "dense", "group_size": None, "population": 3}, {"clip_norm": 0.1}, {}),
}


@pytest.fixture(autouse=True)
def no_picture_and_a_short_sample(monkeypatch):
    """They take longer than these runs take to train."""
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)
    monkeypatch.setattr("zorn.training.trainer.SAMPLE_LENGTH", 2)


@pytest.fixture
def settings(tmp_path):
    """Settings of a run in a folder of this name; only its start and its end are saved."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog, again and again. " * 20)

    def make(name, way, *, steps=8, **run):
        options, optimizer, format_ = WAYS[way]
        named = {"out": tmp_path / name, "evaluations": 2, "checkpoint_seconds": 1e6} | format_
        start = Config(
            task=Choice("text", source=str(text), batch=4, length=5, stream=STREAM),
            model=Choice("lstm", hidden_size=4),
            estimator=Choice(way.split(",")[0], population=8),
            budget=BudgetConfig(steps=steps),
        )
        return change(start, **options, **optimizer, **(named | run))

    return make


def train(config):
    Trainer(config, console=Console(file=io.StringIO())).run()


def resume(folder, **options):
    return Trainer.resume(folder, console=Console(file=io.StringIO()), **options)


def kill(config, *, at, save_at=None):
    """A run killed in the step after `at`, with its start saved, and the step `save_at`."""
    run = Trainer(config, console=Console(file=io.StringIO()))
    update = run._update

    class Killed(BaseException):
        """Nothing is saved after this."""

    def update_or_die(*arguments):
        if run.step == save_at:
            run._save()
        if run.step == at:
            raise Killed
        return update(*arguments)

    run._update = update_or_die
    with pytest.raises(Killed):
        run.run()


def tensors(checkpoint):
    return {file.name: file.read_bytes() for file in checkpoint.glob("*.safetensors")}


def learned(checkpoint):
    """Weights and optimizer, without the states of members."""
    return {name: data for name, data in tensors(checkpoint).items() if name != "estimator.safetensors"}


def newest(folder):
    return tensors(latest_checkpoint(folder / "checkpoints"))


def lines(folder):
    records = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "seconds"} for line in records]


def coefficients(folder):
    return [entry.fold.coded.tolist() for entry in read_journal(folder / "journal.jsonl")]


@pytest.mark.parametrize("way", WAYS)
def test_any_step_is_made_again_bit_for_bit_without_a_forward_pass(tmp_path, settings, way, monkeypatch):
    """Every step of the run is saved; the replay has none of them but the seed, or the last."""
    train(settings("run", way, steps=5, keep=9, checkpoint_seconds=0.0))
    saved = tmp_path / "saved"
    (tmp_path / "run" / "checkpoints").rename(saved)
    assert len({json.dumps(sorted(map(hash, learned(path).values()))) for path in checkpoints(saved)}) == 6
    shutil.copytree(saved / "step-00000005", tmp_path / "run" / "checkpoints" / "step-00000005")

    def refuse(*_, **__):
        raise AssertionError("a forward pass")

    monkeypatch.setattr("zorn.models.language_model.LanguageModel.forward", refuse)
    for step in range(5):
        made = replay(tmp_path / "run", step, tmp_path / str(step))
        assert learned(made) == learned(saved / made.name), f"step {step}"


def test_an_entry_holds_a_number_a_member_however_long_the_segment(tmp_path, settings):
    train(settings("run", "pes", steps=4))
    entries = list(read_journal(tmp_path / "run" / "journal.jsonl"))
    assert [len(entry.fold.coded) for entry in entries] == [8] * 4
    assert [(entry.fold.origin, entry.fold.draws) for entry in entries] == [(0, 1), (0, 2), (0, 3), (3, 1)]


@pytest.mark.parametrize(
    ("way", "at", "save_at", "goes_on_from"),
    [
        ("pes", 2, None, 0),
        ("pes", 5, None, 3),
        ("pes, growing", 5, 4, 4),
        ("pes, fused bfloat16", 6, 4, 6),
        ("nres", 7, 1, 6),
    ],
)
def test_a_run_that_was_killed_goes_back_to_its_segment_and_ends_with_the_same_bits(
    tmp_path, settings, way, at, save_at, goes_on_from
):
    train(settings("whole", way))
    kill(settings("run", way), at=at, save_at=save_at)
    assert len(coefficients(tmp_path / "run")) == at
    again = resume(tmp_path / "run")
    assert again.step == goes_on_from
    again.run()
    assert newest(tmp_path / "run") == newest(tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert coefficients(tmp_path / "run") == coefficients(tmp_path / "whole")


@pytest.mark.parametrize("step", [2, 3])
def test_a_line_that_is_made_from_the_journal_is_the_one_that_was_lost(tmp_path, settings, monkeypatch, step):
    """A segment keeps its ε and its members, whatever the schedules say meanwhile."""
    train(settings("whole", "pes, growing"))
    write = MetricsLog.write

    class Killed(BaseException):
        """Between the entry of a step and its line."""

    def write_or_die(log, record):
        if record["kind"] == "train" and record["step"] == step:
            raise Killed
        write(log, record)

    with monkeypatch.context() as dying:
        dying.setattr(MetricsLog, "write", write_or_die)
        with pytest.raises(Killed):
            train(settings("run", "pes, growing"))
    said = io.StringIO()
    Trainer.resume(tmp_path / "run", console=Console(file=said, width=300)).run()
    assert ("taken again" in said.getvalue()) == (step == 2)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    epsilons = [line["epsilon"] for line in lines(tmp_path / "run") if line["kind"] == "train"]
    assert epsilons[0] == epsilons[STREAM - 1] != epsilons[STREAM]


def test_what_a_replay_makes_is_gone_on_with_where_a_segment_begins_and_evaluated_anywhere(
    tmp_path, settings
):
    train(settings("run", "pes"))
    replay(tmp_path / "run", 6, tmp_path / "6")
    resume(tmp_path / "6").run()
    assert newest(tmp_path / "6") == newest(tmp_path / "run")
    replay(tmp_path / "run", 7, tmp_path / "7")
    task, model = load_run(tmp_path / "7")
    assert task.evaluate(model).loss > 0
    with pytest.raises(CheckpointError, match=r"after step 7, in the middle of a segment, .*--to-step 6"):
        resume(tmp_path / "7")
    replay(tmp_path / "run", 8, tmp_path / "8")  # saved with the states
    resume(tmp_path / "8", steps=9).run()
    resume(tmp_path / "run", steps=9).run()
    assert newest(tmp_path / "8") == newest(tmp_path / "run")


def test_without_a_journal_a_run_goes_back_to_its_checkpoint(tmp_path, settings):
    train(settings("whole", "nres", journal=False))
    kill(settings("run", "nres", journal=False), at=7, save_at=4)
    again = resume(tmp_path / "run")
    assert again.step == 4
    again.run()
    assert newest(tmp_path / "run") == newest(tmp_path / "whole")
