"""Schedules against values worked out by hand."""

import math

import pytest

from zorn.config import Choice
from zorn.training.schedules import (
    cosine,
    epsilon_at,
    learning_rate_at,
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


def test_learning_rate_is_the_product_of_its_factors():
    config = Choice("auto", learning_rate=0.08)
    assert learning_rate_at(config, 0, 0.0) == pytest.approx(0.02)
    assert learning_rate_at(config, 10, 0.5) == pytest.approx(0.04)
    assert learning_rate_at(Choice("auto", learning_rate=0.08), 10, 0.5) == 0.08


def test_epsilon_moves_alone_or_with_the_learning_rate():
    alone = Choice("auto")
    assert epsilon_at(alone, 0.02, 0, 0.7) == 0.02
    falling = Choice("auto")
    assert epsilon_at(falling, 0.02, 3, 1.0) == pytest.approx(0.01)
    assert rate_factor_at(falling, 3, 1.0) == 1.0
    tied = Choice("auto", learning_rate=0.04)
    for step, progress in [(0, 0.0), (1, 0.2), (9, 0.9)]:
        assert epsilon_at(tied, 0.5, step, progress) == learning_rate_at(tied, step, progress)


def test_the_population_moves_in_equal_ratios_and_whole_multiples():
    grows = Choice("auto", population=8)
    assert [population_at(grows, 8, share / 4) for share in range(5)] == [8, 16, 32, 64, 128]
    assert [population_at(grows, 8, share / 8) for share in range(5)] == [8, 8, 16, 24, 32]
    shrinks = Choice("auto", population=128)
    assert [population_at(shrinks, 1, share / 8) for share in (0, 1, 8)] == [128, 91, 8]
    assert population_at(Choice("auto", population=6), 1, 1.0) == 1
    assert population_at(Choice("auto", population=6), 4, 0.9) == 6
