"""Members whose losses are not finite: dropped and counted, or too many."""

import pytest
import torch
from pairs import each_once
from small_language import (
    STRUCTURES,
    assert_close,
    assert_same,
    folded,
    gradients,
    language_batch,
    language_model,
    weights,
)

from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators import BPTT, CDRGE, FDRGE, SPSA15, TBPTT
from zorn.estimators.update import FusedSGD
from zorn.models import Batch
from zorn.tasks import TokenCrossEntropy

POPULATION = 8
LOSSES = torch.arange(24.0, dtype=torch.float64).view(3, 8).square()


def asked(kind, structure="rank one", **options):
    model = language_model()
    estimator = kind(
        population=POPULATION, epsilon=0.1, group_size=None, perturbation=STRUCTURES[structure], **options
    )
    return estimator, model, estimator.ask(model)


SIGNS = [(CDRGE, 0), (CDRGE, 1), (FDRGE, 0), (FDRGE, 1), (SPSA15, 0), (SPSA15, 1), (SPSA15, 2)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("of_sign", "structure"), each_once(SIGNS, STRUCTURES))
def test_a_member_is_dropped_and_the_average_is_over_the_rest(of_sign, structure, value):
    kind, sign = of_sign
    estimator, model, population = asked(kind, structure)
    every = LOSSES[: len(population.signs)]
    clean = estimator.tell(model, population, every).coefficients
    losses = every.clone()
    losses[sign, 2] = value
    found = estimator.tell(model, population, losses)
    rest = clean.clone()
    rest[2] = 0
    assert found.dropped == 1
    assert torch.equal(found.coefficients, rest)
    kept = torch.arange(8) != 2
    reported = {CDRGE: every, FDRGE: every[1], SPSA15: every[-1]}[kind]
    assert found.loss == float(reported[..., kept].mean())
    assert_close(gradients(model), folded(population, model, rest / 7), rtol=1e-12, atol=1e-12)


def test_shaping_sees_only_those_that_are_kept():
    seen = []
    estimator, model, population = asked(CDRGE, shaping=lambda c: seen.append(len(c)) or c)
    losses = LOSSES[:2].clone()
    losses[0, :3] = torch.nan
    estimator.tell(model, population, losses)
    assert seen == [5]


@pytest.mark.parametrize(
    ("share", "bad", "raises", "fused"),
    [
        (0.0, 1, True, False),
        (0.25, 2, False, True),
        (0.25, 3, True, True),
        (1.0, 7, False, False),
        (1.0, 8, True, False),
    ],
)
def test_more_than_the_allowed_share_raises_and_changes_nothing(share, bad, raises, fused):
    estimator, model, population = asked(CDRGE, maximum_nonfinite_share=share)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before, before_gradients = weights(model), gradients(model)
    losses = LOSSES[:2].clone()
    losses[1, :bad] = torch.nan
    update = FusedSGD(learning_rate=0.1) if fused else None
    if not raises:
        assert estimator.tell(model, population, losses, update).dropped == bad
        return
    with pytest.raises(NonFiniteLossError, match=f"step 0: the losses of {bad} of 8 members were not finite"):
        estimator.tell(model, population, losses, update)
    assert_same(weights(model), before)
    assert_same(gradients(model), before_gradients)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_diverged_row_is_dropped_through_the_whole_estimate(structure):
    """Only the member whose rows diverged; the others are as without it."""
    model, batch = language_model(), language_batch()

    def estimate(objective):
        estimator = CDRGE(
            population=4, epsilon=0.1, group_size=1, micro_batch=2, perturbation=STRUCTURES[structure]
        )
        return estimator.estimate(model, batch, objective)

    def diverging(outputs, targets):
        """Row 1 of the batch, known by its targets, scores NaN."""
        losses = outputs.square().mean((1, 2))
        return torch.where((targets == batch.targets[1]).all(1), torch.nan, losses)

    clean = estimate(lambda outputs, targets: outputs.square().mean((1, 2)))
    found = estimate(diverging)
    assert found.dropped == 1
    kept = torch.tensor([True, False, True, True])
    assert torch.equal(found.coefficients, clean.coefficients * kept)


class NotANumber(TokenCrossEntropy):
    def token_losses(self, outputs, targets):
        return super().token_losses(outputs, targets) * torch.nan


@pytest.mark.parametrize("estimator", [BPTT(), TBPTT(truncation=2)])
@pytest.mark.parametrize("fused", [False, True])
def test_exact_ones_raise_with_the_weights_unchanged_and_no_gradient(estimator, fused):
    model = language_model()
    before = weights(model)
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        estimator.estimate(
            model,
            language_batch(),
            NotANumber(),
            FusedSGD(learning_rate=0.1) if fused else None,
        )
    assert_same(weights(model), before)
    assert not gradients(model)


@pytest.mark.parametrize("update", [None, FusedSGD(learning_rate=0.1)], ids=["grad", "in place"])
def test_losses_too_large_for_the_gradient_change_nothing(update):
    model = torch.nn.Linear(3, 2)
    before = weights(model)
    batch = Batch(torch.ones(4, 3), torch.ones(4, 2))

    def huge(outputs, targets):
        return outputs.double().sum(1) * 1e300

    estimator = CDRGE(population=8, epsilon=0.01, group_size=None)
    with pytest.raises(NonFiniteLossError, match="too large for the gradient"):
        estimator.estimate(model, batch, huge, update=update)
    assert_same(weights(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("shaping", "error", "message"),
    [
        (lambda c: c[:1], ConfigError, r"shaping returns must be a tensor of shape \(8,\).*got \(1,\)"),
        (lambda c: c.mean(), ConfigError, "shaping returns must be a tensor"),
        (lambda c: None, ConfigError, "got NoneType"),
        (lambda c: c * float("nan"), NonFiniteLossError, "check the shaping"),
    ],
)
def test_a_shaping_that_is_none_is_refused(shaping, error, message):
    model = torch.nn.Linear(3, 2)
    batch = Batch(torch.ones(4, 3), torch.ones(4, 2))
    estimator = CDRGE(population=8, epsilon=0.01, shaping=shaping, group_size=None)
    with pytest.raises(error, match=message):
        estimator.estimate(model, batch, lambda outputs, targets: outputs.sum(1))
    assert all(parameter.grad is None for parameter in model.parameters())
