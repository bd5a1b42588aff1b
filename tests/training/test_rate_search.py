"""The search for a learning rate, on losses whose best rate is known."""

import math

import pytest

from zorn.errors import ConfigError
from zorn.training.rate_search import PROBES, RATIO, search_rate


def bowl(best, tried=None):
    """A loss with its minimum at `best`, quadratic in the logarithm, diverging a decade above it."""

    def score(rate):
        if tried is not None:
            tried.append(rate)
        distance = math.log10(rate / best)
        return math.inf if distance > 1 else distance**2

    return score


@pytest.mark.parametrize("power", [-1.4, -0.9, -0.3, 0.0, 0.2, 0.7, 1.0])
def test_it_comes_within_half_a_step_of_the_best(power):
    best = 0.02 * 10**power
    search = search_rate(bowl(best), 0.02)
    assert abs(math.log(search.rate / best)) <= math.log(RATIO) / 4 + 1e-9
    assert len(search.losses) <= PROBES
    assert search.loss == min(search.losses.values())
    assert list(search.losses) == sorted(search.losses)


def test_where_the_start_diverges_it_goes_down_only():
    tried = []
    search = search_rate(bowl(1e-4, tried), 0.01)
    assert tried[0] == 0.01
    assert max(tried) == 0.01
    assert math.isfinite(search.loss)
    assert abs(math.log10(search.rate / 1e-4)) < 0.26


def test_where_all_diverge_the_loss_is_infinite():
    search = search_rate(lambda rate: math.inf, 1.0, most=4)
    assert search.loss == math.inf
    assert len(search.losses) == 4
    assert search.rate == min(search.losses)


def test_it_ends_when_time_is_up_with_the_best_so_far():
    answers = iter([True, True, False, True])
    search = search_rate(bowl(1.0), 0.01, goes_on=lambda: next(answers))
    assert len(search.losses) == 3
    assert search.rate == pytest.approx(0.01 * RATIO)
    assert search_rate(bowl(1.0), 0.01, most=1).rate == 0.01


def test_of_equal_losses_the_smaller_rate_wins():
    assert search_rate(lambda rate: 0.0 if rate > 0.05 else 1.0, 0.1).rate < 0.1


def test_arguments():
    with pytest.raises(ConfigError, match="start must be a number above 0"):
        search_rate(bowl(1.0), 0.0)
    with pytest.raises(ConfigError, match="most must be"):
        search_rate(bowl(1.0), 1.0, most=0)
