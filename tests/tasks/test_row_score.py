import math
from fractions import Fraction

import numpy
import pytest
import torch
import torch.nn.functional as F
from transducers import Transducer, right_answer

import zorn
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.models import row_losses
from zorn.tasks import RowScore, exact_match, greedy_tokens, sequence_error

VOCABULARY = 5


def _example(rows=6, time=4):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(rows, time, VOCABULARY, generator=generator)
    targets = torch.randint(0, VOCABULARY, (rows, time), generator=generator)
    targets[0, 1:3] = targets[2] = -100
    return outputs, targets


def _seen(outputs, targets, **options):
    """What a score is called with."""
    calls = []
    RowScore(lambda *pair: calls.append(pair) or 0.0, **options)(outputs, targets)
    return calls


def test_a_score_sees_the_counted_tokens_as_lists_of_int():
    outputs, targets = _example()
    expected = []
    for output, target in zip(outputs.tolist(), targets.tolist(), strict=True):
        places = [place for place, token in enumerate(target) if token != -100]
        predicted = [max(range(VOCABULARY), key=output[place].__getitem__) for place in places]
        expected.append((predicted, [target[place] for place in places]))
    seen = _seen(outputs, targets)
    assert seen == expected
    assert seen[2] == ([], [])
    assert {type(token) for pair in seen for tokens in pair for token in tokens} == {int}


def test_without_a_readout_a_score_sees_the_raw_outputs_of_the_counted_places():
    outputs, targets = _example()
    for (output, target), raw, wanted in zip(
        _seen(outputs, targets, readout=None), outputs, targets, strict=True
    ):
        assert target == wanted[wanted != -100].tolist()
        numpy.testing.assert_array_equal(output, raw[wanted != -100].numpy())


def test_a_readout_with_other_places_comes_whole():
    outputs, targets = _example()
    seen = _seen(outputs, targets, readout=lambda outputs: outputs.argmax(-1)[:, :2])
    assert [prediction for prediction, _ in seen] == outputs.argmax(-1)[:, :2].tolist()
    assert seen[0][1] == targets[0, [0, 3]].tolist()


def test_real_targets_come_as_arrays_that_cannot_be_written():
    outputs, targets = torch.randn(3, 4), torch.randn(3, 2)
    for row, (prediction, target) in enumerate(_seen(outputs, targets, readout=None)):
        numpy.testing.assert_array_equal(prediction, outputs[row].numpy())
        numpy.testing.assert_array_equal(target, targets[row].numpy())
        with pytest.raises(ValueError, match="read-only"):
            target[0] = 0.0


def test_a_class_a_row_is_an_int():
    assert _seen(torch.eye(3), torch.tensor([0, 2, 1])) == [(0, 0), (1, 2), (2, 1)]


def test_bfloat16_outputs_come_as_float32():
    outputs = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    ((prediction, _),) = _seen(outputs, torch.zeros(1), readout=None)
    assert prediction.dtype == numpy.float32
    assert prediction.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("value", [2, 2.5, True, numpy.float32(1.5), numpy.int64(3), Fraction(1, 2)])
def test_any_real_number_is_a_score(value):
    losses = RowScore(lambda prediction, target: value)(*_example())
    assert losses.dtype == torch.float64
    assert losses.tolist() == [float(value)] * 6


@pytest.mark.parametrize("value", [None, "good", 1j, torch.tensor(1.0), [1.0]])
def test_what_is_no_real_number_is_refused_with_its_row(value):
    scores = iter([0.0, 1.0, value])

    def score(prediction, target):
        return next(scores)

    with pytest.raises(ConfigError, match=r"score returned .* for row 2, expected a real number: return a"):
        RowScore(score)(*_example())


def test_an_exception_of_the_score_comes_through_with_its_row():
    def score(prediction, target):
        return 1 / len(target)

    with pytest.raises(ZeroDivisionError) as caught:
        RowScore(score)(*_example())
    assert caught.value.__notes__ == ["raised by the score score for row 2 of the rows it was called with"]


@pytest.mark.parametrize(
    "readout", [lambda outputs: outputs[:4], lambda outputs: 3.0, lambda outputs: outputs.sum()]
)
def test_a_readout_gives_one_result_a_row(readout):
    with pytest.raises(ConfigError, match=r"first dimension is the 6 rows, got .*: give a readout"):
        RowScore(exact_match, readout=readout)(*_example())


def test_greedy_tokens_are_the_argmax():
    outputs, _ = _example()
    assert torch.equal(greedy_tokens(outputs), outputs.max(-1).indices)


