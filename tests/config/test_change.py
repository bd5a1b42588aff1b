"""Settings changed by their flat names."""

import pytest

from zorn.config import PRESETS, Choice, change
from zorn.errors import ConfigError


def test_names_find_their_component_or_group():
    found = change(
        PRESETS["copy"], hidden_size=8, population=64, objective="token-error", schedule="cosine", seed=3
    )
    assert found.model == Choice("lstm", hidden_size=8)
    assert found.estimator == PRESETS["copy"].estimator.but(population=64)
    assert (found.objective, found.schedule.schedule, found.run.seed) == ("token-error", "cosine", 3)
    assert found.task == PRESETS["copy"].task
    assert change(PRESETS["copy"]) == PRESETS["copy"]


def test_another_component_keeps_the_settings_that_it_shares():
    found = change(PRESETS["copy"], estimator="fd-rge", task="repeat-copy", cell="gru", optimizer="sgd")
    assert found.estimator == Choice("fd-rge", population=1024, epsilon=0.02)
    assert found.task.maximum_length == 3
    assert found.model == Choice("gru", hidden_size=64)
    assert found.optimizer == Choice("sgd", learning_rate=0.01)
    assert change(PRESETS["copy"], estimator="bptt").estimator == Choice("bptt")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hiden_size": 8}, "hiden_size is no setting of .* did you mean hidden_size"),
        ({"truncation": 8}, "truncation is no setting of copy, lstm, cd-rge, adam, nor of a run"),
        ({"estimator": "es"}, "estimator must be one of"),
        ({"hidden_size": "8"}, "hidden_size must be a whole number"),
        ({"steps": 5}, "exactly one of them"),
    ],
)
def test_what_fits_nowhere_is_told(wrong, message):
    with pytest.raises(ConfigError, match=message):
        change(PRESETS["copy"], **wrong)
