"""What a run reports: the objective on validation, an overfitted batch by its name, a bad end as such."""

import io
import json
import re

import pytest
import torch
from rich.console import Console

from zorn.cli import main
from zorn.config import BudgetConfig, Choice, Config, RunConfig, change
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.run import latest_checkpoint
from zorn.run.loggers import read_metrics
from zorn.tasks.held_out import objective_value
from zorn.training import Trainer
from zorn.training.load import load_run, load_writer


def settings(out, *, steps=2, task=None, optimizer=None, estimator=None):
    start = Config(
        task=Choice("copy", batch=4, minimum_length=1, maximum_length=2),
        model=Choice("lstm", hidden_size=8),
        estimator=Choice("auto", **({} if estimator else {"population": 8})),
        budget=BudgetConfig(steps=steps),
        run=RunConfig(out=out, evaluations=1),
    )
    groups = (task or {}, estimator or {}, optimizer or {})
    return change(start, **{name: value for group in groups for name, value in group.items()})


def train(config):
    console = Console(file=io.StringIO(), width=120)
    run = Trainer(config, console=console)
    return run, run.run(), console.file.getvalue()


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog, again and again. " * 60)
    return path


def test_the_objective_is_shown_on_validation(tmp_path, capsys):
    out = tmp_path / "run"
    run, summary, shown = train(settings(out, task={"objective": "token-error"}))
    assert summary["validation_objective"] == objective_value(run.model, run.task)
    assert summary["validation_longer_objective"] == objective_value(run.model, run.task, "validation-longer")
    assert 0.5 < summary["validation_objective"] <= 1 < summary["validation_loss"]
    assert re.search(r"validation \d\.\d{3} token-error, \d\.\d{3} ", shown)
    records = read_metrics(out / "metrics.jsonl")
    assert all("objective" in record for record in records if record["kind"] == "evaluation")
    assert main(["evaluate", str(out)]) == 0
    assert re.search(rf"token-error +│ +{summary['validation_objective']:.4f}", capsys.readouterr().out)


@pytest.mark.parametrize("objective", ["token-error", "sequence-error", "edit-distance"])
def test_an_objective_without_a_derivative_is_trained_on_and_named(tmp_path, objective):
    _, summary, _ = train(settings(tmp_path / "run", task={"objective": objective}))
    assert summary["objective"] == objective
    assert summary["validation_loss"] > 2, "nats, whatever is trained on"
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert all(0 < loss <= 1 for loss in losses), "errors are shares"


def test_cross_entropy_is_its_own_figure(tmp_path):
    _, summary, _ = train(settings(tmp_path / "run"))
    assert "validation_objective" not in summary


def test_an_overfitted_batch_is_never_called_validation(tmp_path, text_file, monkeypatch):
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)
    task = {"task": "text", "source": str(text_file), "length": 8, "overfit": True}
    _, summary, shown = train(settings(tmp_path / "run", task=task))
    assert summary["overfit_batch_loss"] > 0
    assert not any("validation" in name or "gram" in name for name in summary)
    assert "overfit batch" in shown
    assert "validation" not in shown


@pytest.mark.parametrize("tokenizer", ["alphabet", "bpe"])
def test_an_altered_tokenizer_is_noticed(tmp_path, text_file, tokenizer, monkeypatch):
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)
    task = {"task": "text", "source": str(text_file), "length": 8, "tokenizer": tokenizer}
    if tokenizer == "bpe":
        task["vocabulary_size"] = 270
    out = tmp_path / "run"
    train(settings(out, task=task))
    path = out / "tokenizer.json"
    described = json.loads(path.read_text())
    if tokenizer == "alphabet":
        described["alphabet"][0] = 7
    else:
        vocabulary = described["model"]["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(described))
    message = r"tokenizer\.json has changed since the run started"
    for use in (load_run, load_writer, lambda run: Trainer.resume(run, steps=3)):
        with pytest.raises(ConfigError, match=message):
            use(out)


def test_weights_that_diverge_at_the_end_are_not_saved(tmp_path):
    out = tmp_path / "run"
    run = Trainer(settings(out, steps=3), console=Console(file=io.StringIO()))
    update = run._update

    def diverge(*arguments):
        found = update(*arguments)
        if run.step == 3:
            with torch.no_grad():
                run.model.head.bias.fill_(torch.nan)
        return found

    run._update = diverge
    with pytest.raises(
        NonFiniteLossError, match=r"step 3: the weights are not finite.*saved in .*step-00000000"
    ):
        run.run()
    assert latest_checkpoint(out / "checkpoints").name == "step-00000000"
    assert not (out / "summary.json").exists()


def test_a_text_run_whose_loss_overflows_ends_with_exit_code_1(tmp_path, text_file, capsys):
    """Finite weights and a finite loss, but outputs that overflow when a sample is tried."""
    words = ["--source", str(text_file), "--length", "8", "--batch", "4", "--population", "4"]
    words += ["--hidden-size", "4", "--steps", "1", "--optimizer", "sgd", "--learning-rate", "1e30"]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("zorn: step 1: the model's outputs are not finite")
    assert "the weights are saved in" in captured.err
    assert captured.err.count("\n") == 1


def test_a_step_beyond_the_memory_is_one_clear_error(tmp_path):
    run = Trainer(settings(tmp_path / "run"), console=Console(file=io.StringIO()))

    def refuse(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 TiB\nat 0x1")

    run._update = refuse
    with pytest.raises(ConfigError, match=r"does not fit into the memory of cpu \(.*4 TiB\): choose"):
        run.run()
