"""The benchmark of the paper's sizes: its sizes, a quick run, what does not fit."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import paper_sizes
from paper_sizes import SIZES, Setting

from zorn.training.build import model_of

WANTED = {"100k": 1e5, "1M": 1e6, "10M": 1e7, "100M": 1e8, "1B": 1.1e9, "4.5B": 4.5e9}


def setting_of(size, heads, head_size, **more):
    usual = {"sequences": 4, "letters": 2, "rows": 8, "dtype": "bfloat16", "device": "cpu", "rounds": 1}
    return Setting(size=size, heads=heads, head_size=head_size, **{**usual, **more})


@pytest.mark.parametrize("size", WANTED)
def test_the_sizes_are_those_of_the_paper(size):
    model = setting_of(size, *SIZES[size]).configuration("dense").model
    found = model_of(model, paper_sizes.INPUT, device="meta")
    assert sum(parameter.numel() for parameter in found.parameters()) == pytest.approx(
        WANTED[size], rel=0.25 if size == "100k" else 0.1
    )


def test_a_quick_run_records_every_method(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paper_sizes, "QUICK_SIZES", {"tiny": (1, 6)})
    places = ["--json", str(tmp_path / "found.json"), "--picture", str(tmp_path / "found.png")]
    monkeypatch.setattr(sys, "argv", ["paper_sizes.py", "--quick", "--device", "cpu", *places])
    paper_sizes.main()
    records = json.loads((tmp_path / "found.json").read_text())
    steps = [r for r in records if r["name"] == "seconds_per_step"]
    assert [(r["settings"]["method"], r["settings"].get("members")) for r in steps] == [
        ("rank-one", 96),
        ("rank-one", 512),
        ("dense", 96),
        ("dense", 512),
        ("bptt", None),
    ]
    assert all(r["value"] > 0 for r in steps)
    assert steps[1]["value"] / steps[0]["value"] == pytest.approx(512 / 96)
    passes = {r["settings"]["pass"] for r in records if r["name"] == "forward_seconds"}
    assert passes == {"unperturbed", "perturbed", "nn.LSTM"}
    assert {"perturbed_over_unperturbed", "perturbed_over_nn_lstm"} < {r["name"] for r in records}
    assert "FlashRNN: left out" in capsys.readouterr().out
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_the_members_are_equivalent():
    """As many forward passes by rank-one, a member a sequence, as by dense, a member the whole batch."""
    wide, dense = (setting_of("tiny", 1, 6).configuration(name).estimator for name in ("rank-one", "dense"))
    assert (wide.population, wide.group_size) == (8, 1)
    assert (dense.population, dense.group_size) == (2, 4)


def test_what_does_not_fit_is_told(monkeypatch, capsys):
    monkeypatch.setattr(paper_sizes, "available_bytes", lambda device: 2**20)
    setting = setting_of("1B", *SIZES["1B"])
    records = [*paper_sizes.measure_step(setting, "bptt"), *paper_sizes.measure_step(setting, "dense")]
    assert all(math.isnan(record.value) for record in records)
    assert not paper_sizes.measure_forward(setting)
    said = capsys.readouterr().out
    assert said.count("by the planner, and 1.00 MiB are free") == 3
    assert "1B, bptt: left out, needs" in said
