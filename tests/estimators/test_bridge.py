"""Bridge: BPTT where nothing is cut, a slow loop of rollouts where it is, and unbiased where TBPTT is not."""

import gc
import math

import pytest
import torch
import torch.nn.functional as F
from small_language import (
    ROWS,
    TIME,
    assert_close,
    assert_same,
    assert_unchanged,
    flat_gradient,
    gradients,
    language_batch,
    language_model,
    model_in_mixed_modes,
    snapshot,
    weights,
)
from test_tbptt import long_batch, peak_of_kept_elements
from torch import nn

from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators import BPTT, TBPTT
from zorn.estimators.bridge import RMS_DECAY, Bridge
from zorn.estimators.carry import state_tensors
from zorn.estimators.update import FusedSGD
from zorn.models import Batch, map_state
from zorn.random import normals, signs
from zorn.tasks import TokenCrossEntropy

CELLS = {
    "lstm": {},
    "gru": {"cell": "gru", "num_heads": 2},
    "min-gru": {"cell": "min-gru"},
    "dnc": {"cell": "dnc", "cell_settings": {"memory_slots": 3, "memory_width": 3}},
    "layers": {"tie_embedding": True, "num_layers": 2},
}


def bridge(**options):
    return Bridge(
        **{
            "truncation": 1,
            "epsilon": 0.1,
            "relative": False,
            "seed": 5,
            "draws": 1,
            "credit_every": 1,
            "separate": False,
            "micro_batch": None,
            **options,
        }
    )


def credit_gradients(estimator, model):
    """A copy of the credit of every trained parameter that has one."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    of_names = zip(trained, estimator.credit_parameters(model), strict=True)
    return {name: parameter.grad.clone() for name, parameter in of_names if parameter.grad is not None}


# ------------------------------------------------------------------------------------ the limit k = T


@pytest.mark.parametrize("truncation", [TIME, TIME + 1, 1000])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_where_nothing_is_cut_it_is_bptt_without_a_rollout(truncation, micro_batch):
    model, batch, tokens = language_model(), language_batch(), []
    expected = BPTT(micro_batch=micro_batch).estimate(model, batch, TokenCrossEntropy())
    expected_gradients = gradients(model)
    model.register_forward_hook(lambda module, arguments, output: tokens.append(arguments[0].numel()))
    estimator = bridge(truncation=truncation, micro_batch=micro_batch, relative=True)
    found = estimator.estimate(model, batch, TokenCrossEntropy())
    assert (found.loss, found.gradient_norm) == (expected.loss, expected.gradient_norm)
    assert found.forward_passes == expected.forward_passes == 3 * sum(tokens) / TIME
    assert_same(gradients(model), expected_gradients)


# ---------------------------------------------------------------------------------- the reference twin


def reference(model, batch, estimator, epsilons, *, dropped=()):
    """(exact part, credit part) by rollouts of one row at a time and one graph a chunk, from the formulas."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    exact, credit = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    tokens = int((batch.targets != -100).sum())
    starts = list(range(0, batch.inputs.shape[1], estimator.truncation))
    make = signs if estimator.noise == "rademacher" else normals

    def chunk_losses(row, start, state):
        inputs, targets = (part[row : row + 1, start : start + estimator.truncation] for part in batch)
        logits, state = model(inputs, state)
        return F.cross_entropy(logits[0], targets[0], ignore_index=-100, reduction="none"), state

    def noise(row, draw):
        sizes = [t.numel() for t in state_tensors(model.initial_state(1)) if t.is_floating_point()]
        member = row * estimator.draws + draw
        vector = make(
            estimator.seed, estimator.step, range(member, member + 1), 0, sum(sizes) * (len(starts) - 1)
        )
        return [list(part[0].split(sizes)) for part in vector.view(len(starts) - 1, 1, -1)]

    @torch.no_grad()
    def rollout(row, xi, sign):
        losses, state = [], model.initial_state(1)
        for number, start in enumerate(starts):
            if number > 0:
                moves = (sign * e * x for e, x in zip(epsilons, xi[number - 1], strict=True))
                state = map_state(
                    lambda t, moves=moves: (
                        t + next(moves).view(t.shape).to(t.dtype) if t.is_floating_point() else t
                    ),
                    state,
                )
            found, state = chunk_losses(row, start, state)
            losses.extend(found.tolist())
        return losses

    for row in range(len(batch.inputs)):
        kept = [draw for draw in range(estimator.draws) if (row, draw) not in dropped]
        answers = []
        for draw in kept:
            xi = noise(row, draw)
            pairs = zip(rollout(row, xi, 1), rollout(row, xi, -1), strict=True)
            answers.append((xi, [(plus - minus) / 2 for plus, minus in pairs]))
        state = model.initial_state(1)
        for number, start in enumerate(starts):
            losses, end = chunk_losses(row, start, map_state(torch.Tensor.detach, state))
            found = torch.autograd.grad(
                losses.sum() / tokens, parameters, retain_graph=True, allow_unused=True
            )
            exact = [g if f is None else g + f for g, f in zip(exact, found, strict=True)]
            if number + 1 < len(starts):
                after = starts[number + 1]
                lambdas = [torch.zeros(1, dtype=torch.float64) for _ in epsilons]
                for xi, differences in answers:
                    later = sum(estimator.discount**n * d for n, d in enumerate(differences[after:]))
                    for index, (e, x) in enumerate(zip(epsilons, xi[number], strict=True)):
                        lambdas[index] = lambdas[index] + x * later / e / len(kept) / tokens
                floats = [t for t in state_tensors(end) if t.is_floating_point()]
                value = sum(
                    (t.flatten() * part.to(t.dtype)).sum() for t, part in zip(floats, lambdas, strict=True)
                )
                found = torch.autograd.grad(value, parameters, allow_unused=True)
                credit = [g if f is None else g + f for g, f in zip(credit, found, strict=True)]
            state = end
    return dict(zip(names, exact, strict=True)), dict(zip(names, credit, strict=True))


