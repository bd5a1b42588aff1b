"""Known faults of public code: losses, metrics and what is made of them (see `test_noise_faults.py`)."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from zorn.estimators import BPTT, CDRGE, FDRGE, SPSA15
from zorn.models import Batch, LanguageModel, row_losses
from zorn.tasks import (
    AddTask,
    CopyTask,
    RepeatCopyTask,
    ReverseTask,
    RowScore,
    SortTask,
    TextTask,
    TokenCrossEntropy,
    exact_match,
    sequence_error,
    token_error_rate,
)

TRANSDUCTION = [CopyTask, ReverseTask, SortTask, RepeatCopyTask, AddTask]
TASKS = {
    **{kind.name: kind(batch=8, minimum_length=2, maximum_length=5, seed=0) for kind in TRANSDUCTION},
    "text": TextTask(source="python-docs", batch=8, length=12, seed=0),
}


class Certain(nn.Module):
    """Predicts, at each time step, the token that was written down for it."""

    def __init__(self, tokens: Tensor, vocabulary: int):
        super().__init__()
        self.tokens, self.vocabulary = tokens, vocabulary

    def initial_state(self, rows):
        return (torch.zeros(rows, 1, dtype=torch.int64),)

    def forward(self, inputs, state):
        time = state[0] + torch.arange(inputs.shape[1])
        logits = 40.0 * nn.functional.one_hot(self.tokens.gather(1, time), self.vocabulary)
        return logits.float(), (time[:, -1:] + 1,)


def sequences(batch: Batch) -> Tensor:
    """The whole sequence of each row, [rows, time + 1]: what it reads, and after it what is never read."""
    sequence = torch.cat([batch.inputs, batch.inputs[:, -1:]], dim=1)
    counts = batch.targets != -100
    read = counts[:, :-1] & counts[:, 1:]  # the end of an answer is not read again
    assert torch.equal(sequence[:, 1:-1][read], batch.targets[:, :-1][read])
    sequence[:, 1:][counts] = batch.targets[counts]
    return sequence


@pytest.fixture(params=TASKS.values(), ids=TASKS)
def shifted(request, monkeypatch):
    """Evaluates a model that is right, but `shift` tokens late: the evaluation, the model and the batch."""
    task = request.param
    data = task.evaluation_data("validation")
    batch = Batch(*(part[:16, :60] for part in data.batch))
    monkeypatch.setattr(task, "evaluation_data", lambda split: replace(data, batch=batch))

    def evaluated(shift):
        model = Certain(sequences(batch).roll(shift - 1, dims=1)[:, :-1], task.vocabulary)
        return task.evaluate(model), model, batch

    return evaluated


def test_the_loss_is_not_off_by_one_token(shifted):
    """Public code compares predictions with targets that lie one token before or after."""
    losses = {}
    for shift in (-1, 0, 1):
        found, model, batch = shifted(shift)
        losses[shift] = float(row_losses(model, batch, TokenCrossEntropy()).mean())
        assert found.loss == pytest.approx(losses[shift], rel=1e-6)
    assert losses[0] < 1e-6
    assert min(losses[-1], losses[1]) > 1


def test_the_accuracy_is_not_off_by_one_token(shifted):
    """Public code counts right tokens one place off, so that a perfect model is not and an echo may be."""
    for shift in (-1, 0, 1):
        found, model, batch = shifted(shift)
        scores = (token_error_rate, sequence_error, RowScore(exact_match))
        errors = [float(row_losses(model, batch, score).mean()) for score in scores]
        assert found.tokens == int((batch.targets != -100).sum())
        if shift == 0:
            assert (found.token_accuracy, errors) == (1, [0, 0, 0])
        else:
            assert found.token_accuracy < 0.8
            assert min(errors) > 0.2


@pytest.mark.parametrize("rows", [3, 16])
def test_a_loss_is_a_mean_over_tokens_where_rows_differ_in_length(rows):
    """Public code averages means of rows or of parts of a batch: a token of a short one counts for more."""
    batch = CopyTask(batch=16, minimum_length=1, maximum_length=9, seed=0).training_batch(0)
    model, objective = LanguageModel(29, 8).double(), TokenCrossEntropy()
    lengths = (batch.targets != -100).sum(1)
    assert lengths.min() < lengths.max() / 2
    with torch.no_grad():
        logits, _ = model(batch.inputs, model.initial_state(16))
        tokens = objective.token_losses(logits, batch.targets)
    expected = float(tokens.sum() / lengths.sum())
    assert abs(expected - float((tokens.sum(1) / lengths).mean())) > 1e-4  # the fault would show
    exact = BPTT(micro_batch=rows).estimate(model, batch, objective)
    assert exact.loss == pytest.approx(expected, rel=1e-9)
    whole = FDRGE(population=2, epsilon=0.01, micro_batch=rows, group_size=None).estimate(
        model, batch, objective
    )
    assert whole.loss == pytest.approx(expected, rel=1e-9)
    one_each = CDRGE(population=16, epsilon=1e-6, group_size=1, micro_batch=rows)
    assert one_each.estimate(model, batch, objective).loss == pytest.approx(expected, rel=1e-6)


def graph_nodes(tensor: Tensor) -> int:
    """Nodes of the backward graph of a tensor."""
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(follower for follower, _ in node.next_functions)
    return len(seen)


def test_the_backward_graph_of_bptt_does_not_grow_with_the_batch(monkeypatch):
    """Public code indexes the logits token by token, so that its backward pass is quadratic in the batch."""
    nodes, backward = {}, Tensor.backward
    model, objective = LanguageModel(29, 8), TokenCrossEntropy()

    def spy(loss, *arguments, **options):
        nodes[rows, length] = graph_nodes(loss)
        backward(loss, *arguments, **options)

    monkeypatch.setattr(Tensor, "backward", spy)
    for rows, length in [(2, 4), (64, 4), (2, 8), (64, 8)]:
        tokens = torch.randint(29, (rows, length + 1), generator=torch.Generator().manual_seed(0))
        BPTT().estimate(model, Batch(tokens[:, :-1], tokens[:, 1:]), objective)
    assert nodes[2, 4] == nodes[64, 4] < nodes[2, 8] == nodes[64, 8]
    logits = [torch.randn(rows, time, 29, requires_grad=True) for rows, time in [(2, 4), (64, 40)]]
    small, large = (
        graph_nodes(objective.token_losses(x, torch.zeros(x.shape[:2], dtype=torch.int64))) for x in logits
    )
    assert small == large


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0])
def test_the_curvature_of_spsa_is_applied(power):
    """The paper's 1.5-SPSA computes the curvature along each direction and leaves it out of the estimate."""
    slope, curvatures, epsilon = 3.0, torch.tensor([0.0, 4.0, -16.0, 64.0], dtype=torch.float64), 0.25
    centre = 2.0 + 0 * curvatures
    bend = curvatures * epsilon**2 / 2
    losses = torch.stack([centre + slope * epsilon + bend, centre - slope * epsilon + bend, centre])
    model = nn.Linear(3, 2)

    def told(estimator):
        estimate = estimator.tell(model, estimator.ask(model), losses[: len(estimator.signs)])
        return estimate.coefficients, model.weight.grad.clone()

    options = {"population": 4, "epsilon": epsilon, "seed": 1}
    plain, plain_gradient = told(CDRGE(**options))
    found, gradient = told(SPSA15(**options, curvature_power=power))
    torch.testing.assert_close(plain, torch.full_like(plain, slope))
    torch.testing.assert_close(found, slope / curvatures.abs().pow(power).clamp(min=1))
    assert not torch.allclose(gradient, plain_gradient, rtol=0.05)
