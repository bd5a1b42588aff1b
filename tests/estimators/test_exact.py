"""What BPTT and TBPTT share: an error leaves the weights alone, the mode of the caller, and the cost."""

import pytest
import torch
from small_language import (
    EXACT,
    ROWS,
    TIME,
    assert_same,
    assert_unchanged,
    gradients,
    language_batch,
    language_model,
    model_in_mixed_modes,
    snapshot,
)

from zorn.tasks import TokenCrossEntropy

each_exact = pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)


@pytest.mark.parametrize("call", [1, 2])
@each_exact
def test_an_exact_one_that_raised_leaves_the_weights_as_they_were(make, call):
    model = model_in_mixed_modes()
    before = snapshot(model)

    class Failing(TokenCrossEntropy):
        calls = 0

        def token_losses(self, outputs, targets):
            Failing.calls += 1
            if Failing.calls == call:
                raise RuntimeError("from the objective")
            return super().token_losses(outputs, targets)

    with pytest.raises(RuntimeError, match="from the objective"):
        make(micro_batch=2).estimate(model, language_batch(), Failing())
    assert Failing.calls == call
    assert_unchanged(model, before)
    assert not gradients(model)  # rather none than that of the first pieces


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@each_exact
def test_an_exact_one_differentiates_whatever_the_callers_mode(make, mode):
    model, batch = language_model(), language_batch()
    make().estimate(model, batch, TokenCrossEntropy())
    expected = gradients(model)
    with mode():
        make().estimate(model, batch, TokenCrossEntropy())
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@each_exact
def test_an_exact_one_counts_a_backward_pass_as_two(make, micro_batch):
    model, tokens = language_model(torch.float32), []
    model.register_forward_hook(lambda module, arguments, output: tokens.append(arguments[0].numel()))
    found = make(micro_batch=micro_batch).estimate(model, language_batch(), TokenCrossEntropy())
    assert sum(tokens) == ROWS * TIME
    assert found.forward_passes == 3 * ROWS
