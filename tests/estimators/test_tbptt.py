"""Truncated BPTT: BPTT itself where nothing is cut, a slow loop where it is, and in the memory of a chunk."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from small_language import TIME, assert_close, gradients, language_batch, language_model
from torch import nn

from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators import BPTT, TBPTT
from zorn.models import Batch, map_state, row_losses
from zorn.tasks import TokenCrossEntropy

OPTIONS = [{}, {"cell": "gru", "num_heads": 2}, {"tie_embedding": True, "num_layers": 2}]


def long_batch(time, rows=2):
    tokens = torch.randint(0, 7, (rows, time + 1), generator=torch.Generator().manual_seed(3))
    return Batch(tokens[:, :-1], tokens[:, 1:])


@pytest.mark.parametrize("truncation", [TIME, TIME + 1, 1000])
@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_where_nothing_is_cut_it_is_bptt(truncation, micro_batch, options):
    model, batch = language_model(**options), language_batch()
    expected = BPTT(micro_batch=micro_batch).estimate(model, batch, TokenCrossEntropy())
    expected_gradients = gradients(model)
    estimator = TBPTT(truncation=truncation, micro_batch=micro_batch)
    found = estimator.estimate(model, batch, TokenCrossEntropy())
    assert (found.loss, found.gradient_norm) == (expected.loss, expected.gradient_norm)
    assert found.forward_passes == expected.forward_passes
    assert_close(gradients(model), expected_gradients, rtol=0, atol=0)


def reference(model, batch, truncation):
    """Row by row and step by step, on a copy of the tokens: the state is detached where a chunk starts."""
    total, counted = torch.zeros((), dtype=torch.float64), int((batch.targets != -100).sum())
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        state = model.initial_state(1)
        for t in range(len(inputs)):
            if t % truncation == 0:
                state = map_state(torch.Tensor.detach, state)
            logits, state = model(inputs[t].view(1, 1), state)
            if targets[t] != -100:
                total = total + F.cross_entropy(logits[0], targets[t].view(1)) / counted
    names, parameters = zip(*model.named_parameters(), strict=True)
    return float(total.detach()), dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


@pytest.mark.parametrize("truncation", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [None, 1, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_where_it_is_cut_it_is_the_loop_with_detached_states(truncation, micro_batch, options):
    model, batch = language_model(**options), language_batch()
    loss, expected = reference(model, batch, truncation)
    found = TBPTT(truncation=truncation, micro_batch=micro_batch).estimate(model, batch, TokenCrossEntropy())
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert found.gradient_norm == pytest.approx(
        float(torch.cat([g.flatten() for g in expected.values()]).norm())
    )
    assert len(found.coefficients) == 0
    assert_close(gradients(model), expected, rtol=1e-9, atol=1e-12)
    BPTT().estimate(model, batch, TokenCrossEntropy())
    with pytest.raises(AssertionError):  # the cut matters here
        assert_close(gradients(model), expected, rtol=1e-3, atol=1e-6)


class Kept:
    """A tensor that autograd keeps for a backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def peak_of_kept_elements(estimator, time):
    """The most numbers that autograd kept at once in an estimate."""
    alive = peak = 0

    def keep(tensor):
        nonlocal alive, peak
        kept = Kept(tensor)
        alive += tensor.numel()
        peak = max(peak, alive)
        weakref.finalize(kept, release, tensor.numel())
        return kept

    def release(count):
        nonlocal alive
        alive -= count

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        estimator.estimate(language_model(), long_batch(time), TokenCrossEntropy())
    assert alive == 0
    return peak


def test_the_activations_of_one_chunk_are_alive_at_a_time():
    chunk = peak_of_kept_elements(BPTT(), 4)
    assert chunk > 0
    for time in (4, 8, 40):
        assert peak_of_kept_elements(TBPTT(truncation=4), time) == chunk
    assert peak_of_kept_elements(BPTT(), 40) > 5 * chunk


def test_no_chunk_is_run_before_the_one_before_it_was_differentiated():
    order = []

    class Watched(TokenCrossEntropy):
        def token_losses(self, outputs, targets):
            order.append("forward")
            outputs.register_hook(lambda gradient: order.append("backward"))
            return super().token_losses(outputs, targets)

    TBPTT(truncation=1).estimate(language_model(), language_batch(), Watched())
    assert order == ["forward", "backward"] * TIME


