"""The shapings against their closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zorn.estimators.shaping import OF_SEVERAL, SHAPINGS, none, sign, std, zscore

coefficients = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
spread = coefficients.filter(lambda c: float(c.var(correction=0)) > 1e-6)


def test_every_shaping_has_its_name():
    assert {"none": none, "zscore": zscore, "sign": sign, "std": std} == SHAPINGS


@given(coefficients)
def test_none_keeps_and_sign_votes(c):
    assert torch.equal(none(c), c)
    assert sign(c).tolist() == [(value > 0) - (value < 0) for value in c.tolist()]


@given(spread)
def test_zscore_has_mean_zero_and_variance_one(c):
    shaped = zscore(c)
    assert float(shaped.mean()) == pytest.approx(0, abs=1e-9)
    assert float(shaped.square().mean()) == pytest.approx(1)
    torch.testing.assert_close(shaped * c.std(correction=0) + c.mean(), c, rtol=1e-9, atol=1e-9)


@given(spread)
def test_std_divides_and_keeps_the_mean(c):
    torch.testing.assert_close(std(c) * c.std(correction=0), c, rtol=1e-9, atol=1e-9)


@given(spread, st.floats(0.01, 100))
def test_zscore_std_and_sign_do_not_depend_on_the_scale_of_the_loss(c, scale):
    for shaping in (zscore, std, sign):
        torch.testing.assert_close(shaping(c * scale), shaping(c), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
@pytest.mark.parametrize("shaping", [zscore, std])
def test_equal_coefficients_give_zeros_and_no_nan(shaping, value):
    assert shaping(torch.full((5,), value, dtype=torch.float64)).tolist() == [0] * 5
    assert shaping(torch.tensor([value])).tolist() == [0]


@given(st.floats(-100, 100), st.integers(1, 700))
def test_equal_coefficients_give_zeros_however_their_mean_is_rounded(value, members):
    c = torch.full((members,), value, dtype=torch.float64)
    for shaping in (zscore, std):
        assert torch.count_nonzero(shaping(c)) == 0


@given(st.floats(-100, 100))
def test_the_shapings_of_several_make_nothing_of_one(value):
    one = torch.tensor([value], dtype=torch.float64)
    assert {name for name, shaping in SHAPINGS.items() if not shaping(one + 1e3).any()} == {"zscore", "std"}
    assert {shaping.__name__ for shaping in OF_SEVERAL} == {"zscore", "std"}


@given(coefficients)
def test_the_argument_is_left_as_it_was(c):
    for shaping in SHAPINGS.values():
        before = c.clone()
        shaping(c)
        assert torch.equal(c, before)
