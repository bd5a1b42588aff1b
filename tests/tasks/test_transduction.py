"""What holds for every transduction task and split."""

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import each_once
from torch import nn
from transducers import SIZE_OF, TASKS, Transducer, make, right_answer, written

from zorn.errors import ConfigError
from zorn.models import LanguageModel, row_losses, sample
from zorn.tasks import (
    EVALUATION_ROWS,
    IGNORE,
    TRANSDUCTION_SPLITS,
    AddTask,
    CopyTask,
    RepeatCopyTask,
    ReverseTask,
    SortTask,
    Strings,
    TokenCrossEntropy,
    transduction_batch,
)
from zorn.tasks.letters import LETTERS
from zorn.tasks.transduction import MARKS

every_task = pytest.mark.parametrize("kind", TASKS)
every_task_and_split = pytest.mark.parametrize(("kind", "split"), each_once(TASKS, TRANSDUCTION_SPLITS))


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch):
    """Evaluations of 24 sequences: the models here are slow ones."""
    monkeypatch.setattr("zorn.tasks.transduction.EVALUATION_ROWS", 24)


def _small_task(kind, split="validation", **changes):
    """A task whose sequences of a split are short enough for a model in Python."""
    return make(kind, **({"minimum_length": 1, "maximum_length": 4} | changes))


@pytest.mark.parametrize(
    ("kind", "source", "answer"),
    [
        (CopyTask, "cab", "cab"),
        (CopyTask, "z", "z"),
        (ReverseTask, "cab", "bac"),
        (ReverseTask, "aab", "baa"),
        (SortTask, "cab", "abc"),
        (SortTask, "zazz", "azzz"),
        (RepeatCopyTask, "3cab", "cabcabcab"),
        (RepeatCopyTask, "1z", "z"),
        (RepeatCopyTask, "2ab", "abab"),
        (AddTask, "907+153", "1060"),
        (AddTask, "999+111", "1110"),
        (AddTask, "0+0", "0"),
        (AddTask, "95+17", "112"),
    ],
)
def test_hand_written_examples(kind, source, answer, monkeypatch):
    """The task's own arithmetic on draws that give this very source."""
    task = make(kind)
    assert written(task, _batch_of(task, source)) == [(source, answer + ".")]


def _batch_of(task, source):
    """The batch whose only row has this source, through draws that are made up to give it."""
    if isinstance(task, AddTask):
        numbers = source.split("+")
        length = len(numbers[0])
        places = [[int(digit) for digit in reversed(number)] for number in numbers]
        draws = {1: torch.tensor(places).flatten(), 2: torch.tensor([int(n[0]) - 1 for n in numbers])}
    else:
        letters = source.lstrip("123456789")
        length = len(letters)
        draws = {1: task.encode(letters)}
        if isinstance(task, RepeatCopyTask):
            draws[2] = torch.tensor([int(source[0]) - 1])
    drawn = task.sources_and_answers(
        torch.tensor([length]), length, lambda number, count, bound: draws[number]
    )
    return transduction_batch(*drawn, task.symbols)


def test_the_tables_of_the_docstrings():
    letters = Strings(torch.tensor([[2, 0, 1, 9]]), torch.tensor([3]))
    inputs, targets = transduction_batch(letters, letters, LETTERS + MARKS)
    assert inputs.tolist() == [[2, 0, 1, 26, 2, 0, 1, 28, 28]]
    assert targets.tolist() == [[IGNORE] * 3 + [2, 0, 1, 27] + [IGNORE] * 2]
    repeat, add = make(RepeatCopyTask, maximum_length=3), make(AddTask)
    assert repeat.encode("2cab|cab_").tolist() == [27, 2, 0, 1, 35, 2, 0, 1, 37]
    assert repeat.encode(".").tolist() == [36]
    assert add.encode("95+17|112._").tolist() == [9, 5, 10, 1, 7, 11, 1, 1, 2, 12, 13]
    assert repeat.training_batch(0).inputs.shape[1] == (1 + 3) * 3 + 2
    assert make(AddTask, maximum_length=2).training_batch(0).inputs.shape[1] == 9
    assert [make(kind).vocabulary for kind in TASKS] == [29, 29, 29, 38, 14]


