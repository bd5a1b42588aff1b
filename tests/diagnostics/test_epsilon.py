"""The ε sweep: its plateau lies between rounding and curvature, and moves with both."""

import math

import pytest
import torch

import zorn
from zorn.diagnostics import NoPlateauError, find_epsilon
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators import CDRGE, FDRGE
from zorn.estimators.bridge import Bridge
from zorn.models import Batch
from zorn.tasks import TokenCrossEntropy


def batch(time=5):
    tokens = torch.randint(0, 7, (4, time + 1), generator=torch.Generator().manual_seed(0))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def sweep(model, estimator, objective=None, **options):
    return find_epsilon(model, batch(), objective or TokenCrossEntropy(), estimator, **options)


def test_the_recommendation_is_in_the_middle_of_what_is_flat():
    found = sweep(zorn.LanguageModel(7, 6), CDRGE(population=16, epsilon=0.5, group_size=1))
    low, high = found.plateau
    inside = [point for point in found.points if low <= point.epsilon <= high]
    best = max(point.agreement.mean for point in found.points)
    assert all(point.agreement.mean >= 0.95 * best for point in inside)
    assert abs(math.log10(found.epsilon / math.sqrt(low * high))) <= 0.25 + 1e-9
    assert found.measure == "agreement"
    assert found.ends == (False, True)


def test_rounding_lifts_the_lower_end_in_bfloat16():
    estimator = CDRGE(population=16, epsilon=0.02, group_size=1)
    low, epsilons = {}, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        low[dtype] = sweep(
            zorn.LanguageModel(7, 6).to(dtype), estimator, epsilons=epsilons, repeats=1
        ).plateau[0]
    assert low[torch.float64] == 1e-6
    assert low[torch.float32] < low[torch.bfloat16]
    assert low[torch.bfloat16] >= 1e-3


def test_forward_differences_feel_curvature_earlier():
    model = zorn.LanguageModel(7, 6).double()
    options = {"population": 16, "epsilon": 0.02, "group_size": 1}
    epsilons = [1e-2, 1e-1, 1.0]
    central, forward = (sweep(model, kind(**options), epsilons=epsilons) for kind in (CDRGE, FDRGE))
    at = {
        kind: next(point.agreement.mean for point in found.points if abs(point.epsilon - 0.1) < 1e-9)
        for kind, found in (("central", central), ("forward", forward))
    }
    assert at["forward"] < at["central"]


def test_by_the_cosine_where_the_gradient_is_there():
    found = sweep(
        zorn.LanguageModel(7, 6), CDRGE(population=128, epsilon=0.02, group_size=1), exact=True, repeats=1
    )
    assert found.measure == "cosine"
    best = max(point.cosine.mean for point in found.points)
    middle = next(point for point in found.points if point.epsilon == found.epsilon)
    assert middle.cosine.mean >= 0.95 * best > 0.1


def test_losses_that_explode_are_off_the_plateau():
    class Cliff(TokenCrossEntropy):
        def token_losses(self, outputs, targets):
            losses = super().token_losses(outputs, targets)
            return torch.where(outputs.abs().amax(-1) > 0.8, torch.nan, losses)

    found = sweep(zorn.LanguageModel(7, 6), CDRGE(population=16, epsilon=0.02, group_size=1), Cliff())
    assert found.points[-1].agreement.mean == 0
    assert found.plateau[1] < 1


def test_an_objective_in_steps_has_its_plateau_where_members_differ():
    found = sweep(
        zorn.LanguageModel(7, 6),
        CDRGE(population=256, epsilon=0.02, group_size=1),
        zorn.tasks.OBJECTIVES["token-error"](),
    )
    assert found.points[0].agreement.mean == 0
    assert found.epsilon > 1e-3


def test_of_a_bridge_only_the_credit_counts():
    model = zorn.LanguageModel(7, 6)
    found = sweep(
        model, Bridge(truncation=2, epsilon=0.05, draws=1, separate=False), epsilons=[1e-7, 1e-2, 1e-1]
    )
    assert found.points[0].agreement.mean < 0.9, "rounding shows, which the exact part would hide"
    with pytest.raises(NoPlateauError, match="agreement is 0 at most"):
        sweep(model, Bridge(truncation=5, epsilon=0.05, draws=1, separate=False))


@pytest.mark.parametrize(
    ("epsilons", "message"),
    [
        ([0.1, 0.2], "at least three different numbers"),
        ([0.1, 0.1, 0.1], "at least three different numbers"),
        (0.1, "at least three different numbers"),
        ([0.0, 0.1, 0.2], "epsilons must be a number above 0"),
        (["0.1", 0.1, 0.2], "epsilons must be a number above 0"),
    ],
)
def test_what_is_swept_is_checked(epsilons, message):
    with pytest.raises(ConfigError, match=message):
        sweep(zorn.LanguageModel(7, 6), CDRGE(population=4, epsilon=0.02, group_size=None), epsilons=epsilons)


def test_an_estimator_without_epsilon_is_refused():
    with pytest.raises(ConfigError, match="estimator must be one with an epsilon to sweep, got BPTT"):
        sweep(zorn.LanguageModel(7, 6), zorn.BPTT())


def test_a_loss_that_is_never_finite_is_told():
    def never(outputs, targets):
        return outputs.sum((1, 2)) * torch.nan

    with pytest.raises((NoPlateauError, NonFiniteLossError)):
        sweep(zorn.LanguageModel(7, 6), CDRGE(population=4, epsilon=0.02, group_size=None), never)
