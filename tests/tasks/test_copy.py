import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zorn.errors import ConfigError
from zorn.tasks import EVALUATION_ROWS, IGNORE, CopyTask

VOCABULARY = 29


def _task(**changes):
    settings = {"batch": 8, "minimum_length": 2, "maximum_length": 5, "seed": 7}
    return CopyTask(**(settings | changes))


class StepModel(nn.Module):
    """Predicts one token a step: `step(token, memory) -> predicted token`, one memory (a list) a row."""

    def __init__(self, step, confidence=50.0):
        super().__init__()
        self.step, self.confidence = step, confidence

    def initial_state(self, rows):
        return [[] for _ in range(rows)]

    def forward(self, inputs, state):
        predicted = [
            [self.step(token, state[row]) for token in tokens] for row, tokens in enumerate(inputs.tolist())
        ]
        return self.confidence * F.one_hot(torch.tensor(predicted), VOCABULARY).float(), state


def _perfect(token, memory):
    if token < 26 and 26 not in memory:
        memory.append(token)
        return 0
    memory.append(26)
    letters = memory[: memory.index(26)]
    position = memory.count(26) - 1
    return letters[position] if position < len(letters) else 27


def _echo(token, memory):
    return token


def test_every_row_is_letters_separator_letters_end():
    task = _task(batch=64)
    inputs, targets = task.training_batch(3)
    assert inputs.shape == targets.shape == (64, 2 * 5 + 1)
    lengths = Counter()
    for row in range(64):
        written = task.decode(inputs[row]).rstrip("_")
        letters, copied = written.split("|")
        length = len(letters)
        lengths[length] += 1
        assert letters == copied
        assert letters.isalpha()
        assert targets[row, :length].eq(IGNORE).all()
        assert task.decode(targets[row, length : 2 * length + 1]) == letters + "."
        assert targets[row, 2 * length + 1 :].eq(IGNORE).all()
    assert set(lengths) == {2, 3, 4, 5}


def test_batches_depend_on_seed_and_step_alone():
    first, again = _task(), _task()
    later = first.training_batch(5)
    assert torch.equal(again.training_batch(5).inputs, later.inputs)
    assert torch.equal(first.training_batch(5).targets, later.targets)
    assert not torch.equal(first.training_batch(6).inputs, later.inputs)
    assert not torch.equal(_task(seed=8).training_batch(5).inputs, later.inputs)


def test_splits_share_no_sequence():
    task = _task(minimum_length=8, maximum_length=8, batch=EVALUATION_ROWS)
    rows = {split: task.evaluation_data(split).batch.inputs for split in ("train", "validation", "test")}
    assert torch.equal(rows["train"], task.training_batch(0).inputs)
    written = [task.decode(row) for inputs in rows.values() for row in inputs]
    assert len(written) == 3 * EVALUATION_ROWS
    assert len(set(written)) == len(written)


def test_lengths_and_letters_are_uniform():
    task = _task(batch=4000)
    inputs, targets = task.training_batch(0)
    lengths = (targets != IGNORE).sum(1) - 1
    letters = inputs[inputs < 26]
    for values, kinds in ((lengths - 2, 4), (letters, 26)):
        share = torch.bincount(values, minlength=kinds) / len(values)
        # a copied letter comes twice: half as many independent ones as there are
        error = math.sqrt(1 / kinds * (1 - 1 / kinds) / (len(values) / 2))
        assert len(share) == kinds
        assert (share - 1 / kinds).abs().max() < 5 * error


def test_letters_do_not_follow_the_lengths():
    inputs, targets = _task(batch=4000).training_batch(0)
    lengths = (targets != IGNORE).sum(1) - 1
    drawn = torch.arange(4000)  # the n-th letter drawn beside the n-th length drawn
    letters = inputs[drawn // 5, drawn % 5]
    visible = drawn % 5 < lengths[drawn // 5]
    pairs = torch.stack([lengths, letters])[:, visible].double()
    assert torch.corrcoef(pairs)[0, 1].abs() < 5 / math.sqrt(int(visible.sum()))


def test_a_perfect_model_is_perfect():
    evaluation = _task().evaluate(StepModel(_perfect))
    assert (evaluation.token_accuracy, evaluation.sequence_accuracy) == (1.0, 1.0)
    assert evaluation.loss == pytest.approx(0, abs=1e-6)
    assert evaluation.bits_per_byte is None
    assert evaluation.split == "validation"


def test_a_perfect_model_is_perfect_in_any_chunks():
    assert _task().evaluate(StepModel(_perfect), time_chunk=3).sequence_accuracy == 1.0


def test_an_echo_of_the_input_is_not_a_copy():
    evaluation = _task().evaluate(StepModel(_echo))
    assert evaluation.token_accuracy < 0.1
    assert evaluation.sequence_accuracy == 0.0


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary():
    evaluation = _task().evaluate(StepModel(_perfect, confidence=0.0))
    assert evaluation.loss == pytest.approx(math.log(29), rel=1e-6)
    lengths = (_task().evaluation_data("validation").batch.inputs < 26).sum(1) // 2
    assert evaluation.tokens == int((lengths + 1).sum())


def test_overfitting_is_one_batch_and_says_so():
    task = _task(overfit=True)
    batch = task.training_batch(0)
    assert torch.equal(task.training_batch(17).inputs, batch.inputs)
    assert torch.equal(batch.inputs, _task().training_batch(0).inputs)
    for split in ("validation", "test"):
        data = task.evaluation_data(split)
        assert torch.equal(data.batch.inputs, batch.inputs)
        assert torch.equal(data.batch.targets, batch.targets)
    assert task.evaluate(StepModel(_perfect)).split == "overfit batch"


def test_an_unknown_split_is_named():
    for overfit in (False, True):
        with pytest.raises(ConfigError, match=r"split must be one of .* got 'dev'"):
            _task(overfit=overfit).evaluate(StepModel(_perfect), "dev")


def test_encode_and_decode_are_inverse():
    task = _task()
    text = "abcxyz|abcxyz._"
    assert task.decode(task.encode(text)) == text
    assert task.encode("az|._").tolist() == [0, 25, 26, 27, 28]
    assert task.encode("").dtype == torch.int64


def test_encode_says_which_symbols_there_are():
    with pytest.raises(ConfigError, match=r"knows the letters a to z.*got 'B'.*'hello\|'"):
        _task().encode("aB")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be a whole number of at least 1, got 0"),
        ({"minimum_length": 0}, "minimum_length must be a whole number of at least 1, got 0"),
        ({"maximum_length": 1}, "maximum_length must be at least minimum_length, got 1 and 2"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        _task(**changes)
