"""The settings that tuning compares."""

import pytest
from zorn.training.defaults import resolve

from zorn.training import BudgetConfig, Config, EstimatorConfig, OptimizerConfig, RunConfig, TaskConfig
from zorn.training.variants import differences, resized, shortened, variants, with_rate


def settings(*, task=None, estimator=None, optimizer=None, seed=0):
    return resolve(
        Config(
            task=TaskConfig(**({"task": "copy", "batch": 64} | (task or {}))),
            estimator=EstimatorConfig(**(estimator or {})),
            optimizer=OptimizerConfig(**({"learning_rate": 0.01} | (optimizer or {}))),
            budget=BudgetConfig(seconds=60.0),
            run=RunConfig(seed=seed),
        )
    )[0]


def changed(config, base):
    return {name: value for _, name, value in differences(config, base)}


SCALED = [
    ({"estimator": {"estimator": "cd-rge", "population": 128}}, {"batch": 128, "population": 256}),
    (
        {"estimator": {"estimator": "fd-rge", "population": 128, "final_population": 512}},
        {"batch": 128, "population": 256, "final_population": 1024},
    ),
    ({"estimator": {"estimator": "cd-rge", "population": 96, "group_size": 0}}, {"population": 192}),
    (
        {"task": {"overfit": True}, "estimator": {"estimator": "cd-rge", "population": 64}},
        {"population": 128},
    ),
    ({"estimator": {"estimator": "bptt"}}, {"batch": 128}),
    ({"estimator": {"estimator": "activity"}}, {"batch": 128}),
    ({"task": {"overfit": True}, "estimator": {"estimator": "activity", "draws": 2}}, {"draws": 4}),
    (
        {"task": {"task": "text", "stream": 4}, "estimator": {"estimator": "nres", "population": 64}},
        {"population": 128},
    ),
]


@pytest.mark.parametrize(("groups", "expected"), SCALED)
def test_the_size_of_a_step_is_what_its_estimator_works_through(groups, expected):
    base = settings(**groups)
    bigger = resized(base, 2.0)
    assert changed(bigger, base) == expected
    assert resized(bigger, 0.5) == base


def test_what_cannot_be_scaled_is_left_out():
    exact = settings(task={"overfit": True}, estimator={"estimator": "bptt"})
    assert resized(exact, 2.0) is None
    assert resized(settings(task={"batch": 1}, estimator={"estimator": "bptt"}), 0.5) is None
    assert {config.task.batch for config in variants(exact)} == {64}


def test_the_nearest_come_first_in_an_order_of_the_seed():
    base = settings(estimator={"estimator": "activity", "discount": 0.8})
    found = variants(base)
    assert found[0] == base
    assert len(found) == len(set(found)) == 5 * 4 * 3
    dials = [sum(name in changed(config, base) for name in ("batch", "discount")) for config in found]
    assert dials[1] <= 1
    assert dials[-1] == 2
    assert found == variants(base)
    others = variants(settings(estimator={"estimator": "activity", "discount": 0.8}, seed=1))
    strip = [str(config).replace("seed=1", "seed=0") for config in others]
    assert strip != [str(config) for config in found]
    assert sorted(strip) == sorted(str(config) for config in found)


def test_the_learning_rate_goes_with_the_root_of_the_size():
    base = settings(estimator={"estimator": "bptt"})
    rates = {}
    for config in variants(base):
        rates.setdefault(config.task.batch, []).append(config.optimizer.learning_rate)
    assert sorted(rates[256]) == pytest.approx([0.01, 0.02, 0.04])
    assert sorted(rates[16]) == pytest.approx([0.0025, 0.005, 0.01])


def test_an_objective_without_tokens_has_no_discount_to_vary():
    base = settings(task={"objective": "token-error"}, estimator={"estimator": "activity"})
    assert {config.estimator.discount for config in variants(base)} == {1.0}


def test_the_rate_of_the_credit_part_is_scaled_too():
    optimizer = {"credit_learning_rate": 0.002}
    base = settings(estimator={"estimator": "bridge", "truncation": 2}, optimizer=optimizer)
    assert with_rate(base, 3.0).optimizer.credit_learning_rate == pytest.approx(0.006)
    assert with_rate(base, 3.0).optimizer.learning_rate == pytest.approx(0.03)


def test_a_short_run_stands_for_a_long_one():
    base = settings(optimizer={"warmup_steps": 90})
    short = shortened(base, 1 / 9)
    assert short.optimizer.learning_rate == pytest.approx(0.03)
    assert short.optimizer.warmup_steps == 10
    assert shortened(base, 1.0) == base
