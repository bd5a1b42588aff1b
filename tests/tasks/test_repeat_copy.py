import math

import pytest
import torch
from transducers import make, written

from zorn.errors import ConfigError
from zorn.tasks import RepeatCopyTask


@pytest.mark.parametrize("maximum", [1, 3, 9])
def test_repeats_are_uniform_from_one_to_the_maximum(maximum):
    task = make(RepeatCopyTask, batch=2000, maximum_repeats=maximum)
    repeats = torch.tensor([int(source[0]) for source, _ in written(task, task.training_batch(0))])
    share = torch.bincount(repeats - 1, minlength=maximum) / len(repeats)
    error = math.sqrt(1 / maximum * (1 - 1 / maximum) / len(repeats))
    assert len(share) == maximum
    assert (share - 1 / maximum).abs().max() <= 5 * error


def test_repeats_do_not_follow_the_lengths():
    task = make(RepeatCopyTask, batch=4000)
    rows = written(task, task.training_batch(0))
    pairs = torch.tensor([[int(source[0]), len(source) - 1] for source, _ in rows]).double().T
    assert torch.corrcoef(pairs)[0, 1].abs() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("repeats", [0, 10])
def test_the_maximum_is_one_digit(repeats):
    message = f"maximum_repeats must be a whole number of at least 1 and at most 9, got {repeats}"
    with pytest.raises(ConfigError, match=message):
        make(RepeatCopyTask, maximum_repeats=repeats)
