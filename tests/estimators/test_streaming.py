"""What PES and NRES share: the members' states, and everything that an estimator owes its caller."""

import copy

import pytest
import torch
from small_language import (
    STRUCTURES,
    assert_close,
    assert_same,
    assert_unchanged,
    gradients,
    model_in_mixed_modes,
    snapshot,
    weights,
    without_type_checks,
)
from streams import Scalar, last_output, nothing
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators import CDRGE
from zorn.estimators.nres import NRES
from zorn.estimators.pes import PES
from zorn.estimators.shaping import zscore
from zorn.estimators.update import FusedSGD
from zorn.models import Batch, LanguageModel
from zorn.noise import Draw
from zorn.tasks import TokenCrossEntropy

ROWS, TIME, WINDOWS, VOCABULARY, POPULATION = 4, 3, 3, 7, 8

each_kind = pytest.mark.parametrize("kind", [PES, NRES])
each_structure = pytest.mark.parametrize("structure", ["rank one", "dense"])


def windows(count=WINDOWS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (ROWS, count * TIME + 1), generator=generator)
    return [
        Batch(tokens[:, start : start + TIME].clone(), tokens[:, start + 1 : start + TIME + 1].clone())
        for start in range(0, count * TIME, TIME)
    ]


def small_model(dtype=torch.float64):
    return LanguageModel(VOCABULARY, 4).to(dtype)


def estimator_of(kind, structure="rank one", **options):
    options = {"population": POPULATION, "epsilon": 0.05, "seed": 5, **options}
    return kind(perturbation=STRUCTURES[structure], **options)


def descend(estimator, model, batches, objective=None):
    """One estimate and one update a window."""
    update = FusedSGD(learning_rate=0.3)
    return [estimator.estimate(model, batch, objective or TokenCrossEntropy(), update) for batch in batches]


# ------------------------------------------------------------------------------------ the formulas, by a twin


def directions(model, structure, draw, count):
    """z of the first `count` members of a draw, [count, d], one by one from the structure's fold."""
    bound, rows = structure.bind(model), []
    for member in range(count):
        one = torch.zeros(count, dtype=torch.float64)
        one[member] = 1
        rows.append(torch.cat([block.values for block in bound.fold(draw, one)]))
    return torch.stack(rows)


