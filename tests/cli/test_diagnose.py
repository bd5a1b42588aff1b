"""`zorn diagnose`: of flags, of a run and of a user's model; its files; what it refuses."""

import json
import re

import pytest

import zorn
from zorn.cli import main
from zorn.models import parameter_count

TINY = ["--task", "copy", "--maximum-length", "3", "--batch", "4", "--hidden-size", "4"]
RANK_ONE = ["--estimator", "cd-rge", "--population", "8"]
FEW = ["--estimates", "4"]

OWN = """
import zorn

def build():
    return zorn.LanguageModel(29, 4, cell="gru")
"""


def diagnose(capsys, *words):
    """Exit code, what was printed, and the line of an error."""
    code = main(["diagnose", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_fresh_model_of_the_flags_is_diagnosed_and_written_down(tmp_path, capsys):
    out = tmp_path / "found"
    code, text, _ = diagnose(capsys, *TINY, *RANK_ONE, *FEW, "--out", str(out))
    assert code == 0
    assert "CDRGE: 4 estimates of 16 forward passes" in text
    assert re.search(r"all parameters .* ± .* ± .* ± ", text)
    assert "recommended epsilon" in text
    assert "learning rate" in text
    assert sorted(path.name for path in out.iterdir()) == ["diagnosis.json", "diagnosis.png"]
    read = json.loads((out / "diagnosis.json").read_text())
    assert read["signal"]["estimator"] == "CDRGE"
    assert len(read["epsilon"]["points"]) == 13


def test_the_same_words_give_the_same_numbers(tmp_path, capsys):
    found = []
    for seed in ("1", "1", "2"):
        words = ["--no-exact", "--seed", seed, "--out", str(tmp_path), "--overwrite"]
        diagnose(capsys, *TINY, *RANK_ONE, *FEW, *words)
        read = json.loads((tmp_path / "diagnosis.json").read_text())
        found.append((read["signal"]["whole"]["snr"], read["step"]["loss"]))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("name", ["diagnosis.json", "diagnosis.png"])
def test_an_earlier_diagnosis_is_not_replaced_unasked(tmp_path, capsys, name):
    (tmp_path / name).write_text("earlier")
    code, text, error = diagnose(capsys, *TINY, *RANK_ONE, *FEW, "--out", str(tmp_path))
    assert (code, text) == (2, "")
    assert f"{name} is there already: choose another --out, or replace it with --overwrite" in error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "earlier")]


@pytest.mark.parametrize(
    ("estimator", "unit", "sizes"),
    [
        (["--estimator", "activity", "--draws", "2"], "draws", [2, 4]),
        (["--estimator", "bridge", "--truncation", "2", "--draws", "3"], "draws", [3, 6]),
        (["--estimator", "bptt"], "estimates", [1, 2]),
        (RANK_ONE, "members", [8, 16]),
    ],
)
def test_what_an_estimate_is_made_of_is_what_is_counted(tmp_path, capsys, estimator, unit, sizes):
    code, text, _ = diagnose(capsys, *TINY, *estimator, *FEW, "--out", str(tmp_path))
    assert code == 0
    signal = json.loads((tmp_path / "diagnosis.json").read_text())["signal"]
    assert signal["unit"] == unit
    assert [rung["members"] for rung in signal["ladder"]] == sizes
    assert ("members" in text) == (unit == "members")
    assert (f" {unit} " in text) or f"more {unit} are needed" in text


def test_a_run_is_diagnosed_at_its_newest_checkpoint_and_left_as_it_is(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *TINY, *RANK_ONE, "--steps", "2", "--out", str(run)]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, text, _ = diagnose(capsys, "--run", str(run), *FEW)
    assert code == 0
    assert "CDRGE: 4 estimates of 16 forward passes" in text
    code, text, _ = diagnose(capsys, "--run", str(run), *FEW, "--estimator", "bptt")
    assert code == 0
    assert "BPTT: 4 estimates of 12 forward passes" in text
    assert "epsilon" not in text
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_model_of_the_users_own(tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    words = ["--task", "copy", "--maximum-length", "3", "--batch", "4"]
    code, text, _ = diagnose(capsys, *words, *RANK_ONE, *FEW, "--own", f"{file}:build")
    assert code == 0
    count = parameter_count(zorn.LanguageModel(29, 4, cell="gru"))
    assert re.search(rf"all parameters +{count} ", text)


def test_an_objective_without_derivative_is_judged_by_forward_passes(capsys):
    code, text, _ = diagnose(capsys, *TINY, *RANK_ONE, *FEW, "--objective", "token-error")
    assert code == 0
    assert "cosine to the gradient" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--estimates", "6"], "estimates must be a power of two, got 6"),
        (["--run", "nowhere"], "nowhere is not the folder of a run"),
        (["--own", "zorn"], "'zorn' names no model"),
        (["--own", "a.py:b", "--cell", "gru"], "--own brings a model of its own: leave out --cell"),
        (["--own", "a.py:b", "--run", "RUN"], "--run and --own both bring a model"),
        (["--run", "RUN", "--batch", "8"], "--run brings the run's own: leave out --batch"),
        (["--run", "RUN", "--device", "cuda"], "--run brings the run's own: leave out --device"),
        (["--estimtes", "4"], r"did you mean --estimates\?"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys):
    if "RUN" in words:
        run = str(tmp_path / "run")
        assert main(["train", *TINY, *RANK_ONE, "--steps", "1", "--out", run]) == 0
        capsys.readouterr()
        code, _, error = diagnose(capsys, *(run if word == "RUN" else word for word in words))
    else:
        code, _, error = diagnose(capsys, *TINY[:2], *words)
    assert code == 2
    assert re.search(message, error)
    assert error.count("\n") == 1
