"""What fits a memory: the largest micro-batch, proposals, amounts; work and seconds of a step."""

import dataclasses
import sys

import pytest
from zorn.training.defaults import resolve

from zorn.errors import ConfigError
from zorn.planning import (
    ModelSizes,
    available_bytes,
    largest_micro_batch,
    parse_bytes,
    plan,
    propose,
    show_bytes,
    step_memory,
)
from zorn.planning.available import _left_in_group
from zorn.planning.fit import MARGIN, PROCESS_BYTES, needed_bytes, with_rows
from zorn.planning.plan import time_steps
from zorn.planning.work import forward_passes, most_rows
from zorn.tasks import TextTask
from zorn.training import BudgetConfig, Config, EstimatorConfig, ModelConfig, RunConfig, TaskConfig
from zorn.training.build import build_estimator, build_model, build_task

STEPS = 200


def settings(hidden=256, **estimator):
    asked = Config(
        task=TaskConfig(batch=64, length=STEPS),
        model=ModelConfig(hidden_size=hidden),
        estimator=EstimatorConfig(**estimator),
        budget=BudgetConfig(steps=1),
    )
    config, _ = resolve(asked)
    return ModelSizes.of(config.model, 256), config


KINDS = {
    "rank-one": {"estimator": "cd-rge", "population": 64},
    "activity": {"estimator": "activity"},
    "bptt": {"estimator": "bptt"},
    "bridge": {"estimator": "bridge", "truncation": 20},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_micro_batch_fits_and_the_next_does_not(kind):
    sizes, config = settings(**KINDS[kind])
    all_at_once = needed_bytes(sizes, with_rows(config, most_rows(config)), STEPS)
    one = needed_bytes(sizes, with_rows(config, 1), STEPS)
    limit = (one + all_at_once) // 2
    rows = largest_micro_batch(sizes, config, STEPS, limit)
    assert rows is not None
    assert needed_bytes(sizes, with_rows(config, rows), STEPS) <= limit
    assert needed_bytes(sizes, with_rows(config, rows + 1), STEPS) > limit
    assert largest_micro_batch(sizes, config, STEPS, one - 1) is None
    assert largest_micro_batch(sizes, config, STEPS, 2**50) == most_rows(config)


def test_what_fits_is_proposed_as_it_is():
    sizes, config = settings(**KINDS["rank-one"])
    found = propose(sizes, config, STEPS, 2**40)
    assert (found.config, found.attempts) == (config, ())


def test_time_chunks_are_cut_before_rows():
    sizes, config = settings(**KINDS["rank-one"])
    limit = needed_bytes(sizes, with_rows(config, 128, 25), STEPS)
    found = propose(sizes, config, STEPS, limit).config
    assert found is not None
    assert (found.estimator.micro_batch, found.estimator.time_chunk) == (128, 25)
    assert dataclasses.replace(found, estimator=config.estimator) == config


def test_an_estimator_that_does_not_fit_gives_way_to_forward_passes():
    sizes, config = settings(hidden=1024, **KINDS["bptt"])
    least = PROCESS_BYTES + int(1.9 * sizes.weight_bytes / (1 - MARGIN))  # no room for a gradient
    found = propose(sizes, config, STEPS, least)
    assert found.config is not None
    assert found.config.estimator.estimator == "cd-rge"
    assert found.config.optimizer.optimizer == "fused-sgd"
    assert found.needed <= least
    assert [attempt.words.partition(" ")[0] for attempt in found.attempts][:2] == ["bptt", "bptt"]
    assert all(attempt.needed > least for attempt in found.attempts)


def test_where_nothing_fits_the_least_is_said():
    sizes, config = settings(**KINDS["activity"])
    found = propose(sizes, config, STEPS, 2**20)
    assert found.config is None
    assert found.needed == min(attempt.needed for attempt in found.attempts) > 2**20


@pytest.mark.parametrize(
    "estimator",
    [
        {"estimator": "cd-rge", "population": 8},
        {"estimator": "fd-rge", "population": 8},
        {"estimator": "spsa-1.5", "population": 8},
        {"estimator": "cd-rge", "structure": "dense", "population": 2},
        {"estimator": "activity", "draws": 2},
        {"estimator": "activity", "draws": 2, "exact_output": "no"},
        {"estimator": "bridge", "truncation": 3, "draws": 2},
        {"estimator": "bridge", "truncation": 3, "draws": 2, "separate": False},
        {"estimator": "bridge", "truncation": 3},
        {"estimator": "bridge", "truncation": 3, "draws": 1, "credit_every": 4},
        {"estimator": "bridge", "truncation": 100},
        {"estimator": "bptt"},
    ],
)
def test_forward_passes_are_those_that_an_estimate_counts(estimator):
    dense = {"group_size": 0} if estimator.get("structure") == "dense" else {}
    asked = Config(
        task=TaskConfig(task="copy", batch=4, maximum_length=3),
        model=ModelConfig(hidden_size=4),
        estimator=EstimatorConfig(**estimator, **dense),
        budget=BudgetConfig(steps=1),
    )
    config, _ = resolve(asked)
    task = build_task(config)
    made, model, batch = build_estimator(config.estimator, 0), build_model(config, 29), task.training_batch(0)
    made.estimate(model, batch, task.objective)  # the first one also measures sizes
    every = config.estimator.credit_every or 1
    found = [made.estimate(model, batch, task.objective).forward_passes for _ in range(every)]
    counted = sum(found) / every
    assert forward_passes(config, batch.inputs.shape[1]) == counted


def test_a_calibration_times_smaller_steps_of_the_same_kind():
    asked = Config(
        task=TaskConfig(task="copy", batch=16),
        model=ModelConfig(hidden_size=16),
        estimator=EstimatorConfig(estimator="cd-rge", population=16),
        budget=BudgetConfig(steps=1),
    )
    found = plan(asked, memory=2**30)
    assert found.calibration is not None
    assert found.calibration.seconds is not None
    assert found.calibration.seconds > 0
    works = [work for work, _ in found.calibration.steps]
    assert len(works) >= 2
    assert works == sorted(works)
    assert works[-1] <= found.configured.forward_passes * found.steps
    assert plan(asked, memory=2**30, calibration=False).calibration is None


@pytest.mark.parametrize("text", ["8", "8 gigabytes", "-1GiB", "0GiB", "", "nan GiB"])
def test_amounts_need_a_number_and_a_unit(text):
    with pytest.raises(ConfigError, match="--fit must be a number above 0 with a unit"):
        parse_bytes(text, "--fit")


def test_amounts_are_read_and_shown():
    assert parse_bytes("1.5gib") == 3 * 2**29
    assert parse_bytes("2 GB") == 2 * 10**9
    assert [show_bytes(n) for n in (12, 15_360, 123 * 2**30)] == ["12 B", "15.0 KiB", "123 GiB"]


def test_free_memory_is_within_the_limit_of_a_container(tmp_path):
    assert _left_in_group(tmp_path) == []
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert _left_in_group(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert _left_in_group(tmp_path) == [900]
    with pytest.raises(ConfigError, match="say it, for example --memory 8GiB"):
        available_bytes("mps")


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_batch_fits_where_its_parts_would_not(kind):
    """Parts are added up in a second gradient, so the peak can fall where the batch goes in one."""
    sizes, config = settings(hidden=2000, **KINDS[kind])
    peaks = [
        needed_bytes(sizes, with_rows(config, rows), STEPS)
        for rows in (most_rows(config) - 1, most_rows(config))
    ]
    assert largest_micro_batch(sizes, config, STEPS, peaks[1]) == most_rows(config)


def test_a_bridge_is_fitted_with_a_fused_update_too():
    sizes, config = settings(hidden=2048, **KINDS["bridge"])
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, credit_learning_rate=0.02)
    )
    proposal = propose(sizes, config, STEPS, limit=2**20)
    assert any("bridge" in attempt.words and "fused-sgd" in attempt.words for attempt in proposal.attempts)