@every_task
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_row_is_a_source_and_its_answer(kind, data):
    minimum = data.draw(st.integers(1, 60))
    task = make(
        kind,
        batch=data.draw(st.integers(1, 5)),
        minimum_length=minimum,
        maximum_length=data.draw(st.integers(minimum, 60)),
        seed=data.draw(st.integers(0, 2**64 - 1)),
    )
    split = data.draw(st.sampled_from(["training batch", *TRANSDUCTION_SPLITS]))
    step = data.draw(st.integers(0, 2**32 - 1))
    batch = task.training_batch(step) if split == "training batch" else task.evaluation_data(split).batch
    for part in batch:
        assert part.dtype == torch.int64
        assert part.is_contiguous()
    for source, answer in written(task, batch):
        assert answer == TASKS[kind](source) + "."
        if kind is AddTask:
            first, second = source.split("+")
            assert len(first) == len(second)
            assert len(first) == 1 or "0" not in (first[0], second[0])


@every_task_and_split
def test_a_perfect_model_is_perfect(kind, split):
    task = _small_task(kind)
    evaluation = task.evaluate(Transducer(task, right_answer(kind)), split)
    assert (evaluation.token_accuracy, evaluation.sequence_accuracy) == (1.0, 1.0)
    assert evaluation.loss == pytest.approx(0, abs=1e-6)
    assert evaluation.split == split
    assert evaluation.bits_per_byte is None


@every_task
def test_a_perfect_model_is_perfect_in_any_chunks(kind):
    task = _small_task(kind)
    assert task.evaluate(Transducer(task, right_answer(kind)), time_chunk=3).sequence_accuracy == 1.0


@every_task
@pytest.mark.parametrize("ahead", [-1, 1])
def test_the_loss_and_the_accuracy_are_not_off_by_one_token(kind, ahead):
    """The public code's accuracy is: a model one token late (an echo of its input) or early is wrong."""
    task = _small_task(kind, minimum_length=4, maximum_length=6)
    evaluation = task.evaluate(Transducer(task, right_answer(kind, ahead)))
    assert evaluation.sequence_accuracy == 0.0
    assert evaluation.token_accuracy < 0.6
    assert evaluation.loss > 20


@every_task_and_split
def test_an_echo_of_the_input_answers_nothing(kind, split):
    task = _small_task(kind)
    evaluation = task.evaluate(Transducer(task, lambda text: text[-1]), split)
    assert evaluation.sequence_accuracy == 0.0
    assert evaluation.token_accuracy < 0.6


@every_task
def test_the_loss_is_a_mean_over_tokens_not_over_means_of_rows(kind):
    """A model that is perfect on short answers and guesses uniformly on long ones."""
    task = _small_task(kind)

    def confidence(text):
        source, separator, _ = text.partition("|")
        return 50.0 if separator and len(TASKS[kind](source)) <= 3 else 0.0

    model = Transducer(task, right_answer(kind), confidence)
    data = task.evaluation_data("validation")
    lengths = [len(answer) for _, answer in written(task, data.batch)]
    guessed = sum(length for length in lengths if length > 4)
    assert 0 < guessed < sum(lengths)
    expected = math.log(task.vocabulary) * guessed / sum(lengths)
    of_rows = math.log(task.vocabulary) * sum(length > 4 for length in lengths) / len(lengths)
    evaluation = task.evaluate(model)
    assert evaluation.tokens == sum(lengths)
    assert evaluation.loss == pytest.approx(expected, rel=1e-6)
    assert abs(expected - of_rows) > 0.05
    training_loss = row_losses(model, data.batch, TokenCrossEntropy()).mean().item()
    assert training_loss == pytest.approx(expected, rel=1e-6)


@every_task
def test_right_under_teacher_forcing_is_right_in_greedy_decoding(kind):
    """And the reverse, for a model with mistakes that depend on all that it has read or written."""
    task = _small_task(kind)
    perfect = right_answer(kind)

    def predict(text):
        wrong = "|" in text and hashlib.sha256(text.encode()).digest()[0] < 50
        return task.symbols[0 if perfect(text) != task.symbols[0] else 1] if wrong else perfect(text)

    model = Transducer(task, predict)
    batch = task.evaluation_data("validation").batch
    forced = row_losses(model, batch, TokenCrossEntropy()) < 1e-6
    greedy = []
    for source, answer in written(task, batch):
        prompt = task.encode(source + "|")[None]
        greedy.append(task.decode(sample(model, prompt, len(answer), temperature=0.0)[0]) == answer)
    assert forced.tolist() == greedy
    assert task.evaluate(model).sequence_accuracy == sum(greedy) / len(greedy)
    assert 0 < sum(greedy) < len(greedy)


@every_task
def test_lengths_cover_exactly_the_range_of_the_split(kind, monkeypatch):
    monkeypatch.setattr("zorn.tasks.transduction.EVALUATION_ROWS", 2000)
    task = make(kind, minimum_length=3, maximum_length=6, batch=200)
    inside, longer = set(range(3, 7)), set(range(7, 57))
    for split in TRANSDUCTION_SPLITS:
        sizes = {SIZE_OF[kind](source) for source, _ in written(task, task.evaluation_data(split).batch)}
        assert sizes == (longer if split.endswith("-longer") else inside)
    assert {SIZE_OF[kind](source) for source, _ in written(task, task.training_batch(5))} == inside


