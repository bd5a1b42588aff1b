"""The contract that every estimator keeps with every structure of directions, as a table."""

import importlib
import pkgutil
from functools import cache, partial
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import each_once
from small_language import (
    EXACT,
    POPULATION,
    ROWS,
    STRUCTURES,
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
from torch import nn

import zorn.estimators
import zorn.noise
from zorn.estimators import (
    BPTT,
    CDRGE,
    FDRGE,
    NRES,
    PES,
    SPSA15,
    TBPTT,
    ActivityCredit,
    Bridge,
    EProp,
    ExactGradient,
    StreamingEstimator,
    ZeroOrderEstimator,
)
from zorn.estimators.tbptt import ChunkedGradient
from zorn.estimators.update import FusedSGD
from zorn.models import Batch, mean_tokens
from zorn.noise import NoiseKind, Perturbation
from zorn.tasks import TokenCrossEntropy

ESTIMATORS = {"cd": CDRGE, "fd": FDRGE, "spsa15": SPSA15}
TABLE = [("cd", structure) for structure in STRUCTURES]
TABLE += [(name, structure) for name in ("fd", "spsa15") for structure in ("rank one", "dense")]
"""Estimators and structures do not act on each other: an estimator differs from the others by its signs and
its formula, a structure by its noise at a sign and by its fold."""

GROUPS = [1, 2, None]

each_zero_order = pytest.mark.parametrize(("name", "structure"), TABLE)


def each_zero_order_with(argument, values):
    """With all of the values for each estimator, and with one of them for each structure."""
    rows = [(name, "rank one", value) for name in ESTIMATORS for value in values]
    rows += [(*row, value) for row, value in each_once(TABLE, values) if row[1] != "rank one"]
    return pytest.mark.parametrize(("name", "structure", argument), rows)


def zero_order(name, structure, **options):
    options = {"population": POPULATION, "epsilon": 0.01, "seed": 5, "group_size": None, **options}
    return ESTIMATORS[name](perturbation=STRUCTURES[structure], **options)


OTHERS = {
    "activity": partial(ActivityCredit, epsilon=0.01, draws=1),
    "bridge": partial(Bridge, truncation=2, epsilon=0.01, draws=1, separate=False),
    "e-prop": EProp,
    "nres": partial(NRES, population=POPULATION, epsilon=0.01),
    "pes": partial(PES, population=POPULATION, epsilon=0.01),
}
EVERYONE = {
    **EXACT,
    **OTHERS,
    **{f"{name}-{structure}": partial(zero_order, name, structure) for name, structure in TABLE},
}
RECURRENT = ("tbptt", "bridge", "e-prop", "nres", "pes")
"""Those that need a model with an explicit state."""
each_estimator = pytest.mark.parametrize("make", EVERYONE.values(), ids=EVERYONE)


# ---------------------------------------------------------------------------------------- completeness


def concrete_subclasses(base):
    for kind in base.__subclasses__():
        yield from concrete_subclasses(kind)
        inner = kind.__name__.startswith("_") or kind is ChunkedGradient
        inner |= kind.__module__.startswith("zorn.distributed.")  # shares the work of one of the table
        if kind.__module__.startswith("zorn.") and not kind.__abstractmethods__ and not inner:
            yield kind


def test_the_table_is_complete():
    """A new estimator, structure or kind of noise must come into the table above."""
    for package in (zorn.estimators, zorn.noise):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    assert set(concrete_subclasses(ZeroOrderEstimator)) == set(ESTIMATORS.values())
    assert set(concrete_subclasses(StreamingEstimator)) == {NRES, PES}
    assert set(concrete_subclasses(ExactGradient)) == {BPTT, TBPTT, Bridge, EProp}
    assert set(concrete_subclasses(Perturbation)) == {type(structure) for structure in STRUCTURES.values()}
    for kind in concrete_subclasses(Perturbation):
        noises = {structure.noise for structure in STRUCTURES.values() if type(structure) is kind}
        assert noises == set(get_args(NoiseKind)), kind


# ---------------------------------------------------------------------------------- nothing is changed


@each_estimator
def test_an_estimate_leaves_the_model_as_it_was(make):
    model = model_in_mixed_modes()
    before = snapshot(model)
    make().estimate(model, language_batch(), TokenCrossEntropy())
    assert_unchanged(model, before)


@each_zero_order_with("at", [(1, RuntimeError), (2, KeyboardInterrupt), (4, RuntimeError)])
def test_an_estimate_that_raised_leaves_the_model_and_its_gradient_as_they_were(name, structure, at):
    (call, error), model, calls = at, model_in_mixed_modes(), 0
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = snapshot(model)

    def objective(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == call:
            raise error("from the objective")
        return outputs.mean((1, 2))

    with pytest.raises(error, match="from the objective"):
        zero_order(name, structure, micro_batch=4).estimate(model, language_batch(), objective)
    assert calls == call
    assert_unchanged(model, before)
    assert all((parameter.grad == 7.0).all() for parameter in model.parameters())


@each_zero_order
def test_a_model_that_raised_is_left_as_it_was(name, structure):
    model = model_in_mixed_modes()
    before = snapshot(model)

    def fail(module, arguments):
        raise RuntimeError("from the model")

    handle = model.head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="from the model"):
        zero_order(name, structure).estimate(model, language_batch(), TokenCrossEntropy())
    handle.remove()
    assert_unchanged(model, before)


def test_the_snapshot_sees_a_change():
    model = model_in_mixed_modes()
    before = snapshot(model)
    model.head.training = True
    with pytest.raises(AssertionError):
        assert_unchanged(model, before)
    model.head.training = False
    model.head.weight.data = model.head.weight.data.clone()
    with pytest.raises(AssertionError):
        assert_unchanged(model, before)


# ------------------------------------------------------------------------------------------ repetition


@each_zero_order
def test_the_same_seed_and_step_repeat_bit_for_bit_and_others_do_not(name, structure):
    model, batch = language_model(torch.float32), language_batch()

    def estimate(estimator):
        found = estimator.estimate(model, batch, TokenCrossEntropy())
        return found.coefficients, flat_gradient(model)

    estimator = zero_order(name, structure)
    first, second = estimate(estimator), estimate(estimator)
    assert estimator.step == 2
    estimator.step = 0
    for again in (estimate(estimator), estimate(zero_order(name, structure))):
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
    for other in (second, estimate(zero_order(name, structure, seed=6))):
        assert not torch.isclose(first[0], other[0]).any()
        assert not torch.allclose(first[1], other[1])


@each_zero_order
def test_the_state_of_an_estimator_resumes_it(name, structure):
    model, batch = language_model(torch.float32), language_batch()
    estimator = zero_order(name, structure)
    estimator.estimate(model, batch, TokenCrossEntropy())
    state = estimator.state_dict()
    expected = estimator.estimate(model, batch, TokenCrossEntropy())
    resumed = zero_order(name, structure, seed=77, epsilon=0.5, population=2 * POPULATION)
    resumed.load_state_dict(state)
    found = resumed.estimate(model, batch, TokenCrossEntropy())
    assert torch.equal(found.coefficients, expected.coefficients)


# ------------------------------------------------------------------------------------ splits and order


@cache
def whole(name, structure, group):
    """Coefficients and gradient with every row in one pass."""
    model = language_model()
    estimator = zero_order(name, structure, group_size=group, micro_batch=1000)
    found = estimator.estimate(model, language_batch(), TokenCrossEntropy())
    return found, gradients(model)


@each_zero_order
@settings(max_examples=4, deadline=None)
@given(
    group=st.sampled_from(GROUPS),
    micro_batch=st.integers(1, 2 * POPULATION * ROWS),
    time_chunk=st.none() | st.integers(1, TIME + 1),
)
def test_coefficients_do_not_depend_on_how_rows_and_time_are_split(
    name, structure, group, micro_batch, time_chunk
):
    expected, expected_gradients = whole(name, structure, group)
    model = language_model()
    options = {"group_size": group, "micro_batch": micro_batch, "time_chunk": time_chunk}
    found = [
        zero_order(name, structure, **options).estimate(model, language_batch(), TokenCrossEntropy())
        for _ in range(2)
    ]
    torch.testing.assert_close(found[0].coefficients, expected.coefficients, rtol=1e-9, atol=1e-11)
    assert_close(gradients(model), expected_gradients, rtol=1e-9, atol=1e-11)
    assert torch.equal(found[0].coefficients, found[1].coefficients)
    assert found[0].loss == found[1].loss == pytest.approx(expected.loss, rel=1e-12)
    assert found[0].forward_passes == expected.forward_passes


@each_zero_order_with("group", GROUPS)
@torch.no_grad()
def test_members_visited_one_by_one_in_any_order_answer_the_same(name, structure, group):
    model, batch, objective = language_model(), language_batch(), TokenCrossEntropy()
    estimator = zero_order(name, structure, group_size=group)
    population = estimator.ask(model)
    together, _ = estimator.evaluate(model, population, batch, objective)
    size = group if group is not None else ROWS
    losses = torch.full_like(together, torch.nan)
    questions = [
        (place, member) for place in range(len(population.signs)) for member in range(population.size)
    ]
    for index in torch.randperm(len(questions), generator=torch.Generator().manual_seed(3)).tolist():
        place, member = questions[index]
        start = member % (ROWS // size) * size
        rows = slice(start, start + size)
        with population.perturbed(model, member, population.signs[place]):
            outputs, _ = model(batch.inputs[rows])
        tokens = objective.token_losses(outputs, batch.targets[rows])
        losses[place, member] = tokens.sum() / mean_tokens(objective, batch.targets) / size
    torch.testing.assert_close(losses, together, rtol=1e-12, atol=1e-12)
    estimator.tell(model, population, losses)
    found = gradients(model)
    estimator.step = 0
    estimator.estimate(model, batch, objective)
    assert_close(found, gradients(model), rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------- nothing is differentiated


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, outputs):
        return outputs.mean((1, 2))

    @staticmethod
    def backward(context, *gradients):
        raise AssertionError("differentiated")


@each_zero_order
def test_nothing_is_differentiated(name, structure):
    seen = []

    def objective(outputs, targets):
        seen.append((outputs.requires_grad, outputs.grad_fn, torch.is_inference_mode_enabled()))
        return NoBackward.apply(outputs)

    model = language_model(torch.float32)
    zero_order(name, structure).estimate(model, language_batch(), objective)
    assert set(seen) == {(False, None, True)}
    assert not any(gradient.requires_grad for gradient in gradients(model).values())
    with pytest.raises(AssertionError, match="differentiated"):
        BPTT().estimate(model, language_batch(), lambda outputs, targets: NoBackward.apply(outputs))


@each_zero_order_with("fused", [False, True])
def test_no_inference_tensor_is_left_behind(name, structure, fused):
    """Also when the caller's own loop runs in inference mode: optimizers and autograd go on from there."""
    model, batch = language_model(torch.float32), language_batch()
    update = FusedSGD(learning_rate=0.1) if fused else None
    with torch.inference_mode():
        found = zero_order(name, structure).estimate(model, batch, TokenCrossEntropy(), update)
    assert not found.coefficients.is_inference()
    assert not any(gradient.is_inference() for gradient in gradients(model).values())
    assert not any(parameter.is_inference() for parameter in model.parameters())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    BPTT().estimate(model, batch, TokenCrossEntropy())


# -------------------------------------------------------------------------------------- what it is for


def squared_error(outputs, targets):
    return (outputs - targets).square().mean(-1)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *((name, torch.optim.SGD) for name in EVERYONE if name not in RECURRENT),
        ("cd-rank one", torch.optim.Adam),
    ],
)
def test_it_converges_on_a_quadratic(name, optimizer):
    generator = torch.Generator().manual_seed(2)
    model = nn.utils.skip_init(nn.Linear, 2, 1).double()
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    inputs = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    batch = Batch(inputs, inputs.sum(1, keepdim=True) + 1)
    estimator, descent = EVERYONE[name](), optimizer(model.parameters(), lr=0.2)
    cooling = torch.optim.lr_scheduler.LinearLR(descent, 1.0, 0.1, total_iters=50)
    losses = []
    for _ in range(50):
        losses.append(estimator.estimate(model, batch, squared_error).loss)
        descent.step()
        cooling.step()
    with torch.no_grad():
        assert squared_error(model(inputs), batch.targets).mean() < 0.01 * losses[0]