def twin(kind, structure, group, model, batches):
    """The weights after a descent, each member and sign run on a copy of the model of its own, and every
    direction stored. Window t of PES takes members t n … t n + n − 1."""
    theta = parameters_to_vector(model.parameters()).detach()
    z = directions(model, structure, Draw(seed=5, step=0, epsilon=0.05), POPULATION * len(batches))
    z = z.view(len(batches), POPULATION, -1)
    states = {}
    for t, batch in enumerate(batches):
        total = torch.zeros_like(theta)
        for member in range(POPULATION):
            moved, summed = (z[0, member],) * 2 if kind is NRES else (z[t, member], z[: t + 1, member].sum(0))
            start = member % (ROWS // group) * group
            losses = {}
            for sign in (1, -1):
                mover = copy.deepcopy(model)
                vector_to_parameters(theta + sign * 0.05 * moved, mover.parameters())
                with torch.no_grad():
                    before = states.get((member, sign), mover.initial_state(group))
                    outputs, states[member, sign] = mover(batch.inputs[start : start + group], before)
                    losses[sign] = TokenCrossEntropy().token_losses(
                        outputs, batch.targets[start : start + group]
                    )
            total += (losses[1] - losses[-1]).mean() / 0.1 * summed
        theta = theta - 0.3 * total / POPULATION
    return theta


@each_kind
@pytest.mark.parametrize(
    ("structure", "group"), [("rank one", 1), ("rank one", 2), ("rank one gaussian", 2), ("dense", 2)]
)
def test_a_descent_is_that_of_the_formulas(kind, structure, group):
    model = small_model()
    expected = twin(kind, STRUCTURES[structure], group, copy.deepcopy(model), windows())
    descend(estimator_of(kind, structure, group_size=group), model, windows())
    found = parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@each_kind
@each_structure
def test_the_first_window_of_a_segment_is_cd_rge(kind, structure):
    model, batch = small_model(), windows()[0]
    estimator, plain = estimator_of(kind, structure), estimator_of(CDRGE, structure, group_size=1)
    for _ in range(2):
        estimator.reset()
        found = estimator.estimate(model, batch, TokenCrossEntropy())
        filled = gradients(model)
        expected = plain.estimate(model, batch, TokenCrossEntropy())
        assert_same(filled, gradients(model))
        assert torch.equal(found.coefficients, expected.coefficients)
        assert (found.loss, found.forward_passes) == (expected.loss, expected.forward_passes)


@each_kind
def test_a_shaping_is_applied_to_the_coefficients(kind):
    model = small_model()
    estimator = estimator_of(kind, shaping=zscore)
    for batch in windows():
        found = estimator.estimate(model, batch, TokenCrossEntropy())
        tenfold = {name: 10 * gradient for name, gradient in gradients(model).items()}
    assert found.coefficients.std() != pytest.approx(1, rel=0.01)  # told as they were
    estimator = estimator_of(kind, shaping=lambda coefficients: 10 * zscore(coefficients))
    for batch in windows():
        estimator.estimate(model, batch, TokenCrossEntropy())
    assert_close(gradients(model), tenfold, rtol=1e-9, atol=1e-11)


# -------------------------------------------------------------------------------------- how it is split up


@each_kind
@pytest.mark.parametrize(("structure", "group"), [("rank one", 1), ("rank one", None), ("dense", None)])
def test_micro_batches_change_nothing(kind, structure, group):
    runs = []
    for micro_batch in (6, 1000):
        model = small_model()
        estimator = estimator_of(kind, structure, group_size=group, micro_batch=micro_batch)
        found = descend(estimator, model, windows())
        assert [estimate.forward_passes for estimate in found] == [2 * POPULATION * (group or ROWS)] * WINDOWS
        runs.append((weights(model), found[-1].coefficients))
    for run in runs[1:]:
        assert_close(run[0], runs[0][0], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(run[1], runs[0][1], rtol=1e-9, atol=1e-11)


@each_kind
@each_structure
def test_a_run_that_is_resumed_within_a_segment_has_the_same_bits(kind, structure, tmp_path):
    model, batches = small_model(torch.float32), windows(5)
    estimator = estimator_of(kind, structure, micro_batch=6)
    descend(estimator, model, batches[:2])
    stopped = copy.deepcopy(model)
    torch.save(estimator.state_dict(), tmp_path / "state")
    expected = descend(estimator, model, batches[2:])
    resumed = kind(population=4, epsilon=1.0, perturbation=STRUCTURES[structure], micro_batch=6)
    resumed.load_state_dict(torch.load(tmp_path / "state"))
    found = descend(resumed, stopped, batches[2:])
    assert_same(weights(stopped), weights(model))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.coefficients, other.coefficients)
    assert resumed.step == estimator.step == 5


@each_kind
def test_a_state_that_was_saved_does_not_change_while_the_run_goes_on(kind):
    model, estimator = small_model(), estimator_of(kind)
    descend(estimator, model, windows()[:1])
    state = estimator.state_dict()
    kept = copy.deepcopy(state)
    descend(estimator, model, windows()[1:])
    for now, then in zip(state["segment"]["states"], kept["segment"]["states"], strict=True):
        assert now.shape[:3] == (2, POPULATION, 1)
        assert torch.equal(now, then)
    assert state["segment"]["windows"] == kept["segment"]["windows"] == 1


@each_kind
def test_no_inference_tensor_is_left_behind(kind):
    model, estimator = small_model(), estimator_of(kind)
    with torch.inference_mode():
        descend(estimator, model, windows()[:2])
        found = estimator.estimate(model, windows()[2], TokenCrossEntropy())
    assert not any(tensor.is_inference() for tensor in estimator.state_dict()["segment"]["states"])
    assert not any(gradient.is_inference() for gradient in gradients(model).values())
    assert not found.coefficients.is_inference()


# ------------------------------------------------------------------------------------------------ segments


@each_kind
def test_each_segment_draws_noise_of_its_own_and_starts_afresh(kind):
    model, estimator, batch = small_model(), estimator_of(kind), windows()[0]
    found = []
    for _ in range(2):
        estimator.reset()
        found.append(estimator.estimate(model, batch, TokenCrossEntropy()).coefficients)
    assert not torch.isclose(*found).any()
    estimator.reset()
    estimator.step = 0
    assert torch.equal(estimator.estimate(model, batch, TokenCrossEntropy()).coefficients, found[0])


@each_kind
def test_schedules_take_effect_with_the_next_segment(kind):
    model, batches = small_model(), windows()
    fixed, scheduled = estimator_of(kind), estimator_of(kind)
    for batch in batches:
        expected = fixed.estimate(model, batch, TokenCrossEntropy())
        found = scheduled.estimate(model, batch, TokenCrossEntropy())
        assert torch.equal(found.coefficients, expected.coefficients)
        scheduled.epsilon, scheduled.population = 0.5 * scheduled.epsilon, 2 * scheduled.population
    scheduled.reset()
    found = scheduled.estimate(model, batches[0], TokenCrossEntropy())
    assert len(found.coefficients) == 8 * POPULATION
    plain = CDRGE(population=8 * POPULATION, epsilon=0.05 / 8, group_size=1, seed=5)
    plain.step = 3
    expected = plain.estimate(model, batches[0], TokenCrossEntropy())
    assert torch.equal(found.coefficients, expected.coefficients)


@each_kind
def test_bfloat16_weights_are_rounded_with_bits_of_the_window(kind, monkeypatch):
    steps, apply = [], FusedSGD.apply
    monkeypatch.setattr(FusedSGD, "apply", lambda *a: steps.append(a[2].step) or apply(*a))
    descend(estimator_of(kind), small_model(torch.bfloat16), windows())
    assert steps == [0, 1, 2]


# --------------------------------------------------------------------------------------------- what fails


def broken_at(window, value, rows=slice(0, 1)):
    """An objective whose loss of some rows is `value` in one window; all rows run together."""
    calls = 0

    def objective(outputs, targets):
        nonlocal calls
        calls += 1
        losses = TokenCrossEntropy().token_losses(outputs, targets).mean(1)
        if calls == window + 1:
            losses[rows] = value
        return losses

    return objective


@each_kind
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_member_that_failed_is_dropped_until_the_reset(kind, value):
    model, estimator = small_model(), estimator_of(kind)
    objective = broken_at(1, value)
    found = [estimator.estimate(model, batch, objective) for batch in windows(4)]
    assert [estimate.dropped for estimate in found] == [0, 1, 1, 1]
    assert [float(estimate.coefficients[0]) == 0 for estimate in found] == [False, True, True, True]
    assert all(bool((estimate.coefficients[1:] != 0).all()) for estimate in found)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model).values())
    estimator.reset()
    assert estimator.estimate(model, windows()[0], objective).dropped == 0