@every_task
def test_splits_share_no_sequence(kind):
    task = make(kind, minimum_length=12, maximum_length=12)
    sources = [
        source
        for split in TRANSDUCTION_SPLITS
        for source, _ in written(task, task.evaluation_data(split).batch)
    ]
    assert len(set(sources)) == len(sources) == 24 * len(TRANSDUCTION_SPLITS)


@every_task
def test_no_two_vectors_of_random_numbers_share_a_stream(kind, monkeypatch):
    import zorn.tasks.transduction as module

    drawn, streams = module.integers, []

    def integers(seed, step, stream, count, bound, **options):
        streams.append(stream)
        return drawn(seed, step, stream, count, bound, **options)

    monkeypatch.setattr(module, "integers", integers)
    for split in TRANSDUCTION_SPLITS:
        make(kind).evaluation_data(split)
    assert len(set(streams)) == len(streams)
    assert min(streams) > 2**32 - 64
    streams.clear()
    make(kind).training_batch(9)
    make(kind).evaluation_data("train")
    assert len(set(streams)) == len(streams) / 2  # the training batches are the train split


@every_task
def test_batches_depend_on_seed_and_step_alone(kind):
    first, again = make(kind), make(kind)
    batch = first.training_batch(5)
    assert all(map(torch.equal, again.training_batch(5), batch))
    assert all(map(torch.equal, first.training_batch(5), batch))
    assert not torch.equal(first.training_batch(6).inputs, batch.inputs)
    assert not torch.equal(make(kind, seed=8).training_batch(5).inputs, batch.inputs)


FINGERPRINT = """
import hashlib, torch
from zorn.tasks import AddTask, CopyTask, RepeatCopyTask, ReverseTask, SortTask
digest = hashlib.sha256()
for kind in (CopyTask, ReverseTask, SortTask, RepeatCopyTask, AddTask):
    task = kind(batch=5, minimum_length=2, maximum_length=40, seed=2**63)
    for batch in (task.training_batch(11), task.evaluation_data("test-longer").batch):
        for part in batch:
            digest.update(part.numpy().tobytes())
print(digest.hexdigest()[:16])
"""


def test_a_batch_is_the_same_in_every_process_and_version():
    assert EVALUATION_ROWS == 256
    found = subprocess.run([sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "068b5c7b6af9d3f3"


@every_task
def test_overfitting_is_one_batch_and_says_so(kind):
    task = make(kind, overfit=True)
    batch = task.training_batch(0)
    assert all(map(torch.equal, task.training_batch(17), batch))
    assert all(map(torch.equal, make(kind).training_batch(0), batch))
    assert task.validation_splits == ("validation",)
    for split in TRANSDUCTION_SPLITS:
        data = task.evaluation_data(split)
        assert data.split == "overfit batch"
        assert all(map(torch.equal, data.batch, batch))
    evaluation = task.evaluate(Transducer(task, right_answer(kind)))
    assert (evaluation.split, evaluation.sequence_accuracy) == ("overfit batch", 1.0)


@every_task
def test_splits_and_which_are_watched(kind):
    assert make(kind).splits == TRANSDUCTION_SPLITS
    assert make(kind).validation_splits == ("validation", "validation-longer")


@pytest.mark.parametrize(("kind", "overfit"), each_once(TASKS, [False, True]))
def test_an_unknown_split_is_named_with_those_that_there_are(kind, overfit):
    with pytest.raises(ConfigError, match=r"one of 'train', .*, 'test-longer', got 'validation_longer'"):
        make(kind, overfit=overfit).evaluate(nn.Module.__new__(Transducer), "validation_longer")


@every_task
def test_encode_says_which_symbols_there_are(kind):
    task = make(kind)
    task.encode(task.prompt)
    assert task.decode(range(task.vocabulary)) == task.symbols
    with pytest.raises(
        ConfigError, match=r"task knows the .*'\|' \(separator\).* got 'B'; a prompt is .*\|'"
    ):
        task.encode("B")


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
        make(CopyTask, **changes)


@every_task
def test_a_language_model_reads_every_split(kind):
    task = make(kind)
    model = LanguageModel(task.vocabulary, 8)
    losses = [task.evaluate(model, split).loss for split in TRANSDUCTION_SPLITS]
    assert all(0.8 < loss / math.log(task.vocabulary) < 1.2 for loss in losses)