def nodes(tensor):
    """How many nodes the graph of a tensor has."""
    seen, queue = set(), [tensor.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue.extend(following for following, _ in node.next_functions)
    return len(seen)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_graph_does_not_grow_with_the_batch_and_in_proportion_to_time(cell):
    """A loss that picks logits token by token has a backward pass that is quadratic in the batch: a weak
    baseline."""
    model = language_model(cell=cell)

    def of(rows, time):
        return nodes(row_losses(model, long_batch(time, rows), TokenCrossEntropy()).sum())

    assert of(2, 16) == of(64, 16)
    assert of(2, 64) - of(2, 32) == 2 * (of(2, 32) - of(2, 16))


def no_state(outputs, targets):
    return outputs.mean((1, 2))


@pytest.mark.parametrize(
    ("model", "objective", "message"),
    [
        (nn.Linear(4, 4), TokenCrossEntropy(), r"one with initial_state\(rows\) for TBPTT, got Linear"),
        (language_model(), no_state, "adds up over tokens .*, got no_state: use BPTT"),
    ],
)
def test_what_it_cannot_cut_in_time(model, objective, message):
    model.requires_grad_(True)
    calls = []
    model.register_forward_hook(lambda *arguments: calls.append(1))
    with pytest.raises(ConfigError, match=message):
        TBPTT(truncation=2).estimate(model, language_batch(), objective)
    assert not calls


class Counted:
    """Cross-entropy that is a constant where no token of a piece counts."""

    def counts(self, targets):
        return targets != -100

    def token_losses(self, outputs, targets):
        losses = torch.zeros(targets.shape, dtype=outputs.dtype)
        counted = self.counts(targets)
        if counted.any():
            losses[counted] = F.cross_entropy(outputs[counted], targets[counted], reduction="none")
        return losses


@pytest.mark.parametrize("estimator", [TBPTT(truncation=1), BPTT(micro_batch=1)], ids=["chunk", "row"])
def test_a_piece_in_which_no_token_counts_is_a_constant(estimator):
    model, batch = language_model(), language_batch()
    batch.targets[:, 0] = batch.targets[1] = -100
    estimator.estimate(model, batch, TokenCrossEntropy())
    expected = gradients(model)
    estimator.estimate(model, batch, Counted())
    assert_close(gradients(model), expected)


def test_targets_of_another_length():
    inputs, targets = language_batch()
    with pytest.raises(
        ConfigError, match=r"one target a time step .*, got inputs \(4, 4\) and targets \(4, 3\)"
    ):
        TBPTT(truncation=3).estimate(language_model(), Batch(inputs, targets[:, :3]), TokenCrossEntropy())


@pytest.mark.parametrize("value", [0, -2])
def test_the_truncation(value):
    with pytest.raises(ConfigError, match=f"truncation must be a whole number of at least 1, got {value}"):
        TBPTT(truncation=value)


def test_its_mode_and_its_step_are_kept():
    model, estimator, resumed = language_model(), TBPTT(truncation=2), TBPTT(truncation=2)
    model.train()
    estimator.estimate(model, language_batch(), TokenCrossEntropy())
    assert model.training
    resumed.load_state_dict(estimator.state_dict())
    assert resumed.step == estimator.step == 1


# --------------------------------------------------------------------------------------------- streams


def halves(batch):
    middle = batch.inputs.shape[1] // 2
    return [Batch(*(part[:, piece] for part in batch)) for piece in (slice(0, middle), slice(middle, None))]


@pytest.mark.parametrize("options", [*OPTIONS, {"cell": "dnc"}])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_stream_in_two_batches_is_one_batch(options, micro_batch):
    model, batch = language_model(**options), long_batch(8, rows=4)
    whole = TBPTT(truncation=2, micro_batch=micro_batch).estimate(model, batch, TokenCrossEntropy())
    expected = gradients(model)
    estimator, losses, found = TBPTT(truncation=2, carry=True, micro_batch=micro_batch), [], []
    for half in halves(batch):
        losses.append(estimator.estimate(model, half, TokenCrossEntropy()).loss)
        found.append(gradients(model))
    assert sum(losses) / 2 == pytest.approx(whole.loss, rel=1e-12)
    mean = {name: (found[0][name] + found[1][name]) / 2 for name in expected}
    assert_close(mean, expected, rtol=1e-9, atol=1e-12)
    estimator.reset()
    assert estimator.estimate(model, halves(batch)[0], TokenCrossEntropy()).loss == losses[0]
    cut = TBPTT(truncation=2).estimate(model, halves(batch)[1], TokenCrossEntropy())
    assert cut.loss != pytest.approx(losses[1], rel=1e-6)  # the state matters here


def test_the_state_of_a_stream_resumes_it():
    model, batch = language_model(), long_batch(8, rows=4)
    estimator, resumed = TBPTT(truncation=3, carry=True), TBPTT(truncation=3, carry=True)
    estimator.estimate(model, batch, TokenCrossEntropy())
    resumed.load_state_dict(estimator.state_dict())
    expected = estimator.estimate(model, batch, TokenCrossEntropy())
    assert resumed.estimate(model, batch, TokenCrossEntropy()).loss == expected.loss
    assert resumed.step == 2


def test_an_estimate_that_failed_leaves_the_stream_where_it_was():
    model, batch = language_model(), long_batch(8, rows=4)
    estimator = TBPTT(truncation=3, carry=True)
    estimator.estimate(model, batch, TokenCrossEntropy())
    before = estimator.state_dict()

    class NotANumber(TokenCrossEntropy):
        def token_losses(self, outputs, targets):
            return super().token_losses(outputs, targets) * torch.nan

    with pytest.raises(NonFiniteLossError):
        estimator.estimate(model, batch, NotANumber())
    after = estimator.state_dict()
    assert after["step"] == before["step"]
    assert all(torch.equal(a, b) for a, b in zip(after["carried"], before["carried"], strict=True))


def test_streams_of_another_number_of_rows():
    model, estimator = language_model(), TBPTT(truncation=2, carry=True)
    estimator.estimate(model, long_batch(4, rows=4), TokenCrossEntropy())
    with pytest.raises(ConfigError, match=r"rows of the batch must be 4, .*, got 2"):
        estimator.estimate(model, long_batch(4, rows=2), TokenCrossEntropy())
