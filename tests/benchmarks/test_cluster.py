"""The cost model of many workers: closed forms by hand, and the simulator that follows every message."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from cluster import (
    StepWork,
    WorkerCosts,
    fold_bound_workers,
    predict,
    simulate,
)

from zorn.errors import ConfigError

COSTS = WorkerCosts(row=0.01, fold=1e-10, latency=1e-3, bandwidth=1e8, fixed=0.25)
WORK = StepWork(population=128, rows=256, micro_batch=4, parameters=8_200_000)


def test_one_worker_does_all_and_sends_nothing():
    step = predict(WORK, COSTS, 1)
    assert step.losses == 0
    assert step.evaluation == pytest.approx(2.56)
    assert step.fold == pytest.approx(128 * 8_200_000 * 1e-10)
    assert step.total == pytest.approx(step.evaluation + step.fold + 0.25)


def test_the_parts_by_hand():
    step = predict(WORK, COSTS, 3)
    assert step.evaluation == pytest.approx(22 * 4 * 0.01)  # of 64 micro-batches: 21, 21 and 22
    assert step.losses == pytest.approx(2 * (1e-3 + (32 + 16 * 128 / 3) / 1e8))  # two rounds of one each
    assert step.fold == pytest.approx(128 * 8_200_000 * 1e-10)
    assert step.total == pytest.approx(step.evaluation + step.losses + step.fold + step.fixed)
    assert step.bottleneck == "evaluation"
    assert step.steps_per_second == 1 / step.total


def test_the_rounds_in_which_losses_are_gathered():
    """Latency once a round, and every other worker's bytes once."""
    for workers, rounds in ((1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (1000, 10)):
        sent = (workers - 1) * (32 + 16 * 128 / workers) / 1e8
        assert predict(WORK, COSTS, workers).losses == pytest.approx(rounds * 1e-3 + sent)


def test_whole_micro_batches_are_dealt():
    few = StepWork(population=8, rows=16, micro_batch=6, parameters=1000)
    assert few.portions == [6, 6, 4]
    assert [predict(few, COSTS, n).evaluation for n in (1, 2, 3, 9)] == pytest.approx(
        [0.16, 0.12, 0.06, 0.06]
    )


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8, 33])
def test_without_chance_the_simulator_takes_what_the_closed_form_says(workers):
    found = simulate(WORK, COSTS, workers, steps=3)
    assert found == pytest.approx(predict(WORK, COSTS, workers).total)


def test_the_last_of_many_is_late_by_the_harmonic_number():
    costs = WorkerCosts(row=0.01, fold=1e-15, latency=0.0, bandwidth=1e15, late=0.5)
    workers, steps = 8, 2000
    found = simulate(WORK, costs, workers, steps=steps, seed=3)
    share = 32 * 0.01
    deviation = share * 0.5 * math.sqrt(sum(1 / k**2 for k in range(1, workers + 1)))
    expected = predict(WORK, costs, workers).total
    assert expected == pytest.approx(share * (1 + 0.5 * sum(1 / k for k in range(1, workers + 1))), rel=1e-3)
    assert abs(found - expected) < 5 * deviation / math.sqrt(steps)


def test_a_failure_costs_the_step_in_flight_and_a_restart():
    costs = WorkerCosts(row=0.01, fold=1e-10, latency=1e-3, bandwidth=1e8, failures=0.05, restart=3.0)
    workers, steps, runs = 8, 100, 20
    seconds = [simulate(WORK, costs, workers, steps=steps, seed=seed) for seed in range(runs)]
    error = float(np.std(seconds, ddof=1)) / math.sqrt(runs)
    step = predict(WORK, costs, workers)
    calm = step.evaluation + step.losses + step.fold
    assert step.total == pytest.approx((math.exp(0.4 * calm) - 1) * (1 / 0.4 + 3.0))
    assert abs(float(np.mean(seconds)) - step.total) < 5 * error
    assert step.total - calm > 10 * error  # what is compared is not lost in the noise


def test_a_slow_worker_makes_all_wait():
    speeds = [1.0, 1.0, 1.0, 0.25]
    costs = WorkerCosts(row=0.01, fold=1e-15, latency=0.0, bandwidth=1e15)
    assert simulate(WORK, costs, 4, steps=1, speeds=speeds) == pytest.approx(64 * 0.01 / 0.25, rel=1e-5)


def test_from_where_the_fold_bounds():
    workers = fold_bound_workers(WORK, COSTS)
    assert workers == pytest.approx(2 * 0.01 / (8_200_000 * 1e-10))
    step = predict(WORK, COSTS, 1)
    assert step.evaluation / workers == pytest.approx(step.fold)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: WorkerCosts(row=0.0, fold=1.0, latency=0.0, bandwidth=1.0),
            "row must be a number above 0, got 0",
        ),
        (
            lambda: WorkerCosts(row=1.0, fold=1.0, latency=-1.0, bandwidth=1.0),
            "latency must be a number of at least",
        ),
        (lambda: StepWork(population=0, rows=1, micro_batch=1, parameters=1), "population must be a whole"),
        (lambda: StepWork(population=1, rows=1, micro_batch=1, parameters=0), "parameters must be a whole"),
        (lambda: predict(WORK, COSTS, 0), "workers must be a whole number of at least 1, got 0"),
        (
            lambda: simulate(WORK, COSTS, 2, speeds=[1]),
            "speeds: got .* expected 2 numbers above 0",
        ),
        (lambda: simulate(WORK, COSTS, 2, speeds=[1, 0]), "speeds: got .* expected 2 numbers"),
        (lambda: simulate(WORK, COSTS, 2, steps=0), "steps must be a whole number"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
