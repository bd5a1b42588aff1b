"""NRES against closed forms and against CD-RGE of the whole segment."""

import pytest
import torch
from small_language import STRUCTURES, assert_close, gradients
from streams import Scalar, cut, last_output, nothing, segment_gradient

from zorn.estimators import CDRGE
from zorn.estimators.nres import NRES
from zorn.models import Batch, LanguageModel
from zorn.tasks import TokenCrossEntropy

ROWS, TIME, WINDOWS, VOCABULARY = 4, 6, 3, 5


def test_one_weight_gives_the_central_difference_of_the_long_horizon():
    """With d = 1 and signs z² = 1: no noise is left. L_t = w^2t, and ĝ_t = ((w + ε)^2t − (w − ε)^2t) / 2ε."""
    w, epsilon, model = 0.8, 0.1, Scalar(0.8)
    estimator = NRES(population=3, epsilon=epsilon)
    for window in range(1, 5):
        estimator.estimate(model, nothing(steps=2), last_output)
        expected = ((w + epsilon) ** (2 * window) - (w - epsilon) ** (2 * window)) / (2 * epsilon)
        torch.testing.assert_close(float(model.map.weight.grad), expected, rtol=1e-12, atol=0)


def test_what_a_change_of_weights_leaves_in_the_state_counts():
    """One window at w, the next at v: ĝ_2 = ((w + ε)(v + ε) − (w − ε)(v − ε)) / 2ε = w + v."""
    model, estimator = Scalar(0.8), NRES(population=1, epsilon=0.1)
    estimator.estimate(model, nothing(steps=1), last_output)
    torch.nn.init.constant_(model.map.weight, 0.3)
    estimator.estimate(model, nothing(steps=1), last_output)
    assert float(model.map.weight.grad) == pytest.approx(0.8 + 0.3, rel=1e-12)


@pytest.mark.parametrize(
    ("structure", "group", "cell"),
    [
        *((structure, 2, "lstm") for structure in STRUCTURES),
        *(("rank one", group, "lstm") for group in (1, None)),
        *((structure, 2, "dnc") for structure in ("rank one", "dense")),  # a nested state
    ],
)
def test_a_segment_at_fixed_weights_is_cd_rge_of_the_whole_sequence(structure, group, cell):
    model = LanguageModel(VOCABULARY, 4, cell=cell).double()
    tokens = torch.randint(0, VOCABULARY, (ROWS, TIME + 1), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    options = {"population": 8, "epsilon": 0.05, "perturbation": STRUCTURES[structure], "group_size": group}
    found = segment_gradient(NRES(**options), model, cut(batch, WINDOWS), TokenCrossEntropy())
    CDRGE(**options).estimate(model, batch, TokenCrossEntropy())
    expected = {name: WINDOWS * gradient for name, gradient in gradients(model).items()}  # a sum of means
    assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_a_window_without_a_token_that_counts_only_moves_the_states():
    model = LanguageModel(VOCABULARY, 4).double()
    tokens = torch.randint(0, VOCABULARY, (ROWS, TIME + 1), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    targets[:, : TIME // 2] = -100
    batch = Batch(tokens[:, :-1].contiguous(), targets)
    estimator, (first, second) = NRES(population=8, epsilon=0.05), cut(batch, 2)
    silent = estimator.estimate(model, first, TokenCrossEntropy())
    assert (silent.loss, silent.gradient_norm, silent.dropped) == (0.0, 0.0, 0)
    found = estimator.estimate(model, second, TokenCrossEntropy())
    expected = CDRGE(population=8, epsilon=0.05, group_size=1).estimate(model, batch, TokenCrossEntropy())
    torch.testing.assert_close(found.coefficients, expected.coefficients, rtol=1e-9, atol=1e-11)