def ragged_batch():
    """Seven steps, of which not all count in every row."""
    inputs, targets = long_batch(7, rows=4)
    targets = targets.clone()
    targets[1, 3:] = targets[2, :2] = -100
    return Batch(inputs, targets)


def floats_of(model):
    return [t for t in state_tensors(model.initial_state(1)) if t.is_floating_point()]


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("lstm", {}),
        ("lstm", {"truncation": 2, "draws": 3, "noise": "gaussian"}),
        ("lstm", {"truncation": 2, "discount": 0.7}),
        ("gru", {"discount": 0.0, "draws": 2}),
        ("min-gru", {"truncation": 3, "draws": 2, "discount": 0.9}),
        ("dnc", {"truncation": 2}),
        ("layers", {"draws": 2}),
    ],
)
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_where_it_is_cut_it_is_the_loop_of_rollouts(cell, options, micro_batch):
    model, batch = language_model(**CELLS[cell]), ragged_batch()
    estimator = bridge(separate=True, micro_batch=micro_batch, **options)
    estimator.step = 2
    epsilons = [0.1 for _ in floats_of(model)]
    exact, credit = reference(model, batch, estimator, epsilons)
    found = estimator.estimate(model, batch, TokenCrossEntropy())
    assert_close(gradients(model), exact, rtol=1e-9, atol=1e-12)
    assert_close(credit_gradients(estimator, model), credit, rtol=1e-5, atol=1e-8)  # λ̂ is made in float32
    both = {name: exact[name] + credit[name] for name in exact}
    norm = float(torch.cat([gradient.flatten() for gradient in both.values()]).norm())
    assert found.gradient_norm == pytest.approx(norm, rel=1e-5)
    together = bridge(micro_batch=micro_batch, **options)
    together.step = 2
    again = together.estimate(model, batch, TokenCrossEntropy())
    assert_close(gradients(model), both, rtol=1e-5, atol=1e-8)
    assert len(together.parts(model)) == 1
    assert again.loss == found.loss
    TBPTT(truncation=estimator.truncation).estimate(model, batch, TokenCrossEntropy())
    assert_close(gradients(model), exact, rtol=1e-9, atol=1e-12)
    with pytest.raises(AssertionError):  # the credit matters here
        assert_close(exact, both, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_relative_noise_is_in_units_of_the_clean_state(micro_batch):
    model, batch = language_model(), language_batch()
    _, state = model(batch.inputs[:, :2])
    after_two = [float(t.detach().square().mean()) for t in state_tensors(state)]
    estimator = bridge(truncation=2, relative=True, separate=True, micro_batch=micro_batch)
    epsilons = [0.1 * math.sqrt(sum(after_two) / 2)] * 2  # one scale for hidden and cell
    exact, credit = reference(model, batch, estimator, epsilons)
    found = estimator.estimate(model, batch, TokenCrossEntropy())
    assert found.forward_passes == 3 * ROWS + 2 * ROWS + ROWS  # one to measure the state
    assert_close(gradients(model), exact, rtol=1e-9, atol=1e-12)
    assert_close(credit_gradients(estimator, model), credit, rtol=1e-5, atol=1e-8)
    assert estimator.state_dict()["mean_squares"] == pytest.approx(after_two)


def test_the_scale_follows_the_state_and_not_the_noise():
    model, first, second = language_model(), language_batch(1), language_batch(2)
    squares = []
    for batch in (first, second):
        _, state = model(batch.inputs[:, :2])
        squares.append([float(t.detach().square().mean()) for t in state_tensors(state)])
    expected = [RMS_DECAY * a + (1 - RMS_DECAY) * b for a, b in zip(*squares, strict=True)]
    for seed, noise in ((1, "rademacher"), (2, "gaussian")):
        estimator = bridge(truncation=2, relative=True, seed=seed, noise=noise)
        for batch in (first, second):
            found = estimator.estimate(model, batch, TokenCrossEntropy())
        assert found.forward_passes == 5 * ROWS
        assert estimator.state_dict()["mean_squares"] == pytest.approx(expected)


def test_a_state_of_zeros_gets_noise_too():
    model = language_model(cell="dnc", cell_settings={"memory_slots": 3, "memory_width": 3})
    estimator = bridge(relative=True, truncation=1)
    batch = long_batch(2)
    found = estimator.estimate(model, batch, TokenCrossEntropy())  # no slot is linked after the first token
    assert min(estimator.state_dict()["mean_squares"]) == 0
    assert math.isfinite(found.gradient_norm)


class Counting(nn.Module):
    """A model whose state counts its steps in whole numbers, and whose outputs depend on them."""

    def __init__(self):
        super().__init__()
        self.map = nn.utils.skip_init(nn.Linear, 1, 3, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.map.parameters():
            parameter.data.normal_(generator=generator)

    def initial_state(self, rows):
        return torch.zeros(rows, dtype=torch.int64), self.map.weight.new_zeros(rows, 3)

    def forward(self, inputs, state=None):
        count, hidden = self.initial_state(len(inputs)) if state is None else state
        assert count.dtype == torch.int64
        outputs = []
        for x in inputs.unbind(1):
            count = count + 1
            hidden = torch.tanh(hidden + self.map(x.double().unsqueeze(1)) / count.unsqueeze(1))
            outputs.append(hidden)
        return torch.stack(outputs, 1), (count, hidden)


def test_whole_numbers_in_the_state_are_left_alone():
    model, batch = Counting(), language_batch()
    batch = Batch(batch.inputs, batch.targets.clamp(max=2))
    estimator = bridge(separate=True)
    exact, credit = reference(model, batch, estimator, [0.1])
    estimator.estimate(model, batch, TokenCrossEntropy())
    assert_close(gradients(model), exact, rtol=1e-9, atol=1e-12)
    assert_close(credit_gradients(estimator, model), credit, rtol=1e-5, atol=1e-8)


# ------------------------------------------------------------------------------------------ statistics


def samples(estimator, model, batch, count):
    rows = []
    for _ in range(count):
        estimator.estimate(model, batch, TokenCrossEntropy())
        rows.append(flat_gradient(model))
    return torch.stack(rows)


def exact_gradient(estimator, model, batch):
    estimator.estimate(model, batch, TokenCrossEntropy())
    return flat_gradient(model)


def deviations(found, expected):
    """(mean − expected) in standard errors, of the components that vary at all."""
    errors = found.std(0) / math.sqrt(len(found))
    varying = errors > 1e-9 * expected.norm()
    torch.testing.assert_close(found.mean(0)[~varying], expected[~varying], rtol=1e-5, atol=1e-8)
    return ((found.mean(0) - expected) / errors)[varying]


def along(found, exact, expected):
    """How much of the credit part is found, in each sample: 1 in the mean where the estimate is unbiased."""
    credit = expected - exact
    return (found - exact) @ credit / credit.square().sum()


@pytest.mark.parametrize("truncation", [1, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru", "min-gru", "dnc"])
def test_the_mean_is_bptts_gradient_and_not_tbptts(cell, truncation):
    """ε is small, so that what is left of its bias is far below a standard error. Signs would meet ties in
    the free list of the DNC, whose unused slots are exchangeable; normals have the right mean there too."""
    model, batch = language_model(**CELLS[cell]), long_batch(5, rows=64)
    expected = exact_gradient(BPTT(), model, batch)
    truncated = exact_gradient(TBPTT(truncation=truncation), model, batch)
    noise = "gaussian" if cell == "dnc" else "rademacher"
    found = samples(
        bridge(truncation=truncation, epsilon=1e-4, noise=noise), model, batch, 90 if truncation == 1 else 30
    )
    share = along(found, truncated, expected)
    error = float(share.std()) / math.sqrt(len(found))
    assert abs(float(share.mean()) - 1) < 5 * error
    assert float(share.mean()) > 5 * error, "the sample could not tell it from TBPTT's"
    assert deviations(found, expected).abs().max() < 6


@pytest.mark.parametrize("truncation", [1, 2])
def test_the_mean_under_a_discount_is_that_of_discounted_later_losses(truncation):
    model, batch, discount = language_model(), long_batch(6, rows=48), 0.5
    tokens = batch.targets.numel()
    starts = range(truncation, 6, truncation)
    expected = exact_gradient(TBPTT(truncation=truncation), model, batch)
    truncated = expected.clone()
    parameters = list(model.parameters())
    for start in starts:
        state = None
        if start > truncation:
            with torch.no_grad():
                _, state = model(batch.inputs[:, : start - truncation])
        _, end = model(batch.inputs[:, start - truncation : start], state)
        held = map_state(lambda t: t.detach().requires_grad_(), end)
        logits, _ = model(batch.inputs[:, start:], held)
        losses = F.cross_entropy(logits.flatten(0, 1), batch.targets[:, start:].flatten(), reduction="none")
        later = (losses.view(48, -1) * discount ** torch.arange(6 - start)).sum() / tokens
        flows = torch.autograd.grad(later, state_tensors(held))
        found = torch.autograd.grad(state_tensors(end), parameters, flows, allow_unused=True)
        expected = expected + torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for p, g in zip(parameters, found, strict=True)
            ]
        )
    found = samples(bridge(truncation=truncation, epsilon=1e-4, discount=discount), model, batch, 60)
    for other in (truncated, exact_gradient(BPTT(), model, batch)):  # γ = 0 but for the next, and γ = 1
        share = along(found, other, expected)
        error = float(share.std()) / math.sqrt(len(found))
        assert abs(float(share.mean()) - 1) < 5 * error
        assert float(share.mean()) > 5 * error, "the sample could not tell it from the other"


def test_draws_divide_the_variance():
    model, batch = language_model(), long_batch(3, rows=2)
    variances = []
    for draws in (1, 4):
        found = samples(bridge(draws=draws, epsilon=1e-4), model, batch, 80)
        squares = (found - found.mean(0)).square().sum(1)
        variances.append((float(squares.mean()), float(squares.std()) / math.sqrt(len(found))))
    (one, its_error), (four, error_of_four) = variances
    assert abs(one - 4 * four) < 5 * math.hypot(its_error, 4 * error_of_four)
    assert one - four > 5 * its_error


# ------------------------------------------------------------------------------------- cost and memory


def test_the_activations_of_one_chunk_are_alive_at_a_time():
    chunk = peak_of_kept_elements(bridge(truncation=4), 8)
    assert chunk > 0
    assert peak_of_kept_elements(bridge(truncation=4), 40) == chunk
    assert peak_of_kept_elements(BPTT(), 40) > 5 * chunk


@pytest.mark.parametrize("draws", [1, 3])
def test_forward_passes_are_whole_rows_of_what_the_model_ran(draws):
    model, tokens = language_model(torch.float32), []
    model.register_forward_hook(lambda module, arguments, output: tokens.append(arguments[0].numel()))
    found = bridge(draws=draws, micro_batch=2).estimate(model, language_batch(), TokenCrossEntropy())
    rollouts = ROWS * 2 * draws * (TIME - 1)  # they begin where the first chunk ends
    assert sum(tokens) == rollouts + ROWS * TIME
    assert found.forward_passes == 2 * draws * ROWS + 3 * ROWS


def test_the_rollouts_run_in_evaluation_mode_and_the_chunks_in_the_models():
    model, modes = language_model(torch.float32).train(), []
    model.register_forward_hook(
        lambda module, arguments, output: modes.append((module.training, torch.is_grad_enabled()))
    )
    bridge().estimate(model, language_batch(), TokenCrossEntropy())
    assert modes == [(True, True)] + [(False, False)] * (TIME - 1) + [(True, True)] * (TIME - 1)
    assert model.training


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_whatever_the_callers_mode(mode):
    model, batch = language_model(), language_batch()
    estimator = bridge(separate=True)
    estimator.estimate(model, batch, TokenCrossEntropy())
    expected, expected_credit = gradients(model), credit_gradients(estimator, model)
    with mode():
        estimator = bridge(separate=True)
        estimator.estimate(model, batch, TokenCrossEntropy())
    assert_same(gradients(model), expected)
    assert_same(credit_gradients(estimator, model), expected_credit)
    for parameter in estimator.credit_parameters(model):
        assert parameter.requires_grad
        assert not parameter.is_inference()
        assert not parameter.grad.is_inference()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("separate", [False, True])
def test_the_parts_are_in_the_parameters_dtype_and_only_of_what_is_trained(dtype, separate):
    model, batch = language_model(dtype), language_batch()
    model.head.bias.requires_grad_(False)
    estimator = bridge(separate=separate)
    estimator.estimate(model, batch, TokenCrossEntropy())
    assert model.head.bias.grad is None
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(gradients(model)) == trained
    for part in estimator.parts(model):
        for parameter in part:
            assert parameter.grad.dtype == dtype
    if separate:  # the head is behind every boundary
        credit = credit_gradients(estimator, model)
        assert set(credit) == trained
        assert not credit["head.weight"].any()
        assert credit["embedding.weight"].any()


# ------------------------------------------------------------------------------- rollouts that diverge


class DivergingRollouts(TokenCrossEntropy):
    """NaN in the last token of some rows of the rollouts, which have as many rows as `of`."""

    rows, of = (), 0

    def token_losses(self, outputs, targets):
        losses = super().token_losses(outputs, targets)
        if len(losses) == self.of:
            losses[list(self.rows), -1] = torch.nan
        return losses


def diverging(*rows, of):
    objective = DivergingRollouts()
    object.__setattr__(objective, "rows", rows)
    object.__setattr__(objective, "of", of)
    return objective


def test_a_pair_that_diverged_is_dropped_and_the_mean_is_over_the_rest_of_its_sequence():
    """Rows of the rollouts lie [signs, sequences, draws]: draw 1 of sequence 0, all of sequence 2."""
    model, batch, draws = language_model(), language_batch(), 2
    estimator = bridge(draws=draws, separate=True)
    dropped = [(0, 1), (2, 0), (2, 1)]
    exact, credit = reference(model, batch, estimator, [0.1, 0.1], dropped=dropped)
    members = ROWS * draws
    objective = diverging(1, members + 4, 5, of=2 * members)
    found = estimator.estimate(model, batch, objective)
    assert found.dropped == 3
    assert_close(gradients(model), exact, rtol=1e-9, atol=1e-12)
    assert_close(credit_gradients(estimator, model), credit, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("share", "bad", "raises"),
    [(0.0, 1, True), (0.25, 1, False), (0.25, 2, True), (1.0, 3, False), (1.0, 4, True)],
)
@pytest.mark.parametrize("separate", [False, True])
def test_more_than_the_allowed_share_raises_and_changes_nothing(share, bad, raises, separate):
    model, batch = language_model(), language_batch()
    before = weights(model)
    estimator = bridge(maximum_nonfinite_share=share, separate=separate, relative=True, carry=True)
    estimator.estimate(model, batch, TokenCrossEntropy())
    state = estimator.state_dict()
    objective = diverging(*range(bad), of=2 * ROWS)
    if not raises:
        assert estimator.estimate(model, batch, objective).dropped == bad
        return
    with pytest.raises(NonFiniteLossError, match=f"step 1: the losses of {bad} of {ROWS} pairs"):
        estimator.estimate(model, batch, objective)
    assert_same(weights(model), before)
    assert not gradients(model)
    assert not any(parameter.grad is not None for part in estimator.parts(model) for parameter in part)
    after = estimator.state_dict()
    assert {**after, "carried": None} == {**state, "carried": None}
    assert all(torch.equal(a, b) for a, b in zip(after["carried"], state["carried"], strict=True))


@pytest.mark.parametrize("call", [1, TIME, TIME + 1])
def test_one_that_raised_leaves_the_model_as_it_was_and_no_part_of_a_gradient(call):
    model = model_in_mixed_modes()
    before, calls = snapshot(model), []

    class Failing(TokenCrossEntropy):
        def token_losses(self, outputs, targets):
            calls.append(1)
            if len(calls) == call:
                raise RuntimeError("from the objective")
            return super().token_losses(outputs, targets)

    with pytest.raises(RuntimeError, match="from the objective"):
        bridge(separate=True).estimate(model, language_batch(), Failing())
    assert_unchanged(model, before)
    assert not gradients(model)


# ----------------------------------------------------------------------------------- streams and state


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_stream_goes_on_from_the_clean_state(micro_batch):
    model, batch = language_model(), long_batch(8, rows=4)
    halves = [Batch(*(part[:, piece] for part in batch)) for piece in (slice(0, 4), slice(4, 8))]
    options = {"truncation": 2, "carry": True, "micro_batch": micro_batch}
    estimator, exact = bridge(separate=True, **options), TBPTT(**options)
    for half in halves:
        found = estimator.estimate(model, half, TokenCrossEntropy())
        expected = exact.estimate(model, half, TokenCrossEntropy())
        assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    _, state = model(batch.inputs)
    for carried, wanted in zip(estimator.state_dict()["carried"], state_tensors(state), strict=True):
        torch.testing.assert_close(carried, wanted)
    estimator.reset()
    exact.reset()
    found = estimator.estimate(model, halves[0], TokenCrossEntropy())
    assert found.loss == pytest.approx(exact.estimate(model, halves[0], TokenCrossEntropy()).loss, rel=1e-12)


def test_a_loaded_state_goes_on_bit_for_bit():
    model, batch = language_model(torch.float32), language_batch()
    options = {"relative": True, "carry": True}
    estimator, resumed = bridge(**options), bridge(**options, seed=77, epsilon=3.0)
    estimator.epsilon = 0.05
    estimator.estimate(model, batch, TokenCrossEntropy())
    state = estimator.state_dict()
    expected = estimator.estimate(model, batch, TokenCrossEntropy())
    expected_gradients = gradients(model)
    resumed.load_state_dict(state)
    assert resumed.estimate(model, batch, TokenCrossEntropy()).loss == expected.loss
    assert_same(gradients(model), expected_gradients)
    assert (resumed.step, resumed.epsilon) == (2, 0.05)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_the_same_step_repeats_and_others_and_other_seeds_do_not(noise):
    model, batch = language_model(torch.float32), language_batch()
    estimator = bridge(noise=noise)
    first, second = (exact_gradient(estimator, model, batch) for _ in range(2))
    estimator.step = 0
    assert torch.equal(exact_gradient(estimator, model, batch), first)
    assert not torch.allclose(second, first)
    assert not torch.allclose(exact_gradient(bridge(noise=noise, seed=6), model, batch), first)


def test_noise_drawn_in_several_pieces_is_the_same(monkeypatch):
    model, batch = language_model(), long_batch(9)
    expected = exact_gradient(bridge(draws=2), model, batch)
    monkeypatch.setattr("zorn.estimators.boundary_noise.NOISE_AT_ONCE", 2 * 2 * 12 * 3)
    assert torch.equal(exact_gradient(bridge(draws=2), model, batch), expected)


# ------------------------------------------------------------------------------------------- updates


def test_the_fused_update_is_sgd_without_a_gradient():
    batch, plain, fused = language_batch(), language_model(), language_model()
    bridge().estimate(plain, batch, TokenCrossEntropy())
    torch.optim.SGD(plain.parameters(), lr=0.05).step()
    bridge().estimate(fused, batch, TokenCrossEntropy(), FusedSGD(learning_rate=0.05))
    assert_close(weights(fused), weights(plain), rtol=1e-12, atol=1e-14)
    assert not gradients(fused)


def test_an_update_of_two_parts_is_refused():
    model = language_model()
    with pytest.raises(ConfigError, match=r"update must be None with separate=True.* got FusedSGD"):
        bridge(separate=True).estimate(
            model, language_batch(), TokenCrossEntropy(), FusedSGD(learning_rate=0.05)
        )


def test_the_credit_of_another_estimate_does_not_stay():
    model, batch = language_model(), language_batch()
    estimator = bridge(separate=True)
    estimator.estimate(model, batch, TokenCrossEntropy())
    assert any(credit.any() for credit in credit_gradients(estimator, model).values())
    estimator.estimate(model, Batch(*(part[:, :1] for part in batch)), TokenCrossEntropy())
    assert not any(credit.any() for credit in credit_gradients(estimator, model).values())


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_between_the_steps_with_credit_it_is_tbptt(micro_batch):
    """Steps 0 and 3 are those of an estimator with credit at every step, bit for bit; 1 and 2 are TBPTT's."""
    model, batch, options = language_model(), language_batch(), {"separate": True, "micro_batch": micro_batch}
    sparse, always = bridge(credit_every=3, **options), bridge(**options)
    plain = TBPTT(truncation=1, micro_batch=micro_batch)
    for step in range(4):
        expected = (plain if step in (1, 2) else always).estimate(model, batch, TokenCrossEntropy())
        exact = gradients(model)
        credits = {} if step in (1, 2) else credit_gradients(always, model)
        always.step = step + 1
        found = sparse.estimate(model, batch, TokenCrossEntropy())
        assert (found.loss, found.gradient_norm) == (expected.loss, expected.gradient_norm)
        assert found.forward_passes == expected.forward_passes
        assert_same(gradients(model), exact)
        assert_same(credit_gradients(sparse, model), credits)
        assert any(credit.any() for credit in credits.values()) == (step in (0, 3))


def test_the_optimizer_of_the_credit_waits_for_it():
    model, batch = language_model(), language_batch()
    estimator = bridge(separate=True, credit_every=2)
    exact = torch.optim.Adam(model.parameters(), lr=0.01)
    credit = torch.optim.Adam(estimator.credit_parameters(model), lr=0.01)
    for _ in range(5):
        estimator.estimate(model, batch, TokenCrossEntropy())
        exact.step()
        credit.step()
    for optimizer, steps in ((exact, 5), (credit, 3)):
        assert {int(state["step"]) for state in optimizer.state.values()} == {steps}


def test_a_resumed_run_goes_on_with_credit_where_it_would_have_come():
    batch, found = language_batch(), []
    for stops in ((4,), (1, 3)):
        model = language_model()
        estimator = bridge(separate=True, credit_every=2)
        for steps in stops:
            state = estimator.state_dict()
            estimator = bridge(separate=True, credit_every=2)
            estimator.load_state_dict(state)
            passes = [
                estimator.estimate(model, batch, TokenCrossEntropy()).forward_passes for _ in range(steps)
            ]
        found.append(passes[-3:])
    assert found[0] == found[1] == [3 * ROWS, 5 * ROWS, 3 * ROWS]


# ------------------------------------------------------------------------------ an optimizer for each part


def test_credit_parameters_are_the_weights_in_the_same_memory():
    model, batch, estimator = language_model(), language_batch(), bridge(separate=True)
    credit = torch.optim.SGD(estimator.credit_parameters(model), lr=0.5)
    estimator.estimate(model, batch, TokenCrossEntropy())
    before, gradient = weights(model), credit_gradients(estimator, model)
    credit.step()
    assert_same(weights(model), {name: before[name] - 0.5 * gradient[name] for name in before})
    assert any(not torch.equal(before[name], moved) for name, moved in weights(model).items())


def test_two_plain_optimizers_take_the_steps_of_both_parts():
    """SGD with the same rate on both parts is SGD on their sum; and each part has a rate of its own."""
    batch, found = language_batch(), {}
    for rate in (0.05, 0.2):
        model, estimator = language_model(), bridge(separate=True)
        exact = torch.optim.SGD(model.parameters(), lr=0.05)
        credit = torch.optim.SGD(estimator.credit_parameters(model), lr=rate)
        for _ in range(3):
            estimator.estimate(model, batch, TokenCrossEntropy())
            exact.step()
            credit.step()
        found[rate] = weights(model)
    model, estimator = language_model(), bridge()
    whole = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        estimator.estimate(model, batch, TokenCrossEntropy())
        whole.step()
    assert_close(found[0.05], weights(model), rtol=1e-12, atol=1e-13)
    assert not torch.equal(found[0.2]["embedding.weight"], found[0.05]["embedding.weight"])


def test_they_are_the_same_ones_at_every_call_whatever_is_estimated_between():
    model, batch, estimator = language_model(), language_batch(), bridge(separate=True)
    first = estimator.credit_parameters(model)
    estimator.estimate(language_model(), batch, TokenCrossEntropy())
    model.head.bias.requires_grad_(False)
    assert len(estimator.credit_parameters(model)) == len(first) - 1
    model.head.bias.requires_grad_(True)
    estimator.estimate(model, batch, TokenCrossEntropy())
    again = estimator.credit_parameters(model)
    assert [id(parameter) for parameter in again] == [id(parameter) for parameter in first]
    assert all(parameter.grad is not None for parameter in first)


def test_an_estimator_keeps_no_weights_of_a_model_that_is_gone():
    estimator, batch = bridge(separate=True), language_batch()
    for _ in range(3):
        model = language_model()
        estimator.estimate(model, batch, TokenCrossEntropy())
        del model
        gc.collect()
    model = language_model()
    estimator.credit_parameters(model)
    assert len(estimator._aliases) == len(list(model.parameters()))


def test_a_model_that_was_moved_is_refused_until_they_are_asked_for_again():
    model, batch, estimator = language_model(), language_batch(), bridge(separate=True)
    first = estimator.credit_parameters(model)
    model.float()
    before = weights(model)
    with pytest.raises(ConfigError, match=r"was moved since: call credit_parameters again, and make its opt"):
        estimator.estimate(model, batch, TokenCrossEntropy())
    assert_same(weights(model), before)
    again = estimator.credit_parameters(model)
    assert not {id(parameter) for parameter in first} & {id(parameter) for parameter in again}
    estimator.estimate(model, batch, TokenCrossEntropy())
    assert all(parameter.grad.dtype == torch.float32 for parameter in again)


def test_tied_weights_have_one_credit_parameter():
    model, batch = language_model(tie_embedding=True), language_batch()
    estimator = bridge(separate=True)
    credit = torch.optim.SGD(estimator.credit_parameters(model), lr=0.5)
    assert len(credit.param_groups[0]["params"]) == len(list(model.parameters()))
    estimator.estimate(model, batch, TokenCrossEntropy())
    expected = model.embedding.weight - 0.5 * credit_gradients(estimator, model)["embedding.weight"]
    credit.step()
    assert torch.equal(model.embedding.weight, expected)
    assert model.head.weight is model.embedding.weight


def test_both_optimizers_resume_bit_for_bit(tmp_path):
    batch, options = language_batch(), {"separate": True, "credit_every": 2, "relative": True}

    def parts(seed):
        model, estimator = language_model(torch.float32, seed=seed), bridge(**options)
        exact = torch.optim.AdamW(model.parameters(), lr=0.01)
        credit = torch.optim.Adam(estimator.credit_parameters(model), lr=0.003, betas=(0.96, 0.999))
        return model, estimator, exact, credit

    def train(model, estimator, *optimizers, steps):
        for _ in range(steps):
            estimator.estimate(model, batch, TokenCrossEntropy())
            for optimizer in optimizers:
                optimizer.step()

    run = parts(0)
    train(*run, steps=3)
    torch.save([part.state_dict() for part in run], tmp_path / "state.pt")
    train(*run, steps=3)
    resumed = parts(1)
    for part, state in zip(resumed, torch.load(tmp_path / "state.pt"), strict=True):
        part.load_state_dict(state)
    train(*resumed, steps=3)
    assert_same(weights(resumed[0]), weights(run[0]))


# -------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": 0}, "truncation must be a whole number of at least 1, got 0"),
        ({"epsilon": 0.0}, "epsilon must be a number above 0, got 0.0"),
        ({"epsilon": math.nan}, "epsilon must be a number above 0, got nan"),
        ({"draws": 0}, "draws must be a whole number of at least 1, got 0"),
        ({"credit_every": 0}, "credit_every must be a whole number of at least 1, got 0"),
        ({"credit_every": 2}, "credit_every must be 1 unless separate=True, got 2"),
        ({"discount": 1.5}, "discount must be a number of at least 0 and at most 1, got 1.5"),
        ({"seed": -1}, "seed must be"),
        ({"micro_batch": 0}, "micro_batch must be"),
        ({"maximum_nonfinite_share": 2.0}, "maximum_nonfinite_share must be"),
    ],
)
def test_arguments_outside_their_range(options, message):
    with pytest.raises(ConfigError, match=message):
        bridge(**options)