def test_the_row_scores_of_a_model_are_those_of_the_tensor_objective():
    task = zorn.tasks.CopyTask(batch=16, minimum_length=1, maximum_length=2, seed=0)
    batch = task.training_batch(0)
    perfect = right_answer(zorn.tasks.CopyTask)
    model = Transducer(task, lambda text: perfect(text) if text < "m" else "z")
    expected = row_losses(model, batch, sequence_error)
    assert 0 < expected.mean() < 1
    assert torch.equal(row_losses(model, batch, RowScore(exact_match), time_chunk=2), expected)


class Forward(torch.autograd.Function):
    """The identity, whose derivative fails if it is ever taken."""

    @staticmethod
    def forward(context, outputs):
        return outputs.clone()

    @staticmethod
    def backward(context, gradient):
        raise AssertionError("the objective was differentiated")


@pytest.mark.parametrize("perturbation", [zorn.RankOne(), zorn.Dense()])
def test_members_side_by_side_are_scored_row_by_row_and_nothing_is_differentiated(perturbation):
    task = zorn.tasks.ReverseTask(batch=8, minimum_length=1, maximum_length=2, seed=0)
    batch = task.training_batch(0)
    model = zorn.LanguageModel(task.vocabulary, 16)
    calls = []

    def readout(outputs):
        calls.append((len(outputs), outputs.requires_grad))
        return Forward.apply(outputs).argmax(-1)

    def estimate(objective):
        estimator = zorn.CDRGE(population=32, epsilon=0.5, perturbation=perturbation, group_size=2, seed=3)
        result = estimator.estimate(model, batch, objective)
        return result, [parameter.grad.clone() for parameter in model.parameters()]

    ours, gradient = estimate(RowScore(_share_wrong, readout=readout))
    reference, expected = estimate(_share_wrong_of_tensors)
    assert torch.equal(ours.coefficients, reference.coefficients)
    assert ours.coefficients.abs().max() > 0
    assert all(map(torch.equal, gradient, expected))
    assert sum(rows for rows, _ in calls) == ours.forward_passes == 2 * 32 * 2
    assert len(calls) == (1 if isinstance(perturbation, zorn.RankOne) else 64)
    assert not any(gradients for _, gradients in calls)


def _share_wrong(prediction, target):
    return sum(one != other for one, other in zip(prediction, target, strict=True)) / len(target)


def _share_wrong_of_tensors(outputs, targets):
    counted = targets != -100
    return ((outputs.argmax(-1) != targets) & counted).sum(1).double() / counted.sum(1)


def test_a_member_whose_score_is_nan_is_dropped_by_the_estimator():
    task = zorn.tasks.CopyTask(batch=4, minimum_length=1, maximum_length=1, seed=0)
    model, batch = zorn.LanguageModel(task.vocabulary, 8), task.training_batch(0)
    scores = iter([math.nan, 1.0, math.inf] + [0.5] * 29)
    estimator = zorn.CDRGE(population=16, epsilon=0.1, group_size=1)
    estimate = estimator.estimate(model, batch, RowScore(lambda prediction, target: next(scores)))
    assert estimate.dropped == 2
    with pytest.raises(NonFiniteLossError, match="16 of 16 members"):
        estimator.estimate(model, batch, RowScore(lambda prediction, target: math.nan))


def test_bptt_says_that_it_needs_a_derivative():
    task = zorn.tasks.CopyTask(batch=4, minimum_length=1, maximum_length=1, seed=0)
    model = zorn.LanguageModel(task.vocabulary, 8)
    with pytest.raises(ConfigError, match="objective must be one that torch can differentiate"):
        zorn.BPTT().estimate(model, task.training_batch(0), RowScore(exact_match))


def test_a_reward_is_raised_by_training():
    """A model of one letter learns to please a function in plain Python."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    batch = zorn.Batch(torch.eye(4), torch.arange(4))
    objective = RowScore(lambda prediction, target: -float(prediction == target))
    estimator = zorn.CDRGE(population=64, epsilon=0.5, group_size=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        estimator.estimate(model, batch, objective)
        optimizer.step()
    assert objective(model(batch.inputs), batch.targets).mean() == -1.0


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="processes must be a whole number of at least 0, got -1"):
        RowScore(exact_match, processes=-1)


def test_targets_on_one_hot_outputs_score_nothing_wrong():
    _, targets = _example()
    outputs = F.one_hot(targets.clamp(min=0), VOCABULARY).float()
    assert RowScore(exact_match)(outputs, targets).tolist() == [0.0] * 6
