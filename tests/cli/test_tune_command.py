"""`zorn tune` from its words to a file that `zorn train` takes."""

import functools
import re
import shlex
import signal
import time

import pytest

from zorn.cli import main
from zorn.cli import train as train_command
from zorn.cli.tune import settings
from zorn.config import PRESETS, BudgetConfig, from_json
from zorn.search import tune
from zorn.training.learner import Learner

SMALL = [
    "--task",
    "copy",
    "--estimator",
    "bptt",
    "--batch",
    "4",
    "--hidden-size",
    "4",
    "--maximum-length",
    "2",
    "--seconds",
    "5",
]


def test_it_writes_settings_that_train_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zorn.search.halving.LEAST_STEPS", 2)
    busy = functools.partial(tune, clock=time.process_time)  # whatever else the machine does
    monkeypatch.setattr("zorn.cli.tune.tune", busy)
    file = tmp_path / "my found.json"
    words = ["tune", *SMALL, "--tune-seconds", "6", "--out", file.name]
    assert main(words) == 0
    out = capsys.readouterr().out
    asked, found = from_json(file.read_text())
    assert float(re.search(r"found in (\S+) s:", out)[1]) < 6.5
    assert (asked.task.name, found.task.name) == ("copy", "copy")
    assert found.budget == BudgetConfig(seconds=5.0)
    assert found.optimizer.learning_rate is not None
    assert found.run.out is None
    line = next(line for line in out.splitlines() if line.startswith("zorn train"))
    command = shlex.split(line)
    assert command == ["zorn", "train", "--config", file.name]
    config, _ = train_command.settings(command[2:])
    assert (config.task, config.optimizer) == (asked.task, asked.optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name]  # nothing else is left behind

    before = file.read_text()
    assert main(words) == 2
    assert "is there already: choose another --out, or replace it with --overwrite" in capsys.readouterr().err
    assert file.read_text() == before


@pytest.mark.parametrize("trials", [0, 2])
def test_a_stopped_search_writes_what_it_has_found(tmp_path, monkeypatch, capsys, trials):
    """A signal before the trial after so many; there is nothing to write before the first is done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zorn.search.halving.LEAST_STEPS", 2)
    build, built = Learner.build, []

    def stopping(*words):
        built.append(1)
        if len(built) == trials + 2:  # the first is to measure with
            signal.raise_signal(signal.SIGTERM)
        return build(*words)

    monkeypatch.setattr(Learner, "build", stopping)
    assert main(["tune", *SMALL, "--tune-seconds", "60", "--out", "found.json"]) == 130
    printed = capsys.readouterr()
    if trials:
        assert re.search(r"^stopped after \S+ s: ", printed.out, re.MULTILINE)
        assert printed.out.endswith("zorn train --config found.json\n")
        assert from_json((tmp_path / "found.json").read_text())[1].task.name == "copy"
        assert printed.err == ""
    else:
        assert list(tmp_path.iterdir()) == []
        assert printed.err == "zorn: stopped\n"


def test_it_takes_the_flags_of_train():
    words = ["--preset", "copy", "--hidden-size", "32", "--seconds", "20"]
    asked, config, file = settings([*words, "--tune-seconds", "9", "--out", "mine.json"])
    expected, _ = train_command.settings(words)
    assert asked.tune_seconds == 9.0
    assert config.task == PRESETS["copy"].task
    assert (config.model, config.estimator, config.optimizer) == (
        expected.model,
        expected.estimator,
        expected.optimizer,
    )
    assert config.budget == expected.budget
    assert config.run.out is None
    assert file.name == "mine.json"
    assert settings(words)[2].name == "tuned.json"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tune-seconds", "0"], "seconds must be a number above 0, got 0"),
        (["--tune-seconds", "soon"], "--tune-seconds must be a number, got 'soon': see zorn tune --help"),
        (["--tune-second", "5"], "unknown flag --tune-second (did you mean --tune-seconds?)"),
        (["--tune-seconds", "0.0001"], "the tuning budget must be at least"),
        (["--out", "nowhere/found.json"], "there is no nowhere: choose another --out"),
        (["--out", "."], "which is a folder: choose another --out"),
        (["--steps", "100"], "the training budget must be in seconds"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = SMALL[:-2] if "--steps" in words else SMALL
    assert main(["tune", *small, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