def no_state(outputs, targets):
    return outputs.mean((1, 2))


class Stateless(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.utils.skip_init(nn.Linear, 4, 3)

    def initial_state(self, rows):
        return torch.zeros(rows, dtype=torch.int64)

    def forward(self, inputs, state):
        raise AssertionError("run")


@pytest.mark.parametrize(
    ("model", "objective", "message"),
    [
        (
            nn.Linear(4, 4),
            TokenCrossEntropy(),
            r"one with initial_state\(rows\) for Bridge, got Linear",
        ),
        (language_model(), no_state, "one that adds up over tokens .* for Bridge, got no_state"),
        (Stateless(), TokenCrossEntropy(), "the state of Stateless must be with floating tensors"),
    ],
)
def test_what_it_cannot_bridge(model, objective, message):
    with pytest.raises(ConfigError, match=message):
        bridge().estimate(model, language_batch(), objective)


def test_an_objective_without_a_derivative():
    class Constant(TokenCrossEntropy):
        def token_losses(self, outputs, targets):
            return super().token_losses(outputs.detach(), targets)

    with pytest.raises(ConfigError, match="objective must be one that torch can differentiate for Bridge"):
        bridge().estimate(language_model(), language_batch(), Constant())


def test_streams_of_another_number_of_rows():
    model, estimator = language_model(), bridge(carry=True)
    estimator.estimate(model, long_batch(3, rows=4), TokenCrossEntropy())
    with pytest.raises(ConfigError, match=r"rows of the batch must be 4, .*, got 2"):
        estimator.estimate(model, long_batch(3, rows=2), TokenCrossEntropy())
