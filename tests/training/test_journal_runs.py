"""Runs with a journal: any step is made again bit for bit, and a run goes on from its last step."""

import dataclasses
import io
import json
import shutil

import pytest
from rich.console import Console

from zorn.config import BudgetConfig, Choice, Config, RunConfig, change
from zorn.errors import ConfigError, JournalError
from zorn.run import checkpoints, latest_checkpoint
from zorn.run.checkpoint import read_progress
from zorn.run.journal import read_journal
from zorn.run.loggers import read_metrics
from zorn.tasks.task import Task
from zorn.training import Trainer
from zorn.training.load import load_run
from zorn.training.replay import replay
from zorn.training.step import move_weights


def settings(out, *, steps=6, estimator="cd-rge", optimizer=None, model=None, options=None, **run):
    """Only the start and the end are saved, unless `run` says otherwise."""
    start = Config(
        task=Choice("copy", batch=4, minimum_length=1, maximum_length=2),
        model=Choice("lstm", hidden_size=4),
        estimator=Choice(estimator),
        budget=BudgetConfig(steps=steps),
        run=RunConfig(out=out, evaluations=2, checkpoint_seconds=1e6),
    )
    members = {} if estimator in ("activity", "bptt") else {"population": 8}
    groups = (model or {}, members | (options or {}), optimizer or {}, run)
    return change(start, **{name: value for group in groups for name, value in group.items()})


def train(config):
    trainer = Trainer(config, console=Console(file=io.StringIO()))
    trainer.run()
    return trainer


def resume(folder, **options):
    return Trainer.resume(folder, console=Console(file=io.StringIO()), **options)


def tensors(checkpoint):
    return {file.name: file.read_bytes() for file in checkpoint.glob("*.safetensors")}


def newest(folder):
    return tensors(latest_checkpoint(folder / "checkpoints"))


def lines(folder):
    records = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "seconds"} for line in records]


def crash(folder, keep=1):
    """What is left where a run is killed after its last step: the journal, and the first checkpoints."""
    for path in checkpoints(folder / "checkpoints")[keep:]:
        shutil.rmtree(path)
    (folder / "summary.json").unlink()


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)


@pytest.fixture
def no_data(monkeypatch):
    """A replay reads no batch and runs no forward pass."""

    def refuse(*_, **__):
        raise AssertionError("data or a forward pass")

    def enter():
        monkeypatch.setattr(Task, "training_batch", refuse, raising=False)
        monkeypatch.setattr("zorn.models.language_model.LanguageModel.forward", refuse)
        monkeypatch.setattr("zorn.estimators.zero_order.ZeroOrderEstimator.evaluate", refuse)

    return enter


