"""The harness of the benchmarks: timing side by side, ratios, and what a report writes."""

import doctest
import json
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import harness
from harness import (
    Record,
    interleaved_seconds,
    median_ratio_with_spread,
    parse_arguments,
    report,
    torch_threads,
)


def test_functions_take_turns_and_the_warm_up_does_not_count():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = interleaved_seconds(functions, repeats=3, warm_up=2)
    assert len(calls) == 3 * (3 + 2)
    rounds = ["".join(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert rounds[-3:] == ["abc", "bca", "cab"]
    assert all(sorted(round_) == ["a", "b", "c"] for round_ in rounds)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_seconds_are_seconds():
    seconds = interleaved_seconds({"sleep": lambda: time.sleep(0.02), "nothing": lambda: None}, repeats=3)
    assert min(seconds["sleep"]) >= 0.02
    assert min(seconds["nothing"]) < 0.02


def test_ratio_is_the_median_of_the_rounds_and_not_of_the_series():
    ratio = median_ratio_with_spread([1.0, 20.0, 300.0, 40.0, 5.0], [1.0, 10.0, 100.0, 10.0, 1.0])
    assert ratio == (3.0, 2.0, 4.0)


def test_one_round_has_no_spread():
    assert median_ratio_with_spread([3.0], [2.0]) == (1.5, 1.5, 1.5)


def test_series_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        median_ratio_with_spread([1.0, 2.0], [1.0])


def test_threads_are_restored_also_after_an_error():
    before = torch.get_num_threads()

    def fail_inside() -> None:
        with torch_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.get_num_threads() == before


def test_default_arguments():
    arguments = parse_arguments("random_bits", None, [])
    assert not arguments.quick
    assert arguments.json is None
    assert arguments.picture == Path(harness.__file__).parent / "out" / "random_bits.png"


def test_report_prints_a_table_and_writes_picture_and_records(tmp_path, capsys):
    flags = ["--json", str(tmp_path / "a" / "r.json"), "--picture", str(tmp_path / "b" / "p.png"), "--quick"]
    arguments = parse_arguments("x", None, flags)
    record = Record("speed", 1.25, "ratio", {"threads": 2})
    report("Speeds", [record], arguments, lambda axes: axes.plot([0, 1]) and None)

    assert (tmp_path / "b" / "p.png").read_bytes().startswith(b"\x89PNG")
    (row,) = json.loads((tmp_path / "a" / "r.json").read_text())
    assert {name: row[name] for name in ("name", "value", "unit")} == {
        "name": "speed",
        "value": 1.25,
        "unit": "ratio",
    }
    assert row["settings"]["threads"] == 2
    assert row["settings"]["environment"]["torch"] == torch.__version__
    assert record.settings == {"threads": 2}
    printed = capsys.readouterr().out
    for word in ("Speeds", "threads", "1.25", torch.__version__):
        assert word in printed


def test_what_the_machine_does_not_tell_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "Path", lambda path: tmp_path / path.lstrip("/"))
    machine = harness.environment()
    assert machine["cpu"] == machine["memory"] == "unknown"
    assert set(machine) == {"cpu", "cores", "memory", "gpu", "python", "torch", "zorn"}


def test_documented_examples():
    results = doctest.testmod(harness)
    assert results.attempted > 0
    assert results.failed == 0
