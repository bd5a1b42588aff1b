"""The mean of an objective over held-out rows, against the objective on those rows, written out."""

import pytest
import torch

from zorn.errors import ConfigError
from zorn.models import LanguageModel
from zorn.tasks import CopyTask, TextTask, TokenCrossEntropy, sequence_error, token_error_rate
from zorn.tasks.held_out import objective_value

MODEL = LanguageModel(256, 8)


@pytest.fixture(scope="module")
def text():
    return TextTask(source="python-docs", batch=4, length=16, seed=0)


def test_whole_sequences_are_read_whole():
    task = CopyTask(batch=4, minimum_length=1, maximum_length=3, seed=0)
    model = LanguageModel(29, 8)
    inputs, targets = task.evaluation_data("validation").batch
    with torch.no_grad():
        outputs, _ = model(inputs)
    for objective in (token_error_rate, sequence_error):
        expected = float(objective(outputs, targets).mean())
        assert objective_value(model, task, window=2, objective=objective) == pytest.approx(expected)
    cross_entropy = objective_value(model, task)
    assert cross_entropy == pytest.approx(task.evaluate(model).loss, rel=1e-6)


def test_a_text_is_cut_into_windows_of_training(text):
    inputs, targets = text.evaluation_data("validation").batch
    windows = [part[:, : inputs.shape[1] // 16 * 16].reshape(-1, 16) for part in (inputs, targets)]
    rows = (windows[1] != -100).any(1).nonzero().squeeze(1)
    rows = rows[torch.linspace(0, len(rows) - 1, 256).long()]
    with torch.no_grad():
        outputs, _ = MODEL(windows[0][rows])
    expected = float(token_error_rate(outputs, windows[1][rows]).double().mean())
    found = objective_value(MODEL, text, objective=token_error_rate, window=16)
    assert found == pytest.approx(expected, rel=1e-6)


def test_portions_change_nothing(text, monkeypatch):
    whole = objective_value(MODEL, text, window=16, objective=TokenCrossEntropy())
    monkeypatch.setattr("zorn.tasks.held_out.OUTPUTS", 16 * 256 * 7)
    assert objective_value(MODEL, text, window=16, objective=TokenCrossEntropy()) == pytest.approx(whole)


def test_what_cannot_be_evaluated(text):
    with pytest.raises(ConfigError, match="split must be one of"):
        objective_value(MODEL, text, "dev")
    with pytest.raises(ConfigError, match="window must be a whole number of at least 1, got 0"):
        objective_value(MODEL, text, window=0)
    with pytest.raises(ConfigError, match=r"Linear has no initial_state\(rows\)"):
        objective_value(torch.nn.Linear(1, 1), text)