SCHEDULES = {"schedule": "cosine", "warmup_steps": 2, "epsilon_schedule": "cosine"}
WAYS = {
    "cd-rge, adamw, clipped": ("cd-rge", {"final_population": 16}, {"optimizer": "adamw", "clip_norm": 0.1}),
    "fd-rge, sgd with momentum": ("fd-rge", {"noise": "gaussian"}, {"optimizer": "sgd", "momentum": 0.9}),
    "spsa-1.5, adam": ("spsa-1.5", {"shaping": "zscore"}, {}),
    "cd-rge, dense, adam": ("cd-rge", {"perturbation": "dense", "group_size": None, "population": 3}, {}),
    "cd-rge, fused": ("cd-rge", {}, {"optimizer": "fused-sgd", "weight_decay": 0.1}),
    "cd-rge, fused bfloat16": ("cd-rge", {}, {"optimizer": "fused-sgd"}),
    "fd-rge, dense, fused bfloat16": (
        "fd-rge",
        {"perturbation": "dense", "group_size": None, "population": 3},
        {"optimizer": "fused-sgd"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_any_step_is_made_again_bit_for_bit_without_data(tmp_path, way, no_data):
    """Every step of the run is saved; the replay has none of them but the seed, or the first."""
    estimator, options, optimizer = WAYS[way]
    dtype = "bfloat16" if way.endswith("bfloat16") else "float32"
    options = {"estimator": estimator, "options": options, "optimizer": optimizer | SCHEDULES}
    config = settings(tmp_path / "run", steps=4, dtype=dtype, keep=9, checkpoint_seconds=0.0, **options)
    train(config)
    saved = {path.name: path for path in checkpoints(tmp_path / "run" / "checkpoints")}
    assert len({json.dumps(sorted(map(hash, tensors(path).values()))) for path in saved.values()}) == 5
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "saved")
    shutil.copytree(tmp_path / "saved" / "step-00000004", tmp_path / "run" / "checkpoints" / "step-00000004")
    no_data()
    for step in (0, 1, 3):
        made = replay(tmp_path / "run", step, tmp_path / str(step))
        assert tensors(made) == tensors(tmp_path / "saved" / made.name)
        ours, theirs = read_progress(made), read_progress(tmp_path / "saved" / made.name)
        clocked = dataclasses.replace(ours, seconds=theirs.seconds)
        assert clocked == theirs


def test_a_step_is_made_from_the_nearest_checkpoint(tmp_path, monkeypatch):
    train(settings(tmp_path / "run", keep=3, checkpoint_seconds=0.0))
    taken = []
    monkeypatch.setattr("zorn.training.replay.move_weights", lambda *a: taken.append(1) or move_weights(*a))
    assert replay(tmp_path / "run", 5, tmp_path / "5").name == "step-00000005"
    assert taken == []
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000005")
    made = replay(tmp_path / "run", 5, tmp_path / "again")
    assert taken == [1]
    assert tensors(made) == newest(tmp_path / "5")


def test_a_run_that_is_replayed_can_be_evaluated_and_gone_on_with(tmp_path):
    train(settings(tmp_path / "run"))
    replay(tmp_path / "run", 3, tmp_path / "branch")
    task, model = load_run(tmp_path / "branch")
    assert task.evaluate(model).loss > 0
    resume(tmp_path / "branch").run()
    assert newest(tmp_path / "branch") == newest(tmp_path / "run")
    assert [entry.step for entry in read_journal(tmp_path / "branch" / "journal.jsonl")] == [4, 5, 6]


RESUMED = ["cd-rge, adamw, clipped", "fd-rge, sgd with momentum", "fd-rge, dense, fused bfloat16"]


@pytest.mark.parametrize("way", RESUMED)
def test_a_run_that_was_killed_goes_on_from_its_last_step(tmp_path, way):
    """Killed after 4 of 6 steps, with only the start saved."""
    estimator, options, optimizer = WAYS[way]
    dtype = "bfloat16" if way.endswith("bfloat16") else "float32"
    options = {"estimator": estimator, "options": options, "optimizer": optimizer, "dtype": dtype}
    train(settings(tmp_path / "whole", **options))
    killed = Trainer(settings(tmp_path / "run", **options), console=Console(file=io.StringIO()))
    update = killed._update

    class Killed(BaseException):
        """Nothing is saved after this."""

    def update_or_die(*arguments):
        if killed.step == 4:
            raise Killed
        return update(*arguments)

    killed._update = update_or_die
    with pytest.raises(Killed):
        killed.run()
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000000"]
    again = resume(tmp_path / "run")
    assert again.step == 4
    again.run()
    assert newest(tmp_path / "run") == newest(tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_crash_between_two_writes_neither_loses_nor_doubles_a_line(tmp_path):
    """The log is cut at every line, and within lines: the journal has the rest."""
    whole = tmp_path / "whole"
    train(settings(whole, steps=3, evaluations=3))
    expected = lines(whole)
    text = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    kinds = [(json.loads(line)["kind"], json.loads(line)["step"]) for line in text]
    crash(whole)
    for cut in range(len(text) + 1):
        run = tmp_path / f"cut {cut}"
        shutil.copytree(whole, run)
        step = max([step for _, step in kinds[:cut]], default=0)
        written = step + 1 if kinds[cut : cut + 1] == [("train", step + 1)] else step
        entries = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
        torn = b"".join(entries[: written + 1]) + b'{"step": '
        (run / "journal.jsonl").write_bytes(torn)
        (run / "metrics.jsonl").write_text("".join(text[:cut]) + ("" if cut % 2 else '{"kind": "tr'))
        resume(run).run()
        assert lines(run) == expected, f"after {kinds[:cut]}"
        assert newest(run) == newest(tmp_path / "cut 0")


def test_a_run_killed_at_its_very_end_is_finished_and_saved(tmp_path):
    train(settings(tmp_path / "run"))
    expected, logged = newest(tmp_path / "run"), lines(tmp_path / "run")
    crash(tmp_path / "run")
    again = resume(tmp_path / "run")
    assert again.step == 6
    again.run()
    assert newest(tmp_path / "run") == expected
    assert lines(tmp_path / "run") == logged
    assert (tmp_path / "run" / "summary.json").exists()
    with pytest.raises(ConfigError, match="is finished after 6 steps"):
        resume(tmp_path / "run")


def test_a_torn_entry_is_dropped_and_said(tmp_path):
    train(settings(tmp_path / "run"))
    expected = newest(tmp_path / "run")
    crash(tmp_path / "run")
    file = tmp_path / "run" / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    torn = len(file.read_bytes().splitlines()[-1])
    again = resume(tmp_path / "run")
    assert again.step == 5
    again.run()
    assert f"its last {torn} bytes were no whole line" in again.console.file.getvalue()
    assert newest(tmp_path / "run") == expected


def test_damage_in_the_middle_stops_a_resume_until_the_journal_is_moved_away(tmp_path):
    train(settings(tmp_path / "run", steps=4, keep=2, checkpoint_seconds=0.0))
    file = tmp_path / "run" / "journal.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"step": 2', b'"step": 6'))
    with pytest.raises(JournalError, match=r"damaged at step 2 .* move it away"):
        resume(tmp_path / "run", steps=6)
    file.rename(tmp_path / "damaged.jsonl")
    resume(tmp_path / "run", steps=6).run()
    assert [entry.step for entry in read_journal(file)] == [5, 6]
    with pytest.raises(JournalError, match=r"step must be at least 4, got 2: the journal of .* begins there"):
        replay(tmp_path / "run", 2, tmp_path / "2")
    assert not (tmp_path / "2").exists()
    replay(tmp_path / "run", 6, tmp_path / "6")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000005")
    with pytest.raises(JournalError, match="step 5 needs weights from step 4, where"):
        replay(tmp_path / "run", 5, tmp_path / "5")


def test_a_journal_of_another_run_is_refused(tmp_path):
    train(settings(tmp_path / "one", steps=2))
    train(settings(tmp_path / "other", steps=2, seed=1))
    shutil.copy(tmp_path / "other" / "journal.jsonl", tmp_path / "one" / "journal.jsonl")
    for use in (
        lambda: resume(tmp_path / "one", steps=4),
        lambda: replay(tmp_path / "one", 1, tmp_path / "made"),
    ):
        with pytest.raises(JournalError, match=r"one/journal\.jsonl is the journal of another run"):
            use()
    (tmp_path / "one" / "journal.jsonl").unlink()
    resume(tmp_path / "one", steps=4).run()
    assert [entry.step for entry in read_journal(tmp_path / "one" / "journal.jsonl")] == [3, 4]


def test_a_journal_that_ends_before_the_checkpoint_begins_anew(tmp_path):
    train(settings(tmp_path / "run", steps=3))
    file = tmp_path / "run" / "journal.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    again = resume(tmp_path / "run", steps=5)
    again.run()
    assert "ends at step 1, before the checkpoint of step 3: a new" in again.console.file.getvalue()
    assert [entry.step for entry in read_journal(file)] == [4, 5]


def test_a_run_that_went_on_meanwhile_is_noticed(tmp_path):
    train(settings(tmp_path / "run", steps=3))
    crash(tmp_path / "run")
    late = resume(tmp_path / "run", steps=5)
    other = resume(tmp_path / "run", steps=4)
    other._save = lambda: None
    other.run()
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"journal\.jsonl was written by another process meanwhile"):
        late.run()


def test_steps_are_replayed_in_range_and_into_a_folder_of_their_own(tmp_path):
    train(settings(tmp_path / "run", steps=2))
    with pytest.raises(JournalError, match=r"step must be at most 2, the last in the journal of .*, got 3"):
        replay(tmp_path / "run", 3, tmp_path / "made")
    with pytest.raises(ConfigError, match="is not empty"):
        replay(tmp_path / "run", 1, tmp_path / "run")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("estimator", "why"), [("activity", "takes the batch again"), ("bptt", "the batch")])
def test_other_estimators_keep_no_journal_and_say_why(tmp_path, estimator, why):
    train(settings(tmp_path / "run", steps=1, estimator=estimator))
    assert not (tmp_path / "run" / "journal.jsonl").exists()
    with pytest.raises(JournalError, match=f"estimator {estimator} keeps no journal: .*{why}"):
        replay(tmp_path / "run", 1, tmp_path / "made")


def test_a_journal_can_be_left_out(tmp_path):
    train(settings(tmp_path / "run", steps=2, journal=False))
    assert not (tmp_path / "run" / "journal.jsonl").exists()
    with pytest.raises(JournalError, match=r"journal\.jsonl cannot be read"):
        replay(tmp_path / "run", 1, tmp_path / "made")
    with pytest.raises(ConfigError, match="journal_sync must be a number of at least 0"):
        RunConfig(journal_sync=-1.0)


def test_an_overwritten_run_has_a_journal_of_its_own(tmp_path):
    train(settings(tmp_path / "run", steps=3))
    Trainer(settings(tmp_path / "run", steps=1), overwrite=True, console=Console(file=io.StringIO())).run()
    assert [entry.step for entry in read_journal(tmp_path / "run" / "journal.jsonl")] == [1]
