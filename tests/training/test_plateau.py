"""A plateau is two windows that differ by less than their standard error."""

import json

import pytest
import torch

from zorn.errors import ConfigError
from zorn.training.plateau import Plateau

WINDOW, REPEATS = 20, 400


def share_found(slope):
    """Share of plateaus at the second of two windows of unit noise, where the mean falls by `slope` standard
    errors of the difference from window to window."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(REPEATS, 2 * WINDOW, generator=generator, dtype=torch.float64)
    fall = slope * (2 / WINDOW) ** 0.5 / WINDOW
    losses = noise - fall * torch.arange(2 * WINDOW)
    found = 0
    for row in losses.tolist():
        plateau = Plateau(window=WINDOW)
        found += [plateau.update(loss) for loss in row][-1]
    return found / REPEATS


@pytest.mark.parametrize(("slope", "expected"), [(0.0, 0.841), (1.0, 0.5), (3.0, 0.023)])
def test_plateaus_are_found_as_often_as_the_normal_distribution_says(slope, expected):
    error = (expected * (1 - expected) / REPEATS) ** 0.5
    assert abs(share_found(slope) - expected) < 4 * error + 0.02  # 0.02: the error itself is estimated


def test_a_fall_without_noise_is_none_and_a_level_without_noise_is_one():
    plateau = Plateau(window=4)
    falling = [plateau.update(-0.1 * step) for step in range(40)]
    assert not any(falling)
    assert [plateau.update(-4.0) for _ in range(8)].count(True) == 1


def test_after_a_plateau_two_windows_must_pass():
    plateau = Plateau(window=5)
    found = [step for step in range(1, 31) if plateau.update(1.0 + 0.01 * (step % 2))]
    assert found == [10, 20, 30]


@pytest.mark.parametrize("stop", [3, 5, 7, 10])
def test_a_resumed_one_goes_on_alike(stop):
    losses = torch.randn(40, generator=torch.Generator().manual_seed(0)).tolist()
    whole, first, second = (Plateau(window=5) for _ in range(3))
    expected = [whole.update(loss) for loss in losses]
    before = [first.update(loss) for loss in losses[:stop]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + [second.update(loss) for loss in losses[stop:]] == expected
    assert any(expected)


def test_a_window_of_one_has_no_error():
    with pytest.raises(ConfigError, match="window must be a whole number of at least 2, got 1"):
        Plateau(window=1)
