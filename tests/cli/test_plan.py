"""`zorn plan`: what it prints, its JSON, the command that it proposes, what it refuses."""

import json
import shlex

import pytest

from zorn.cli import main
from zorn.cli.train import settings as train_settings
from zorn.config import resolve
from zorn.estimators import AUTOMATIC
from zorn.plan.fit import needed_bytes
from zorn.plan.plan import time_steps
from zorn.training.build import build_task

SMALL = ["--task", "copy", "--maximum-length", "3", "--batch", "4", "--hidden-size", "4"]
FAST = ["--no-calibration", "--memory", "8GiB"]
BILLION = ["--task", "copy", "--hidden-size", "297500", "--embedding-size", "100", "--num-heads", "350"]


def plan(capsys, *words):
    """Exit code, what was printed, and the line of an error."""
    code = main(["plan", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_parameters_memory_and_work_are_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = plan(capsys, *SMALL, "--estimator", "cd-rge", "--population", "8", "--memory", "8GiB")
    assert code == 0
    assert "* cd-rge, rank-one" in text
    for part in ("embedding", "layers", "head", "tbptt, k = 10", "activity", "bridge, k = 10", "bptt"):
        assert part in text
    assert "a step: 16 forward passes of 7 tokens" in text
    assert "seconds, from" in text
    assert not list(tmp_path.iterdir())  # nothing was written, so nothing trained


def test_json_has_every_figure(capsys):
    code, text, _ = plan(capsys, *SMALL, *FAST, "--json", "--fit", "1GiB")
    found = json.loads(text)
    assert code == 0
    assert found["configured"] == "activity"
    assert found["memory_bytes"] == 8 * 2**30
    assert found["parameters"]["total"] == sum(
        found["parameters"][part] for part in ("embedding", "layers", "head")
    )
    (own,) = [row for row in found["estimators"] if row["configured"]]
    assert own["peak_bytes"] >= own["weights_bytes"] > 0
    assert found["fit"]["does_not_fit"] == []
    assert found["fit"]["config"]["estimator"]["name"] == "activity"


def test_a_billion_parameters_are_planned_in_no_memory(capsys):
    code, text, _ = plan(capsys, *BILLION, "--dtype", "bfloat16", *FAST, "--json")
    assert code == 0
    assert json.loads(text)["parameters"]["total"] > 10**9


@pytest.mark.parametrize("fit", ["3GiB", "4GiB"])
def test_the_proposed_command_fits_what_was_asked(fit, capsys):
    words = [*BILLION, "--dtype", "bfloat16", "--estimator", "cd-rge", "--population", "256"]
    _, text, _ = plan(capsys, *words, "--no-calibration", "--memory=8GiB", "--fit", fit)
    assert f"does not fit {fit[0]}.00 GiB: cd-rge, rank-one with fused-sgd in bfloat16, as asked," in text
    command = shlex.split(text.splitlines()[-1])
    assert command[:2] == ["zorn", "train"]
    assert "--fit" not in command
    assert not [word for word in command if word.startswith(("--memory", "--no-calibration"))]
    config, _ = train_settings(command[2:])
    assert config.estimator.population == 256
    config, _ = resolve(config)
    assert needed_bytes(config, build_task(config).vocabulary, time_steps(config)) <= int(fit[0]) * 2**30


def test_another_estimator_is_proposed_where_none_else_fits(capsys):
    words = ["--hidden-size", "16384", "--num-heads", "4", "--estimator", "bridge", "--truncation", "8"]
    _, text, _ = plan(capsys, *words, "--draws=2", *FAST, "--fit", "8GiB")
    command = shlex.split(text.splitlines()[-1])
    config, _ = train_settings(command[2:])
    assert config.estimator.name in AUTOMATIC
    assert (config.optimizer.name, config.run.dtype) == ("fused-sgd", "float32")
    assert {"--truncation", "--draws=2"}.isdisjoint(command)
    assert "GiB too much" in text


def test_what_fits_nowhere_is_said(capsys):
    code, text, _ = plan(capsys, *SMALL, *FAST, "--fit", "100MiB")
    assert code == 1
    assert "nothing fits 100 MiB; the least found is" in text
    assert "zorn train" not in text


def test_a_model_too_large_for_the_memory_is_not_calibrated(capsys):
    _, text, _ = plan(capsys, *SMALL, "--memory", "10KB")
    assert "seconds of a step are not known: weights and a batch need more than a tenth of the memory" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fit", "8"], "--fit must be a number above 0 with a unit"),
        (["--memory", "lots"], "--memory must be a number above 0 with a unit"),
        (["--hiden-size", "8"], "did you mean --hidden-size?"),
        (["--population", "3"], "population"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    code, _, error = plan(capsys, *SMALL, "--no-calibration", *words)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
