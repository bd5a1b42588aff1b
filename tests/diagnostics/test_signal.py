"""Cosine, SNR and ladder against an estimator whose signal and noise are known."""

import math

import pytest
import torch
from noisy import BATCH, SIZE, Noisy, Plane, value

import zorn
from zorn.diagnostics import LadderFit, fit_ladder, measure_signal
from zorn.errors import ConfigError
from zorn.estimators import BPTT, CDRGE
from zorn.models import Batch
from zorn.tasks import TokenCrossEntropy

SIGMAS = 5


def near(found, expected):
    """Within 5 standard errors, and what curvature of the cosine adds in SIZE dimensions."""
    return abs(found.mean - expected) < SIGMAS * found.standard_error + 1 / SIZE


@pytest.mark.parametrize("angle", [0.0, 1.0])
def test_cosine_norm_and_snr_are_those_of_the_noise(angle):
    noise, members = 30.0, 4
    found = measure_signal(Plane(), BATCH, value, Noisy(noise, members, angle), estimates=128)
    ratio = noise / members
    assert near(found.whole.cosine, math.cos(angle) / math.sqrt(1 + ratio))
    assert near(found.whole.snr, 1 / (1 + ratio))
    assert near(found.whole.relative_norm, math.sqrt(1 + ratio))
    assert found.whole.cosine.standard_error < 0.01
    assert (found.whole.numbers, found.forward_passes, found.estimates) == (SIZE, 6, 128)
    assert [layer.name for layer in found.layers] == ["first", "second"]
    for layer in found.layers:
        share = Plane().slope[("first", "second").index(layer.name)].square().sum()
        expected = math.cos(angle) / math.sqrt(1 + ratio / 2 / float(share))
        assert abs(layer.cosine.mean - expected) < 0.03


def test_the_ladder_is_that_of_larger_populations():
    found = measure_signal(Plane(), BATCH, value, Noisy(200.0, 10, 0.5), estimates=32)
    assert [rung.averaged for rung in found.ladder] == [1, 2, 4, 8, 16]
    assert [rung.members for rung in found.ladder] == [10, 20, 40, 80, 160]
    assert [rung.samples for rung in found.ladder] == [32, 16, 8, 4, 2]
    for rung in found.ladder:
        alone = measure_signal(Plane(), BATCH, value, Noisy(200.0, rung.members, 0.5), estimates=32)
        error = math.hypot(rung.cosine.standard_error, alone.whole.cosine.standard_error)
        assert abs(rung.cosine.mean - alone.whole.cosine.mean) < SIGMAS * error + 0.01
    assert abs(found.fit.ceiling - math.cos(0.5)) < 3 * found.fit.ceiling_error + 0.02
    assert abs(found.fit.noise / 200 - 1) < 0.25


def test_without_the_gradient_the_fit_is_of_the_snr():
    found = measure_signal(Plane(), BATCH, value, Noisy(200.0, 10, 0.5), estimates=32, exact=False)
    assert found.whole.cosine is None
    assert found.whole.relative_norm is None
    assert (found.fit.ceiling, found.fit.ceiling_error) == (1.0, 0.0)
    assert abs(found.fit.noise / 200 - 1) < 0.25


def test_pure_noise_has_no_fit():
    noise = Noisy(1e12)
    found = measure_signal(Plane(), BATCH, value, noise, estimates=16)
    assert abs(found.whole.snr.mean) < 0.05
    assert found.fit is None


def test_each_estimate_has_a_step_of_its_own():
    estimator = Noisy(1.0)
    estimator.step = 5
    measure_signal(Plane(), BATCH, value, estimator, estimates=8)
    assert estimator.seen == [5, *range(5, 13)]  # the first measures sizes
    assert estimator.step == 5


def test_backpropagation_is_all_signal():
    found = measure_signal(Plane(), BATCH, value, BPTT(), estimates=4)
    for layer in (*found.layers, found.whole):
        assert layer.cosine.mean == pytest.approx(1)
        assert layer.snr.mean == pytest.approx(1)
        assert layer.relative_norm.mean == pytest.approx(1)
    assert found.fit.members_for(0.9) == 1


def test_a_zero_order_estimator_matches_theory():
    """Rademacher directions on a linear loss: relative variance (d − 1) / n, so κ = d − 1."""
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 1, bias=False)
    batch = Batch(torch.randn(1, 30), torch.zeros(1))
    estimator = CDRGE(population=8, epsilon=0.01, seed=1, group_size=None)

    def output(outputs, targets):
        return outputs[:, 0] - targets

    found = measure_signal(model, batch, output, estimator, estimates=64)
    ratio = 29 / 8
    square = found.whole.relative_norm.mean**2
    assert abs(square / (1 + ratio) - 1) < 0.2
    assert abs(found.fit.noise / 29 - 1) < 0.5
    assert found.fit.ceiling > 0.9


def test_a_parameter_without_gradient_has_no_signal():
    model = zorn.LanguageModel(7, 6)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    model.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
    found = measure_signal(model, Batch(tokens, tokens), TokenCrossEntropy(), BPTT(), estimates=4)
    unused = next(layer for layer in found.layers if layer.name == "unused")
    assert str(unused.cosine) == str(unused.snr) == str(unused.relative_norm) == "–"


@pytest.mark.parametrize("estimates", [2, 6, 0, 4.0])
def test_the_number_of_estimates_is_checked(estimates):
    with pytest.raises(ConfigError, match="estimates must be"):
        measure_signal(Plane(), BATCH, value, Noisy(1.0), estimates=estimates)


def test_the_fit_finds_what_made_the_ladder():
    truth = LadderFit(ceiling=0.7, ceiling_error=0.0, noise=123.0)
    members = [16, 32, 64, 128, 256]
    found = fit_ladder(members, [truth.cosine(n) for n in members], [16, 8, 4, 2, 1], deviation=0.01)
    assert found.ceiling == pytest.approx(0.7, rel=1e-3)
    assert found.noise == pytest.approx(123, rel=1e-3)
    assert 0 < found.ceiling_error < 0.1
    assert found.members_for(0.8) is None
    wanted = found.members_for(0.5)
    assert found.cosine(wanted - 1) < 0.5 <= found.cosine(wanted)
    assert fit_ladder([1, 2], [-0.1, -0.2], [1, 1]) is None
    assert fit_ladder([1, 2], [-0.1, -0.2], [1, 1], of="snr") is None
    with pytest.raises(ConfigError, match="at least two rungs"):
        fit_ladder([1, 1], [0.1, 0.2], [1, 1])


def test_the_error_of_the_ceiling_is_its_spread():
    """Independent rungs with noise of a known size: the fitted ceilings scatter by what is foretold."""
    truth, members = LadderFit(ceiling=0.6, ceiling_error=0.0, noise=50.0), [10, 40, 160, 640]
    generator = torch.Generator().manual_seed(0)
    fits = []
    for _ in range(200):
        noise = 0.02 * torch.randn(4, generator=generator)
        values = [truth.cosine(n) + float(noise[i]) for i, n in enumerate(members)]
        fits.append(fit_ladder(members, values, [1, 1, 1, 1], deviation=0.02))
    spread = torch.tensor([fit.ceiling for fit in fits]).std()
    foretold = torch.tensor([fit.ceiling_error for fit in fits]).mean()
    assert abs(float(spread / foretold) - 1) < 0.3
