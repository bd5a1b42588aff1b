"""The benchmark of models of others: its records, on two small models."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import pytest
from foreign import TORCH, measure, models


@pytest.mark.parametrize("name", ["nn.GRUCell", "nn.TransformerEncoder"])
def test_a_models_records(name):
    unmodified, exact, cost = measure(name, TORCH[name], [16], 2)
    assert (unmodified.name, unmodified.value) == ("unmodified", 1)
    assert exact.name == "exact_difference"
    assert exact.value < 1e-9
    assert exact.settings["way"] == {"nn.GRUCell": "by layer"}.get(name, "by operation")
    assert cost.name == "over_plain"
    assert cost.value > 0.5


def test_a_model_that_does_not_run_is_a_record():
    [record] = measure("none", lambda hidden: [][hidden], [16], 2)
    assert (record.value, record.settings["error"]) == (0, "IndexError: list index out of range")


def test_torchs_own_layers_need_no_other_package():
    assert set(TORCH) <= set(models())
