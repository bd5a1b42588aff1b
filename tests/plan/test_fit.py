"""Settings that fit a memory, and amounts of it in words."""

import pytest

from zorn.config import BudgetConfig, Config, change, resolve
from zorn.errors import ConfigError
from zorn.plan import largest_micro_batch, parse_bytes, propose, show_bytes
from zorn.plan.calibrate import calibrate, line
from zorn.plan.fit import needed_bytes
from zorn.training.build import build_task

STEPS, VOCABULARY = 12, 40


def settings(estimator, **more):
    asked = change(Config(budget=BudgetConfig(steps=1)), estimator=estimator, batch=64, **more)
    return resolve(asked)[0]


def test_the_largest_micro_batch_fits():
    config = settings("bptt", hidden_size=256)

    def needed(rows):
        return needed_bytes(change(config, micro_batch=rows), VOCABULARY, STEPS)

    limit = (needed(1) + needed(64)) // 2
    rows = largest_micro_batch(config, VOCABULARY, STEPS, limit)
    assert rows is not None
    assert 8 < rows < 64
    assert needed(rows) <= limit
    assert largest_micro_batch(config, VOCABULARY, STEPS, needed(1) - 1) is None


def test_what_is_proposed_fits():
    config = settings("bptt", hidden_size=256)
    asked = needed_bytes(config, VOCABULARY, STEPS)
    assert propose(config, VOCABULARY, STEPS, asked).config == config
    found = propose(config, VOCABULARY, STEPS, asked - 2**20)
    assert found.config is not None
    assert found.config != config
    assert needed_bytes(found.config, VOCABULARY, STEPS) == found.needed <= found.limit


def test_where_nothing_fits_the_least_is_said():
    found = propose(settings("bptt"), VOCABULARY, STEPS, 2**20)
    assert found.config is None
    assert found.needed == min(attempt.needed for attempt in found.attempts) > 2**20


@pytest.mark.parametrize("text", ["8", "lots", "-1GiB", "0GiB"])
def test_an_amount_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--fit must be a number above 0 with a unit"):
        parse_bytes(text, "--fit")


def test_amounts_are_read_and_shown():
    assert parse_bytes("1.5 GiB") == 3 * 2**29
    assert show_bytes(3 * 2**29) == "1.50 GiB"
    assert line([(1, 1.0), (2, 3.0)], 3) == 5.0


def test_a_calibration_times_small_steps():
    config = resolve(
        change(
            Config(budget=BudgetConfig(steps=1)),
            task="copy",
            batch=4,
            hidden_size=8,
            estimator="bptt",
        )
    )[0]
    found = calibrate(config, build_task(config), 7, 2**40)
    assert found.seconds is not None
    assert found.seconds > 0
    none = calibrate(config, build_task(config), 7, 2**10)
    assert none.seconds is None
    assert "tenth of the memory" in none.reason
