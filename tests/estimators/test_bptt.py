"""BPTT against autograd written out."""

import pytest
import torch
import torch.nn.functional as F
from small_language import assert_close, gradients, language_batch, language_model
from torch import nn

from zorn.estimators import BPTT
from zorn.models import Batch
from zorn.tasks import TokenCrossEntropy


@pytest.mark.parametrize("micro_batch", [None, 1, 2, 3, 4, 100])
@pytest.mark.parametrize(
    "options", [{}, {"cell": "gru", "num_heads": 2}, {"tie_embedding": True, "num_layers": 2}]
)
def test_it_is_the_gradient_of_the_mean_over_tokens_for_any_micro_batch(micro_batch, options):
    """Rows differ in length, so the mean over tokens is not the mean over rows."""
    model, batch = language_model(**options), language_batch()
    outputs, _ = model(batch.inputs)
    loss = F.cross_entropy(outputs.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    found = BPTT(micro_batch=micro_batch).estimate(model, batch, TokenCrossEntropy())
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    assert found.gradient_norm == pytest.approx(
        float(torch.cat([g.flatten() for g in expected.values()]).norm())
    )
    assert_close(gradients(model), expected, rtol=1e-9, atol=1e-12)
    assert len(found.coefficients) == 0
    assert found.coefficient_norm == 0


def test_a_row_objective_is_averaged_over_the_batch():
    model = nn.Linear(3, 1).double()
    batch = Batch(torch.randn(5, 3).double(), torch.randn(5, 1).double())
    expected = torch.autograd.grad((model(batch.inputs) - batch.targets).square().mean(), model.weight)[0]
    BPTT(micro_batch=2).estimate(model, batch, lambda outputs, targets: (outputs - targets).square().mean(1))
    torch.testing.assert_close(model.weight.grad, expected)


def test_it_counts_and_resumes_steps():
    estimator, resumed = BPTT(), BPTT()
    estimator.estimate(language_model(), language_batch(), TokenCrossEntropy())
    resumed.load_state_dict(estimator.state_dict())
    assert resumed.step == estimator.step == 1


def test_a_frozen_parameter_is_left_alone():
    model = language_model()
    model.head.weight.requires_grad_(False)
    BPTT().estimate(model, language_batch(), TokenCrossEntropy())
    assert "head.weight" not in gradients(model)
    assert "head.bias" in gradients(model)
