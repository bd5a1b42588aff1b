"""The settings that tuning compares."""

import pytest

from zorn.config import BudgetConfig, Choice, Config, RunConfig, ScheduleConfig, resolve
from zorn.errors import ConfigError
from zorn.search.space import (
    RATES,
    alone,
    applied,
    describe,
    differences,
    resized,
    shortened,
    together,
    with_rate,
)


def settings(estimator=Choice("bptt"), *, seed=0, schedule=None, task=None, **parts):  # noqa: B008
    return resolve(
        Config(
            task=Choice("copy", **{"batch": 64} | (task or {})),
            estimator=estimator,
            schedule=schedule or ScheduleConfig(),
            budget=BudgetConfig(seconds=60.0),
            run=RunConfig(seed=seed),
            **{"optimizer": Choice("adam", learning_rate=0.01)} | parts,
        )
    )[0]


def changed(config, base):
    return {name: value for _, name, value in differences(config, base)}


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (Choice("cd-rge", population=128), "population"),
        (Choice("activity", draws=2), "draws"),
        (Choice("bptt"), "batch"),
    ],
)
def test_the_learning_rate_goes_with_the_root_of_a_size(estimator, name):
    base = settings(estimator)
    bigger, size = resized(name, base, 4.0), {"population": 128, "draws": 2, "batch": 64}[name]
    assert changed(bigger, base) == {name: 4 * size, "learning_rate": 0.02}
    assert resized(name, bigger, 0.25) == base


def test_what_cannot_be_scaled_is_left_out():
    with pytest.raises(ConfigError, match=r"batch must be a whole number, got 0\.5"):
        resized("batch", settings(task={"batch": 1}), 0.5)
    assert {near.task.batch for near in alone(settings(task={"overfit": True}))} == {64}
    shared = settings(Choice("cd-rge", population=64))  # each sequence is used as often
    populations = [near.estimator.population for near in alone(shared) if near is not None]
    assert {128, 256} <= set(populations)
    assert 32 not in populations


def test_one_value_at_a_time_the_learning_rate_first():
    base = settings(Choice("activity", discount=0.7, epsilon=0.1, draws=4))
    found = [changed(near, base) for near in alone(base)]
    assert [near.pop("learning_rate") for near in found[: len(RATES)]] == pytest.approx(
        [0.01 * factor for factor in RATES]
    )
    assert max(RATES) == 1 / min(RATES) == 100
    assert [near["batch"] for near in found[8:12]] == [32, 128, 16, 256]
    assert [near["draws"] for near in found[12:16]] == [2, 8, 1, 16]
    assert [near["epsilon"] for near in found[16:20]] == pytest.approx([0.03, 0.3, 0.01, 1.0])
    assert {near["discount"] for near in found[20:]} == {0.5, 0.8, 0.95, 1.0}
    assert all(len(near) == 1 for near in found[16:])


def test_several_values_in_an_order_of_the_seed():
    estimator = Choice("activity", discount=0.7, draws=2)
    base, other = settings(estimator), settings(estimator, seed=1)
    found, others = list(together(base)), list(together(other))
    assert len(set(found)) == 60
    assert found == list(together(base))
    told, told_others = [describe(near, base) for near in found], [describe(near, other) for near in others]
    assert told != told_others
    assert max(len(changed(near, base)) for near in found) == 5


@pytest.mark.parametrize(
    ("base", "names"),
    [
        (settings(), {"learning_rate", "batch"}),
        (
            settings(Choice("activity"), objective="token-error"),
            {"learning_rate", "batch", "draws", "epsilon"},
        ),
        (
            settings(Choice("cd-rge", population=64), schedule=ScheduleConfig(tie_epsilon=True)),
            {"learning_rate", "population", "batch"},
        ),
    ],
    ids=["no noise", "one score a sequence", "tied"],
)
def test_what_an_estimator_does_not_use_is_not_searched(base, names):
    assert {name for near in alone(base) if near is not None for name in changed(near, base)} == names


def test_the_rate_of_the_credit_part_is_scaled_too():
    base = settings(Choice("bridge", truncation=2, credit_learning_rate=0.002))
    assert with_rate(base, 3.0).estimator.credit_learning_rate == pytest.approx(0.006)
    assert with_rate(base, 3.0).optimizer.learning_rate == pytest.approx(0.03)


def test_a_short_run_stands_for_a_long_one():
    base = settings(schedule=ScheduleConfig(warmup_steps=90))
    short = shortened(base, 1 / 9)
    assert short.optimizer.learning_rate == pytest.approx(0.03)
    assert short.schedule.warmup_steps == 10
    assert shortened(base, 1.0) == base


def test_what_was_found_is_added_to_what_was_asked():
    asked = Config(task=Choice("copy"), budget=BudgetConfig(seconds=60.0))
    start = resolve(asked)[0]
    found = with_rate(start, 3.0)
    both = applied(asked, found, start)
    assert both.optimizer == Choice("adam", learning_rate=pytest.approx(0.03))
    assert both.estimator == asked.estimator
    assert both.task == asked.task
    assert resolve(both)[0] == found
