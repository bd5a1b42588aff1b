"""The mean of many estimates is autograd's gradient: small LSTM, small ε, every structure and grouping."""

import pytest
import torch
from samples import assert_mean_vector, deviation, estimates, gradient

from zorn.estimators import BPTT, CDRGE, FDRGE
from zorn.models import Batch, LanguageModel
from zorn.noise import Dense, RankOne
from zorn.tasks import TokenCrossEntropy

ROWS, TIME, VOCABULARY = 4, 3, 5


def language(seed=0):
    """A model of 189 parameters, and rows of 3, 1, 2 and 3 tokens that count."""
    model = LanguageModel(VOCABULARY, 4, seed=seed).double()
    tokens = torch.randint(0, VOCABULARY, (ROWS, TIME + 1), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    targets[1, 1:] = -100
    targets[2, 2:] = -100
    batch = Batch(tokens[:, :-1].contiguous(), targets)
    BPTT().estimate(model, batch, TokenCrossEntropy())
    return model, batch, gradient(model)


CASES = {
    "one member a sequence": (CDRGE, RankOne(), 1, 512),
    "one member for two sequences": (CDRGE, RankOne(), 2, 512),
    "one member for the batch": (CDRGE, RankOne(), None, 256),
    "gaussian": (CDRGE, RankOne(noise="gaussian"), 1, 512),
    "gaussian, in groups": (CDRGE, RankOne(noise="gaussian"), 2, 512),
    "forward differences": (FDRGE, RankOne(), 1, 512),
    "dense": (CDRGE, Dense(), None, 6),
    "dense gaussian": (CDRGE, Dense(noise="gaussian"), 1, 8),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_is_the_gradient(case):
    kind, structure, group, population = CASES[case]
    model, batch, expected = language()
    estimator = kind(
        population=population,
        epsilon=1e-5,
        perturbation=structure,
        group_size=group,
        seed=11,
        micro_batch=4096,
    )
    found = estimates(estimator, model, batch, TokenCrossEntropy(), 30)
    assert_mean_vector(found, expected)


def test_a_wrong_gradient_is_found_out():
    """The power of the test above: 10 % too long, the head's bias missing, the mean over rows, not tokens."""
    model, batch, expected = language()
    estimator = CDRGE(population=512, epsilon=1e-5, group_size=1, seed=11, micro_batch=4096)
    found = estimates(estimator, model, batch, TokenCrossEntropy(), 40)
    missing = expected.clone()
    missing[-VOCABULARY:] = 0

    def mean_over_rows(outputs, targets):
        counts = (targets != -100).sum(1)
        return TokenCrossEntropy().token_losses(outputs, targets).sum(1) / counts

    BPTT().estimate(model, batch, mean_over_rows)
    for wrong in (1.1 * expected, missing, gradient(model), -expected):
        with pytest.raises(AssertionError):
            assert_mean_vector(found, wrong)
    assert float(deviation(found @ expected, float(1.1 * expected.square().sum()))) < -5