@each_kind
def test_members_lost_in_different_windows_add_up(kind):
    model = small_model()
    estimator = estimator_of(kind, maximum_nonfinite_share=0.5)
    for first, last in ((0, 2), (2, 4)):
        batch = windows()[0]
        lost = estimator.estimate(model, batch, broken_at(0, torch.nan, slice(first, last)))
    assert lost.dropped == 4
    with pytest.raises(NonFiniteLossError, match="the losses of 5 of 8 members were not finite"):
        estimator.estimate(model, batch, broken_at(0, torch.nan, slice(4, 5)))


@each_kind
@pytest.mark.parametrize("error", [NonFiniteLossError, RuntimeError])
@each_structure
def test_a_window_that_failed_is_as_if_never_tried(kind, structure, error):
    model, batches = model_in_mixed_modes(), windows()
    estimator = estimator_of(kind, structure)
    estimator.estimate(model, batches[0], TokenCrossEntropy())
    expected_estimator, calls = copy.deepcopy(estimator), 0
    before, filled = snapshot(model), gradients(model)

    def objective(outputs, targets):
        nonlocal calls
        calls += 1
        if error is RuntimeError and (calls == 3 or structure == "rank one"):
            raise RuntimeError("from the objective")
        return torch.full((len(outputs),), torch.nan)

    with pytest.raises(error):
        estimator.estimate(model, batches[1], objective, FusedSGD(learning_rate=0.1))
    assert_unchanged(model, before)
    assert_same(gradients(model), filled)
    assert estimator.step == 1
    found = estimator.estimate(model, batches[1], TokenCrossEntropy())
    expected = expected_estimator.estimate(model, batches[1], TokenCrossEntropy())
    assert torch.equal(found.coefficients, expected.coefficients)


