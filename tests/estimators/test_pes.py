"""PES against closed forms."""

import pytest
from streams import Scalar, last_output, nothing

from zorn.estimators.pes import PES
from zorn.noise import Dense, RankOne


def test_the_first_window_is_the_central_difference():
    model, estimator = Scalar(0.8), PES(population=4, epsilon=0.1)
    estimator.estimate(model, nothing(steps=3), last_output)
    expected = (0.9**3 - 0.7**3) / 0.2
    assert float(model.map.weight.grad) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("structure", [RankOne(), Dense()])
def test_the_second_window_adds_up_the_noise_of_both(structure):
    """L_2 = w² run at w ± ε z_1 and w ± ε z_2: c = w (z_1 + z_2), and ĝ_2 is the mean of c (z_1 + z_2)."""
    w, members, model = 0.8, 64, Scalar(0.8)
    estimator = PES(population=members, epsilon=0.1, perturbation=structure)
    estimator.estimate(model, nothing(steps=1), last_output)
    found = estimator.estimate(model, nothing(steps=1), last_output)
    sums = found.coefficients / w
    agree = (sums.abs() - 2).abs() < 1e-12
    assert (agree | (sums.abs() < 1e-12)).all()
    assert 16 < int(agree.sum()) < 48  # of 64, half expected: fresh signs, 4 standard deviations
    assert float(model.map.weight.grad) == pytest.approx(w * float(sums.square().mean()), rel=1e-12)


def test_three_windows_add_up_the_noise_of_all():
    """L_3 = w³. Where the three signs of a member agree, one time in four, |c| = 3 w² + ε² and |Σ z| = 3;
    else |c| = w² − ε² and |Σ z| = 1. The mean of c Σ z is 3 w², the gradient."""
    w, epsilon, members, model = 0.8, 0.1, 20_000, Scalar(0.8)
    estimator = PES(population=members, epsilon=epsilon, micro_batch=40_000)
    for _ in range(3):
        sizes = estimator.estimate(model, nothing(steps=1), last_output).coefficients.abs()
    aligned, others = 3 * w**2 + epsilon**2, w**2 - epsilon**2
    share = (sizes - aligned).abs() < 1e-9
    assert (share | ((sizes - others).abs() < 1e-9)).all()
    found = float(model.map.weight.grad)
    assert found == pytest.approx(float((share * 3 * sizes + ~share * sizes).mean()), rel=1e-9)
    standard_error = (3 * aligned - others) * (3 / 16 / members) ** 0.5
    assert abs(found - 3 * w**2) < 5 * standard_error
