import pytest
import torch

import zorn
from zorn.models import TokenObjective
from zorn.tasks import OBJECTIVES


def test_the_names_of_the_command_line():
    assert list(OBJECTIVES) == ["cross-entropy", "token-error", "sequence-error", "edit-distance"]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_named_objective_trains(name):
    task = zorn.tasks.CopyTask(batch=8, minimum_length=1, maximum_length=3, seed=0)
    model = zorn.LanguageModel(task.vocabulary, 16)
    objective = OBJECTIVES[name]()
    estimator = zorn.CDRGE(population=64, epsilon=0.3, group_size=1)
    estimate = estimator.estimate(model, task.training_batch(0), objective)
    if name != "sequence-error":  # of which a fresh model has all there are, in every direction
        assert estimate.coefficients.abs().max() > 0
    assert estimate.dropped == 0
    assert 0 < estimate.loss < (10 if name == "cross-entropy" else 1 + 1e-9)
    assert isinstance(objective, TokenObjective) == (name == "cross-entropy")


def test_errors_of_one_row_by_hand():
    outputs = torch.eye(4)[None]  # predicts 0, 1, 2, 3
    targets = torch.tensor([[-100, 2, 3, 1]])  # shifted by one: two edits, though no place is right
    scores = {name: float(OBJECTIVES[name]()(outputs, targets)) for name in list(OBJECTIVES)[1:]}
    assert scores == {
        "token-error": 1.0,
        "sequence-error": 1.0,
        "edit-distance": pytest.approx(2 / 3),
    }