class WithoutState(nn.Linear):
    pass


@each_kind
def test_bad_input_is_told_before_any_work(kind):
    model, batch = small_model(), windows()[0]
    estimator = estimator_of(kind)
    with pytest.raises(ConfigError, match=rf"initial_state\(rows\) for {kind.__name__}, got WithoutState"):
        estimator.estimate(WithoutState(3, 1), batch, TokenCrossEntropy())
    with without_type_checks(), pytest.raises(ConfigError, match=r"batch must be zorn.Batch"):
        estimator.estimate(model, batch.inputs, TokenCrossEntropy())
    with without_type_checks(), pytest.raises(ConfigError, match=r"write TokenCrossEntropy\(\)"):
        estimator.estimate(model, batch, TokenCrossEntropy)
    with pytest.raises(ConfigError, match=r"what state_dict\(\) gave, .* without segment"):
        estimator.load_state_dict(estimator_of(CDRGE).state_dict())
    with pytest.raises(
        ConfigError, match=r"population must be a multiple of 3 for a batch of 3 sequences .*, got 8"
    ):
        estimator.estimate(model, Batch(*(part[:3] for part in batch)), TokenCrossEntropy())
    estimator.estimate(model, batch, TokenCrossEntropy())
    with pytest.raises(ConfigError, match=r"rows of the batch must be 4, .*, got 2: .* reset\(\)"):
        estimator.estimate(model, Batch(*(part[:2] for part in batch)), TokenCrossEntropy())
    assert estimator.step == 1


@each_kind
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, "population must be a whole number of at least 1, got 0"),
        ({"epsilon": 0.0}, "epsilon must be a number above 0"),
        ({"group_size": 0}, "group_size must be a whole number of at least 1, got 0"),
        ({"micro_batch": 0}, "micro_batch must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"maximum_nonfinite_share": 1.5}, "maximum_nonfinite_share must be a number .* at most 1"),
    ],
)
def test_settings_outside_their_range_are_refused(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        kind(**{"population": 4, "epsilon": 0.1, **options})


@each_kind
def test_settings_are_refused_between_steps_too(kind):
    estimator = estimator_of(kind)
    with pytest.raises(ConfigError, match="epsilon must be"):
        estimator.epsilon = -1.0
    with pytest.raises(ConfigError, match="population must be"):
        estimator.population = 0


@each_kind
def test_nothing_of_the_size_of_a_window_is_kept(kind):
    """The state of a long run is that of its members, however many windows there were."""
    model, estimator = Scalar(0.9), kind(population=2, epsilon=0.01)
    for _ in range(20):
        estimator.estimate(model, nothing(steps=1), last_output)
    assert [tuple(t.shape) for t in estimator.state_dict()["segment"]["states"]] == [(2, 2, 1, 1)]
