"""The benchmark of journal and replay, on runs of a few steps."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import replay as benchmark


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)
    monkeypatch.setattr(benchmark, "ENTRIES", 3)
    monkeypatch.setattr(benchmark, "POPULATION", 8)


@pytest.mark.usefixtures("short")
def test_a_replay_is_the_run_and_its_journal_is_as_small_as_documented(tmp_path):
    records = benchmark.measure(benchmark.Size(hidden=8, letters=2), tmp_path, steps=3, rounds=1)
    found = {(one.name, one.settings.get("of")): one for one in records}
    assert found["replay_equals_run", None].value == 1
    assert 300 < found["bytes_per_step", None].value < 400 + 6 * 8
    assert found["replay_over_run", None].value > 0
    assert found["seconds_per_step", "replay"].value > 0
    assert {name for name, _ in found} == {
        *("replay_over_run", "replay_equals_run", "run_over_run_without", "seconds_per_step"),
        *("bytes_per_step", "append_seconds", "append_over_step", "fsync_seconds"),
    }


def test_ratios_are_taken_round_by_round(tmp_path):
    seconds = {"run": [10.0, 20.0], "run without": [8.0, 16.0], "replay": [1.0, 2.0]}
    entries = {"append": [1e-4, 3e-4, 2e-4], "fsync": [1e-3, 9e-3, 2e-3]}
    size = benchmark.Size(hidden=8)
    records = benchmark.records_of(size, seconds, [True, False], 132.0, entries, steps=1000)
    found = {one.name: one for one in records}
    assert found["replay_over_run"].value == 0.1
    assert found["replay_over_run"].settings["hidden_size"] == 8
    assert found["run_over_run_without"].value == 1.25
    assert found["replay_equals_run"].value == 0.5
    assert found["append_over_step"].value == pytest.approx(2e-4 / 0.015)
    assert (found["fsync_seconds"].value, found["fsync_seconds"].settings["slowest"]) == (2e-3, 9e-3)


@pytest.mark.usefixtures("short")
def test_a_quick_run_reports(tmp_path, monkeypatch):
    made = benchmark.records_of(
        benchmark.Size(),
        {"run": [1.0], "run without": [1.0], "replay": [0.1]},
        [True],
        1.0,
        {"append": [1e-4], "fsync": [1e-3]},
        steps=100,
    )
    asked = []
    monkeypatch.setattr(benchmark, "measure", lambda size, *_: asked.append(size) or made)
    benchmark.main(
        [
            "--quick",
            "--letters",
            "3",
            "--json",
            str(tmp_path / "a.json"),
            "--picture",
            str(tmp_path / "a.png"),
        ]
    )
    assert len(json.loads((tmp_path / "a.json").read_text())) == len(made)
    assert (tmp_path / "a.png").exists()
    assert asked == [benchmark.Size(64, 3)]
