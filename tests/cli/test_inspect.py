"""`zorn inspect`: what is perturbed, frozen and refused, of flags, of a run and of a user's model."""

import re

import pytest

from zorn.cli import main
from zorn.models import LanguageModel, parameter_count

OWN = """
from torch import nn

def covered():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].bias.requires_grad_(False)
    return model

def uncovered():
    return nn.Sequential(nn.Linear(3, 4), nn.PReLU())

def refused():
    return nn.Sequential(nn.Embedding(5, 2, max_norm=1.0))

def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model
"""


def inspect(capsys, *words):
    """Exit code, the table's rows by parameter (each in one text), and the whole output."""
    code = main(["inspect", *words])
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines() if re.match(r"^  \S+\.\S+ ", line)]
    rows = {name: " ".join(rest) for name, *rest in lines}
    return code, rows, text


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


def test_the_model_of_the_flags_is_counted(capsys):
    words = ["--task", "add", "--hidden-size", "8", "--num-heads", "2", "--cell", "gru"]
    code, rows, text = inspect(capsys, *words)
    model = LanguageModel(14, 8, cell="gru", num_heads=2)
    assert code == 0
    assert list(rows) == [name for name, _ in model.named_parameters()]
    assert (
        f"{parameter_count(model)} numbers, {parameter_count(model)} perturbed, 0 frozen, 0 refused" in text
    )
    assert rows["embedding.weight"] == "14 × 8 112 perturbed rank-one, 14 × 8"
    code, rows, text = inspect(capsys, *words, "--perturbation", "dense")
    assert code == 0
    assert rows["embedding.weight"] == "14 × 8 112 perturbed dense"
    assert f"{parameter_count(model)} random numbers a member" in text


def test_a_preset_brings_its_structure(capsys):
    _, rows, text = inspect(capsys, "--preset", "paper-96")
    assert rows["cells.0.map.weight_state"].endswith("dense")
    assert "126,049 perturbed" in text
    _, rows, _ = inspect(capsys, "--preset", "paper-96", "--perturbation", "rank-one")
    assert "rank-one," in rows["cells.0.map.weight_state"]


def test_a_run_is_inspected_as_it_was_trained(tmp_path, capsys):
    out = str(tmp_path / "run")
    words = "--task sort --batch 4 --hidden-size 4 --steps 1 --estimator cd-rge --population 4"
    words += " --group-size None --perturbation dense"
    assert main(["train", *words.split(), "--out", out]) == 0
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    code, rows, _ = inspect(capsys, out)
    assert code == 0
    assert rows["head.weight"] == "29 × 4 116 perturbed dense"
    assert sorted(tmp_path.rglob("*")) == before


def test_frozen_and_tied_parameters_are_told_and_counted_once(own, capsys):
    code, rows, text = inspect(capsys, f"{own}:covered")
    assert code == 0
    assert rows["1.bias"] == "2 2 frozen"
    assert "26 numbers, 24 perturbed, 2 frozen, 0 refused" in text
    code, rows, text = inspect(capsys, f"{own}:tied")
    assert code == 0
    assert rows["1.weight"].endswith("tied to 0.weight")
    assert "24 numbers, 24 perturbed" in text


def test_what_no_rule_covers_runs_by_operation(own, capsys):
    code, rows, text = inspect(capsys, f"{own}:uncovered")
    assert code == 0
    assert rows["1.weight"] == "1 1 perturbed dense vector, by operation"
    assert "17 numbers, 17 perturbed, 0 frozen, 0 refused" in text


def test_what_a_rule_refuses_is_exit_code_1_with_its_reason(own, capsys):
    code, rows, text = inspect(capsys, f"{own}:refused")
    assert code == 1
    assert rows["0.weight"].startswith("5 × 2 10 refused nn.Embedding(max_norm=")
    assert "10 refused" in text


def test_a_model_without_parameters_is_refused_like_an_estimator_does(capsys):
    code, _, text = inspect(capsys, "torch.nn:Flatten")
    assert code == 1
    assert "has no parameter that requires a gradient" in text
