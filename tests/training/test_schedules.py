"""Schedules against values worked out by hand."""

import math

import pytest

from zorn.config import ScheduleConfig
from zorn.training.schedules import (
    cosine,
    epsilon_at,
    population_at,
    rate_factor_at,
    warmup,
)


def test_warmup_is_a_line_that_ends_at_one():
    assert [warmup(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup(0, 0) == 1.0


def test_cosine_falls_from_one_to_the_floor():
    assert cosine(0.0, 0.2) == 1.0
    assert cosine(0.5, 0.2) == pytest.approx(0.6)
    assert cosine(1.0, 0.2) == 0.2
    assert cosine(1 / 3, 0.0) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)


def test_the_rate_factor_is_the_product_of_its_factors():
    schedule = ScheduleConfig(schedule="cosine", warmup_steps=4, schedule_floor=0.0)
    assert rate_factor_at(schedule, 0, 0.0) == pytest.approx(0.25)
    assert rate_factor_at(schedule, 10, 0.5) == pytest.approx(0.5)
    assert rate_factor_at(ScheduleConfig(), 10, 0.5) == 1.0


def test_epsilon_moves_alone_or_with_the_learning_rate():
    assert epsilon_at(ScheduleConfig(schedule="cosine", warmup_steps=5), 0.02, 0.1, 0.7) == 0.02
    falling = ScheduleConfig(epsilon_schedule="cosine", schedule_floor=0.5)
    assert epsilon_at(falling, 0.02, 0.1, 1.0) == pytest.approx(0.01)
    assert rate_factor_at(falling, 3, 1.0) == 1.0
    assert epsilon_at(ScheduleConfig(tie_epsilon=True), 0.5, 0.04, 0.2) == 0.04


def test_the_population_moves_in_equal_ratios_and_whole_multiples():
    assert [population_at(8, 128, 8, share / 4) for share in range(5)] == [8, 16, 32, 64, 128]
    assert [population_at(8, 128, 8, share / 8) for share in range(5)] == [8, 8, 16, 24, 32]
    assert [population_at(128, 64, 1, share / 8) for share in (0, 8)] == [128, 64]
    assert population_at(6, None, 1, 1.0) == population_at(6, None, 4, 0.9) == 6
