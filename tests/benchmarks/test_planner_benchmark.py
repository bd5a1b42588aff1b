"""The planner's benchmark: its grid, and what it records."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import planner as benchmark


def test_the_grid_covers_every_cell_and_estimator():
    grid = benchmark.GRID
    assert len(grid) >= 24
    assert len({json.dumps(settings, sort_keys=True) for settings in grid}) == len(grid)
    assert {settings["cell"] for settings in grid} == set(benchmark.CELLS)
    kinds = {(settings["estimator"], settings.get("perturbation")) for settings in grid}
    assert len(kinds) == 7
    for size in ("hidden_size", "T", "micro_batch"):
        assert len({settings[size] for settings in grid}) >= 3


def test_every_configuration_is_planned_at_a_meaningful_size():
    peaks = [benchmark.predicted(settings) for settings in benchmark.QUICK]
    assert min(peaks) > 20e6
    assert max(peaks) < 1e9


def test_a_run_records_prediction_measurement_and_ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "QUICK", benchmark.QUICK[:2])
    monkeypatch.setattr(benchmark, "measured", benchmark.predicted)  # no process of its own
    places = ["--json", str(tmp_path / "found.json"), "--picture", str(tmp_path / "found.png")]
    monkeypatch.setattr(sys, "argv", ["planner.py", "--quick", *places])
    benchmark.main()
    records = json.loads((tmp_path / "found.json").read_text())
    assert [record["value"] for record in records if record["name"] == "ratio"] == [1.0, 1.0]
    assert records[-1]["name"] == "within"
    assert records[-1]["settings"]["configurations"] == 2
    assert (tmp_path / "found.png").exists()