def test_a_device_that_is_not_there_is_said_before_anything_is_timed():
    config = Config(run=RunConfig(device="cuda:63"), budget=BudgetConfig(steps=1))
    with pytest.raises(ConfigError, match="device cuda:63 cannot be used here"):
        plan(config, memory=2**40)


def test_what_is_proposed_fits_a_prediction_that_is_too_low():
    sizes, config = settings(**KINDS["bptt"])
    limit = needed_bytes(sizes, config, STEPS)
    tight = step_memory(sizes, config, STEPS).peak
    assert (limit - PROCESS_BYTES) * (1 - MARGIN) == pytest.approx(tight, abs=1)
    assert propose(sizes, config, STEPS, limit).attempts == ()
    assert propose(sizes, config, STEPS, limit - 1).attempts[0].needed == limit


@pytest.mark.parametrize("task", ["text", "copy", "reverse", "sort", "repeat-copy", "add"])
def test_the_time_steps_are_those_of_a_training_batch(task):
    config = Config(task=TaskConfig(task=task, batch=6, maximum_length=4), budget=BudgetConfig(steps=1))
    assert time_steps(config) == build_task(config).training_batch(0).inputs.shape[1]


def test_a_plan_makes_no_batch(monkeypatch):
    def refuse(self, step):
        raise AssertionError

    monkeypatch.setattr(TextTask, "training_batch", refuse)
    asked = Config(task=TaskConfig(length=1000), budget=BudgetConfig(steps=1))
    assert plan(asked, memory=2**34, calibration=False).steps == 1000


@pytest.mark.parametrize("fitting", [0, 1])
def test_a_calibration_without_memory_is_no_error(fitting, monkeypatch):
    """It goes by the steps that fitted, or says that none did."""
    steps = []

    def update(settings, *rest):
        steps.append(settings)
        if len(steps) > 2 * fitting:  # each is done twice
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(sys.modules["zorn.planning.calibrate"], "update_weights", update)
    asked = Config(task=TaskConfig(task="copy", batch=16), budget=BudgetConfig(steps=1))
    found = plan(asked, memory=2**34).calibration
    assert found is not None
    assert len(found.steps) == fitting
    assert (found.reason == "not even a small step fits the memory") == (fitting == 0)


def test_what_is_no_lack_of_memory_is_raised(monkeypatch):
    def update(*settings):
        raise RuntimeError("something else")

    monkeypatch.setattr(sys.modules["zorn.planning.calibrate"], "update_weights", update)
    with pytest.raises(RuntimeError, match="something else"):
        plan(Config(task=TaskConfig(task="copy"), budget=BudgetConfig(steps=1)), memory=2**34)