# --------------------------------------------------------------------------------- where it is written


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # in float64 are the tests above
@each_estimator
def test_the_gradient_is_replaced_in_the_parameters_shape_and_dtype(make, dtype):
    model, batch = language_model(dtype), language_batch()
    model.head.bias.requires_grad_(False)
    make().estimate(model, batch, TokenCrossEntropy())
    expected = gradients(model)
    assert set(expected) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in expected.items():
        parameter = model.get_parameter(name)
        assert (gradient.dtype, gradient.shape) == (dtype, parameter.shape)
        assert gradient.abs().sum() > 0
        parameter.grad = torch.full_like(parameter, 1e3)
    found = make().estimate(model, batch, TokenCrossEntropy())
    assert_same(gradients(model), expected)
    norm = torch.cat([gradient.double().flatten() for gradient in expected.values()]).norm()
    assert found.gradient_norm == pytest.approx(float(norm), rel=4 * torch.finfo(dtype).eps)


@each_estimator
def test_the_fused_update_is_sgd_without_a_gradient(make):
    rate, decay, batch = 0.05, 0.3, language_batch()
    plain, fused = language_model(), language_model()
    estimate = make().estimate(plain, batch, TokenCrossEntropy())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1 - rate * decay)  # decoupled, as in AdamW
    torch.optim.SGD(plain.parameters(), lr=rate).step()
    update = FusedSGD(learning_rate=rate, weight_decay=decay)
    estimate_fused = make().estimate(fused, batch, TokenCrossEntropy(), update)
    assert_close(weights(fused), weights(plain), rtol=1e-12, atol=1e-14)
    assert all(parameter.grad is None for parameter in fused.parameters())
    assert estimate_fused.gradient_norm == pytest.approx(estimate.gradient_norm, rel=1e-12)
    assert estimate_fused.loss == estimate.loss
    assert not torch.equal(fused.head.weight, language_model().head.weight)


# --------------------------------------------------------------------------------------- what it costs


@each_zero_order_with("group", GROUPS)
def test_forward_passes_are_the_rows_that_the_model_ran(name, structure, group):
    model, rows = language_model(torch.float32), []
    model.register_forward_hook(lambda module, arguments, output: rows.append(len(arguments[0])))
    estimator = zero_order(name, structure, group_size=group, micro_batch=6)
    found = estimator.estimate(model, language_batch(), TokenCrossEntropy())
    of_member = group if group is not None else ROWS
    members = POPULATION * of_member
    expected = {"cd": 2 * members, "fd": members + ROWS, "spsa15": 2 * members + ROWS}[name]
    assert found.forward_passes == sum(rows) == expected
    assert max(rows) <= 6
