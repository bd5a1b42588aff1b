"""ActivityCredit: whose gradient it is, that nothing but speed depends on portions, and its contract."""

import copy

import pytest
import torch
from small_language import assert_close, assert_same, gradients, language_batch, language_model, weights
from torch import nn

from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators import ActivityCredit
from zorn.estimators.credit import reward_to_go
from zorn.estimators.update import FusedSGD
from zorn.models import Batch, row_losses
from zorn.noise import Activity, Draw
from zorn.noise.activity.cells import KEPT_MEMORY, LEAST_GAIN, STATE_UNIT
from zorn.noise.draw import ACTIVITY_FACTOR, noise, stream_of
from zorn.tasks import TokenCrossEntropy

OBJECTIVE = TokenCrossEntropy()


def estimated(model, batch=None, objective=OBJECTIVE, **options):
    estimator = ActivityCredit(**{"epsilon": 1e-3, "seed": 4, "draws": 1, **options})
    estimate = estimator.estimate(model, batch or language_batch(), objective)
    return gradients(model), estimate


@pytest.mark.parametrize("cell", ["lstm", "gru", "min-gru", "dnc"])
@pytest.mark.parametrize(
    "options",
    [{"micro_batch": 1}, {"micro_batch": 5}, {"time_chunk": 1}, {"time_chunk": 3, "micro_batch": 4}],
    ids=str,
)
def test_portions_change_nothing_but_speed(cell, options):
    model = language_model(cell=cell)
    shared = {"draws": 2, "discount": 0.7, "relative": False}
    expected, whole = estimated(model, **shared)
    found, parts = estimated(model, **shared, **options)
    assert_close(found, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(parts.coefficients, whole.coefficients, rtol=1e-6, atol=1e-9)
    assert parts.loss == pytest.approx(whole.loss)


@pytest.mark.parametrize("exact", [True, False], ids=["exact output", "noise at the output"])
def test_it_is_the_sum_over_kept_activations(exact):
    """A twin of one LSTM layer that keeps everything: what the replay makes again is the same."""
    model, batch, epsilon, discount = language_model(), language_batch(), 1e-2, 0.8
    estimator = ActivityCredit(
        epsilon=epsilon, relative=False, discount=discount, seed=9, exact_output=exact, draws=1
    )
    estimator.estimate(model, batch, OBJECTIVE)  # step 0; the twin is of step 1
    estimator.estimate(model, batch, OBJECTIVE)
    found = gradients(model)

    rows, time = batch.inputs.shape
    names = [name for name, _ in model.named_modules()]
    draw = Draw(seed=9, step=1, epsilon=epsilon)

    def xi(site: str, units: int) -> torch.Tensor:
        stream = stream_of(names.index(site), ACTIVITY_FACTOR)
        place = {"dtype": torch.float64, "device": torch.device("cpu")}
        return noise("rademacher", draw, range(rows), stream, time * units, **place).view(rows, time, units)

    xi_embedding, xi_cell, xi_head = xi("embedding", 6), xi("cells.0", 12), xi("head", 7)
    cell = model.cells[0]

    def noisy_state(x, state):
        """The output gate before its nonlinearity and the memory, in their units; and these."""
        (drive,) = cell.map.drive(x.unsqueeze(0))
        i, f, o, u = cell.map((drive[0],), state.hidden).view(rows, 4, -1).unbind(1)
        c = state.cell
        memory = f.sigmoid() * c + i.sigmoid() * u.tanh()
        with torch.no_grad():
            si, sf, so, tu, shown = i.sigmoid(), f.sigmoid(), o.sigmoid(), u.tanh(), memory.tanh()
            slopes = torch.stack([tu * si * (1 - si), c * sf * (1 - sf), si * (1 - tu**2)])
            felt = so * (1 - shown**2) + KEPT_MEMORY
            output_unit = (so * (1 - so) * shown.abs() + LEAST_GAIN) ** -0.5
            unit = STATE_UNIT * torch.cat([output_unit, ((slopes.norm(dim=0) + LEAST_GAIN) / felt) ** 0.5], 1)
        return torch.cat([o, memory], 1) / unit, unit

    def run(sign: int):
        state, losses, inputs, before, after = cell.initial_state(rows), [], [], [], []
        for t in range(time):
            x = model.embedding(batch.inputs[:, t]) + sign * epsilon * xi_embedding[:, t]
            inputs.append(x)
            before.append(state)
            quiet, unit = noisy_state(x, state)
            o, memory = ((quiet + sign * epsilon * xi_cell[:, t]) * unit).chunk(2, 1)
            state = type(state)(o.sigmoid() * memory.tanh(), memory)
            after.append(state.hidden)
            logits = model.head(state.hidden)
            if not exact:
                logits = logits + sign * epsilon * xi_head[:, t]
            losses.append(OBJECTIVE.token_losses(logits.unsqueeze(1), batch.targets[:, t : t + 1]))
        return torch.cat(losses, 1), inputs, before, torch.stack(after, 1)

    with torch.no_grad():
        plus, _, _, after_plus = run(1)
        minus, _, _, _ = run(-1)
        _, inputs, before, after = run(0)
        if exact:
            error = model.head(after).softmax(-1)
            error[torch.arange(rows)[:, None], torch.arange(time), batch.targets.clamp(min=0)] -= 1
            error[batch.targets == -100] = 0
            changes = ((error @ model.head.weight) * (after_plus - after)).sum(-1)
        else:
            changes = (plus - minus) / 2
        normaliser = float((batch.targets != -100).sum()) / rows
        credit = reward_to_go(changes, discount) / (epsilon * rows * normaliser)
        expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for t in range(time):
            c_t = credit[:, t : t + 1]
            with torch.enable_grad():
                y, _ = noisy_state(inputs[t].detach(), before[t])
                step = torch.autograd.grad(y, list(cell.parameters()), c_t * xi_cell[:, t])
            for (name, _), value in zip(cell.named_parameters(), step, strict=True):
                expected[f"cells.0.{name}"] += value
            expected["embedding.weight"].index_add_(0, batch.inputs[:, t], c_t * xi_embedding[:, t])
            expected["head.weight"] += (c_t * xi_head[:, t]).mT @ after[:, t]
            expected["head.bias"] += (c_t * xi_head[:, t]).sum(0)
    if exact:
        loss = row_losses(model, batch, OBJECTIVE).mean()
        head = torch.autograd.grad(loss, list(model.head.parameters()))
        expected["head.weight"], expected["head.bias"] = head
    assert_close(found, expected, rtol=1e-6, atol=1e-10)


def test_the_exact_output_layer_is_autograds_bit_for_bit_over_chunks_too():
    model = language_model(norm="rms", residual=True)
    found, estimate = estimated(model, time_chunk=1)
    loss = row_losses(model, language_batch(), OBJECTIVE).mean()
    head = torch.autograd.grad(loss, list(model.head.parameters()))
    torch.testing.assert_close(found["head.weight"], head[0])
    torch.testing.assert_close(found["head.bias"], head[1])
    assert estimate.loss == pytest.approx(float(loss.detach()))


def test_weights_are_left_as_they_are_also_by_an_objective_that_raises():
    model = language_model()
    before = weights(model)
    estimated(model)
    assert_same(weights(model), before)

    def objective(outputs, targets):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        estimated(model, objective=objective)
    assert_same(weights(model), before)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_sizes_are_measured_apart_at_the_first_step_only():
    model, batch = language_model(), language_batch()
    estimator = ActivityCredit(epsilon=1e-3, draws=2)
    passes = [estimator.estimate(model, batch, OBJECTIVE).forward_passes for _ in range(3)]
    assert passes == [20, 16, 16], "4 sequences: clean, 2 draws, replay; at first once more"
    without = ActivityCredit(epsilon=1e-3, draws=2, exact_output=False)
    passes = [without.estimate(model, batch, OBJECTIVE).forward_passes for _ in range(2)]
    assert passes == [24, 20], "4 sequences: 2 draws under both signs, replay"


def test_a_fused_update_moves_the_weights_by_the_gradient():
    model = language_model()
    other = copy.deepcopy(model)
    found, _ = estimated(model)
    ActivityCredit(epsilon=1e-3, seed=4, draws=1).estimate(
        other, language_batch(), OBJECTIVE, update=FusedSGD(learning_rate=0.1)
    )
    moved = {name: weight - 0.1 * found[name] for name, weight in weights(model).items()}
    assert_close(weights(other), moved, rtol=1e-10, atol=1e-12)


def test_the_same_step_gives_the_same_bits_and_another_step_others():
    model = language_model()
    first, _ = estimated(model)
    again, _ = estimated(model)
    other, _ = estimated(model, seed=5)
    assert_same(again, first)
    assert not torch.equal(other["cells.0.map.bias"], first["cells.0.map.bias"])


def test_a_resumed_estimator_goes_on_bit_for_bit():
    model, batch = language_model(), language_batch()
    options = {"epsilon": 0.02, "carry": True, "seed": 2}
    straight = ActivityCredit(**options)
    for _ in range(2):
        straight.estimate(model, batch, OBJECTIVE)
    state = straight.state_dict()
    straight.estimate(model, batch, OBJECTIVE)
    expected = gradients(model)
    resumed = ActivityCredit(**options)
    resumed.load_state_dict(state)
    resumed.estimate(model, batch, OBJECTIVE)
    assert_same(gradients(model), expected)


def test_carried_state_is_that_of_the_whole_sequence_without_noise():
    model = language_model()
    batch = language_batch()
    whole = row_losses(model, batch, OBJECTIVE, normaliser=1.0).mean()
    halves = [Batch(*(part[:, i : i + 2].contiguous() for part in batch)) for i in (0, 2)]
    estimator = ActivityCredit(epsilon=0.1, carry=True, micro_batch=3, draws=1)
    total = 0.0
    for half in halves:
        counted = float((half.targets != -100).sum()) / len(half.targets)
        total += estimator.estimate(model, half, OBJECTIVE).loss * counted
    assert total == pytest.approx(float(whole.detach()))
    estimator.reset()
    first = estimator.estimate(model, halves[0], OBJECTIVE).loss
    assert first == pytest.approx(float(row_losses(model, halves[0], OBJECTIVE).mean().detach()))


def test_a_score_of_the_whole_sequence_credits_every_step():
    model = language_model()

    def score(outputs, targets):
        return outputs.square().mean((1, 2))

    def as_tokens(estimator):
        class Tokens:
            def token_losses(self, outputs, targets):
                return outputs.square().mean(2) / outputs.shape[1]

            def counts(self, targets):
                return torch.ones_like(targets, dtype=torch.bool)

        return Tokens()

    found, estimate = estimated(model, objective=score, causal=False, relative=False, time_chunk=2)
    expected, tokens = estimated(model, objective=as_tokens(None), causal=False, relative=False)
    # the token objective divides by the mean number of tokens, 4
    assert_close(found, {name: 4 * value for name, value in expected.items()}, rtol=1e-6, atol=1e-9)
    assert estimate.loss == pytest.approx(4 * tokens.loss, rel=1e-4)


class Nan:
    """Token losses that are NaN for one sequence wherever the model is perturbed by more than nothing."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def token_losses(self, outputs, targets):
        losses = OBJECTIVE.token_losses(outputs, targets)
        if len(losses) > 4:
            losses[: self.rows, -1] = torch.nan  # of their other tokens nothing counts either
        return losses

    def counts(self, targets):
        return OBJECTIVE.counts(targets)


def test_a_sequence_without_a_finite_loss_gets_no_credit():
    model = language_model()
    _, estimate = estimated(model, objective=Nan(1))
    assert estimate.dropped == 1
    assert all(bool(value.isfinite().all()) for value in gradients(model).values())
    assert float(estimate.coefficients[0]) == 0.0


def test_too_many_of_them_raise_and_change_nothing():
    model = language_model()
    estimated(model)
    before, held = weights(model), gradients(model)
    estimator = ActivityCredit(epsilon=1e-3, draws=1)
    with pytest.raises(NonFiniteLossError, match="3 of 4 sequences"):
        estimator.estimate(model, language_batch(), Nan(3))
    assert_same(weights(model), before)
    assert_same(gradients(model), held)
    assert estimator.step == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"draws": 0}, "draws"),
        ({"discount": 1.5}, "discount"),
        ({"discount": 0.5, "causal": False}, "causal=False"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"time_chunk": 0}, "time_chunk"),
        ({"seed": -1}, "seed"),
        ({"maximum_nonfinite_share": 2.0}, "maximum_nonfinite_share"),
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ActivityCredit(**{"epsilon": 0.1, **options})


def test_what_does_not_fit_together_is_refused_before_any_work():
    model = language_model()
    batch = language_batch()
    score = lambda outputs, targets: outputs.mean((1, 2))  # noqa: E731
    for options, objective, given, message in (
        ({"exact_output": True}, score, batch, "has no output_gradient"),
        ({"discount": 0.5}, score, batch, "one score a sequence"),
        ({}, OBJECTIVE, Batch(batch.inputs, batch.targets[:, 0]), "one target a time step"),
        (
            {},
            OBJECTIVE,
            Batch(batch.inputs, batch.targets[:, :3]),
            "one target a time step of the inputs, 4, got 3",
        ),
        ({}, OBJECTIVE, Batch(batch.inputs[:, :0], batch.targets[:, :0]), "at least one time step"),
    ):
        with pytest.raises(ConfigError, match=message):
            estimated(model, given, objective, **options)
    plain = nn.Sequential(nn.Linear(3, 7))
    tokens = Batch(torch.randn(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="time_chunk must be None for Sequential, got 2"):
        estimated(plain, tokens, time_chunk=2)
    with pytest.raises(ConfigError, match=r"one with initial_state\(rows\) for carry=True, got Sequential"):
        estimated(plain, tokens, carry=True)

    class Doubled(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * 2

    with pytest.raises(ConfigError, match="does not return what an nn"):
        estimated(Doubled(nn.Linear(3, 7)), tokens, exact_output=True)


def recurrent(head):
    """A model of one layer whose outputs are `head(model, h)`."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 7), nn.Linear(7, 7)

        def forward(self, x):
            return head(self, self.layer(x).tanh())

    return Model().double()


def scaled_in_place(model, h):
    y = model.head(h)
    y *= 4
    return y


@pytest.mark.parametrize(
    "head",
    [scaled_in_place, lambda model, h: model.head(h + model.head(h).tanh())],
    ids=["changed in place", "called twice"],
)
def test_outputs_that_are_not_the_last_layers_get_noise_there_or_an_error(head):
    torch.manual_seed(0)
    model = recurrent(head)
    batch = Batch(torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(0, 7, (4, 5)))
    with pytest.raises(ConfigError, match=r"exact_output|called twice"):
        estimated(model, batch, exact_output=True)
    if head is scaled_in_place:
        found, _ = estimated(model, batch, draws=64)
        loss = row_losses(model, batch, OBJECTIVE).mean()
        (exact,) = torch.autograd.grad(loss, [model.head.bias])
        share = float(found["head.bias"] @ exact / exact.square().sum())
        assert 0.7 < share < 1.4, "0.25 where the scaling is overlooked"


def test_an_output_layer_that_changes_after_the_first_step_is_noticed():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.factor = nn.Linear(3, 7), 1.0

        def forward(self, x):
            y = self.head(x)
            return y if self.factor == 1 else y * self.factor

    model = Model().double()
    batch = Batch(torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(0, 7, (4, 5)))
    estimator = ActivityCredit(epsilon=0.01, draws=1)
    estimator.estimate(model, batch, OBJECTIVE)
    model.factor = 4.0
    with pytest.raises(ConfigError, match="no longer returns the unchanged output of its output layer"):
        estimator.estimate(model, batch, OBJECTIVE)


def test_a_gradient_that_is_not_finite_changes_nothing():
    torch.manual_seed(0)
    model = recurrent(lambda model, h: model.head(h))
    inputs, targets = torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(0, 7, (4, 5))
    estimator = ActivityCredit(epsilon=0.01, draws=1)
    estimator.estimate(model, Batch(inputs, targets), OBJECTIVE)
    before = weights(model)
    inputs, targets = inputs.clone(), targets.clone()
    inputs[0, 3:], targets[0, 3:] = torch.nan, -100
    with pytest.raises(NonFiniteLossError, match="gradient is not finite"):
        estimator.estimate(model, Batch(inputs, targets), OBJECTIVE, update=FusedSGD(learning_rate=0.1))
    assert_same(weights(model), before)


def test_a_first_batch_that_is_not_finite_poisons_nothing():
    torch.manual_seed(0)
    model = recurrent(lambda model, h: model.head(h))
    inputs, targets = torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(0, 7, (4, 5))
    estimator = ActivityCredit(epsilon=0.01, draws=1)
    with pytest.raises(NonFiniteLossError, match="gives numbers that are not finite"):
        estimator.estimate(model, Batch(torch.full_like(inputs, torch.nan), targets), OBJECTIVE)
    assert estimator.estimate(model, Batch(inputs, targets), OBJECTIVE).dropped == 0


def test_inputs_that_a_model_writes_into_are_those_that_the_layer_saw():
    class Model(nn.Module):
        def __init__(self, *, in_place: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.recurrent, self.head = nn.Linear(4, 4), nn.Linear(4, 7)
            self.in_place = in_place

        def initial_state(self, rows):
            return torch.zeros(rows, 4, dtype=torch.float64)

        def forward(self, x, state):
            h, outputs = state.clone(), []
            for x_t in x.unbind(1):
                u = self.recurrent(h)
                new = 0.5 * h + (u + x_t).tanh()
                h = h.copy_(new) if self.in_place else new
                outputs.append(h.clone())
            return self.head(torch.stack(outputs, 1)), h

    batch = Batch(torch.randn(4, 5, 4, dtype=torch.float64), torch.randint(0, 7, (4, 5)))
    found, _ = estimated(Model(in_place=True).double(), batch)
    expected, _ = estimated(Model(in_place=False).double(), batch)
    assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_hook_on_a_map_inside_a_cell_puts_the_noise_on_the_maps():
    model = language_model(cell="gru")
    assert [site.name for site in Activity().bind(model).sites] == ["embedding", "cells.0", "head"]
    handle = model.cells[0].state_map.register_forward_hook(lambda module, inputs, output: output * 3)
    sites = [site.name for site in Activity().bind(model).sites]
    assert sites == ["embedding", "cells.0.input_map", "cells.0.state_map", "head"]
    handle.remove()


def test_sizes_follow_the_model():
    model, batch = language_model(), language_batch()
    estimator = ActivityCredit(epsilon=0.01, draws=1)
    estimator.estimate(model, batch, OBJECTIVE)
    first = estimator.state_dict()["sizes"]
    with torch.no_grad():
        model.embedding.weight.mul_(3)
    estimator.estimate(model, batch, OBJECTIVE)
    assert estimator.state_dict()["sizes"]["embedding"] == pytest.approx(3 * first["embedding"])
